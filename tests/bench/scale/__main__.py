"""Measure what a round costs as the swarm grows: payload and control of every node, and seconds beyond training.

    python -m tests.bench.scale                   8, 64 and 512 rehearsed peers, then 8 to 64 real ones: 6 to 12 minutes
    python -m tests.bench.scale --part rehearsed  only print the rehearsed ones
    python -m tests.bench.scale --part real       only print the real ones

A rehearsal takes the real decisions in virtual time; every message is encoded as a node sends it, and takes its time on
the links of both ends. With all parts, tables and scale_notes.md go to examples/results/scale.md.
"""

import argparse
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from tests.bench.scale.costs import DIALABLE, FIRST, LAST, Cost, amount, simulate
from tests.bench.scale.payloads import MODEL_SIZE, round_payloads, whole_bytes
from tests.bench.scale.real import COUNTED, UNCOUNTED, measure, shard_count
from tests.bench.scale.swarm import APPLY_SECONDS, AVERAGE_SECONDS, DOWN, LATENCY, TRAIN_SECONDS, UP
from tests.bench.tables import RESULTS, header, table

NOTES = Path(__file__).with_name("scale_notes.md")
SIZES = (8, 64, 512)
REAL_SIZES = (8, 16, 32, 64)
SHARDS = (8, 75)  # of whole blocks: a run's default, and as many as the model has
MOST_FIELDS = 14


def by_peers(peers: Sequence[int], columns: Sequence[Mapping[str, str]]) -> list[str]:
    """A table with a column for each number of peers."""
    return table(["peers", *map(str, peers)], [[name, *(cells[name] for cells in columns)] for name in columns[0]])


def costs_table(found: Sequence[Cost]) -> list[str]:
    """Median and worst peer where there are two figures."""
    return by_peers([cost.peers for cost in found], [cost.cells for cost in found])


def messages_table(found: Sequence[Cost]) -> list[str]:
    """Control of all nodes, by kind of message."""
    rows = []
    largest = found[-1].messages
    for kind in sorted(largest, key=lambda kind: -largest[kind][0] * largest[kind][1]):
        counts = [cost.messages.get(kind, (0.0, 0.0)) for cost in found]
        rows.append([kind, *(f"{count:.0f} of {amount(size)}: {amount(count * size)}" for count, size in counts)])
    return table(["message", *(f"{cost.peers} peers" for cost in found)], rows)


def fields_table(cost: Cost) -> list[str]:
    largest = sorted(cost.fields.items(), key=lambda entry: -entry[1])[:MOST_FIELDS]
    all_fields = sum(cost.fields.values())
    rows = [[f"`{name}`", amount(size), f"{100 * size / all_fields:.1f} %"] for name, size in largest]
    return table(["field", "all nodes, a round", "of control"], rows)


def rehearsed(sizes: Sequence[int]) -> str:
    main = [simulate_and_print(peers) for peers in sizes]
    large = sizes[1:] or sizes
    whole = [simulate_and_print(peers, shards) for shards in SHARDS for peers in large]
    sent, received = whole_bytes(round_payloads(8, 8))
    lines = [
        "## Rehearsed",
        "",
        f"A coordinator and peers of which one in {DIALABLE} can be dialled, without faults; the real decisions, in "
        f"virtual time. All of them, the coordinator too, on links of {UP / 1e6:.0f} Mbit/s up and {DOWN / 1e6:.0f} "
        f"down, {2e3 * LATENCY:.0f} ms there and back: a message leaves when what waits before it has left, and what "
        f"is over 16 kB waits for all that is smaller. Training takes {TRAIN_SECONDS:.0f} s, give or take a fifth by "
        f"chance, whatever the number of peers; applying {APPLY_SECONDS} s, averaging {AVERAGE_SECONDS} s a reducer. "
        f"Payload: the {MODEL_SIZE} model with the defaults, as `tsr-swarm plan` has it: {amount(sent)} up and "
        f"{amount(received)} down. Rounds {FIRST} to {LAST}; bytes are a round's mean, of a node, without gRPC's own. "
        "No peer joins or leaves, no monitor watches. Overhead: a round's length beyond the training of the slowest "
        "peer whose work is in it.",
        "",
        "### As many shards as reducers, at least 8, all of the same bytes (median / worst peer)",
        "",
        "That is finer than whole blocks at 512 peers, which a run cannot do today.",
        "",
        *costs_table(main),
        "",
        "### Control by message, a round, all nodes",
        "",
        *messages_table(main),
        "",
        f"### Control by field at {sizes[-1]} peers",
        "",
        *fields_table(main[-1]),
        "",
        f"### Shards of whole blocks, as a run has them: the default of {SHARDS[0]}, and all {SHARDS[1]} blocks",
        "",
        *costs_table(whole),
    ]
    return "\n".join(lines)


def simulate_and_print(peers: int, shards: int | None = None) -> Cost:
    """The cost with a shard for each reducer, or with ``shards`` of whole blocks."""
    started = time.monotonic()
    cost = simulate(peers, None if shards is None else round_payloads(peers, shards, is_whole=True))
    print(f"{peers} peers, {cost.cells['shards']} shards: took {time.monotonic() - started:.0f} s", flush=True)
    return cost


def real(sizes: Sequence[int]) -> str:
    columns = []
    for peers in sizes:
        with tempfile.TemporaryDirectory() as folder:
            columns.append(measure(Path(folder), peers))
        print(columns[-1], flush=True)
    lines = [
        "## Real",
        "",
        f"A coordinator and peers of which one in {DIALABLE} listens, over real gRPC on loopback, all in one process "
        f"and its one event loop, with a tiny model in {shard_count()} shards of whole blocks; {COUNTED - 1} rounds "
        f"after the first {UNCOUNTED}. Median and worst round or peer. The machine was shared with others.",
        "",
        *by_peers(sizes, columns),
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("rehearsed", "real"))
    parser.add_argument("--sizes", type=int, nargs="+", help="numbers of peers, of both parts")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the tables")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    started = time.monotonic()
    parts = []
    if options.part != "real":
        parts.append(rehearsed(options.sizes or SIZES))
    if options.part != "rehearsed":
        parts.append(real(options.sizes or REAL_SIZES))
    if options.part is not None:
        print(parts[0])
        return
    took = (time.monotonic() - started) / 60
    head = f"{header('python -m tests.bench.scale')} Seed 0. It took {took:.0f} minutes."
    text = "\n\n".join(["# What a round costs as the swarm grows", head, NOTES.read_text().strip(), *parts])
    (options.out / "scale.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
