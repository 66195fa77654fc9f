"""The folder of a local run, and the run file in it."""

import contextlib
from collections.abc import Callable
from pathlib import Path

from tsr_swarm.config.render import render
from tsr_swarm.config.run import RunConfig
from tsr_swarm.errors import RunError
from tsr_swarm.local.faults import COORDINATOR, name_of

RUN_FILE = "run.toml"


def coordinator_folder(folder: Path) -> Path:
    """Where the coordinator of the local run in ``folder`` keeps its state."""
    return folder / name_of(COORDINATOR)


def run_folder_in(folder: Path) -> Path:
    """The coordinator's folder where ``folder`` is a local run's, else ``folder`` itself."""
    return coordinator_folder(folder) if (folder / RUN_FILE).exists() else folder


def write_run_file(folder: Path, config: RunConfig) -> Callable[[], None]:
    """Make the folder and write the run file; returns what takes it back, for a run that does not begin.

    Else a run that was refused would stand in the way of the next, or of the one that was to be resumed.
    Raises RunError.
    """
    path = folder / RUN_FILE
    try:
        (folder / "logs").mkdir(parents=True, exist_ok=True)
        before = path.read_bytes() if path.exists() else None
        path.write_text(render(config), "utf-8")
    except OSError as error:
        raise RunError(f"{folder} cannot be used ({error.strerror}); choose a folder you can write to.") from error

    def take_back() -> None:
        with contextlib.suppress(OSError):  # the error that led here is the one to tell
            if before is None:
                path.unlink()
            else:
                path.write_bytes(before)

    return take_back
