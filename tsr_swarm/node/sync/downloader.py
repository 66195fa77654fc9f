"""All that a node downloads: proposals that it votes on, committed rounds, and a state if that is fewer bytes."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from weakref import WeakValueDictionary

from tsr_swarm.config.manifest import Manifest
from tsr_swarm.errors import PeerError, RefusedError, RunError, UnreachableError
from tsr_swarm.exchange.reduction import Published
from tsr_swarm.node.round_cache import Headers
from tsr_swarm.node.sync.donors import Donors, ShardDonors
from tsr_swarm.node.sync.rounds import FetchedRound, Frames, RoundDownload
from tsr_swarm.node.sync.state import StateDownload
from tsr_swarm.rounds.catch_up import choose_way, donors_of_header
from tsr_swarm.rounds.raft_state import RoundRecord
from tsr_swarm.storage.round_log import RoundLog
from tsr_swarm.storage.run_folder import record_of
from tsr_swarm.storage.state_file import StateAssembly
from tsr_swarm.telemetry.events import CatchingUp, Warned
from tsr_swarm.transport.client import SwarmClient
from tsr_swarm.wire.checks import check
from tsr_swarm.wire.v1 import swarm_pb2 as pb

Fetched = tuple[pb.PublishedHeader, bytes, Published]


@dataclass(slots=True, kw_only=True, eq=False)
class Downloader:
    """The downloads of one node. Donors and sources are given as peer_ids, the likeliest to have the data first."""

    donors: Donors
    manifest: Manifest
    me: str
    first: str  # the coordinator
    folder: Path  # where states are downloaded to
    log: RoundLog | None  # where the node keeps rounds; None for one that cannot be dialled
    own: Frames = lambda round, shard, hashes: None  # that this node reduced itself
    headers: Headers = field(default_factory=Headers)  # of rounds whose shards it is still fetching, for others
    rounds: RoundDownload = field(init=False)
    states: StateDownload = field(init=False)
    _missed: dict[int, FetchedRound] = field(default_factory=dict)
    _is_catching_up: bool = False  # rounds or a state have been chosen, and there is more to fetch
    _locks: WeakValueDictionary[str, asyncio.Lock] = field(default_factory=WeakValueDictionary)  # by chain hash

    def __post_init__(self) -> None:
        self.rounds = RoundDownload(self.donors, self.manifest, self.me)
        self.states = StateDownload(self.donors, self.manifest, self.folder)

    async def proposal(self, record: RoundRecord, sources: Sequence[str], donors: Sequence[str]) -> None:
        """Store the proposal of ``record``, checked, unless it is on disk. ``sources`` reduced its shards.

        donors: they send the header, and shards that their sources do not; the proposing leader first.

        Raises UnreachableError if nobody sends it, RefusedError if it is not what ``record`` says, and RunError if it
        cannot be stored.
        """
        assert self.log is not None, "a voter can be dialled"
        async with self._lock(record.chain):
            stored = await self._from_disk(record.round, record.chain)
            if stored is None:
                try:
                    clients = await self.donors.clients(donors)
                    stored = await self._by_shards(record, sources, (), clients, is_awaited=True)
                except RefusedError as error:
                    raise UnreachableError(f"{error} It may come.") from error
            message, data, published = stored
            if record_of(published.header) != record:
                raise RefusedError(
                    f"Round {record.round} was proposed with another parent or voters than it has; refused."
                )
            await asyncio.to_thread(self.log.store, message, data)

    async def round(
        self, round: int, newest: RoundRecord, parent: str, sources: Sequence[str], donors: Sequence[str]
    ) -> Fetched | None:
        """Fetch ``round``, which follows chain hash ``parent``. ``newest`` is committed; ``sources`` reduced it.

        None: fetch a state instead. Raises UnreachableError if nobody can be reached: try again later.
        """
        assert round <= newest.round, "it is committed"
        fetched = await self._from_disk(round, newest.chain if round == newest.round else "")
        if fetched is None:
            clients = await self.donors.clients(donors)
            try:
                if round < newest.round or round in self._missed:
                    fetched = await self._one_of_many(round, newest, clients)
                else:
                    fetched = await self._newest(newest, sources, donors)
            except RefusedError as error:
                if await self._is_in_a_state(round, clients):
                    return None  # nobody keeps it any more
                raise UnreachableError(f"{error} It may come.") from error
        self._is_catching_up = fetched is not None and round < newest.round
        self._missed = {later: kept for later, kept in self._missed.items() if later > round}
        return None if fetched is None or fetched[2].header.plan.parent != parent else fetched

    async def state(
        self, donors: Sequence[str], should_stop: Callable[[], bool]
    ) -> tuple[StateAssembly, int, RoundRecord]:
        """Fetch a recent state. Returns it, the number of its donors, and its round. ``donors``: the leader first.

        Raises UnreachableError if it breaks off: call again, it continues where it was.
        """
        clients = await self.donors.clients(donors)
        description, source = await self.states.find(clients)
        record = await self._record(description, clients)
        assembly, donor_count = await self.states.fetch(source, clients, should_stop)
        self._missed.clear()
        self._is_catching_up = True  # the rounds since are replayed, whatever they cost
        return assembly, donor_count, record

    async def _newest(self, newest: RoundRecord, sources: Sequence[str], donors: Sequence[str]) -> Fetched:
        turn = int(self.me, 16) % len(donors) if donors else 0  # every node begins with another donor
        donors, header_donors = [*donors[turn:], *donors[:turn]], donors_of_header(self.me, newest.chain, sources)
        if self.me in sources:  # others wait for its header, so it asks the voters, which have it first
            donors.sort(key=lambda donor: donor not in newest.voters)  # stable
        clients = await self.donors.clients(donors)
        async with self._lock(newest.chain):
            stored = await self._from_disk(newest.round, newest.chain)  # it may have come as a proposal meanwhile
            return stored or await self._by_shards(newest, sources, header_donors, clients)

    async def _by_shards(
        self,
        record: RoundRecord,
        sources: Sequence[str],
        header_donors: Sequence[str],
        donors: list[SwarmClient],
        *,
        is_awaited: bool = False,
    ) -> Fetched:
        """``header_donors`` are asked for the header before donors, and may have no more than that.

        Raises RefusedError if somebody answered, but nobody has it; else UnreachableError.
        """
        asked = list(dict.fromkeys([*await self.donors.clients(header_donors), *donors]))
        announced, donor = await self.rounds.header(record.round, bytes.fromhex(record.chain), asked)
        self.headers.keep(announced.message)
        donors = [client for client in donors if client in asked]  # one that failed is not asked again
        donors.sort(key=lambda client: client is not donor)  # stable: it has the round
        reducers = [next(iter(await self.donors.clients([source])), None) for source in sources]
        shard_donors = ShardDonors(reducers, donors, is_awaited)
        published = await self.rounds.by_shards(announced, shard_donors, self.own)
        return announced.message, published.data, published

    async def _one_of_many(self, round: int, newest: RoundRecord, clients: list[SwarmClient]) -> Fetched | None:
        if round not in self._missed:
            if not self._is_catching_up and await self._is_state_cheaper(round, newest, clients):
                return None
            self._is_catching_up = True
            self._missed = await self.rounds.missed(round, newest, clients, self._stored)
        message, data = self._missed[round]
        return message, data, await self.rounds.open(message, data)

    async def _is_state_cheaper(self, round: int, newest: RoundRecord, clients: Sequence[SwarmClient]) -> bool:
        """Choose between rounds and a state, once for each time that this node has missed several rounds."""
        for client in clients:
            reply = await self._catch_up(client, round)
            if reply is None or not (reply.round_bytes or reply.state_round >= round):
                continue  # it is behind too
            way = choose_way(
                round - 1,
                round_bytes=reply.round_bytes,
                state_round=reply.state_round,
                state_bytes=reply.state_bytes,
                rest_bytes=reply.rest_bytes,
            )
            missed = newest.round - round + 1
            self.donors.emit(CatchingUp(missed=missed, takes_state=way.takes_state, reason=way.reason))
            return way.takes_state
        return False

    async def _is_in_a_state(self, round: int, clients: Sequence[SwarmClient]) -> bool:
        """Whether somebody has a state with this round in it. A donor that refused the round may only be behind."""
        replies = [await self._catch_up(client, round) for client in clients]
        return any(reply is not None and reply.state_round >= round for reply in replies)

    async def _catch_up(self, client: SwarmClient, round: int) -> pb.CatchUpReply | None:
        digest = bytes.fromhex(self.manifest.digest)
        try:
            reply = await client.catch_up(pb.CatchUpRequest(manifest_digest=digest, applied=round - 1))
            check(reply)
        except (UnreachableError, RefusedError, PeerError):
            return None
        return reply

    async def _record(self, description: pb.StateDescription, clients: list[SwarmClient]) -> RoundRecord:
        """Fetch the record of a state's round: its header says who votes after it."""
        if not description.round:
            return RoundRecord(voters=(self.first,))
        try:
            announced, _ = await self.rounds.header(description.round, description.chain, list(clients))
        except RefusedError as error:
            await asyncio.to_thread(self.states.abandon)
            raise UnreachableError(f"{error} Another state will be fetched.") from error
        return record_of(announced.header)

    async def _from_disk(self, round: int, chain: str) -> Fetched | None:
        """Read a stored round, "" for the committed one. A damaged one is warned of, and None."""
        if self.log is None:
            return None
        try:
            stored = await asyncio.to_thread(self.log.get, round, bytes.fromhex(chain))
            if stored is None:
                return None
            message, data = stored
            published = await self.rounds.open(message, data)
        except (RunError, PeerError) as error:
            self.log.forget(round, bytes.fromhex(chain))
            self.donors.emit(Warned(message=f"Round {round} on disk is damaged, it is fetched from others: {error}"))
            return None
        return message, data, published

    async def _stored(self, round: int, chain: bytes) -> FetchedRound | None:
        stored = await self._from_disk(round, chain.hex())
        return None if stored is None else stored[:2]

    def _lock(self, chain: str) -> asyncio.Lock:
        """One for each round, so that one that is proposed and committed at the same time is fetched once."""
        return self._locks.setdefault(chain, asyncio.Lock())
