"""All that a node downloads: proposals that it votes on, the rounds that stand, and a state where that is less."""

import asyncio
from collections.abc import Callable, Sequence
from weakref import WeakValueDictionary

from tsr_swarm.config.manifest import Manifest
from tsr_swarm.errors import PeerError, RefusedError, RunError, UnreachableError
from tsr_swarm.exchange.reduction import Published, open_published
from tsr_swarm.node.round_cache import Headers
from tsr_swarm.node.sync.donors import Donors
from tsr_swarm.node.sync.rounds import FetchedRound, Frames, RoundDownload
from tsr_swarm.node.sync.shard_givers import ShardGivers
from tsr_swarm.node.sync.state import StateDownload
from tsr_swarm.rounds.catch_up import Costs, choose_way
from tsr_swarm.rounds.header_tree import header_givers
from tsr_swarm.rounds.raft_state import RoundRecord
from tsr_swarm.storage.round_log import RoundLog
from tsr_swarm.storage.run_folder import record_of
from tsr_swarm.storage.state_file import StateAssembly
from tsr_swarm.telemetry.events import CatchingUp, Warned
from tsr_swarm.transport.client import SwarmClient
from tsr_swarm.wire.checks import check_catch_up_reply
from tsr_swarm.wire.v1 import swarm_pb2 as pb

Fetched = tuple[pb.PublishedHeader, bytes, Published]


def nothing_made(round: int, shard: int, hashes: Sequence[bytes]) -> None:
    """The frames of a node that reduces nothing."""


class Fetcher:
    """One node's. Donors and sources are peer_ids, most likely to know first; ``first`` is the coordinator's.

    log: where the node keeps rounds; None for one that cannot be dialled. own: what it reduced itself. headers: what
    it has of rounds whose shards are on their way.
    """

    def __init__(
        self,
        manifest: Manifest,
        *,
        me: str,
        first: str,
        sources: Donors,
        states: StateDownload,
        log: RoundLog | None,
        own: Frames = nothing_made,
        headers: Headers | None = None,
    ) -> None:
        self._manifest, self._me, self._first = manifest, me, first
        self._sources, self._states, self._log, self._own = sources, states, log, own
        self._headers = Headers() if headers is None else headers
        self._rounds = RoundDownload(sources, manifest, me)
        self._missed: dict[int, FetchedRound] = {}
        self._is_catching_up = False  # the way has been chosen, and there is more to fetch
        self._under_way: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()  # by chain hash

    async def proposal(self, record: RoundRecord, sources: Sequence[str], donors: Sequence[str]) -> None:
        """Put the bytes of ``record`` on disk, checked, if they are not. ``sources`` made its shards.

        donors: first who proposes it, of whom the header comes, and what its source does not give.

        Raises UnreachableError where nobody gives them, RefusedError where they are not what ``record`` says, and
        RunError where they cannot be kept.
        """
        assert self._log is not None, "who votes can be dialled"
        async with self._once(record.chain):
            kept = await self._from_disk(record.round, record.chain)
            if kept is None:
                try:
                    clients = await self._sources.clients(donors)
                    kept = await self._by_shards(record, sources, (), clients, is_awaited=True)
                except RefusedError as error:
                    raise UnreachableError(f"{error} It may come.") from error
            message, data, published = kept
            if record_of(published.header) != record:
                raise RefusedError(
                    f"Round {record.round} was proposed with another parent or voters than it has; refused."
                )
            await asyncio.to_thread(self._log.store, message, data)

    async def round(
        self, round: int, newest: RoundRecord, parent: str, sources: Sequence[str], donors: Sequence[str]
    ) -> Fetched | None:
        """Round ``round``, which follows chain hash ``parent``. ``newest`` stands; ``sources`` made its shards.

        None: a state is to be fetched instead. Raises UnreachableError where nobody can be reached: try again later.
        """
        assert round <= newest.round, "it stands"
        fetched = await self._from_disk(round, newest.chain if round == newest.round else "")
        if fetched is None:
            clients = await self._sources.clients(donors)
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
        """A recent state, how many gave of it, and the record of its round. ``donors``: first who leads.

        Raises UnreachableError for a break: call again, it goes on where it was.
        """
        clients = await self._sources.clients(donors)
        offer = await self._states.find(clients)
        record = await self._record(offer.description, clients)
        assembly, givers = await self._states.fetch(offer, clients, should_stop)
        self._missed.clear()
        self._is_catching_up = True  # the rounds since are replayed, whatever they cost
        return assembly, givers, record

    # --- the newest round -----------------------------------------------------------------------------------------

    async def _newest(self, newest: RoundRecord, sources: Sequence[str], donors: Sequence[str]) -> Fetched:
        turn = int(self._me, 16) % len(donors) if donors else 0  # every node begins with another donor
        donors, givers = [*donors[turn:], *donors[:turn]], header_givers(self._me, newest.chain, sources)
        if self._me in sources:  # others wait for it to have the header: it asks where it was first
            donors.sort(key=lambda donor: donor not in newest.voters)  # stable
        clients = await self._sources.clients(donors)
        async with self._once(newest.chain):
            kept = await self._from_disk(newest.round, newest.chain)  # it may have come as a proposal meanwhile
            return kept or await self._by_shards(newest, sources, givers, clients)

    async def _by_shards(
        self,
        record: RoundRecord,
        sources: Sequence[str],
        givers: Sequence[str],
        donors: list[SwarmClient],
        *,
        is_awaited: bool = False,
    ) -> Fetched:
        """``givers`` are asked for the header before donors, and may have no more than that.

        is_awaited: the run waits for this node.

        Raises RefusedError where somebody answered, but nobody has it; else UnreachableError.
        """
        asked = list(dict.fromkeys([*await self._sources.clients(givers), *donors]))
        announced, giver = await self._rounds.header(record.round, bytes.fromhex(record.chain), asked)
        self._headers.keep(announced.message)
        donors = [donor for donor in donors if donor in asked]  # who failed is not asked again
        makers = [next(iter(await self._sources.clients([source])), None) for source in sources]
        donors.sort(key=lambda donor: donor is not giver)  # stable: it has the round
        shard_givers = ShardGivers(makers, donors, is_awaited)
        published = await self._rounds.by_shards(announced, shard_givers, self._own)
        return announced.message, published.data, published

    # --- several ----------------------------------------------------------------------------------------------------

    async def _one_of_many(self, round: int, newest: RoundRecord, clients: list[SwarmClient]) -> Fetched | None:
        if round not in self._missed:
            if not self._is_catching_up and await self._is_state_cheaper(round, newest, clients):
                return None
            self._is_catching_up = True
            self._missed = await self._rounds.missed(round, newest, clients, self._kept)
        message, data = self._missed[round]
        published = await asyncio.to_thread(open_published, self._manifest, message, data, message.plan.parent.hex())
        return message, data, published

    async def _is_state_cheaper(self, round: int, newest: RoundRecord, clients: Sequence[SwarmClient]) -> bool:
        """Choose how to go on, once for each time that this node has missed several rounds."""
        for client in clients:
            said = await self._catch_up(client, round)
            if said is None or not (said.round_bytes or said.state_round >= round):
                continue  # it is behind too
            costs = Costs(
                round_bytes=said.round_bytes,
                state_round=said.state_round,
                state_bytes=said.state_bytes,
                rest_bytes=said.rest_bytes,
            )
            way = choose_way(round - 1, costs)
            missed = newest.round - round + 1
            self._sources.emit(CatchingUp(missed=missed, takes_state=way.takes_state, reason=way.reason))
            return way.takes_state
        return False

    async def _is_in_a_state(self, round: int, clients: Sequence[SwarmClient]) -> bool:
        """Whether somebody gives a state with this round in it. Who refused the round may only not have it yet."""
        said = [await self._catch_up(client, round) for client in clients]
        return any(reply is not None and reply.state_round >= round for reply in said)

    async def _catch_up(self, client: SwarmClient, round: int) -> pb.CatchUpReply | None:
        digest = bytes.fromhex(self._manifest.digest)
        try:
            reply = await client.catch_up(pb.CatchUpRequest(manifest_digest=digest, applied=round - 1))
            check_catch_up_reply(reply)
        except (UnreachableError, RefusedError, PeerError):
            return None
        return reply

    # --- what is here -----------------------------------------------------------------------------------------------

    async def _record(self, about: pb.StateDescription, clients: list[SwarmClient]) -> RoundRecord:
        """Who votes after a state is in the header of its round."""
        if not about.round:
            return RoundRecord(voters=(self._first,))
        try:
            announced, _ = await self._rounds.header(about.round, about.chain, list(clients))
        except RefusedError as error:
            raise UnreachableError(f"{error} Another state will be fetched.") from error
        return record_of(announced.header)

    async def _from_disk(self, round: int, chain: str) -> Fetched | None:
        """``chain``: "" for the round that stands. What is damaged is told to people and as good as not there."""
        if self._log is None:
            return None
        try:
            kept = await asyncio.to_thread(self._log.get, round, bytes.fromhex(chain))
            if kept is None:
                return None
            message, data = kept
            published = await asyncio.to_thread(open_published, self._manifest, *kept, message.plan.parent.hex())
        except (RunError, PeerError) as error:
            self._log.forget(round, bytes.fromhex(chain))
            self._sources.emit(Warned(message=f"Round {round} on disk is damaged, it is fetched from others: {error}"))
            return None
        return message, data, published

    async def _kept(self, round: int, chain: bytes) -> FetchedRound | None:
        kept = await self._from_disk(round, chain.hex())
        return None if kept is None else kept[:2]

    def _once(self, chain: str) -> asyncio.Lock:
        """A round that is proposed and found to stand at the same time is fetched once."""
        lock = self._under_way.get(chain)
        if lock is None:
            lock = self._under_way[chain] = asyncio.Lock()
        return lock
