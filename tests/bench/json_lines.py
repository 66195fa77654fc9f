"""A file of JSON documents, one a line: what the benches keep of their finished runs."""

import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tsr_swarm.errors import RunError


class JsonLines:
    """Reads all documents once and appends further ones, each on disk before ``append`` returns.

    A last line that a killed process left unfinished is ignored, and the next document takes its place.
    """

    def __init__(self, path: Path) -> None:
        """Raises RunError for a line before the last that is not JSON."""
        self.path = path
        self.documents: list[dict[str, Any]] = []
        self._end = 0  # of the last whole line, in bytes
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        for number, line in enumerate(lines, 1):
            try:
                document = json.loads(line)
            except ValueError as error:
                if number == len(lines):
                    break
                raise RunError(
                    f"{path}, line {number}: {error}; remove the line, and its run is done again."
                ) from error
            self.documents.append(document)
            self._end += len(line)

    def append(self, document: Mapping[str, Any]) -> None:
        """Add a line after those that are there, also after lines of another process."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        data = json.dumps(document, allow_nan=False).encode() + b"\n"
        with self.path.open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(self._end)
            file.truncate(self._end + file.read().rfind(b"\n") + 1)  # without the unfinished line, if there is one
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            self._end = file.tell()
        self.documents.append(dict(document))
