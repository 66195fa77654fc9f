"""Measure what a round costs as the swarm grows: payload and control of every node, and seconds beyond training.

    python -m tests.bench.scale  8, 64 and 512 rehearsed peers, then 8 to 64 real ones: 6 to 12 minutes
    python -m tests.bench.scale --part rehearsed  only the rehearsed ones
    python -m tests.bench.scale --part real  only the real ones

A rehearsal takes the real decisions in virtual time; every message is encoded as a node sends it, and takes its time
on the lines of both ends. With all parts, tables and examples/scale_notes.md go to examples/results/scale.md.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch

from tests.bench.scale.cargo import PRESET, cargo
from tests.bench.scale.costs import DIALABLE, FIRST, LAST, Cost, Spread, simulate
from tests.bench.scale.letters import payload_bytes
from tests.bench.scale.real import COUNTED, UNCOUNTED, RealCost, measure
from tests.bench.scale.swarm import APPLY_SECONDS, AVERAGE_SECONDS, DOWN, LATENCY, TRAIN_SECONDS, UP
from tests.bench.tables import RESULTS, header

NOTES = Path(__file__).with_name("scale_notes.md")
SIZES = (8, 64, 512)
REAL_SIZES = (8, 16, 32, 64)
SHARDS = (8, 75)  # of whole blocks: a run's default, and as many as the preset has
MOST_FIELDS = 14


def amount(count: float) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(count) >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f} B"


def both(spread: Spread) -> str:
    """Median and worst."""
    return f"{amount(spread.median)} / {amount(spread.worst)}"


def percent(spread: Spread) -> str:
    """Median and worst."""
    return f"**{100 * spread.median:.2f}** / {100 * spread.worst:.1f}"


def table(head: Sequence[str], rows: Mapping[str, Sequence[str]]) -> Iterator[str]:
    yield "| " + " | ".join(head) + " |"
    yield "|---" * len(head) + "|"
    for name, cells in rows.items():
        yield f"| {name} | " + " | ".join(cells) + " |"


def costs(found: Sequence[Cost]) -> Iterator[str]:
    """Median and worst peer where there are two figures."""
    rows = {
        "shards": [f"{cost.shards}" for cost in found],
        "payload sent, who can be dialled": [both(cost.sent["dialable"]) for cost in found],
        "payload sent, others": [both(cost.sent["others"]) for cost in found],
        "payload received, who can be dialled": [both(cost.received["dialable"]) for cost in found],
        "payload received, others": [both(cost.received["others"]) for cost in found],
        "control, who can be dialled": [both(cost.control["dialable"]) for cost in found],
        "control, others": [both(cost.control["others"]) for cost in found],
        "control in % of payload, who can be dialled": [percent(cost.share["dialable"]) for cost in found],
        "control in % of payload, others": [percent(cost.share["others"]) for cost in found],
        "control that the leader sends": [amount(cost.leader_sent) for cost in found],
        "control that the leader receives": [amount(cost.leader_received) for cost in found],
        "payload of the leader, both ways": [amount(cost.leader_payload) for cost in found],
        "overhead of a round, s": [f"**{cost.overhead:.2f}**" for cost in found],
        "until the last contribution, s": [f"{cost.phases[0]:.1f}" for cost in found],
        "from there until all is averaged, s": [f"{cost.phases[1]:.2f}" for cost in found],
        "from there until it stands, s": [f"{cost.phases[2]:.2f}" for cost in found],
        "the leader's decisions, s of a core a round": [f"{cost.leader_cpu:.2f}" for cost in found],
        "work that was counted": [f"{100 * cost.included:.0f} %" for cost in found],
        "what must not happen": [f"{len(cost.complaints)}" for cost in found],
    }
    yield from table(["peers", *(f"{cost.peers}" for cost in found)], rows)


def kinds(found: Sequence[Cost]) -> Iterator[str]:
    """Control of all nodes, by kind of message."""
    largest = sorted(found[-1].kinds, key=lambda kind: -found[-1].kinds[kind])
    rows = {}
    for kind in largest:
        cells = []
        for cost in found:
            count, size = cost.letters.get(kind, (0.0, 0.0))
            cells.append(f"{count:.0f} of {amount(size)}: {amount(count * size)}")
        rows[kind] = cells
    yield from table(["message", *(f"{cost.peers} peers" for cost in found)], rows)


def fields(cost: Cost) -> Iterator[str]:
    largest = sorted(cost.fields.items(), key=lambda entry: -entry[1])[:MOST_FIELDS]
    rows = {f"`{name}`": [amount(size), f"{100 * size / sum(cost.fields.values()):.1f} %"] for name, size in largest}
    yield from table(["field", "all nodes, a round", "of control"], rows)


def rehearsed() -> str:
    main = [told(simulate(peers)) for peers in SIZES]
    whole = [told(simulate(peers, cargo(peers, shards, is_whole=True))) for shards in SHARDS for peers in SIZES[1:]]
    sent, received = payload_bytes(cargo(8, 8))
    lines = [
        "## Rehearsed",
        "",
        f"A coordinator and peers of which one in {DIALABLE} can be dialled, nothing going wrong; the real decisions, "
        f"in virtual time. Everybody, the coordinator too, on lines of {UP / 1e6:.0f} Mbit/s up and {DOWN / 1e6:.0f} "
        f"down, {2e3 * LATENCY:.0f} ms there and back: a message leaves when what waits before it has left, and what "
        f"is over 16 kB waits for all that is smaller. Training takes {TRAIN_SECONDS:.0f} s, give or take a fifth by "
        f"chance, whatever the number of peers; applying {APPLY_SECONDS} s, averaging {AVERAGE_SECONDS} s a reducer. "
        f"Payload: the {PRESET} preset with the defaults, as `tsr-swarm plan` has it: {amount(sent)} up and "
        f"{amount(received)} down. Rounds {FIRST} to {LAST}; bytes are a round's mean, of a node, without gRPC's own. "
        "Nobody joins, goes or watches. Overhead: a round's length beyond the training of the slowest peer whose work "
        "is in it.",
        "",
        "### As many shards as reducers, at least 8, all of the same bytes (median / worst peer)",
        "",
        "That is finer than whole blocks at 512 peers, which a run cannot do today.",
        "",
        *costs(main),
        "",
        "### Control by message, a round, all nodes",
        "",
        *kinds(main),
        "",
        f"### Control by field at {SIZES[-1]} peers",
        "",
        *fields(main[-1]),
        "",
        f"### Shards of whole blocks, as a run has them: the default of {SHARDS[0]}, and all {SHARDS[1]} blocks",
        "",
        *costs(whole),
    ]
    return "\n".join(lines)


def told(cost: Cost) -> Cost:
    print(f"{cost.peers} peers, {cost.shards} shards: took {cost.seconds:.0f} s", flush=True)
    return cost


def real() -> str:
    found: list[RealCost] = []
    for peers in REAL_SIZES:
        with tempfile.TemporaryDirectory() as folder:
            found.append(measure(Path(folder), peers))
        print(found[-1], flush=True)
    rows = {
        "seconds from the last contribution to the next round": [
            f"**{cost.gap.median:.2f}** / {cost.gap.worst:.2f}" for cost in found
        ],
        "seconds a round": [f"{cost.round.median:.1f} / {cost.round.worst:.1f}" for cost in found],
        "work that was counted": [f"{100 * cost.included:.0f} %" for cost in found],
        "payload both ways, who can be dialled": [both(cost.payload["dialable"]) for cost in found],
        "payload both ways, others": [both(cost.payload["others"]) for cost in found],
        "control both ways, who can be dialled": [both(cost.control["dialable"]) for cost in found],
        "control both ways, others": [both(cost.control["others"]) for cost in found],
    }
    lines = [
        "## Real",
        "",
        f"A coordinator and peers of which one in {DIALABLE} listens, over real gRPC on loopback, all in one process "
        f"and its one event loop, with a tiny model in {found[0].shards} shards of whole blocks; {COUNTED - 1} rounds "
        f"after the first {UNCOUNTED}. Median and worst round or peer. The machine was shared with others.",
        "",
        *table(["peers", *(f"{cost.peers}" for cost in found)], rows),
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("rehearsed", "real"))
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    runs = {"rehearsed": rehearsed, "real": real}
    if chosen.part is not None:
        print(runs[chosen.part]())
        return
    started = time.monotonic()
    found = [run() for run in runs.values()]
    took = (time.monotonic() - started) / 60
    head = f"{header('python -m tests.bench.scale')} Seed 0. It took {took:.0f} minutes."
    text = "\n\n".join(["# What a round costs as the swarm grows", head, NOTES.read_text().strip(), *found])
    (RESULTS / "scale.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
