"""What the tables of all benches share: their folder, their Markdown, and the line above each that dates it."""

import platform
import subprocess
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import psutil
import torch

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
RESULTS = EXAMPLES / "results"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table."""
    return [f"| {' | '.join(cells)} |" for cells in (head, ("---",) * len(head), *rows)]


def header(command: str) -> str:
    """Return date, commit and machine of a measurement, and the command that repeats it."""
    git = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip() or "unknown"
    cores = psutil.cpu_count()
    return (
        f"Date {datetime.now(UTC):%Y-%m-%d}, commit {commit}, {_processor()}, {cores} cores, "
        f"Python {platform.python_version()}, torch {torch.__version__}. Command: `{command}`"
    )


def _processor() -> str:
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return names[0].partition(":")[2].strip() if names else platform.processor()
