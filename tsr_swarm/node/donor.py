"""What a node that can be dialled gives to others: states, rounds, shards, and what a laggard has to choose between."""

import asyncio
from collections.abc import Callable, Collection, Iterator

from tsr_swarm.errors import RefusedError, RunError
from tsr_swarm.node.contribution_store import ContributionStore
from tsr_swarm.node.handshake import require_run
from tsr_swarm.node.round_cache import Headers
from tsr_swarm.optim.consensus import Consensus
from tsr_swarm.rounds.header_tree import header_givers
from tsr_swarm.rounds.raft_state import RoundRecord
from tsr_swarm.storage.state_file import shipped_tensors, state_length
from tsr_swarm.storage.state_store import STATE_ROUNDS, StateStore
from tsr_swarm.wire import checks
from tsr_swarm.wire.messages import sections_to_proto
from tsr_swarm.wire.v1 import swarm_pb2 as pb

HEADER_SECONDS = 2.0  # who asks for a header has others to ask

Freeze = Callable[[], tuple[Consensus, RoundRecord]]  # this node's newest weights, and of which round
Makers = Callable[[int], Collection[str]]  # peer_ids of who makes this round's shards, or made them


class DonorService:
    """One node's. Its event loop owns it. ``headers``: of rounds that are being fetched."""

    def __init__(
        self,
        me: str,
        donor: StateStore,
        contributions: ContributionStore,
        headers: Headers,
        makers: Makers,
        freeze: Freeze,
        warn: Callable[[str], None],
    ) -> None:
        self._me, self._donor, self._contributions, self._headers = me, donor, contributions, headers
        self._makers, self._freeze, self._warn = makers, freeze, warn
        self._being_made: asyncio.Task[pb.StateDescription] | None = None
        self._state_bytes = 0  # of a state; the same in every round

    def close(self) -> None:
        """Make no state any more."""
        if self._being_made is not None:
            self._being_made.cancel()

    # --- states -------------------------------------------------------------------------------------------------

    async def describe_state(self, request: pb.DescribeStateRequest) -> pb.StateDescription:
        """The state to serve: the one that the caller has begun with if it is kept, else a recent one.

        Made now if there is none; what came since is in the delta log.
        """
        checks.check_describe_state(request)
        require_run(self._donor.manifest, request.manifest_digest)
        begun = request.round
        for description in (self._donor.describe(begun), self._donor.describe()):
            if description is not None and self._is_recent(description, is_begun=description.round == begun > 0):
                self._donor.lease(description.round)
                return description
        if self._being_made is None or self._being_made.done():
            self._being_made = asyncio.create_task(self._make_state())
        return await asyncio.shield(self._being_made)

    def fetch_state(self, request: pb.FetchStateRequest) -> Iterator[pb.StateChunk]:
        """Chunks of a state that is kept here."""
        return self._donor.chunks(request)

    def _is_recent(self, state: pb.StateDescription, is_begun: bool = False) -> bool:
        log = self._donor.delta_log
        return (is_begun or state.round >= log.committed - STATE_ROUNDS) and log.keeps_since(state.round)

    async def _make_state(self) -> pb.StateDescription:
        consensus, record = self._freeze()
        return await self._donor.keep_state(consensus, record.round, bytes.fromhex(record.chain))

    # --- rounds -------------------------------------------------------------------------------------------------

    async def catch_up(self, request: pb.CatchUpRequest) -> pb.CatchUpReply:
        """What a peer whose weights are at round ``applied`` has to know to choose its way."""
        checks.check_catch_up(request)
        require_run(self._donor.manifest, request.manifest_digest)
        log, state = self._donor.delta_log, self._donor.describe()
        consensus, record = self._freeze()
        if not self._state_bytes:
            self._state_bytes = state_length(shipped_tensors(self._donor.manifest, consensus))
        state_round = state.round if state is not None and self._is_recent(state) else record.round
        return pb.CatchUpReply(
            round_bytes=log.bytes_since(request.applied),
            state_round=state_round,
            state_bytes=self._state_bytes,
            rest_bytes=log.bytes_since(state_round),
        )

    async def fetch_published(self, request: pb.FetchPublishedRequest) -> tuple[pb.PublishedHeader, bytes]:
        """A round that stands, or the proposal that the caller names by its chain hash.

        The header alone is given as soon as it is here, if the caller is to have it from this node.
        """
        checks.check_fetch_published(request)
        kept = await (self._header(request) if request.header_only else self._from_disk(request))
        if kept is None:
            raise RefusedError(f"Round {request.round} is not kept here; ask another node, or fetch the state instead.")
        return kept

    async def _header(self, request: pb.FetchPublishedRequest) -> tuple[pb.PublishedHeader, bytes] | None:
        header = await self._headers.get(request.round, request.chain)
        kept = (header, b"") if header is not None else await self._from_disk(request)
        if kept is None and self._is_on_its_way(request):
            header = await self._headers.get(request.round, request.chain, HEADER_SECONDS)
            kept = (header, b"") if header is not None else await self._from_disk(request)  # it may have come whole
        return kept

    def _is_on_its_way(self, request: pb.FetchPublishedRequest) -> bool:
        """No two wait for each other: the header goes from few to many, as in a tree."""
        givers = header_givers(request.peer_id, request.chain.hex(), tuple(self._makers(request.round)))
        return bool(request.chain) and self._me in givers

    async def _from_disk(self, request: pb.FetchPublishedRequest) -> tuple[pb.PublishedHeader, bytes] | None:
        log = self._donor.delta_log
        try:
            if not request.header_only:
                return await asyncio.to_thread(log.get, request.round, request.chain)
            header = await asyncio.to_thread(log.header, request.round, request.chain)
            return (header, b"") if header is not None else None
        except RunError as error:
            self._warn(str(error))
            return None

    async def fetch_shard(self, request: pb.FetchShardRequest) -> tuple[list[pb.Section], bytes]:
        """A shard that was made here, or is in a round that is kept here."""
        checks.check_fetch_shard(request)
        made = self._contributions.frames(request.round, request.shard, request.hashes)
        if made is None:
            try:
                made = await asyncio.to_thread(
                    self._donor.delta_log.shard, request.round, request.shard, list(request.hashes)
                )
            except RunError as error:
                self._warn(str(error))
        if made is None:
            raise RefusedError(f"Shard {request.shard} of round {request.round} is not kept here; ask another node.")
        sections, data = made
        return sections_to_proto(sections), data
