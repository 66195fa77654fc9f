"""Draw the bytes of each round at the 60M shapes under the preset tsr-adam: refreshes all at once, and in turn.

    python -m tests.bench.refresh

Counted from the layout of every round, compressed as payloads of that kind are; nothing is trained. The page goes to
examples/results/refresh.md, the picture beside it.
"""

import argparse
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from tests.bench.tables import RESULTS, table, write_page
from tsr_swarm.config.blocks import Block
from tsr_swarm.config.layout import Slot, published_slots, upload_slots
from tsr_swarm.config.load import configure
from tsr_swarm.config.round_plan import Due
from tsr_swarm.config.run import RunConfig, WireConfig
from tsr_swarm.optim.periods import due_blocks
from tsr_swarm.plan.costs import MODEL_SIZES
from tsr_swarm.plan.own_costs import blocks_of, wire_shares

PRESET, SIZE, PEERS, CYCLES = "tsr-adam", "60M", 8, 2
PICTURE = "refresh-bytes.png"
Layout = Callable[[Sequence[Block], Due, WireConfig], tuple[Slot, ...]]
Rounds = Mapping[str, Sequence[Due]]  # what is due in each round, by how refreshes are spread


def planned(config: RunConfig, blocks: Sequence[Block], rounds: int) -> Sequence[Due]:
    """What is really due, in a run that has gone on for a cycle."""
    return [due_blocks(config, blocks, rounds + round) for round in range(1, rounds + 1)]


def at_once(config: RunConfig, blocks: Sequence[Block], rounds: int) -> Sequence[Due]:
    """The same with all blocks' range sketches, projections and moments in the same rounds."""
    every = frozenset(index for index, block in enumerate(blocks) if block.is_low_rank)
    none = frozenset[int]()
    first, second = (int(period) // config.periods.k_x for period in (config.periods.k_u, config.periods.k_v))

    def due(round: int) -> Due:
        turn = (round - 1) % config.refresh_rounds
        return Due(
            range=every if turn == 0 else none,
            project=every if turn == 1 else none,
            first=every if round % first == 0 else none,
            second=every if round % second == 0 else none,
        )

    return [due(round) for round in range(1, rounds + 1)]


def megabytes(config: RunConfig, blocks: Sequence[Block], dues: Sequence[Due], layout: Layout) -> list[float]:
    """MB of a peer in each round, as on the wire."""
    measured = wire_shares(config, PEERS)
    shares = measured.sent if layout is upload_slots else measured.received
    sizes = {
        due: sum(slot.raw_bytes * shares[slot.part.kind] for slot in layout(blocks, due, config.wire))
        for due in set(dues)
    }
    return [sizes[due] / 1e6 for due in dues]


def draw(path: Path, by_way: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), layout="constrained")
    figure.suptitle(f"Bytes of each round: preset {PRESET}, {SIZE} shapes, one peer of {PEERS}")
    for axes, (way, spread) in zip(figure.subplots(2, 1, sharex=True), by_way.items(), strict=True):
        for name, values in spread.items():
            axes.step(range(1, len(values) + 1), values, where="mid", label=f"{name}: largest {max(values):.1f} MB")
        axes.set_ylabel(f"MB {way}")
        axes.set_ylim(bottom=0)
        axes.legend(loc="upper right")
        axes.grid(alpha=0.3)
    axes.set_xlabel("round")
    figure.savefig(path, dpi=110)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the page and the picture")
    options = parser.parse_args(arguments)
    config = replace(configure({"run": {"preset": PRESET}}, environ={}), model=MODEL_SIZES[SIZE].model).definite()
    blocks = blocks_of(config)
    rounds = CYCLES * int(config.periods.k_v) // config.periods.k_x
    spread: Rounds = {"all at once": at_once(config, blocks, rounds), "in turn": planned(config, blocks, rounds)}
    by_way = {
        way: {name: megabytes(config, blocks, dues, layout) for name, dues in spread.items()}
        for way, layout in (("sent", upload_slots), ("received", published_slots))
    }
    rows = [
        [
            way,
            name,
            f"{statistics.mean(values):.2f}",
            f"{max(values):.2f}",
            f"{max(values) / statistics.mean(values):.2f}",
        ]
        for way, named in by_way.items()
        for name, values in named.items()
    ]
    draw(options.out / PICTURE, by_way)
    write_page(
        options.out / "refresh.md",
        f"Bytes of each round: randomized SVDs and moments in turn, preset {PRESET}, {SIZE} shapes",
        "python -m tests.bench.refresh",
        "\n".join(table(["MB a peer", "refreshes and moments", "mean", "largest round", "largest / mean"], rows)),
        f"![Bytes by round]({PICTURE})",
    )


if __name__ == "__main__":
    main()
