"""Measure what a local step costs beside fused AdamW: time, memory, and the products with whole matrices.

    python -m tests.bench.step                      60M shapes of the TSR paper, 2,048 tokens, 1 and 2 threads
    python -m tests.bench.step --repeats 3 --threads 1

All optimizers move the same model in turn, so that whatever else the machine does falls on all of them alike; figures
are medians, and the spread is that of the ratios to AdamW's step of the same repeat. The table goes to
examples/results/step.md.
"""

import argparse
import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from tests.bench.tables import RESULTS, header
from tsr_swarm.config.blocks import plan_blocks
from tsr_swarm.config.run import ModelConfig, OptimizerConfig
from tsr_swarm.lowrank.basis import random_basis
from tsr_swarm.lowrank.packed import packed_bytes
from tsr_swarm.optim.consensus import Consensus
from tsr_swarm.optim.core_space import CoreSpace
from tsr_swarm.optim.core_stack import project, subtract_lifted
from tsr_swarm.optim.full_space import FullSpace
from tsr_swarm.train.llama import Llama, build_model, initial_weights, parameter_shapes

Update = Callable[[], object]
TARGET = RESULTS / "step.md"
MODEL = ModelConfig(
    vocab_size=32000,
    hidden_size=512,
    intermediate_size=1376,
    num_hidden_layers=8,
    num_attention_heads=8,
    num_key_value_heads=8,
    tie_word_embeddings=False,
)
SEQUENCES, TOKENS = 8, 256
RATE = 1e-5  # the model is only moved, not trained: nothing may overflow in a few hundred steps
RANKS = (("d/8", "d/8"), ("d/4", "d/4"), ("d/2", "d/4"), ("d/2", "d/2"))  # of matrices, of embedding and head


@dataclass(frozen=True, slots=True)
class Entry:
    """One optimizer over the shared model. Bytes: what it keeps between steps, and the run's 12-bit bases."""

    name: str
    update: Update
    bytes_kept: int
    bytes_of_bases: int


def live_storages() -> dict[int, int]:
    """Address and bytes of every tensor storage alive in this process."""
    gc.collect()
    # asking every object for its class, as isinstance does, would wake up deprecated lazy ones
    tensors = [found for found in gc.get_objects() if type(found) in (Tensor, nn.Parameter)]
    return {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if t.device.type == "cpu"}


def made_by(make: Callable[[], Update], model: Llama, batch: Tensor) -> tuple[Update, int]:
    """An optimizer's update, and the bytes of all tensors that are there after its first step and were not before."""
    model.zero_grad(set_to_none=True)
    before = live_storages()
    update = make()
    whole_step(model, batch, update)
    model.zero_grad(set_to_none=True)
    return update, sum(size for address, size in live_storages().items() if address not in before)


def whole_step(model: Llama, batch: Tensor, update: Update) -> tuple[float, float]:
    """Seconds of forward, backward and update, and of the update alone."""
    start = time.perf_counter()
    model.zero_grad(set_to_none=True)
    model.loss(batch).backward()  # type: ignore[no-untyped-call]
    middle = time.perf_counter()
    update()
    end = time.perf_counter()
    return end - start, end - middle


def entries(model: Llama, batch: Tensor, weights: Mapping[str, Tensor]) -> list[Entry]:
    parameters = dict(model.named_parameters())

    def adamw() -> Update:
        optimizer = torch.optim.AdamW(parameters.values(), lr=RATE, fused=True)
        return optimizer.step

    made = [Entry("AdamW, fused", *made_by(adamw, model, batch), 0)]
    for rank, embedding_rank in RANKS:
        for inner in ("adam", "muon"):
            settings = OptimizerConfig(rank=rank, embedding_rank=embedding_rank, inner=inner)
            consensus = consensus_of(weights, settings)
            bases = [side for basis in consensus.bases.values() for side in (basis.left, basis.right)]
            update, kept = made_by(lambda c=consensus, s=settings: begun(CoreSpace, parameters, c, s), model, batch)
            name = f"core, {inner}, rank {rank}" + ("" if rank == embedding_rank else f", embedding {embedding_rank}")
            made.append(Entry(name, update, kept, sum(side.nbytes for side in bases)))
    for inner in ("adam", "muon"):
        settings = OptimizerConfig(rank="d/8", embedding_rank="d/8", local_space="full", inner=inner)
        consensus = consensus_of(weights, settings)
        update, kept = made_by(lambda c=consensus, s=settings: begun(FullSpace, parameters, c, s), model, batch)
        made.append(Entry(f"full, {inner}", update, kept, 0))
    return made


def consensus_of(weights: Mapping[str, Tensor], settings: OptimizerConfig) -> Consensus:
    blocks = plan_blocks(parameter_shapes(MODEL), settings, MODEL.hidden_size)
    low_rank = [(index, block) for index, block in enumerate(blocks) if block.is_low_rank]
    bases = {index: random_basis(block.rows, block.cols, block.rank, 0, index) for index, block in low_rank}
    return Consensus(blocks, weights, bases)


def begun(
    space: type[CoreSpace] | type[FullSpace],
    parameters: Mapping[str, nn.Parameter],
    consensus: Consensus,
    settings: OptimizerConfig,
) -> Update:
    made = space(parameters, consensus.blocks, settings)
    made.begin(consensus)
    return lambda: made.step(RATE)


def step_table(made: Sequence[Entry], model: Llama, batch: Tensor, threads: int, repeats: int) -> list[str]:
    torch.set_num_threads(threads)
    times: dict[str, list[tuple[float, float]]] = {entry.name: [] for entry in made}
    for _ in range(repeats):
        for entry in made:
            times[entry.name].append(whole_step(model, batch, entry.update))
    passes = statistics.median(whole - update for pairs in times.values() for whole, update in pairs)
    rival = [whole for whole, _ in times[made[0].name]]
    rival_update = statistics.median(update for _, update in times[made[0].name])
    lines = [
        f"| {threads} thread{'s' * (threads > 1)} | step, s | / AdamW's | spread | update, s | / AdamW's step |",
        "|---|---|---|---|---|---|",
    ]
    for name, pairs in times.items():
        whole, update = (statistics.median(column) for column in zip(*pairs, strict=True))
        ratios = [mine / theirs for (mine, _), theirs in zip(pairs, rival, strict=True)]
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        pooled = (passes + update) / (passes + rival_update)
        cells = (name, f"{whole:.2f}", f"{whole / statistics.median(rival):.3f}", spread, f"{update:.3f}")
        lines.append(f"| {' | '.join(cells)} | {pooled:.3f} |")
    return [*lines, "", f"Forward and backward alone, median over all optimizers: {passes:.2f} s."]


def memory_table(made: Sequence[Entry]) -> list[str]:
    rival = made[0].bytes_kept
    lines = ["| optimizer | MB kept | of AdamW's | with the run's bases, MB | of AdamW's |", "|---|---|---|---|---|"]
    for entry in made:
        both = entry.bytes_kept + entry.bytes_of_bases
        cells = (entry.bytes_kept / 1e6, entry.bytes_kept / rival, both / 1e6, both / rival)
        lines.append(f"| {entry.name} | {cells[0]:.0f} | {cells[1]:.2f} | {cells[2]:.0f} | {cells[3]:.2f} |")
    return lines


def products_table(threads: Sequence[int], repeats: int) -> list[str]:
    """Projection and lift of all blocks, beside ``torch.bmm`` on ready stacks and into ready results."""
    lines = ["| rank | threads | projection, ms | bare, ms | ratio | lift, ms | bare, ms | ratio |", "|" + "---|" * 8]
    for rank, embedding_rank in RANKS:
        settings = OptimizerConfig(rank=rank, embedding_rank=embedding_rank)
        alike: dict[tuple[int, int, int], int] = {}
        for block in plan_blocks(parameter_shapes(MODEL), settings, MODEL.hidden_size):
            if block.is_low_rank:
                key = (block.rows, block.cols, block.rank)
                alike[key] = alike.get(key, 0) + 1
        stacks = [products(count, *shape) for shape, count in alike.items()]
        for count in threads:
            torch.set_num_threads(count)
            seconds: list[tuple[float, ...]] = []
            for _ in range(repeats + 1):  # the first one warms up
                seconds.append(tuple(sum(timed(work) for work in works) for works in zip(*stacks, strict=True)))
            ours, bare, lift, bare_lift = (1e3 * statistics.median(c) for c in zip(*seconds[1:], strict=True))
            name = rank if rank == embedding_rank else f"{rank}, embedding {embedding_rank}"
            lines.append(
                f"| {name} | {count} | {ours:.1f} | {bare:.1f} | {ours / bare:.2f} "
                f"| {lift:.1f} | {bare_lift:.1f} | {lift / bare_lift:.2f} |"
            )
    return lines


def products(count: int, rows: int, cols: int, rank: int) -> tuple[Callable[[], object], ...]:
    """Projection, bare projection, lift and bare lift of one stack of blocks."""
    gradients, core = torch.randn(count, rows, cols), torch.randn(count, rank, rank) * 1e-9
    left, right = torch.randn(count, rows, rank), torch.randn(count, cols, rank)
    apart = [gradient.clone() for gradient in gradients]
    half, small, whole = torch.empty(count, rank, cols), torch.empty_like(core), torch.empty_like(gradients)
    thin = torch.empty(count, rows, rank)

    def bare_projection() -> None:
        if rows >= cols:
            torch.bmm(torch.bmm(left.mT, gradients, out=half), right, out=small)
        else:
            torch.bmm(left.mT, torch.bmm(gradients, right, out=thin), out=small)

    def bare_lift() -> None:
        if rows >= cols:
            torch.bmm(left, torch.bmm(core, right.mT, out=half), out=whole)
        else:
            torch.bmm(torch.bmm(left, core, out=thin), right.mT, out=whole)

    return (
        lambda: project(apart, left, right),
        bare_projection,
        lambda: subtract_lifted(apart, core, left, right),
        bare_lift,
    )


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--out", type=Path, default=TARGET)
    chosen = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(max(chosen.threads))
    weights = initial_weights(MODEL, 0)
    model = build_model(MODEL, weights)
    batch = torch.randint(MODEL.vocab_size, (SEQUENCES, TOKENS + 1))
    made = entries(model, batch, weights)
    matrices = sum(tensor.numel() for tensor in weights.values() if tensor.dim() == 2)
    waiting = packed_bytes(matrices, OptimizerConfig().residual_bits) / 1e6
    tables = [step_table(made, model, batch, count, chosen.repeats) for count in chosen.threads]
    memory, rival = memory_table(made), made[0].bytes_kept / 1e6
    del made  # and with it a gigabyte or two
    large_products = products_table(chosen.threads, 2 * chosen.repeats + 1)
    command = f"python -m tests.bench.step --repeats {chosen.repeats} --threads {' '.join(map(str, chosen.threads))}"
    parameters = sum(tensor.numel() for tensor in weights.values())
    text = [
        "# A local step beside fused AdamW",
        "",
        header(command),
        "",
        f"Model: {parameters / 1e6:.1f}M parameters, fp32 (d {MODEL.hidden_size}, {MODEL.num_hidden_layers} layers, "
        f"{MODEL.vocab_size} tokens, head untied); {SEQUENCES} x {TOKENS} random tokens a step. A step is forward, "
        f"backward and update. Medians of {chosen.repeats} repeats, optimizers in turn; the spread is of the ratios of "
        "single repeats. The last column takes the same seconds for everybody's forward and backward, the median over "
        "all, and adds each one's update: the same ratio with less of the machine's noise in it.",
        "",
    ]
    for table in tables:
        text += [*table, ""]
    text += [
        "Memory of the optimizer: all tensors that are there after a step and were not before it was made, gradients "
        "not counted. A run's bases are kept once, as 16-bit integers, for the exact lift; that and the consensus "
        "weights are the swarm's, whatever the optimizer. Unsent work that a new basis does not hold waits in 8 bits a "
        f"number, which is up to {waiting:.0f} MB more in a core space, {waiting / rival:.2f} of "
        "AdamW's, at a peer that missed a round.",
        "",
        *memory,
        "",
        "Projection U^T G V and lift W -= U D V^T of all blocks, straight from gradients and into parameters, beside "
        f"`torch.bmm` of the same products on ready stacks into ready results (medians of {2 * chosen.repeats + 1}).",
        "",
        *large_products,
    ]
    chosen.out.write_text("\n".join(text) + "\n")
    print(chosen.out.read_text())


if __name__ == "__main__":
    main()
