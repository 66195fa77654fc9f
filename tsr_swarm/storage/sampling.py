"""Text from a run's newest checkpoint."""

import logging
import os
from pathlib import Path

from tsr_swarm.process.machine_limits import memory_errors
from tsr_swarm.storage.run_folder import RunFolder, consensus_of, load_run
from tsr_swarm.train.llama import build_model
from tsr_swarm.train.sample import generate, printable


def sample_checkpoint(folder: Path, prompt: str, *, length: int, temperature: float, seed: int) -> str:
    """``prompt`` and the ``length`` bytes with which the model in a run's folder goes on. Raises CheckpointError."""
    manifest, saved = load_run(RunFolder(folder), logging.getLogger(__name__).warning)
    begin = os.fsencode(prompt)  # the bytes that were typed, whatever the locale
    with memory_errors():
        model = build_model(manifest.config.model, consensus_of(manifest, saved).weights)
        return printable(begin + generate(model, begin, length=length, temperature=temperature, seed=seed))
