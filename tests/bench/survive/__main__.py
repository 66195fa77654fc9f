"""Runs of real processes under faults: what each fault costs, over as many runs as there is time for.

    python -m tests.bench.survive --seeds 5                  every scenario with seeds 0 to 4, without what is there
    python -m tests.bench.survive --only coordinator-back    one scenario; can be repeated
    python -m tests.bench.survive --minutes 30               start no run after that; Ctrl-C ends it at once, too
    python -m tests.bench.survive --record FILE              a run whose coordinator is killed, for 'tsr-swarm replay'

Each finished run is a line of tests/bench/survive/runs.jsonl and is not run again for the same commit of the package,
unless --again. The table goes to examples/results/survive.md. Files of a run that failed stay in runs/survive, with the
command, all events and logs. Exit code 1 if any run failed.
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

from tests.bench.json_lines import JsonLines
from tests.bench.survive.checks import check_run
from tests.bench.survive.runner import RUN_FILE, Runner
from tests.bench.survive.scenarios import SCENARIOS, SMOKE, arguments
from tests.bench.survive.table import Row, report
from tests.bench.tables import RESULTS, ROOT, header

RUNS = Path(__file__).parent / "runs.jsonl"
KEPT = ROOT / "runs" / "survive"
KNOWN = {**SCENARIOS, SMOKE.name: SMOKE}
RECORDED = ("--peers", "4", "--rounds", "14", "--kill", "coordinator@6/exchange", "--back", "coordinator@10")
RECORDED_SLOWDOWN = 15  # rounds long enough to look at


def package_commit() -> str:
    """The newest commit that changed the package; with a plus, if it was changed since."""
    git = ["git", "-C", str(ROOT)]
    newest = subprocess.run([*git, "log", "-1", "--format=%h", "--", "tsr_swarm"], capture_output=True, text=True)
    changed = subprocess.run([*git, "status", "--porcelain", "--", "tsr_swarm"], capture_output=True, text=True)
    return (newest.stdout.strip() or "unknown") + ("+" if changed.stdout.strip() else "")


def run_one(runner: Runner, name: str, seed: int, commit: str) -> Row:
    """Run a scenario and check it; files are kept if it failed. Raises Interrupted."""
    started, scenario = time.monotonic(), KNOWN[name]
    with tempfile.TemporaryDirectory(prefix="survive-") as temporary:
        folder = Path(temporary) / "run"
        outcome = check_run(scenario, runner.run(scenario, seed, folder))
        if outcome.violations:
            kept = KEPT / f"{name}-{seed}-{datetime.now(UTC):%m%d-%H%M%S}"
            kept.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(folder, kept)
    took, date = round(time.monotonic() - started, 1), f"{datetime.now(UTC):%Y-%m-%d}"
    return Row(scenario=name, seed=seed, date=date, commit=commit, took=took, **asdict(outcome))


def run_all(todo: Sequence[tuple[str, int]], commit: str, minutes: float, jobs: int) -> Generator[Row, None, None]:
    """Yield rows as runs finish. None is started once the time is over; those under way end if this is interrupted."""
    end, runner = time.monotonic() + 60 * minutes, Runner()

    def run_in_time(name: str, seed: int) -> Row | None:
        return run_one(runner, name, seed, commit) if time.monotonic() < end else None

    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(run_in_time, name, seed) for name, seed in todo]
        try:
            for future in as_completed(futures):
                row = future.result()
                if row is not None:
                    yield row
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            runner.close()


def accumulate(options: argparse.Namespace) -> int:
    """Do the runs that are not done at this commit, seed by seed over all scenarios, and write the page."""
    names, lines = options.only or list(SCENARIOS), JsonLines(options.runs)
    rows, commit, failed = [Row(**document) for document in lines.documents], package_commit(), 0
    done = set() if options.again else {(row.scenario, row.seed) for row in rows if row.commit == commit}
    todo = [(name, seed) for seed in range(options.seeds) for name in names if (name, seed) not in done]
    print(f"{len(todo)} runs to do at {commit}, {len(rows)} are there", flush=True)
    try:
        with closing(run_all(todo, commit, options.minutes, options.jobs)) as finished:
            for row in finished:
                lines.append(asdict(row))
                rows.append(row)
                failed += bool(row.violations)
                print(line(row), flush=True)
    except KeyboardInterrupt:
        print("Interrupted; what is finished is kept.", file=sys.stderr)
    finally:
        (options.out / "survive.md").write_text(report(rows, commit, header("python -m tests.bench.survive")), "utf-8")
    return 1 if failed else 0


def line(row: Row) -> str:
    found = f"lost {list(row.lost)}, recovered {list(row.seconds)}, back {list(row.back)}, {row.took:.0f} s"
    return f"{row.scenario}, seed {row.seed}: {found}" + "".join(f"\n    FAILED: {each}" for each in row.violations)


def record(target: Path) -> int:
    """Record a run that goes on without its coordinator, slow enough to follow on the screen."""
    target.unlink(missing_ok=True)
    slow = [part for number in range(1, 5) for part in ("--slow", f"{number}:{RECORDED_SLOWDOWN}")]
    command = [sys.executable, "-m", "tsr_swarm", "local", str(RUN_FILE), *RECORDED, *slow, "--record", str(target)]
    return subprocess.run([*command, "--no-dht", "--plain"], check=False).returncode


def main(arguments_given: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", action="append", choices=list(KNOWN))
    parser.add_argument("--minutes", type=float, default=1e6)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--list", action="store_true", help="the scenarios and their flags with seed 0")
    parser.add_argument("--record", type=Path)
    parser.add_argument("--runs", type=Path, default=RUNS, help="file of finished runs")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the table")
    options = parser.parse_args(arguments_given)
    if options.list:
        for name, scenario in SCENARIOS.items():
            print(f"{name}: {scenario.description}\n    {' '.join(arguments(scenario, 0))}")
        return 0
    return accumulate(options) if options.record is None else record(options.record)


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell starts what is in the background deaf to the first
        signal.signal(number, signal.default_int_handler)
    sys.exit(main())
