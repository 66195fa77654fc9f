"""A voter's journal: what it promised and what it knows to stand, on disk before anybody is told.

It is kept twice, each copy closed with its own digest. Both are on disk before a promise is carried out, so either
of them alone is enough: a copy that is damaged or gone is told to people and written again.
"""

import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tsr_swarm.errors import PeerError, RunError
from tsr_swarm.rounds.raft_state import HardState, RoundRecord
from tsr_swarm.storage.checkpoint import sync
from tsr_swarm.storage.digested_json import decode_sealed, encode_sealed
from tsr_swarm.telemetry.text import reason_text
from tsr_swarm.wire.fields import (
    MAX_COUNT,
    MAX_ROUND,
    MAX_TERM,
    require,
    require_between,
    require_chain,
    require_peer_id,
    require_voters,
)

FORMAT = 1
NAMES = ("journal.json", "journal.copy.json")
MAX_BYTES = 1 << 16  # a journal has some hundred


class Journal:
    """The newest ledger of one voter in one run. A crash leaves the old one or the new one, whole."""

    def __init__(self, folder: Path, me: str, run: str) -> None:
        """``me``: the voter's peer_id; ``run``: the manifest's digest. A journal of another of either is refused."""
        self._folder, self._me, self._run = folder, me, run
        self._writes = 0  # how often it was written: the greater is the newer

    @property
    def is_there(self) -> bool:
        """Whether either copy exists, be it damaged."""
        return any((self._folder / name).exists() for name in NAMES)

    def load(self, warn: Callable[[str], None]) -> HardState | None:
        """What was written last; None if nothing was. Raises RunError where no copy is sound.

        ``warn`` is told of a copy that cannot be used.
        """
        found, faults = [], []
        for name in NAMES:
            path = self._folder / name
            try:
                found.append(self._read(path))
            except FileNotFoundError:
                faults.append(f"{path} is missing")
            except (OSError, ValueError, TypeError, KeyError, PeerError) as error:
                faults.append(f"{path} cannot be used ({reason_text(error)})")
        if not found and not self.is_there:
            return None
        if not found:
            raise RunError(
                f"The journal of this node is lost: {', and '.join(faults)}. Restore one of the two from a copy: "
                "without it this node could break a promise that it gave to others."
            )
        for fault in faults:
            warn(f"{fault}; the other copy of the journal is sound and is used.")
        self._writes, ledger = max(found, key=lambda each: each[0])
        return ledger

    def write(self, ledger: HardState) -> None:
        """Replace both copies and fsync. Raises RunError, as on a full disk; then nothing may be told to anybody."""
        body = {"format": FORMAT, "me": self._me, "run": self._run, "writes": self._writes + 1}
        encoded = encode_sealed({**body, "ledger": asdict(ledger)})
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            for name in NAMES:
                _replace(self._folder / name, encoded)
            sync(self._folder)
        except OSError as error:
            path = self._folder / NAMES[0]
            raise RunError(
                f"The journal {path} cannot be written ({reason_text(error)}); free some space there."
            ) from error
        self._writes += 1

    def _read(self, path: Path) -> tuple[int, HardState]:
        """One copy and how often the journal had been written. Raises OSError, ValueError, TypeError, KeyError or
        PeerError for what is none of this voter's.
        """
        body = _read_body(path)
        if body["run"] != self._run:
            raise ValueError("it is of another run")
        if body["me"] != self._me:
            raise ValueError(f"it is of peer {str(body['me'])[:8]}, whose identity.key belongs beside it")
        return _integer("writes", body["writes"], MAX_COUNT), _ledger(body["ledger"])


def knows_rounds(folder: Path) -> bool:
    """Whether a journal in ``folder``, anybody's, knows of a round, or cannot be read."""
    for path in (folder / name for name in NAMES):
        try:
            ledger = _ledger(_read_body(path)["ledger"])
        except FileNotFoundError:
            continue
        except (OSError, ValueError, TypeError, KeyError, PeerError):
            return True
        if ledger.base.round or ledger.tail is not None:
            return True
    return False


def _read_body(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        data = file.read(MAX_BYTES)
    if b'"format"' not in data:
        raise ValueError("an earlier version of this program wrote it, or it is damaged")
    body = decode_sealed(data)
    if body["format"] != FORMAT:
        raise ValueError(f"its format is {body['format']}, this program reads {FORMAT}")
    return body


def _replace(path: Path, data: bytes) -> None:
    aside = path.with_suffix(".tmp")
    with aside.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


def _ledger(document: dict[str, Any]) -> HardState:
    base, tail = _record("base", document["base"]), document["tail"]
    ledger = HardState(
        base=base,
        term=_integer("term", document["term"], MAX_TERM),
        voted_for=document["voted_for"],
        tail=None if tail is None else _record("tail", tail),
        tail_term=_integer("tail_term", document["tail_term"], MAX_TERM),
    )
    if ledger.voted_for:
        require_peer_id("voted_for", ledger.voted_for)
    require(ledger.tail_term <= ledger.term, "tail_term", ledger.tail_term, f"at most the term, {ledger.term}")
    if ledger.tail is not None:
        follows = ledger.tail.round == base.round + 1 and ledger.tail.parent == base.chain
        require(follows, "tail.round", ledger.tail.round, f"the one after round {base.round}, which stands")
    return ledger


def _record(field: str, document: dict[str, Any]) -> RoundRecord:
    round = _integer(f"{field}.round", document["round"], MAX_ROUND)
    chain, parent = (bytes.fromhex(document[name]) for name in ("chain", "parent"))
    voters = tuple(document["voters"])
    require_chain(f"{field}.chain", chain, round)
    require_chain(f"{field}.parent", parent, round - 1)
    require_voters(f"{field}.voters", voters, 1)
    return RoundRecord(round, chain.hex(), parent.hex(), voters)


def _integer(field: str, value: object, most: int) -> int:
    if type(value) is not int:
        raise TypeError(f"{field} is no integer")
    require_between(field, value, 0, most)
    return value
