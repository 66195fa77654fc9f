"""The voter's journal: what it promised and accepted, on disk before anybody is told."""

import json
import os
from dataclasses import asdict
from pathlib import Path

from tsr_swarm.errors import RunError
from tsr_swarm.rounds.votes import VoterState
from tsr_swarm.train.checkpoint import sync


class Journal:
    """The newest state of one voter, replaced as a whole: a crash leaves the old one or the new one."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def load(self) -> VoterState:
        """What was written last; a fresh state if nothing was. Raises RunError."""
        try:
            return VoterState(**json.loads(self._path.read_text("utf-8")))
        except FileNotFoundError:
            return VoterState()
        except (OSError, ValueError, TypeError) as error:
            raise RunError(f"The journal {self._path} cannot be read ({error}); restore it from a copy.") from error

    def write(self, state: VoterState) -> None:
        """Replace the state and fsync. Raises RunError, as on a full disk; then nothing may be told to anybody."""
        aside = self._path.with_suffix(".tmp")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with aside.open("w", encoding="utf-8") as file:
                file.write(json.dumps(asdict(state)) + "\n")
                file.flush()
                os.fsync(file.fileno())
            aside.replace(self._path)
            sync(self._path.parent)
        except OSError as error:
            raise RunError(f"The journal {self._path} cannot be written ({error}); free some space there.") from error
