"""What a run leaves behind for who judges it: what was told while it ran, and what stands on each node's disk."""

import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tsr_swarm.storage.digested_json import decode_sealed
from tsr_swarm.telemetry.events import Stamped, decode_stamped
from tsr_swarm.wire.roster import without
from tsr_swarm.wire.v1 import swarm_pb2 as pb

_ROUND = re.compile(r"round-(\d{9})-([0-9a-f]{64})(?:-([0-9a-f]{64}))?\.bin")
_LENGTH = struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class Stood:
    """A round that stands by a node's journal: its chain hash, and for each shard whose work is in it, by peer_id."""

    chain: str
    shards: tuple[frozenset[str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """``story``: what ``tsr-swarm local`` said, each event with the time it came, unix seconds; ``own`` and ``stood``
    by the name of a node: its own events, and the rounds of its journal that were still on its disk.
    """

    story: tuple[Stamped, ...]
    own: Mapping[str, tuple[Stamped, ...]] = field(default_factory=dict)
    stood: Mapping[str, Mapping[int, Stood]] = field(default_factory=dict)
    exit_code: int = 0
    tracebacks: tuple[str, ...] = ()  # the last line of each


def read_own(folder: Path) -> dict[str, tuple[Stamped, ...]]:
    """Each process's own events, of a local run that was kept in ``folder``."""
    return {path.stem: tuple(_events(path)) for path in sorted((folder / "logs").glob("*.jsonl"))}


def _events(path: Path) -> Iterator[Stamped]:
    for line in path.read_text("utf-8", "replace").splitlines():  # a killed process may leave half a line
        stamped = decode_stamped(line)
        if stamped is not None:
            yield stamped


def read_tracebacks(folder: Path) -> tuple[str, ...]:
    """For each log with a traceback in it: the log's name and the error."""
    found = []
    for path in sorted((folder / "logs").glob("*.log")):
        lines = path.read_text("utf-8", "replace").splitlines()
        starts = [place for place, line in enumerate(lines) if line.startswith("Traceback")]
        for start in starts:
            error = next((line for line in lines[start + 1 :] if line and not line.startswith(" ")), "")
            found.append(f"{path.stem}: {error}")
    return tuple(found)


def read_stood(folder: Path) -> dict[str, dict[int, Stood]]:
    """The rounds that stand on each node's disk, of a local run that was kept in ``folder``."""
    journals = sorted(folder.glob("*/journal.json")) + sorted(folder.glob("*/run-*/journal.json"))
    return {path.relative_to(folder).parts[0]: _standing(path) for path in journals}


def _standing(journal: Path) -> dict[int, Stood]:
    """Follow the chain back from the newest round that the journal says to stand."""
    base = decode_sealed(journal.read_bytes())["ledger"]["base"]
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
        found[round] = Stood(chain, _shards(path))
        chain = parent
    return found


def _shards(path: Path) -> tuple[frozenset[str], ...]:
    with path.open("rb") as file:
        (length,) = _LENGTH.unpack(file.read(_LENGTH.size))
        header = pb.PublishedHeader.FromString(file.read(length))
    peers = tuple(peer.hex() for peer in header.included)
    return tuple(frozenset() if shard.void else frozenset(without(peers, shard.absent)) for shard in header.shards)
