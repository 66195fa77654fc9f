"""``tsr-swarm sample``: let a run's model write."""

from pathlib import Path
from typing import Annotated

import typer

from tsr_swarm.process.machine_limits import require_process_room


def sample(
    folder: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="Where the run keeps its state: checkpoint.dir.")],
    prompt: Annotated[str, typer.Option(metavar="TEXT", help="What it goes on from.")] = "",
    length: Annotated[int, typer.Option(min=1, max=10**6, metavar="N", help="How many bytes to write.")] = 240,
    temperature: Annotated[float, typer.Option(min=0.0, max=100.0, help="0: always the likeliest byte.")] = 0.8,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="The same seed gives the same text.")] = 0,
) -> None:
    """Let a run's model write. It is read from the newest checkpoint."""
    require_process_room()
    from tsr_swarm.local.folder import run_folder_in
    from tsr_swarm.storage.run_folder import sample_checkpoint

    print(sample_checkpoint(run_folder_in(folder), prompt, length=length, temperature=temperature, seed=seed))
