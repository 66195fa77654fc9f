"""A voter's journal: its Raft hard state, on disk before the node sends anything that depends on it.

It is kept twice, each copy closed with its own digest. Both are on disk before a vote or an acceptance is sent, so
either of them alone is enough: a copy that is damaged or missing is warned of and written again.
"""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tsr_swarm.errors import PeerError, RunError
from tsr_swarm.process.machine_limits import disk_errors
from tsr_swarm.rounds.raft_state import HardState, RoundRecord
from tsr_swarm.storage.files import decode_digested, encode_digested, fsync, replace_file
from tsr_swarm.telemetry.text import reason_text
from tsr_swarm.wire import fields

FORMAT = 1
NAMES = ("journal.json", "journal.copy.json")
MAX_BYTES = 1 << 16  # a journal has some hundred


class Journal:
    """The newest hard state of one voter in one run. A crash leaves the old one or the new one, whole."""

    def __init__(self, folder: Path, me: str, run: str) -> None:
        """``me``: the voter's peer_id; ``run``: the manifest's digest. A journal of another of either is refused."""
        self._folder, self._me, self._run = folder, me, run
        self._writes = 0  # how often it was written: the greater is the newer

    def load(self, warn: Callable[[str], None]) -> HardState | None:
        """Read what was written last; None if nothing was. Raises RunError where no copy is sound.

        ``warn`` is called with a sentence about a copy that cannot be used.
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
        if not found and not any((self._folder / name).exists() for name in NAMES):
            return None
        if not found:
            raise RunError(
                f"The journal of this node is lost: {', and '.join(faults)}. Restore one of the two from a copy: "
                "without it this node could break a promise that it gave to others."
            )
        for fault in faults:
            warn(f"{fault}; the other copy of the journal is sound and is used.")
        self._writes, hard_state = max(found, key=lambda copy: copy[0])
        return hard_state

    def write(self, hard_state: HardState) -> None:
        """Replace both copies and fsync. Raises RunError, as on a full disk; then nothing may be sent that needs it."""
        body = {"format": FORMAT, "me": self._me, "run": self._run, "writes": self._writes + 1}
        encoded = encode_digested({**body, "ledger": asdict(hard_state)})
        with disk_errors(f"The journal {self._folder / NAMES[0]} cannot be written", "free some space there"):
            self._folder.mkdir(parents=True, exist_ok=True)
            for path in (self._folder / name for name in NAMES):
                replace_file(path, path.with_suffix(".tmp"), encoded)
            fsync(self._folder)
        self._writes += 1

    def _read(self, path: Path) -> tuple[int, HardState]:
        """Read one copy, and how often the journal had been written. Raises OSError, ValueError, TypeError, KeyError
        or PeerError for a file that is not this voter's journal.
        """
        body = _read_body(path)
        if body["run"] != self._run:
            raise ValueError("it is of another run")
        if body["me"] != self._me:
            raise ValueError(f"it is of peer {str(body['me'])[:8]}, whose identity.key belongs beside it")
        return _integer("writes", body["writes"], fields.MAX_COUNT), _hard_state(body["ledger"])


def knows_rounds(folder: Path) -> bool:
    """Whether a journal in ``folder``, whoever's it is, has a round in it or cannot be read."""
    for path in (folder / name for name in NAMES):
        try:
            hard_state = _hard_state(_read_body(path)["ledger"])
        except FileNotFoundError:
            continue
        except (OSError, ValueError, TypeError, KeyError, PeerError):
            return True
        if hard_state.base.round or hard_state.tail is not None:
            return True
    return False


def _read_body(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        data = file.read(MAX_BYTES)
    if b'"format"' not in data:
        raise ValueError("an earlier version of this program wrote it, or it is damaged")
    return decode_digested(data, FORMAT)


def _hard_state(document: dict[str, Any]) -> HardState:
    base = _record("base", document["base"])
    tail = None if document["tail"] is None else _record("tail", document["tail"])
    term = _integer("term", document["term"], fields.MAX_TERM)
    tail_term = _integer("tail_term", document["tail_term"], fields.MAX_TERM)
    if voted_for := document["voted_for"]:
        fields.require_peer_id("voted_for", voted_for)
    fields.require(tail_term <= term, "tail_term", tail_term, f"at most the term, {term}")
    if tail is not None:
        follows = tail.round == base.round + 1 and tail.parent == base.chain
        fields.require(follows, "tail.round", tail.round, f"the one after round {base.round}, which stands")
    return HardState(base=base, term=term, voted_for=voted_for, tail=tail, tail_term=tail_term)


def _record(field: str, document: dict[str, Any]) -> RoundRecord:
    round = _integer(f"{field}.round", document["round"], fields.MAX_ROUND)
    chain, parent = (bytes.fromhex(document[name]) for name in ("chain", "parent"))
    voters = tuple(document["voters"])
    fields.require_chain(f"{field}.chain", chain, round)
    fields.require_chain(f"{field}.parent", parent, round - 1)
    fields.require_voters(f"{field}.voters", voters, 1)
    return RoundRecord(round, chain.hex(), parent.hex(), voters)


def _integer(field: str, value: object, most: int) -> int:
    if type(value) is not int:
        raise TypeError(f"{field} is no integer")
    fields.require_between(field, value, 0, most)
    return value
