"""Messages of rounds as dataclasses, and their protobuf forms. ``*_from_proto`` check every bound and raise PeerError.

gate.py checks what needs the state of a run: whether this is the open round, or that peer is known.
"""

import hashlib
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

from google.protobuf.message import DecodeError, Message

from tsr_swarm.config.blocks import Block
from tsr_swarm.config.manifest import Manifest
from tsr_swarm.config.round_plan import Due, RoundPlan
from tsr_swarm.config.run import RunConfig
from tsr_swarm.errors import ConfigError, PeerError
from tsr_swarm.wire.codec import Section
from tsr_swarm.wire.compression import compress, decompress
from tsr_swarm.wire.fields import (
    MAX_ROUND,
    MAX_SEED,
    MAX_STEPS,
    MAX_TERM,
    MAX_TOKENS,
    require,
    require_ascending,
    require_between,
    require_chain,
    require_digest,
    require_peer_id,
    require_real,
    require_voters,
)
from tsr_swarm.wire.roster import absent, everyone, peers_from_bytes, require_each_included, without
from tsr_swarm.wire.v1 import swarm_pb2 as pb

MAX_HEADER_BYTES = 64 << 10
MAX_SIGNATURE_BYTES = 64
MAX_CERTIFICATE_BYTES = 8 << 10
MAX_SHARDS = 1024
MAX_ENERGY = 2.0**128  # any finite float32
MAX_LOSS = 1e6  # nats a token
MAX_SECTIONS = 16  # of one shard
MAX_LINES_BYTES = 8 << 20  # a line has 4 MiB at most, and lines after the first are added up to 1 MiB
_MAX_SECTION_BYTES = 2**40
_LINES_LEVEL = 3  # of zstd: lines of a log are similar, and become a tenth of their length
_ROUND_RULES = "quorum", "floor_seconds", "ceiling_seconds", "budget_kb"
_PLAN_FIELDS = "round", "first_step", "steps", "lr_first", "lr_last", "decay", "seed"

_M = TypeVar("_M", bound=Message)


@dataclass(frozen=True, slots=True, kw_only=True)
class ContributionHeader:
    """A peer's description of its payload for one shard. ``tokens`` is its weight in the mean.

    term: of the plan that it follows.
    kappas, energies: one for each low-rank block of the shard, ascending, in float32, or none; see lowrank/sketch.py.
    """

    protocol: int
    manifest_digest: bytes
    round: int
    parent: bytes
    peer_id: str
    shard: int
    tokens: int
    steps: int
    local_loss: float
    sections: tuple[Section, ...]
    kappas: tuple[float, ...] = ()
    energies: tuple[float, ...] = ()
    term: int = 0


_HEADER_FIELDS = tuple(field.name for field in fields(ContributionHeader))


@dataclass(frozen=True, slots=True)
class ShardResult:
    """What a reducer published of one shard, or that it did not (``void``). ``included``: peer ids, ascending."""

    void: bool = False
    included: tuple[str, ...] = ()
    tokens: int = 0
    sections: tuple[Section, ...] = ()


@dataclass(frozen=True, slots=True)
class PublishedHeader:
    """A committed round as it is fetched, journaled and hashed into the chain.

    voters: peer ids of the voters on the next round, ascending; empty where there is no vote.
    """

    plan: RoundPlan
    shard_blocks: tuple[tuple[int, ...], ...]
    shards: tuple[ShardResult, ...]
    chain: bytes
    voters: tuple[str, ...] = ()

    @property
    def contributors(self) -> frozenset[str]:
        """The peers whose work is in the mean of one or more shards."""
        return frozenset[str]().union(*(result.included for result in self.shards))


def parse(kind: type[_M], data: bytes, limit: int) -> _M:
    """Parse at most ``limit`` bytes. Raises PeerError."""
    if len(data) > limit:
        raise PeerError("size", f"A {kind.__name__} has {len(data)} bytes, more than {limit}; it is refused.")
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise PeerError("malformed", f"A {kind.__name__} cannot be parsed; it is refused.") from error


def _values(source: object, names: Iterable[str]) -> dict[str, Any]:
    return {name: getattr(source, name) for name in names}


def seal(header: ContributionHeader) -> pb.Envelope:
    """Serialise ``header``; a signature will cover exactly these bytes."""
    values = {**_values(header, _HEADER_FIELDS), "sections": sections_to_proto(header.sections)}
    message = pb.ContributionHeader(**values)
    return pb.Envelope(header=message.SerializeToString())


def open_envelope(envelope: pb.Envelope) -> ContributionHeader:
    """Parse and bound the header inside; its author is not checked."""
    require(len(envelope.signature) <= MAX_SIGNATURE_BYTES, "signature", envelope.signature, "at most 64 bytes")
    require(len(envelope.certificate) <= MAX_CERTIFICATE_BYTES, "certificate", envelope.certificate, "at most 8 KiB")
    message = parse(pb.ContributionHeader, envelope.header, MAX_HEADER_BYTES)
    require_digest("manifest_digest", message.manifest_digest)
    require_between("round", message.round, 1, MAX_ROUND)
    require_chain("parent", message.parent, message.round - 1)
    require_peer_id("peer_id", message.peer_id)
    require_between("shard", message.shard, 0, MAX_SHARDS - 1)
    require_between("tokens", message.tokens, 1, MAX_TOKENS)
    require_between("steps", message.steps, 0, MAX_STEPS)
    require_between("term", message.term, 0, MAX_TERM)
    require_real("local_loss", message.local_loss, -MAX_LOSS, MAX_LOSS)
    require_measured(message.kappas, message.energies)
    lists = {"kappas": tuple(message.kappas), "energies": tuple(message.energies)}
    values = _values(message, _HEADER_FIELDS)
    return ContributionHeader(**{**values, **lists, "sections": sections_from_proto(message.sections)})


def require_measured(kappas: Sequence[float], energies: Sequence[float]) -> None:
    """Require shares and energies of equally many blocks; gate.py checks of how many."""
    require(len(energies) == len(kappas), "energies", len(energies), f"as many as kappas, {len(kappas)}")
    for kappa, energy in zip(kappas, energies, strict=True):
        require_real("kappas", kappa, 0.0, 1.0)
        require_real("energies", energy, 0.0, MAX_ENERGY)


def sections_to_proto(sections: Sequence[Section]) -> list[pb.Section]:
    return [pb.Section(kind=s.kind, raw_bytes=s.raw_bytes, wire_bytes=s.wire_bytes, hash=s.hash) for s in sections]


def sections_from_proto(messages: Sequence[pb.Section]) -> tuple[Section, ...]:
    """Read sections; whether they are the legal ones of a round is for ``codec.check_sections``."""
    require(len(messages) <= MAX_SECTIONS, "sections", len(messages), f"at most {MAX_SECTIONS}")
    for message in messages:
        require(0 < len(message.kind) <= 16, "sections", message.kind, "a payload kind")
        require_between("raw_bytes", message.raw_bytes, 1, _MAX_SECTION_BYTES)
        require_between("wire_bytes", message.wire_bytes, 1, 2 * _MAX_SECTION_BYTES)
        require_digest("hash", message.hash)
    return tuple(Section(m.kind, m.raw_bytes, m.wire_bytes, m.hash) for m in messages)


def plan_to_proto(plan: RoundPlan) -> pb.RoundPlan:
    return pb.RoundPlan(
        **_values(plan, _PLAN_FIELDS),
        tangent=sorted(plan.due.tangent),
        range=sorted(plan.due.range),
        project=sorted(plan.due.project),
        parent=bytes.fromhex(plan.parent),
        choose=sorted(plan.due.choose),
        draw=[block for block, _ in plan.due.draw],
        draw_numbers=[number for _, number in plan.due.draw],
        first=sorted(plan.due.first),
        second=sorted(plan.due.second),
    )


def plan_from_proto(message: pb.RoundPlan, blocks: Sequence[Block]) -> RoundPlan:
    """Read an announcement for the manifest's ``blocks``: due blocks are low-rank, or have what is to be averaged."""
    require_between("round", message.round, 1, MAX_ROUND)
    require_between("first_step", message.first_step, 0, MAX_ROUND * MAX_STEPS)
    require_between("steps", message.steps, 1, MAX_STEPS)
    for field in ("lr_first", "lr_last", "decay"):
        require_real(field, getattr(message, field), 0.0, 1.0)
    require(message.decay > 0, "decay", message.decay, "above 0")
    require_chain("parent", message.parent, message.round - 1)
    require_between("seed", message.seed, 0, MAX_SEED)
    due = Due(
        tangent=_due(message, "tangent", blocks),
        range=_due(message, "range", blocks),
        project=_due(message, "project", blocks),
        choose=_due(message, "choose", blocks),
        draw=_draws(message, blocks),
        first=_due(message, "first", blocks),
        second=_due(message, "second", blocks),
    )
    both = sorted(due.choose & (due.range | due.project))
    require(not both, "choose", both[:8], "none of the blocks in range and project")
    return RoundPlan(**_values(message, _PLAN_FIELDS), due=due, parent=message.parent.hex())


def result_to_proto(result: ShardResult, peers: Sequence[str]) -> pb.ShardResult:
    """``peers``: all of the round, those included here among them."""
    return pb.ShardResult(
        void=result.void,
        absent=b"" if result.void else absent(peers, result.included),
        tokens=result.tokens,
        sections=sections_to_proto(result.sections),
    )


def result_from_proto(message: pb.ShardResult, peers: tuple[str, ...]) -> ShardResult:
    """Read a result; whether its sections are the legal ones of a round is for ``codec.check_sections``."""
    if message.void:
        is_empty = not (message.absent or message.tokens or message.sections)
        require(is_empty, "void", message.tokens, "without peers, tokens and sections")
        return ShardResult(void=True)
    included = without(peers, message.absent)
    require_between("tokens", message.tokens, len(included), len(included) * MAX_TOKENS)
    return ShardResult(included=included, tokens=message.tokens, sections=sections_from_proto(message.sections))


def published_to_proto(header: PublishedHeader) -> pb.PublishedHeader:
    """A committed round's header as it is fetched and journaled."""
    peers = everyone(result.included for result in header.shards)
    return pb.PublishedHeader(
        plan=plan_to_proto(header.plan),
        shards=[result_to_proto(result, peers) for result in header.shards],
        chain=header.chain,
        voters=header.voters,
        included=map(bytes.fromhex, peers),
    )


def published_from_proto(message: pb.PublishedHeader, manifest: Manifest) -> PublishedHeader:
    """Read what was published in a run; gate.py checks the chain hash and the sections."""
    plan, shard_blocks = plan_from_proto(message.plan, manifest.blocks), manifest.shard_blocks
    count = len(shard_blocks)
    require(len(message.shards) == count, "shards", len(message.shards), f"one result for each of {count}")
    require_digest("chain", message.chain)
    require_voters("voters", message.voters, 0)
    peers = peers_from_bytes("included", message.included)
    results = tuple(result_from_proto(result, peers) for result in message.shards)
    require_each_included(peers, (result.absent for result in message.shards if not result.void))
    return PublishedHeader(plan, shard_blocks, results, message.chain, tuple(message.voters))


def rules_to_proto(config: RunConfig) -> pb.Rules:
    """The rules in ``config``: what a leader needs of it beside the manifest."""
    return pb.Rules(rounds=config.run.rounds, min_peers=config.run.min_peers, **_values(config.round, _ROUND_RULES))


def with_rules(config: RunConfig, rules: pb.Rules) -> RunConfig:
    """``config`` under ``rules``, each checked as if a user had typed it. Raises PeerError."""
    try:
        run = replace(config.run, rounds=rules.rounds, min_peers=rules.min_peers)
        return replace(config, run=run, round=replace(config.round, **_values(rules, _ROUND_RULES)))
    except ConfigError as error:
        raise PeerError("rules", f"The run's rules are not legal ({error}); ask its organiser.") from error


def lines_to_proto(lines: Sequence[str], last: int) -> pb.WatchReply:
    """Compress lines of a log, which have no newlines. ``last``: the number of the newest one."""
    raw = "\n".join(lines).encode()
    return pb.WatchReply(last=last, lines=compress(raw, _LINES_LEVEL) if lines else b"", lines_bytes=len(raw))


def lines_from_proto(message: pb.WatchReply) -> tuple[list[str], int]:
    """Open the lines of a log, unread, and the number of the newest one. Raises PeerError."""
    require(message.lines_bytes <= MAX_LINES_BYTES, "lines", message.lines_bytes, f"at most {MAX_LINES_BYTES} bytes")
    if not message.lines:
        return [], message.last
    try:
        text = decompress(message.lines, message.lines_bytes).decode()
    except UnicodeDecodeError as error:
        raise PeerError("lines", "Lines of a log are no UTF-8; they are refused.") from error
    return text.split("\n"), message.last


def chain_hash(
    parent: bytes,
    plan: RoundPlan,
    shard_blocks: Sequence[Sequence[int]],
    results: Sequence[ShardResult],
    voters: Sequence[str] = (),
) -> bytes:
    """BLAKE2b-256 that names a round, all that is published in it, and through ``parent`` all rounds before.

    parent: chain hash of the round before. results: one for each set of ``shard_blocks``; their sections stand for
    the bytes through their hashes. voters: those on the next round. Each field is hashed with its length before it;
    protobuf bytes are never hashed, because a message has more than one serialised form.
    """
    peers, due = everyone(result.included for result in results), plan.due
    hashed = [
        parent,
        _numbers([plan.round, plan.first_step, plan.steps]),
        struct.pack("<ddd", plan.lr_first, plan.lr_last, plan.decay),
        *(_numbers(sorted(some)) for some in (due.tangent, due.range, due.project, due.choose, due.first, due.second)),
        _numbers([plan.seed, *(value for pair in due.draw for value in pair)]),
        bytes.fromhex(plan.parent),
        _numbers([len(shard_blocks), len(results), len(voters)]),
        *(_numbers(blocks) for blocks in shard_blocks),
        *(voter.encode() for voter in voters),
        bytes.fromhex("".join(peers)),
    ]
    for result in results:
        hashed.append(_numbers([result.void, result.tokens, len(result.sections)]))
        hashed.append(b"" if result.void else absent(peers, result.included))
        for section in result.sections:
            hashed += [section.kind.encode(), _numbers([section.raw_bytes, section.wire_bytes]), section.hash]
    hasher = hashlib.blake2b(digest_size=32, person=b"tsr/v1/chain")
    for field in hashed:
        hasher.update(struct.pack("<Q", len(field)))
        hasher.update(field)
    return hasher.digest()


def _numbers(values: Sequence[int]) -> bytes:
    return struct.pack(f"<{len(values)}Q", *values)


def _draws(message: pb.RoundPlan, blocks: Sequence[Block]) -> tuple[tuple[int, int], ...]:
    drawn = _due(message, "draw", blocks)
    both = sorted(drawn & {*message.range, *message.project, *message.tangent, *message.choose})
    require(not both, "draw", both[:8], "none of the blocks in tangent, range, project or choose")
    require(len(message.draw_numbers) == len(drawn), "draw_numbers", len(message.draw_numbers), f"{len(drawn)} of them")
    return tuple(zip(message.draw, message.draw_numbers, strict=True))


def _due(message: pb.RoundPlan, field: str, blocks: Sequence[Block]) -> frozenset[int]:
    """The blocks that a field of the plan names, which must be such as can be due in it."""
    indices: Sequence[int] = getattr(message, field)
    require_ascending(field, indices, len(blocks))
    if field in ("first", "second"):
        can, what = all(blocks[index].moment_shape for index in indices), "blocks with moments in shared bases"
    else:
        can, what = all(blocks[index].is_low_rank for index in indices), "low-rank blocks"
    require(can, field, list(indices[:8]), what)
    return frozenset(indices)
