"""Rehearse what can go wrong: swarms of the real decisions, with virtual clocks, bad networks and bad disks.

    python -m tests.rehearsal --seeds 1000 --jobs 2    schedules 0 to 999; a table of what each kind of fault costs
    python -m tests.rehearsal --replay 200             run 200 seeds twice, in different processes: the same traces?
    python -m tests.rehearsal --seed 17 --trace        one seed, line by line

The table goes to examples/results/rehearsal.md. Exit code 1 if anything happened that must never happen.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor

from tests.bench.tables import RESULTS, header
from tests.rehearsal.rehearse import FaultCount, Outcome, rehearse


def run_all(seeds: Sequence[int], jobs: int) -> list[Outcome]:
    """Every seed's outcome; what must not happen is printed as it is found."""
    outcomes = []
    with ProcessPoolExecutor(jobs) as pool:
        for outcome in pool.map(rehearse, seeds, chunksize=8):
            outcomes.append(outcome)
            for violation in outcome.violations:
                print(f"seed {outcome.seed}: {violation}", flush=True)
    return outcomes


def table(outcomes: Sequence[Outcome]) -> Iterator[str]:
    by_kind: dict[str, list[FaultCount]] = defaultdict(list)
    for outcome in outcomes:
        for count in outcome.fault_counts:
            by_kind[count.kind].append(count)
    yield "| fault | placed | rounds lost | seconds until a round stood: median | longest | never |"
    yield "|---|---|---|---|---|---|"
    for kind, counts in sorted(by_kind.items()):
        seconds = [count.seconds for count in counts if count.seconds is not None]
        middle, most = (f"{f(seconds):.1f}" if seconds else "-" for f in (statistics.median, max))
        lost, never = sum(count.lost_rounds for count in counts), len(counts) - len(seconds)
        yield f"| {kind.replace('_', ' ')} | {len(counts)} | {lost} | {middle} | {most} | {never} |"


def processor_seconds() -> float:
    """Of this process and those it has waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def report(outcomes: Sequence[Outcome], seconds: float, jobs: int, command: str) -> str:
    virtual = sum(outcome.seconds for outcome in outcomes)
    found = [outcome for outcome in outcomes if outcome.violations]
    faults = sum(len(outcome.fault_counts) for outcome in outcomes)
    lines = [
        "# Rehearsal: seeded swarms of the real decisions, with everything going wrong",
        "",
        header(command),
        "",
        f"{len(outcomes)} schedules, {faults} faults, {sum(outcome.rounds for outcome in outcomes)} rounds, "
        f"{virtual / 3600:.1f} hours of virtual time in {seconds:.0f} s with {jobs} processes, "
        f"which used {processor_seconds():.0f} s of the processors they shared with others. "
        f"Schedules in which something happened that must not: {len(found)}.",
        "",
        "A schedule often has several faults; what is counted for one may be due to another. Lost: of the three",
        "rounds after it, those that stand with nobody's work in them (the work is kept and goes out later). Seconds:",
        "from the fault, not from its end. Never: too few voters or peers were left, or the run ended first.",
        "",
        *table(outcomes),
    ]
    lines += [f"\nseed {outcome.seed}: {text}" for outcome in found for text in outcome.violations]
    return "\n".join(lines) + "\n"


def digests(seeds: int) -> Iterator[str]:
    """Digests of the first ``seeds`` schedules, found by another process that orders its sets in another way."""
    environment = {**os.environ, "PYTHONHASHSEED": str(1 + os.getpid() % 1000)}
    command = [sys.executable, "-m", "tests.rehearsal", "--digests", str(seeds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        yield from (line.strip() for line in process.stdout)


def replay(seeds: int) -> int:
    differing = [
        seed
        for seed, other in enumerate(digests(seeds))
        if rehearse(seed).digest != other  # this process and the other work at the same time
    ]
    print(f"{seeds} seeds run twice: {len(differing)} differ {differing[:10] if differing else ''}")
    return 1 if differing else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--replay", type=int, default=0)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--trace", action="store_true")
    parser.add_argument("--digests", type=int, default=0, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.digests:
        for seed in range(chosen.digests):
            print(rehearse(seed).digest, flush=True)
        return 0
    if chosen.replay:
        return replay(chosen.replay)
    if chosen.seed is not None:
        outcome = rehearse(chosen.seed, keeps_trace=chosen.trace)
        print("\n".join([*outcome.trace, *outcome.violations]))
        print(f"seed {outcome.seed}: {outcome.rounds} rounds, {outcome.seconds:.0f} s, digest {outcome.digest}")
        return 1 if outcome.violations else 0
    started = time.perf_counter()
    outcomes = run_all(range(chosen.first, chosen.first + chosen.seeds), chosen.jobs)
    text = report(
        outcomes, time.perf_counter() - started, chosen.jobs, " ".join(["python -m tests.rehearsal", *sys.argv[1:]])
    )
    print(text)
    if not chosen.first:
        (RESULTS / "rehearsal.md").write_text(text)
    return 1 if any(outcome.violations for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
