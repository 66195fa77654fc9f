"""The voter's journal: what it promised and accepted, on disk before anybody is told."""

import json
import os
from dataclasses import asdict
from pathlib import Path

from tsr_swarm.errors import RunError
from tsr_swarm.rounds.votes import VoterState


class Journal:
    """Append-only lines of JSON. A last line cut off by a crash was never told to anybody and is ignored."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def load(self) -> VoterState:
        """The newest state written; a fresh one if there is no journal."""
        state = VoterState()
        try:
            lines = self._path.read_text("utf-8").splitlines()
        except FileNotFoundError:
            return state
        except (OSError, UnicodeDecodeError) as error:
            raise RunError(
                f"The journal {self._path} cannot be read ({error}); restore it or start a new run."
            ) from error
        for number, line in enumerate(lines, 1):
            try:
                state = VoterState(**json.loads(line))
            except (ValueError, TypeError) as error:
                if number < len(lines):
                    raise RunError(f"Line {number} of the journal {self._path} is damaged; restore it.") from error
        return state

    def append(self, state: VoterState) -> None:
        """Write and fsync. Raises RunError, for instance on a full disk; then nothing may be told to anybody."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(state)) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise RunError(f"The journal {self._path} cannot be written ({error}); free some space there.") from error
