"""Measure what a round costs as the swarm grows: payload and control of every node, and seconds beyond training.

    python examples/scale.py                    8, 64 and 512 rehearsed peers, then 8 to 64 real ones in this process
    python examples/scale.py --part rehearsed   only the rehearsed ones
    python examples/scale.py --part real        only the real ones

A rehearsal takes the real decisions in virtual time; every message is encoded as a node sends it, and takes its time
on the lines of both ends. With all parts, tables and examples/scale_notes.md go to examples/results/scale.md.
"""

import argparse
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from measure import HERE, header
from scaling.cargo import PRESET, cargo
from scaling.costs import DIALABLE, FIRST, LAST, Cost, Spread, shards_for, simulate
from scaling.letters import payload_bytes
from scaling.real import COUNTED, UNCOUNTED, RealCost, measure
from scaling.swarm import APPLY_SECONDS, AVERAGE_SECONDS, DOWN, LATENCY, TRAIN_SECONDS, UP

NOTES = HERE / "scale_notes.md"
SIZES = (8, 64, 512)
REAL_SIZES = (8, 16, 32, 64)
WIDE = 1e9  # bits a second of a coordinator that can send whatever it likes
ROUNDS = LAST - FIRST + 1
MOST_FIELDS = 14


def amount(count: float) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(count) >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f} B"


def both(spread: Spread) -> str:
    """Median and worst."""
    return f"{amount(spread.median)} / {amount(spread.worst)}"


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
        "control in % of the peer's payload": [
            f"**{100 * cost.share.median:.2f}** / {100 * cost.share.worst:.1f}" for cost in found
        ],
        "control that the leader sends": [amount(cost.leader_sent) for cost in found],
        "control that the leader receives": [amount(cost.leader_received) for cost in found],
        "payload of the leader, both ways": [amount(cost.leader_payload) for cost in found],
        "overhead of a round, s": [f"**{cost.overhead:.2f}**" for cost in found],
        "until the last contribution, s": [f"{cost.phases[0]:.1f}" for cost in found],
        "from there until all is averaged, s": [f"{cost.phases[1]:.2f}" for cost in found],
        "from there until it stands, s": [f"{cost.phases[2]:.2f}" for cost in found],
        "the leader's decisions, s of a core a round": [f"{cost.leader_cpu:.2f}" for cost in found],
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


def changes(cost: Cost) -> Iterator[str]:
    rows = {
        gain.name: [amount(size) for size in (gain.all, gain.leader, gain.dialable, gain.others)]
        for gain in gains(cost, ROUNDS)
    }
    head = ["instead", "all nodes", "the leader", "median peer that can be dialled", "median other"]
    yield from table(head, rows)


def rehearsed() -> str:
    today = []
    mended = []
    for peers in SIZES:
        goods = cargo(peers, shards_for(peers))
        today.append(simulate(peers, goods, Wire(leader=WIDE)))
        print(f"{peers} peers took {today[-1].seconds:.0f} s", flush=True)
        mended.append(simulate(peers, goods, Wire(mend=Mended(MENDS, peers, goods.shards))))
        print(f"{peers} peers, mended, took {mended[-1].seconds:.0f} s", flush=True)
    whole = [simulate(peers, cargo(peers, 75, is_whole=True), Wire(leader=WIDE)) for peers in SIZES[:-1]]
    sent, received = payload_bytes(cargo(8, 8))
    lines = [
        "## Rehearsed",
        "",
        f"A coordinator and peers of which one in {DIALABLE} can be dialled, nothing going wrong; the real decisions, "
        f"in virtual time. Lines of {UP / 1e6:.0f} Mbit/s up and {DOWN / 1e6:.0f} down, {2e3 * LATENCY:.0f} ms there "
        "and back: a message leaves when what waits before it has left, and what is over 16 kB waits for all that is "
        f"smaller. Training takes {TRAIN_SECONDS:.0f} s, give or take a fifth by chance, whatever the number of peers; "
        f"applying {APPLY_SECONDS} s, averaging {AVERAGE_SECONDS} s a reducer. Payload: the {PRESET} preset with the "
        f"defaults, as `tsr-swarm plan` has it: {amount(sent)} up and {amount(received)} down. Shards: as many as "
        "there are reducers, at least 8, all of the same bytes; that is finer than whole blocks at 512 peers, which "
        "a run cannot do today. Rounds "
        f"{FIRST} to {LAST}; bytes are a round's mean, of a node, without gRPC's own. Nobody joins or goes. Overhead: "
        "a round's length beyond the training of the slowest peer whose work is in it.",
        "",
        "### Today's wire, the coordinator on a line of 1 Gbit/s (median / worst peer)",
        "",
        *costs(today),
        "",
        "### Control by message, a round, all nodes",
        "",
        *kinds(today),
        "",
        f"### Control by field at {SIZES[-1]} peers",
        "",
        *fields(today[-1]),
        "",
        f"### What would be saved at {SIZES[-1]} peers, each change by itself",
        "",
        *changes(today[-1]),
        "",
        f"### All changes together, the coordinator on {UP / 1e6:.0f} Mbit/s too (median / worst peer)",
        "",
        *costs(mended),
        "",
        *kinds(mended),
        "",
        "### Shards of whole blocks, shared out by the blocks' own sizes as today (75 of them)",
        "",
        *costs(whole),
    ]
    return "\n".join(lines)


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
    found = [run() for run in runs.values()]
    head = f"{header('python examples/scale.py')} Seed 0."
    text = "\n\n".join(["# What a round costs as the swarm grows", head, NOTES.read_text().strip(), *found])
    (HERE / "results" / "scale.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
