"""A voter's journal: what it promised and what it knows to stand, on disk before anybody is told."""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from tsr_swarm.errors import RunError
from tsr_swarm.rounds.council import Ledger, Record
from tsr_swarm.train.checkpoint import sync

_T = TypeVar("_T")


class Journal:
    """The newest ledger of one voter, replaced as a whole: a crash leaves the old one or the new one."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def load(self, genesis: Record) -> Ledger:
        """What was written last; one that begins with ``genesis`` if nothing was. Raises RunError."""
        try:
            return _ledger(json.loads(self._path.read_text("utf-8")))
        except FileNotFoundError:
            return Ledger(genesis)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise RunError(f"The journal {self._path} cannot be read ({error}); restore it from a copy.") from error

    def write(self, ledger: Ledger) -> None:
        """Replace the ledger and fsync. Raises RunError, as on a full disk; then nothing may be told to anybody."""
        aside = self._path.with_suffix(".tmp")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with aside.open("w", encoding="utf-8") as file:
                file.write(json.dumps(asdict(ledger)) + "\n")
                file.flush()
                os.fsync(file.fileno())
            aside.replace(self._path)
            sync(self._path.parent)
        except OSError as error:
            raise RunError(f"The journal {self._path} cannot be written ({error}); free some space there.") from error


def _ledger(document: dict[str, Any]) -> Ledger:
    """Raises TypeError, KeyError or ValueError for what is none."""
    base, tail = _record(document["base"]), document["tail"]
    if base is None:
        raise ValueError("it names no round that stands")
    return Ledger(
        base=base,
        term=_typed(document["term"], int),
        voted_for=_typed(document["voted_for"], str),
        tail=_record(tail),
        tail_term=_typed(document["tail_term"], int),
    )


def _record(document: dict[str, Any] | None) -> Record | None:
    if document is None:
        return None
    return Record(
        round=_typed(document["round"], int),
        chain=_hash(document["chain"]),
        parent=_hash(document["parent"]),
        voters=tuple(_typed(voter, str) for voter in document["voters"]),
    )


def _typed(value: object, kind: type[_T]) -> _T:
    if not isinstance(value, kind):
        raise TypeError(f"{value!r} is no {kind.__name__}")
    return value


def _hash(value: object) -> str:
    return bytes.fromhex(_typed(value, str)).hex()
