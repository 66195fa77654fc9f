"""Runs of real processes that things happen to: what each fault costs, accumulated over as many runs as there is time.

    python -m tests.bench.survive --seeds 5                  every scenario with seeds 0 to 4, but what is there already
    python -m tests.bench.survive --only coordinator-back    one scenario; can be repeated
    python -m tests.bench.survive --minutes 30               start no run after that; Ctrl-C ends it at once, too
    python -m tests.bench.survive --record FILE              a run whose coordinator is killed, for 'tsr-swarm replay'

Each finished run is a line of tests/bench/survive/runs.jsonl and is not run again for the same commit of the
package, unless --again. The table goes to examples/results/survive.md. Files of a run that failed stay in
runs/survive, with the command, all events and logs. Exit code 1 if any run failed.
"""

import argparse
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from tests.bench.survive.running import RUN_FILE, Stage
from tests.bench.survive.scenario import arguments
from tests.bench.survive.scenarios import SCENARIOS
from tests.bench.survive.table import Row, append_row, read_rows, report
from tests.bench.survive.verdict import judge
from tests.bench.tables import RESULTS, ROOT, header

RUNS = Path(__file__).parent / "runs.jsonl"
TARGET = RESULTS / "survive.md"
KEPT = ROOT / "runs" / "survive"
RECORDED = ("--peers", "4", "--rounds", "14", "--kill", "coordinator@6/exchange", "--back", "coordinator@10")
PACE = 15  # of the recorded peers: rounds long enough to look at


def package_commit() -> str:
    """The newest commit that changed the package; with a plus, if it was changed since."""
    git = ["git", "-C", str(ROOT)]
    newest = subprocess.run([*git, "log", "-1", "--format=%h", "--", "tsr_swarm"], capture_output=True, text=True)
    changed = subprocess.run([*git, "status", "--porcelain", "--", "tsr_swarm"], capture_output=True, text=True)
    return (newest.stdout.strip() or "unknown") + ("+" if changed.stdout.strip() else "")


def wanted(names: Sequence[str], seeds: int, done: Sequence[Row], commit: str) -> list[tuple[str, int]]:
    """Seed by seed over all scenarios, without what was run at ``commit``."""
    known = {(row.scenario, row.seed) for row in done if row.commit == commit}
    return [(name, seed) for seed in range(seeds) for name in names if (name, seed) not in known]


def run_one(stage: Stage, name: str, seed: int, commit: str) -> Row:
    """Its files are kept if it failed. Raises Interrupted."""
    started, scenario = time.monotonic(), SCENARIOS[name]
    with tempfile.TemporaryDirectory(prefix="survive-") as temporary:
        folder = Path(temporary) / "run"
        verdict = judge(scenario, stage.run(scenario, seed, folder))
        if verdict.violations:
            kept = KEPT / f"{name}-{seed}-{datetime.now(UTC):%m%d-%H%M%S}"
            kept.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(folder, kept)
    return Row(
        scenario=name,
        seed=seed,
        date=f"{datetime.now(UTC):%Y-%m-%d}",
        commit=commit,
        took=round(time.monotonic() - started, 1),
        **asdict(verdict),
    )


def run_all(todo: Sequence[tuple[str, int]], commit: str, minutes: float, jobs: int) -> Generator[Row, None, None]:
    """Rows as runs finish. None is started once the time is over; those under way end if this is interrupted."""
    end, stage = time.monotonic() + 60 * minutes, Stage()

    def run_in_time(name: str, seed: int) -> Row | None:
        return run_one(stage, name, seed, commit) if time.monotonic() < end else None

    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(run_in_time, name, seed) for name, seed in todo]
        try:
            for future in as_completed(futures):
                row = future.result()
                if row is not None:
                    yield row
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            stage.close()


def accumulate(names: Sequence[str], chosen: argparse.Namespace) -> int:
    commit, failed = package_commit(), 0
    rows = read_rows(RUNS)
    todo = wanted(names, chosen.seeds, () if chosen.again else rows, commit)
    print(f"{len(todo)} runs to do at {commit}, {len(rows)} are there", flush=True)
    try:
        with closing(run_all(todo, commit, chosen.minutes, chosen.jobs)) as finished:
            for row in finished:
                append_row(RUNS, row)
                failed += bool(row.violations)
                print(line(row), flush=True)
    except KeyboardInterrupt:
        print("Interrupted; what is finished is kept.", file=sys.stderr)
    finally:
        TARGET.write_text(report(read_rows(RUNS), commit, header("python -m tests.bench.survive")), "utf-8")
    return 1 if failed else 0


def line(row: Row) -> str:
    found = f"lost {list(row.lost)}, recovered {list(row.seconds)}, back {list(row.back)}, {row.took:.0f} s"
    return f"{row.scenario}, seed {row.seed}: {found}" + "".join(f"\n    FAILED: {each}" for each in row.violations)


def record(target: Path) -> int:
    """A run that survives its coordinator, at a pace that people can follow."""
    target.unlink(missing_ok=True)
    slow = [part for who in range(1, 5) for part in ("--slow", f"{who}:{PACE}")]
    command = [sys.executable, "-m", "tsr_swarm", "local", str(RUN_FILE), *RECORDED, *slow, "--record", str(target)]
    return subprocess.run([*command, "--no-dht", "--plain"], check=False).returncode


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", action="append", choices=list(SCENARIOS))
    parser.add_argument("--minutes", type=float, default=1e6)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--list", action="store_true", help="the scenarios and their flags with seed 0")
    parser.add_argument("--record", type=Path)
    chosen = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell starts what is in the background deaf to the first
        signal.signal(number, signal.default_int_handler)
    if chosen.list:
        for name, scenario in SCENARIOS.items():
            print(f"{name}: {scenario.what}\n    {' '.join(arguments(scenario, 0))}")
        return 0
    if chosen.record is not None:
        return record(chosen.record)
    return accumulate(chosen.only or list(SCENARIOS), chosen)


if __name__ == "__main__":
    sys.exit(main())
