"""Draw the bytes of each round at the 60M shapes under the preset tsr-adam: refreshes all at once, and in turn.

    python -m tests.bench.refresh

Counted from the layout of every round, compressed as payloads of that kind are; nothing is trained. The page goes to
examples/results/refresh.md, the picture beside it.
"""

import argparse
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from tests.bench.tables import RESULTS, table, write_page
from tsr_swarm.config.blocks import Block
from tsr_swarm.config.layout import SlotsOf, published_slots, upload_slots
from tsr_swarm.config.load import configure
from tsr_swarm.config.round_plan import Due
from tsr_swarm.config.run import RunConfig, WireConfig
from tsr_swarm.plan.costs import MODEL_SIZES
from tsr_swarm.plan.own_costs import blocks_of, cycle, raw_bytes, wire_shares

PRESET, SIZE, PEERS, CYCLES = "tsr-adam", "60M", 8, 2
PICTURE = "refresh-bytes.png"


def at_once(config: RunConfig, blocks: Sequence[Block], rounds: int) -> Sequence[Due]:
    """What would be due with all blocks' range sketches, projections and moments in the same rounds."""
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


def megabytes(
    blocks: Sequence[Block], wire: WireConfig, rounds: Sequence[Due], slots_of: SlotsOf, shares: Mapping[str, float]
) -> list[float]:
    """MB of a peer in each round, as on the wire."""
    by_kind = raw_bytes(blocks, wire, rounds, slots_of)
    return [sum(count * shares[kind] for kind, count in kinds.items()) / 1e6 for kinds in by_kind]


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
    in_turn, shares = cycle(config, blocks) * CYCLES, wire_shares(config, PEERS)
    spread = {"all at once": at_once(config, blocks, len(in_turn)), "in turn": in_turn}
    ways = (("sent", upload_slots, shares.sent), ("received", published_slots, shares.received))
    by_way = {
        way: {name: megabytes(blocks, config.wire, rounds, slots_of, left) for name, rounds in spread.items()}
        for way, slots_of, left in ways
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
