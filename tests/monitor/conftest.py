from pathlib import Path

import pytest

from tests.monitor.on_screen import RUN_LINES


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    """The file of a recorded run."""
    path = tmp_path / "run.jsonl"
    path.write_text("\n".join(RUN_LINES) + "\n")
    return path
