"""Finished runs on disk, one JSON file each, written whole or not at all."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tsr_swarm.errors import RunError
from tsr_swarm.simulate.result import RunResult
from tsr_swarm.simulate.run_spec import RunSpec


@dataclass(frozen=True, slots=True)
class ResultStore:
    """The results under one folder. What is there is not run again."""

    folder: Path

    def path(self, name: str) -> Path:
        """The file of the run with this name."""
        return self.folder / "runs" / f"{name}.json"

    def load(self, spec: RunSpec) -> RunResult | None:
        """The result of ``spec``, if it has been run. Raises RunError for a file that cannot be read."""
        path = self.path(spec.name)
        try:
            text = path.read_text("utf-8")
        except FileNotFoundError:
            return None
        except OSError as error:
            raise RunError(f"{path} cannot be read ({error.strerror}); check its permissions.") from error
        try:
            return RunResult.from_json(json.loads(text))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise RunError(f"{path} is not the result of a run ({error}); remove it, and it is run again.") from error

    def save(self, result: RunResult) -> Path:
        """Keep a result. Raises RunError."""
        return write_json(self.path(result.name), result.to_json())


def write_json(path: Path, document: Mapping[str, Any]) -> Path:
    """Write ``document`` to ``path`` in one step. Raises RunError."""
    return write_text(path, json.dumps(document, indent=1, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> Path:
    """Write ``text`` to ``path`` in one step: a reader finds the old file or the new one. Raises RunError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
        with part.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        raise RunError(f"{path} cannot be written ({error.strerror}); name another folder.") from error
    return path
