"""The folder of a local run, and the run file in it."""

import contextlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from tsr_swarm.config.render import render
from tsr_swarm.config.run import RunConfig
from tsr_swarm.local.faults import COORDINATOR, LocalPlan, name_of
from tsr_swarm.process.machine_limits import disk_errors
from tsr_swarm.train.corpus import absolute_source

RUN_FILE = "run.toml"


def coordinator_folder(folder: Path) -> Path:
    """The folder in which the coordinator of the local run in ``folder`` keeps its state."""
    return folder / name_of(COORDINATOR)


def run_folder_in(folder: Path) -> Path:
    """The coordinator's folder where ``folder`` is a local run's, else ``folder`` itself."""
    return coordinator_folder(folder) if (folder / RUN_FILE).exists() else folder


def fit_config(config: RunConfig, plan: LocalPlan, folder: Path) -> RunConfig:
    """The configuration of a new local run: it waits for all its first peers, and each peer has data of its own."""
    fitted = replace(
        config,
        run=replace(config.run, min_peers=plan.peers),
        data=replace(config.data, source=absolute_source(config.data.source), parts=plan.peers + plan.joins),
    )
    return keep_config(fitted, folder)


def keep_config(config: RunConfig, folder: Path) -> RunConfig:
    """The configuration of a run that goes on: only the folder may have moved."""
    return replace(config, checkpoint=replace(config.checkpoint, dir=str(coordinator_folder(folder))))


def write_run_file(folder: Path, config: RunConfig) -> Callable[[], None]:
    """Make the folder and write the run file. Returns a function that restores what was there. Raises RunError.

    It is for a run that was refused, whose file would be in the way of the next run, or of the one to be resumed.
    """
    path = folder / RUN_FILE
    with disk_errors(f"{folder} cannot be used", "choose a folder you can write to"):
        (folder / "logs").mkdir(parents=True, exist_ok=True)
        before = path.read_bytes() if path.exists() else None
        path.write_text(render(config), "utf-8")

    def restore() -> None:
        with contextlib.suppress(OSError):  # the error that led here is the one to tell
            if before is None:
                path.unlink()
            else:
                path.write_bytes(before)

    return restore
