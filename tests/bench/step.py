"""Measure what a local step costs beside fused AdamW: time, memory, and the products with whole matrices.

    python -m tests.bench.step                      60M shapes of the TSR paper, 2,048 tokens, 1 and 2 threads
    python -m tests.bench.step --repeats 3 --threads 1

All optimizers step on the same model in turn, so that whatever else the machine does slows all of them alike; figures
are medians, and the spread is that of the ratios to AdamW's step of the same repeat. The table goes to
examples/results/step.md.
"""

import argparse
import gc
import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tests.bench.tables import MODELS, RESULTS, table, write_page
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
SEQUENCES, TOKENS = 8, 256
RATE = 1e-5  # so small that nothing overflows in a few hundred steps on random tokens
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


def measure_memory(make: Callable[[], Update], model: Llama, batch: Tensor) -> tuple[Update, int]:
    """Return an optimizer's update, and the bytes of all tensors that are new after its first step."""
    model.zero_grad(set_to_none=True)
    before = live_storages()
    update = make()
    time_step(model, batch, update)
    model.zero_grad(set_to_none=True)
    return update, sum(size for address, size in live_storages().items() if address not in before)


def time_step(model: Llama, batch: Tensor, update: Update) -> tuple[float, float]:
    """Seconds of forward, backward and update, and of the update alone."""
    start = time.perf_counter()
    model.zero_grad(set_to_none=True)
    model.loss(batch).backward()  # type: ignore[no-untyped-call]
    middle = time.perf_counter()
    update()
    end = time.perf_counter()
    return end - start, end - middle


def entries(config: ModelConfig, model: Llama, batch: Tensor, weights: Mapping[str, Tensor]) -> list[Entry]:
    parameters = dict(model.named_parameters())
    adamw = torch.optim.AdamW
    update, kept = measure_memory(lambda: adamw(parameters.values(), lr=RATE, fused=True).step, model, batch)
    found = [Entry("AdamW, fused", update, kept, 0)]
    spaces: list[tuple[type[CoreSpace] | type[FullSpace], str, str, str]] = [
        (CoreSpace, inner, *ranks) for ranks in RANKS for inner in ("adam", "muon")
    ]
    spaces += [(FullSpace, inner, "d/8", "d/8") for inner in ("adam", "muon")]
    for space, inner, rank, embedding_rank in spaces:
        is_core = space is CoreSpace
        settings = OptimizerConfig(
            rank=rank, embedding_rank=embedding_rank, inner=inner, local_space="core" if is_core else "full"
        )
        consensus = make_consensus(config, weights, settings)

        def make(space: Any = space, consensus: Consensus = consensus, settings: OptimizerConfig = settings) -> Update:
            made = space(parameters, consensus.blocks, settings)
            made.begin(consensus)
            return lambda: made.step(RATE)

        update, kept = measure_memory(make, model, batch)
        bases = [side.nbytes for basis in consensus.bases.values() for side in (basis.left, basis.right)]
        name = f"core, {inner}, rank {ranks_text(rank, embedding_rank)}" if is_core else f"full, {inner}"
        found.append(Entry(name, update, kept, sum(bases) if is_core else 0))
    return found


def ranks_text(rank: str, embedding_rank: str) -> str:
    return rank if rank == embedding_rank else f"{rank}, embedding {embedding_rank}"


def make_consensus(config: ModelConfig, weights: Mapping[str, Tensor], settings: OptimizerConfig) -> Consensus:
    blocks = plan_blocks(parameter_shapes(config), settings, config.hidden_size)
    low_rank = [(index, block) for index, block in enumerate(blocks) if block.is_low_rank]
    bases = {index: random_basis(block.rows, block.cols, block.rank, 0, index) for index, block in low_rank}
    return Consensus(blocks, weights, bases)


def step_table(found: Sequence[Entry], model: Llama, batch: Tensor, threads: int, repeats: int) -> str:
    torch.set_num_threads(threads)
    times: dict[str, list[tuple[float, float]]] = {entry.name: [] for entry in found}
    for _ in range(repeats):
        for entry in found:
            times[entry.name].append(time_step(model, batch, entry.update))
    passes = statistics.median(whole - update for pairs in times.values() for whole, update in pairs)
    adamw = [whole for whole, _ in times[found[0].name]]
    adamw_update = statistics.median(update for _, update in times[found[0].name])
    head = [f"{threads} thread{'s' * (threads > 1)}", "step, s", "/ AdamW's", "spread", "update, s", "/ AdamW's step"]
    rows = []
    for name, pairs in times.items():
        whole, update = (statistics.median(column) for column in zip(*pairs, strict=True))
        ratios = [mine / theirs for (mine, _), theirs in zip(pairs, adamw, strict=True)]
        pooled = (passes + update) / (passes + adamw_update)
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        ratio = f"{whole / statistics.median(adamw):.3f}"
        rows.append([name, f"{whole:.2f}", ratio, spread, f"{update:.3f}", f"{pooled:.3f}"])
    last = f"Forward and backward alone, median over all optimizers: {passes:.2f} s."
    return "\n".join([*table(head, rows), "", last])


def memory_table(found: Sequence[Entry]) -> str:
    adamw = found[0].bytes_kept
    rows = []
    for entry in found:
        kept, both = entry.bytes_kept, entry.bytes_kept + entry.bytes_of_bases
        rows.append(
            [entry.name, f"{kept / 1e6:.0f}", f"{kept / adamw:.2f}", f"{both / 1e6:.0f}", f"{both / adamw:.2f}"]
        )
    head = ["optimizer", "MB kept", "of AdamW's", "with the run's bases, MB", "of AdamW's"]
    return "\n".join(table(head, rows))


def products_table(config: ModelConfig, threads: Sequence[int], repeats: int) -> str:
    """Projection and lift of all blocks, beside ``torch.bmm`` on ready stacks and into ready results."""
    rows = []
    for rank, embedding_rank in RANKS:
        settings = OptimizerConfig(rank=rank, embedding_rank=embedding_rank)
        blocks = plan_blocks(parameter_shapes(config), settings, config.hidden_size)
        alike = Counter((block.rows, block.cols, block.rank) for block in blocks if block.is_low_rank)
        stacks = [products(count, *shape) for shape, count in alike.items()]
        for count in threads:
            torch.set_num_threads(count)
            seconds: list[tuple[float, ...]] = []
            for _ in range(repeats + 1):  # the first one warms up
                seconds.append(tuple(sum(timed(work) for work in works) for works in zip(*stacks, strict=True)))
            ours, bare, lift, bare_lift = (1e3 * statistics.median(c) for c in zip(*seconds[1:], strict=True))
            cells = (f"{ours:.1f}", f"{bare:.1f}", f"{ours / bare:.2f}")
            lift_cells = (f"{lift:.1f}", f"{bare_lift:.1f}", f"{lift / bare_lift:.2f}")
            rows.append([ranks_text(rank, embedding_rank), str(count), *cells, *lift_cells])
    head = ["rank", "threads", "projection, ms", "bare, ms", "ratio", "lift, ms", "bare, ms", "ratio"]
    return "\n".join(table(head, rows))


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


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(MODELS), default="60M")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the table")
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    torch.set_num_threads(max(options.threads))
    config = MODELS[options.model]
    weights = initial_weights(config, 0)
    model = build_model(config, weights)
    batch = torch.randint(config.vocab_size, (SEQUENCES, TOKENS + 1))
    found = entries(config, model, batch, weights)
    steps = [step_table(found, model, batch, count, options.repeats) for count in options.threads]
    memory, adamw = memory_table(found), found[0].bytes_kept / 1e6
    del found  # and with it a gigabyte or two
    repeats = 2 * options.repeats + 1
    threads = " ".join(map(str, options.threads))
    write_page(
        options.out / "step.md",
        "A local step beside fused AdamW",
        f"python -m tests.bench.step --repeats {options.repeats} --threads {threads}",
        setting_text(config, weights, options.repeats),
        *steps,
        memory_text(weights, adamw),
        memory,
        "Projection U^T G V and lift W -= U D V^T of all blocks, straight from gradients and into parameters, beside "
        f"`torch.bmm` of the same products on ready stacks into ready results (medians of {repeats}).",
        products_table(config, options.threads, repeats),
    )


def setting_text(config: ModelConfig, weights: Mapping[str, Tensor], repeats: int) -> str:
    parameters = sum(tensor.numel() for tensor in weights.values())
    return (
        f"Model: {parameters / 1e6:.1f}M parameters, fp32 (d {config.hidden_size}, {config.num_hidden_layers} layers, "
        f"{config.vocab_size} tokens, head untied); {SEQUENCES} x {TOKENS} random tokens a step. A step is forward, "
        f"backward and update. Medians of {repeats} repeats, optimizers in turn; the spread is of the ratios of "
        "single repeats. The last column takes the same seconds for everybody's forward and backward, the median over "
        "all, and adds each one's update: the same ratio with less of the machine's noise in it."
    )


def memory_text(weights: Mapping[str, Tensor], adamw: float) -> str:
    """``adamw``: MB that AdamW keeps."""
    matrices = sum(tensor.numel() for tensor in weights.values() if tensor.dim() == 2)
    waiting = packed_bytes(matrices, OptimizerConfig().residual_bits) / 1e6
    return (
        "Memory of the optimizer: all tensors that are there after a step and were not before it was made, gradients "
        "not counted. A run's bases are kept once, as 16-bit integers, for the exact lift; that and the consensus "
        "weights are the swarm's, whatever the optimizer. Unsent work that a new basis does not hold waits in 8 bits a "
        f"number, which is up to {waiting:.0f} MB more in a core space, {waiting / adamw:.2f} of "
        "AdamW's, at a peer that missed a round."
    )


if __name__ == "__main__":
    main()
