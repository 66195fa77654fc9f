"""A folder for processes to work in, in which nothing may be left."""

from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.processes import namespaces, started_here


@pytest.fixture
def folder(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A folder with the module's RUN as ``tiny.toml``. In the end no process, namespace or temporary file is left."""
    (tmp_path / "tiny.toml").write_text(request.module.RUN)
    (tmp_path / "tmp").mkdir()
    names = list(Path("/run").glob("netns/*"))
    yield tmp_path
    _, alive = psutil.wait_procs(started_here(), timeout=30)  # the process that watches over a command ends last
    assert not alive
    assert not list((tmp_path / "tmp").iterdir())
    assert not namespaces()
    assert list(Path("/run").glob("netns/*")) == names
