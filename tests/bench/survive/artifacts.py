"""What a run leaves behind: the events that were printed while it ran, and what is on each node's disk."""

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tsr_swarm.storage.files import decode_digested
from tsr_swarm.storage.journal import FORMAT
from tsr_swarm.telemetry.events import Stamped, decode_stamped
from tsr_swarm.wire.roster import without
from tsr_swarm.wire.v1 import swarm_pb2 as pb

_ROUND = re.compile(r"round-(\d{9})-([0-9a-f]{64})(?:-([0-9a-f]{64}))?\.bin")
_LENGTH = struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class CommittedRound:
    """A round that is committed by a node's journal: its chain hash, and by shard the peers whose work is in it."""

    chain: str
    shards: tuple[frozenset[str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifacts:
    """``events``: what ``tsr-swarm local`` printed, each with the unix time at which it came.

    ``own_events`` and ``committed`` by node: its own events, and the rounds of its journal that were on its disk.
    """

    events: tuple[Stamped, ...]
    own_events: Mapping[str, tuple[Stamped, ...]] = field(default_factory=dict)
    committed: Mapping[str, Mapping[int, CommittedRound]] = field(default_factory=dict)
    exit_code: int = 0
    tracebacks: tuple[str, ...] = ()  # the last line of each


def read_artifacts(folder: Path, events: list[Stamped], exit_code: int) -> Artifacts:
    """Read what a local run left in ``folder``."""
    logs = folder / "logs"
    journals = sorted(folder.glob("*/journal.json")) + sorted(folder.glob("*/run-*/journal.json"))
    return Artifacts(
        events=tuple(events),
        own_events={path.stem: _events(path) for path in sorted(logs.glob("*.jsonl"))},
        committed={path.relative_to(folder).parts[0]: _committed(path) for path in journals},
        exit_code=exit_code,
        tracebacks=tuple(found for path in sorted(logs.glob("*.log")) for found in _tracebacks(path)),
    )


def _events(path: Path) -> tuple[Stamped, ...]:
    lines = path.read_text("utf-8", "replace").splitlines()  # a killed process may leave half a line
    return tuple(stamped for line in lines if (stamped := decode_stamped(line)) is not None)


def _tracebacks(path: Path) -> list[str]:
    """For each traceback in a log: the log's name and the error."""
    lines, found = path.read_text("utf-8", "replace").splitlines(), []
    for place, line in enumerate(lines):
        if line.startswith("Traceback"):
            error = next((line for line in lines[place + 1 :] if line and not line.startswith(" ")), "")
            found.append(f"{path.stem}: {error}")
    return found


def _committed(journal: Path) -> dict[int, CommittedRound]:
    """Follow the chain back from the newest round that the journal has as committed."""
    base = decode_digested(journal.read_bytes(), FORMAT)["ledger"]["base"]
    files = {}
    for path in (journal.parent / "published").glob("round-*.bin"):
        match = _ROUND.fullmatch(path.name)
        if match is not None:
            files[int(match[1]), match[2]] = (path, match[3])
    found, chain = {}, base["chain"]
    for round in range(base["round"], 0, -1):
        if (round, chain) not in files:
            break
        path, parent = files[round, chain]
        found[round] = CommittedRound(chain, _shards(path))
        chain = parent
    return found


def _shards(path: Path) -> tuple[frozenset[str], ...]:
    with path.open("rb") as file:
        (length,) = _LENGTH.unpack(file.read(_LENGTH.size))
        header = pb.PublishedHeader.FromString(file.read(length))
    peers = tuple(peer.hex() for peer in header.included)
    return tuple(frozenset() if shard.void else frozenset(without(peers, shard.absent)) for shard in header.shards)
