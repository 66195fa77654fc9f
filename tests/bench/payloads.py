"""Measure how few bytes coarse cores travel in: layouts and zstd levels against the entropy of the symbols.

    python -m tests.bench.payloads    writes examples/results/payloads.md, in a minute

Numbers are drawn from a normal and a Laplace distribution, or taken from what a peer of a small run really sends, its
residual included.
"""

import argparse
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import ParamSpec, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.distributions import Distribution, Laplace, Normal

from tests.bench.tables import EXAMPLES, RESULTS, table, write_page
from tsr_swarm.config.blocks import Block, BlockRole
from tsr_swarm.config.layout import Part, Slot, levels, published_slots, runs_bytes, upload_slots
from tsr_swarm.config.load import load_run_config
from tsr_swarm.config.manifest import make_manifest
from tsr_swarm.config.round_plan import Due
from tsr_swarm.config.run import WireConfig
from tsr_swarm.lowrank.grid import Grid, quantise_coarse, quantise_dead_zone
from tsr_swarm.node.workspace import Workspace
from tsr_swarm.optim.periods import plan_round
from tsr_swarm.optim.publish import publish
from tsr_swarm.optim.quantise import quantise_slot
from tsr_swarm.train.llama import parameter_shapes
from tsr_swarm.train.trainer import fresh_consensus
from tsr_swarm.wire.codec import decode, encode
from tsr_swarm.wire.compression import compress, compress_digits
from tsr_swarm.wire.packing import pack, pack_digits, pack_runs

P = ParamSpec("P")
T = TypeVar("T")
Symbols = NDArray[np.int32]
Cores = Mapping[Slot, Tensor]
Source = Callable[[WireConfig], Cores]
BITS, DENSITIES, LEVELS = (2, 3, 4), (0.02, 0.05, 0.1, 0.25, 0.5), (1, 3, 6, 9, 12, 19)
SMALL = ["model.hidden_size=64", "model.intermediate_size=172", "data.sequence_length=64"]
ROUNDS = 8
LARGE = Slot(0, Part.CORE, 512, 512, 8, 512)


def drawn(distribution: Distribution) -> Source:
    """Cores of 28 matrices at rank 32."""

    def draw(wire: WireConfig) -> Cores:
        torch.manual_seed(0)
        blocks = [Block(name=str(index), rows=64, cols=64, rank=32, role=BlockRole.MATRIX) for index in range(28)]
        return {slot: distribution.sample((slot.rows, slot.cols)) for slot in upload_slots(blocks, Due(), wire)}

    return draw


def trained(wire: WireConfig) -> Cores:
    """The cores of one peer in the last of a few rounds, with what it could not send before."""
    keys = [f"wire.core_bits={wire.core_bits}", f"wire.core_density={wire.core_density}"]
    config = load_run_config(EXAMPLES / "quickstart.toml", [*SMALL, *keys], {})
    manifest = make_manifest("payloads", config, parameter_shapes(config.model))
    workspace = Workspace(manifest, "core", torch.device("cpu"), (), None)
    workspace.take_number(1)
    workspace.replace(fresh_consensus(manifest))
    trainer = workspace.trainer
    names = {index: block.name for index, block in enumerate(manifest.blocks)}
    for round in range(1, ROUNDS + 1):
        plan = plan_round(config, manifest.blocks, round, "")
        work = trainer.train(plan, lambda: False, lambda _: None)
        assert work is not None, "it is not interrupted"
        state = trainer.space.state_dict()
        slots = published_slots(manifest.blocks, plan.due, config.wire)
        mean = {slot: grid.numbers() for slot, grid in work.grids.items()}
        published = publish(mean, slots, manifest.blocks, trainer.consensus.bases)
        trainer.apply(plan, published, frozenset(), frozenset(range(len(manifest.blocks))))
        cores = {slot: state[f"displacement/{names[slot.block]}"] for slot in mean if slot.part is Part.CORE}
    return cores


SOURCES: Mapping[str, Source] = {"normal": drawn(Normal(0, 1)), "Laplace": drawn(Laplace(0, 1)), "a run": trained}


def quantised(cores: Cores) -> dict[Slot, Grid]:
    return {slot: quantise_slot(x, slot) for slot, x in cores.items()}


def symbols_of(grids: Mapping[Slot, Grid]) -> Symbols:
    return np.concatenate([(grid.values // grid.mantissas[:, None]).numpy().ravel() for grid in grids.values()])


def kept(cores: Cores, grids: Mapping[Slot, Grid]) -> float:
    """The share of the cores' energy that is on their grids; the rest stays with their peer."""
    lost = sum(float((x - grids[slot].numbers()).square().sum()) for slot, x in cores.items())
    return 1 - lost / sum(float(x.square().sum()) for x in cores.values())


def entropy_bytes(symbols: Symbols) -> float:
    """Of the symbols one by one, pooled over the payload."""
    counts = np.unique(symbols, return_counts=True)[1]
    return float((counts * np.log2(symbols.size / counts)).sum() / 8)


def layouts(symbols: Symbols, bits: int) -> Iterator[tuple[str, Sequence[bytes]]]:
    """Each as the parts that are compressed apart."""
    numbers = symbols[symbols != 0]
    in_order = pack_digits(2 * (np.abs(numbers) - 1) + (numbers < 0), levels(bits) - 1)
    yield "a byte each", [symbols.astype(np.int8).tobytes()]
    yield "digits", [pack(symbols, bits)]
    yield "bit mask, levels", [np.packbits(symbols != 0).tobytes(), in_order]
    yield "runs, levels", pack_runs(symbols, bits, runs_bytes(symbols.size, bits))


def layout_table(sources: Sequence[str], bits: Sequence[int]) -> str:
    """Bytes of each layout over the entropy: compressed as one, and with each part in blocks of its own."""
    rows = []
    for name, bit, density in itertools.product(sources, bits, DENSITIES):
        cores = SOURCES[name](WireConfig(core_bits=bit, core_density=density))
        grids = quantised(cores)
        symbols = symbols_of(grids)
        entropy = entropy_bytes(symbols)
        cells = [
            " / ".join(f"{len(frame) / entropy:.2f}" for frame in (compress(b"".join(parts), 3), apart(parts)))
            for _, parts in layouts(symbols, bit)
        ]
        each = (f"{kept(cores, grids):.3f}", f"{8 * entropy / symbols.size:.3f}")
        rows.append([name, str(bit), str(density), *each, *cells])
    names = [name for name, _ in layouts(np.array([1], dtype=np.int32), 2)]
    head = ["numbers", "bits", "density", "energy kept", "entropy, bits a number", *names]
    return "\n".join(table(head, rows))


def apart(parts: Sequence[bytes]) -> bytes:
    return compress_digits([part for part in parts if part])


def level_table() -> str:
    rows = []
    for title, parts in payloads():
        raw = b"".join(parts)
        frames = [*(timed(compress, raw, level) for level in LEVELS), timed(apart, parts)]
        cells = [f"{len(frame) / 1e3:.1f} kB, {len(raw) / seconds / 1e6:.0f} MB/s" for frame, seconds in frames]
        rows.append([title, f"{len(raw) / 1e3:.0f}", *cells])
    return "\n".join(table(["payload", "raw kB", *(f"level {level}" for level in LEVELS), "without matches"], rows))


def payloads() -> Iterator[tuple[str, Sequence[bytes]]]:
    """Normal numbers, a quarter of a million of each kind."""
    torch.manual_seed(0)
    x = torch.randn(512, 512)
    for bits in (16, 8):
        values = torch.round(x / 4 * 2 ** (bits - 1)).clamp(1 - 2 ** (bits - 1), 2 ** (bits - 1) - 1)
        yield f"{bits} bits in planes", [pack(values.to(torch.int32).numpy().ravel(), bits)]
    for bits in (4, 3, 2):
        symbols = symbols_of({LARGE: quantise_coarse(x, bits, 512)})
        yield f"{bits} bits in digits", [pack(symbols, bits)]
    for bits, density in ((2, 0.1), (4, 0.1), (3, 0.25)):
        symbols = symbols_of({LARGE: quantise_dead_zone(x, density, bits)})
        yield f"{bits} bits, {density} left, in runs", pack_runs(symbols, bits, runs_bytes(symbols.size, bits))


def speed_table() -> str:
    rows = []
    blocks = [Block(name=str(index), rows=512, cols=512, rank=256, role=BlockRole.MATRIX) for index in range(8)]
    for bits, density in ((16, 1.0), (8, 1.0), (4, 1.0), (2, 1.0), (4, 0.1), (2, 0.1)):
        slots = upload_slots(blocks, Due(), WireConfig(core_bits=bits, core_density=density))
        numbers = {slot: torch.randn(slot.rows, slot.cols) for slot in slots}
        grids, rounding = timed(quantised, numbers)
        (sections, data), encoding = timed(encode, slots, grids, 3)
        _, decoding = timed(decode, slots, sections, data)
        count = sum(slot.size for slot in slots)
        speeds = [f"{count / seconds / 1e6:.0f} M/s" for seconds in (rounding, encoding, decoding)]
        rows.append([f"{bits} bits, {density} left", str(count), f"{len(data) / 1e3:.0f}", *speeds])
    return "\n".join(table(["wire", "numbers", "wire kB", "rounding", "encoding", "decoding"], rows))


def timed(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> tuple[T, float]:
    """What ``call`` returns, and the median of its seconds."""
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        result = call(*args, **kwargs)
        seconds.append(time.perf_counter() - started)
    return result, statistics.median(seconds)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sources", nargs="+", choices=list(SOURCES), default=list(SOURCES))
    parser.add_argument("--bits", type=int, nargs="+", default=BITS)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the table")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    write_page(
        options.out / "payloads.md",
        "Payloads: layouts and zstd levels against the entropy",
        "python -m tests.bench.payloads",
        "One thread. Cores behind a dead zone: wire bytes by layout as multiples of the entropy of the numbers one by\n"
        "one, at zstd level 3 / with each part in blocks of its own and without short matches. The latter is in use,\n"
        "with runs below a density of 0.5 and digits from there on. Energy kept: of a core with its residual.",
        layout_table(options.sources, options.bits),
        "zstd levels, a quarter of a million normal numbers. The last column is in use for all that has mantissas,\n"
        "the levels (`wire.zstd_level`) for all else.",
        level_table(),
        "Numbers a second of whole payloads, 8 cores of rank 256, zstd level 3 where it is used:",
        speed_table(),
    )


if __name__ == "__main__":
    main()
