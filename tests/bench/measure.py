"""Measure figures of the README on real swarms of processes on this machine, and write a table for each.

    python -m tests.bench.measure quickstart    three seeds of the quick start and of lean: loss, bytes by kind, memory
    python -m tests.bench.measure exactness     unlike machines: digests under the exact lift and under plain floats

Tables go to examples/results/. Bytes and digests do not depend on the machine's speed; seconds do.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tests.bench.tables import EXAMPLES, RESULTS, table, write_page

RUN_FILE = EXAMPLES / "quickstart.toml"
QUICKSTART_PRESETS = "lordo", "lean"  # the quick start's own, and the one that it ends with a line on
HEAD = (
    "preset", "seed", "first loss", "last loss", "rounds", "wire MB", "dense MB", "factor", "digests equal",
    "seconds a round",
)  # fmt: skip
SAME_SUMS = (
    "On this processor the control, plain float32, has the same sums under all of these; on others it drifts apart."
)
Event = dict[str, Any]


def run_local(*arguments: str) -> tuple[list[Event], dict[str, float]]:
    """Return the events of a local swarm, and the largest resident memory of each kind of process in MB."""
    command = [sys.executable, "-m", "tsr_swarm", "local", str(RUN_FILE), "--json", *arguments]
    events: list[Event] = []
    memory: dict[str, float] = defaultdict(float)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            events.append(json.loads(line))
            if events[-1]["event"] == "evaluated":
                for kind, size in resident(process.pid):
                    memory[kind] = max(memory[kind], size)
    if process.returncode != 0:
        raise SystemExit(f"'{' '.join(command)}' ended with exit code {process.returncode}")
    return events, dict(memory)


def resident(root: int) -> Iterator[tuple[str, float]]:
    """Kind and resident megabytes of every process under ``root``."""
    for child in psutil.Process(root).children(recursive=True):
        try:
            line, size = child.cmdline(), child.memory_info().rss / 1e6
        except psutil.Error:
            continue
        for kind, mark in (("coordinator", "coordinate"), ("peer", "join"), ("p2pd", "p2pd")):
            if any(part == mark or part.endswith("/" + mark) for part in line[:5]):
                yield kind, size
                break


def named(events: Sequence[Event], name: str) -> list[Event]:
    return [event for event in events if event["event"] == name]


def digests(events: Sequence[Event]) -> dict[int, dict[str, str]]:
    """The digests that nodes reported, by round and name."""
    seen: dict[int, dict[str, str]] = defaultdict(dict)
    for event in named(events, "digest_reported"):
        seen[event["round"]][event["name"]] = event["digest"]
    for event in named(events, "round_closed"):
        seen[event["round"]]["coordinator"] = event["digest"]
    return seen


def traffic(rounds: Sequence[Event]) -> dict[str, dict[str, float]]:
    """Mean kB a peer and round, by direction and payload kind."""
    sums: dict[str, dict[str, float]] = {"sent": defaultdict(float), "received": defaultdict(float)}
    for event in rounds:
        for direction, kinds in sums.items():
            for kind, count in event["wire_bytes"][direction].items():
                kinds[kind] += count / event["peers"] / len(rounds) / 1e3
    return sums


@dataclass(frozen=True, slots=True)
class Measured:
    """What the runs of one preset came to, a seed each; kB a peer and round by kind, and memory in MB."""

    rows: list[list[str]]
    losses: list[float]
    kinds: list[dict[str, dict[str, float]]]
    memory: dict[str, float]


def measure_preset(preset: str, seeds: Sequence[int], options: Sequence[str]) -> Measured:
    """Run the quick start once a seed under a preset."""
    found = Measured([], [], [], {})
    for seed in seeds:
        events, used = run_local("--peers", "3", "--set", f"run.seed={seed}", "--preset", preset, *options)
        finished, rounds = named(events, "run_finished")[0], named(events, "round_closed")
        equal = all(len(set(seen.values())) == 1 and len(seen) == 4 for seen in digests(events).values())
        found.losses.append(finished["last_loss"])
        found.rows.append(
            [
                preset,
                str(seed),
                f"{finished['first_loss']:.3f}",
                f"{finished['last_loss']:.3f}",
                str(finished["rounds"]),
                f"{finished['wire_bytes'] / 1e6:.1f}",
                f"{finished['dense_bytes'] / 1e6:.0f}",
                f"{finished['dense_bytes'] / finished['wire_bytes']:.0f}",
                "yes" if equal else "NO",
                f"{statistics.median(event['seconds'] for event in rounds):.1f}",
            ]
        )
        found.kinds.append(traffic(rounds))
        found.memory.update({kind: max(found.memory.get(kind, 0), size) for kind, size in used.items()})
    return found


def quickstart(seeds: Sequence[int], options: Sequence[str]) -> str:
    measured = {preset: measure_preset(preset, seeds, options) for preset in QUICKSTART_PRESETS}
    kind_rows = []
    for preset, found in measured.items():
        for kind in sorted({kind for traffic in found.kinds for counts in traffic.values() for kind in counts}):
            cells = [statistics.mean(one[way].get(kind, 0.0) for one in found.kinds) for way in ("sent", "received")]
            kind_rows.append([preset, kind, *(f"{cell:.1f}" for cell in cells)])
    lines = [
        *table(HEAD, [row for found in measured.values() for row in found.rows]),
        "",
        *(
            f"Last loss of {preset}: median {statistics.median(found.losses):.3f}, "
            f"range {min(found.losses):.3f} to {max(found.losses):.3f}."
            for preset, found in measured.items()
        ),
        "",
        "kB a peer and round (mean; the state is what each peer downloads once, spread over all rounds):",
        "",
        *table(["preset", "kind", "sent", "received"], kind_rows),
        "",
        "Resident memory, the largest seen of each kind of process:",
        "",
        *table(
            ["preset", "process", "MB"],
            [
                [preset, kind, f"{size:.0f}"]
                for preset, found in measured.items()
                for kind, size in sorted(found.memory.items())
            ],
        ),
    ]
    return "\n".join(lines)


def exactness(options: Sequence[str]) -> str:
    unlike = ["--env", "1:OMP_NUM_THREADS=2", "--env", "2:ATEN_CPU_CAPABILITY=default"]
    unlike += ["--env", "2:MKL_ENABLE_INSTRUCTIONS=SSE4_2"]
    short = [part for key in ("k_r", "k_r_embedding", "k_u", "k_v") for part in ("--set", f"periods.{key}=40")]
    nodes, rows = ("coordinator", "peer-1", "peer-2", "peer-3"), []
    arms = ("exact", "lean"), ("exact", "lean"), ("exact", "lordo"), ("exact", "tsr-adam"), ("float32", "lean")
    for lift, preset in arms:
        settings = ["--preset", preset, "--set", f"optimizer.lift={lift}", *(short if preset == "tsr-adam" else [])]
        events, _ = run_local("--peers", "3", "--rounds", "5", *unlike, *settings, *options)
        refreshes = {event["round"]: event["refresh"] for event in named(events, "round_opened")}
        for round, seen in sorted(digests(events).items()):
            equal = "yes" if len(set(seen.values())) == 1 else "no"
            cells = [seen.get(node, "-")[:10] for node in nodes]
            rows.append([lift, preset, str(round), f"{refreshes[round]} blocks", *cells, equal])
    drifted = any(row[0] == "float32" and row[-1] == "no" for row in rows)
    lines = [
        "peer-1 runs with two threads, peer-2 with SSE4.2 only, peer-3 and the coordinator as they are.",
        "Bases are drawn anew every round (lean), follow from published sketches in exact arithmetic (lordo), or come",
        "from a randomized SVD of the mean gradient by the coordinator for all (tsr-adam, with periods of two rounds).",
        "",
        *([] if drifted else [SAME_SUMS, ""]),
        *table(["lift", "preset", "round", "refresh", *nodes, "equal"], rows),
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["quickstart", "exactness"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the table")
    options, local_options = parser.parse_known_args(arguments)  # the others go to 'tsr-swarm local'
    command = " ".join(["python -m tests.bench.measure", options.what, *local_options])
    if options.what == "quickstart":
        title, text = "The quick start: coordinator and three peers", quickstart(options.seeds, local_options)
    else:
        title, text = "Unlike machines: which nodes agree on the weights", exactness(local_options)
    write_page(options.out / f"{options.what}.md", title, command, text)


if __name__ == "__main__":
    main()
