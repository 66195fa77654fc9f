"""What all benches share: the folder and the Markdown of their tables, and the line above each that dates it."""

import platform
import subprocess
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import psutil
import torch

from tsr_swarm.config.run import ModelConfig
from tsr_swarm.plan.costs import MODEL_SIZES

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
RESULTS = EXAMPLES / "results"
MODELS = {  # shapes that benches can be run with; the small ones show only that a bench works
    "60M": MODEL_SIZES["60M"].model,
    "tiny": ModelConfig(
        vocab_size=256, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, tie_word_embeddings=False,
    ),
}  # fmt: skip


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


def write_page(path: Path, title: str, command: str, *parts: str) -> None:
    """Write and print a page: its title, the line that dates it, and its parts, with an empty line between any two."""
    text = "\n\n".join([f"# {title}", header(command), *parts]) + "\n"
    path.write_text(text, "utf-8")
    print(text)


def _processor() -> str:
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return names[0].partition(":")[2].strip() if names else platform.processor()
