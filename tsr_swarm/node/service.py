"""A node's answers to calls. Decides nothing itself: each call is put to the part of the node that knows."""

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, TypeVarTuple

from tsr_swarm import __version__
from tsr_swarm.config.manifest import PROTOCOL_VERSION
from tsr_swarm.errors import RefusedError, RunError, UnreachableError
from tsr_swarm.node import message_codec
from tsr_swarm.node.leader import Leader
from tsr_swarm.rounds.catch_up import donors_of_header
from tsr_swarm.rounds.follower import reducers_of
from tsr_swarm.storage.state_file import shipped_tensors, state_length
from tsr_swarm.storage.state_store import STATE_ROUNDS, StateStore
from tsr_swarm.transport.base import Caller
from tsr_swarm.wire import checks
from tsr_swarm.wire.gate import CheckedContribution
from tsr_swarm.wire.messages import lines_to_proto, rules_to_proto, sections_to_proto
from tsr_swarm.wire.v1 import swarm_pb2 as pb

if TYPE_CHECKING:
    from tsr_swarm.node.node import SwarmNode

HEADER_SECONDS = 2.0  # who asks for a header has others to ask
MAX_CONTACTS = 16

T = TypeVar("T")
Ts = TypeVarTuple("Ts")
InitialPeers = Callable[[Caller], list[str]]  # multiaddrs of the DHT that a caller can dial


class StartingService:
    """What the server calls: refuses everything until ``node_service`` is set, and then passes every call on to it."""

    def __init__(self) -> None:
        self.node_service: NodeService | None = None

    def __getattr__(self, name: str) -> Any:
        return _refuse if self.node_service is None else getattr(self.node_service, name)


def _refuse(*_: object) -> None:
    raise UnreachableError("This node is starting; try again in a moment.")


class NodeService:
    """All answers of a node. Implements transport.base.SwarmHandler, which says what each is."""

    def __init__(self, node: "SwarmNode", store: StateStore, initial_peers: InitialPeers) -> None:
        self.context, self._node, self._store, self._initial_peers = node.context, node, store, initial_peers
        self._state_task: asyncio.Task[pb.StateDescription] | None = None  # that makes one now
        self._state_bytes = 0  # of a state; the same in every round

    def close(self) -> None:
        """Make no state any more."""
        if self._state_task is not None:
            self._state_task.cancel()

    async def describe_state(self, request: pb.DescribeStateRequest, caller: Caller) -> pb.StateDescription:
        """The state to serve: the one that the caller has begun with if it is kept, else a recent one.

        Made now if there is none; what came since is in the round log.
        """
        checks.check(request)
        self.context.require_run(request.manifest_digest)
        begun = request.round
        for description in (self._store.describe(begun), self._store.describe()):
            if description is not None and self._can_serve(description, is_begun=description.round == begun > 0):
                self._store.lease(description.round)
                return description
        if self._state_task is None or self._state_task.done():
            self._state_task = asyncio.create_task(self._make_state())
        return await asyncio.shield(self._state_task)

    async def fetch_state(self, request: pb.FetchStateRequest, caller: Caller) -> Iterator[pb.StateChunk]:
        return self._store.chunks(request)

    def _can_serve(self, state: pb.StateDescription, is_begun: bool = False) -> bool:
        """Whether the caller would be up to date with this state and what is in the round log."""
        log = self._store.round_log
        is_recent = is_begun or state.round >= log.committed - STATE_ROUNDS
        return is_recent and self._has_header(state.round, state.chain) and log.keeps_since(state.round)

    def _has_header(self, round: int, chain: bytes) -> bool:
        """Whether the header that a state of ``round`` needs is here: it is not if the state was downloaded."""
        return round == 0 or self._store.round_log.keeps(round, chain)

    async def _make_state(self) -> pb.StateDescription:
        consensus, record = self._node.weights.freeze()
        chain = bytes.fromhex(record.chain)
        if not self._has_header(record.round, chain):
            raise RefusedError(f"Round {record.round} is not kept here, only its weights; ask another node.")
        return await self._store.keep_state(consensus, record.round, chain)

    async def catch_up(self, request: pb.CatchUpRequest, caller: Caller) -> pb.CatchUpReply:
        """What a peer whose weights are at round ``applied`` has to know to choose its way."""
        checks.check(request)
        self.context.require_run(request.manifest_digest)
        log, state = self._store.round_log, self._store.describe()
        consensus, record = self._node.weights.freeze()
        if not self._state_bytes:
            self._state_bytes = state_length(shipped_tensors(self.context.manifest, consensus))
        state_round = state.round if state is not None and self._can_serve(state) else record.round
        return pb.CatchUpReply(
            round_bytes=log.bytes_since(request.applied),
            state_round=state_round,
            state_bytes=self._state_bytes,
            rest_bytes=log.bytes_since(state_round),
        )

    async def fetch_published(
        self, request: pb.FetchPublishedRequest, caller: Caller
    ) -> tuple[pb.PublishedHeader, bytes]:
        """A round that stands, or the proposal that the caller names by its chain hash.

        The header alone is given as soon as it is here, if the caller is to have it from this node.
        """
        checks.check(request)
        kept = await (self._header(request) if request.header_only else self._from_disk(request))
        if kept is None:
            raise RefusedError(f"Round {request.round} is not kept here; ask another node, or fetch the state instead.")
        return kept

    async def _header(self, request: pb.FetchPublishedRequest) -> tuple[pb.PublishedHeader, bytes] | None:
        header = await self._node.headers.get(request.round, request.chain)
        kept = (header, b"") if header is not None else await self._from_disk(request)
        if kept is None and self._is_on_its_way(request):
            header = await self._node.headers.get(request.round, request.chain, HEADER_SECONDS)
            kept = (header, b"") if header is not None else await self._from_disk(request)  # it may have come whole
        return kept

    def _is_on_its_way(self, request: pb.FetchPublishedRequest) -> bool:
        """No two wait for each other: the header goes from few to many, as in a tree."""
        reducers = reducers_of(self.context.state, request.round)
        donors = donors_of_header(request.peer_id, request.chain.hex(), reducers)
        return bool(request.chain) and self.context.me in donors

    async def _from_disk(self, request: pb.FetchPublishedRequest) -> tuple[pb.PublishedHeader, bytes] | None:
        log = self._store.round_log
        if not request.header_only:
            return await self._read(log.get, request.round, request.chain)
        header = await self._read(log.header, request.round, request.chain)
        return (header, b"") if header is not None else None

    async def _read(self, read: Callable[[*Ts], T | None], *arguments: *Ts) -> T | None:
        """What the disk has; None, and a warning, where it cannot be read."""
        try:
            return await asyncio.to_thread(read, *arguments)
        except RunError as error:
            self.context.warn(str(error))
            return None

    async def fetch_shard(self, request: pb.FetchShardRequest, caller: Caller) -> tuple[Sequence[pb.Section], bytes]:
        """A shard that was reduced here, or is in a round that is kept here."""
        checks.check(request)
        round, shard = request.round, request.shard
        found = self._node.contributions.frames(round, shard, request.hashes)
        found = found or await self._read(self._store.round_log.shard, round, shard, list(request.hashes))
        if found is None:
            raise RefusedError(f"Shard {shard} of round {round} is not kept here; ask another node.")
        sections, data = found
        return sections_to_proto(sections), data

    async def hello(self, request: pb.HelloRequest, caller: Caller) -> pb.HelloReply:
        checks.check(request)
        if request.protocol != PROTOCOL_VERSION:
            raise RefusedError(
                f"You speak protocol {request.protocol} (tsr-swarm {request.package_version}), this run speaks "
                f"{PROTOCOL_VERSION} (tsr-swarm {__version__}); install tsr-swarm {__version__}."
            )
        context = self.context
        contacts = context.seen_by(caller, context.contacts)
        return pb.HelloReply(
            protocol=PROTOCOL_VERSION,
            package_version=__version__,
            manifest=context.manifest.encoded,
            initial_peers=self._initial_peers(caller),
            unix_time=time.time(),
            peer_id=context.me,
            first=context.first,
            contacts=message_codec.contacts_to_proto(contacts.items())[:MAX_CONTACTS],
            rules=rules_to_proto(context.config),
        )

    async def join(self, request: pb.JoinRequest, caller: Caller) -> pb.JoinReply:
        return self._require_leader().admit(request, caller)

    async def poll(self, request: pb.PollRequest, caller: Caller) -> pb.PollReply:
        if self.context.leader is not None:
            checks.check(request)
            self.context.leader.round_reporter.progressed(request.peer_id, request.progress)
        return await self._node.poll_replies.poll(request, caller)

    async def tell(self, request: pb.TellRequest, caller: Caller) -> pb.TellReply:
        return await self._node.messenger.tell(request, caller)

    async def list_peers(self, request: pb.ListPeersRequest, caller: Caller) -> pb.ListPeersReply:
        self.context.require_run(request.manifest_digest)
        return self._node.roster_cache.answer(request, self._require_leader().members)

    async def leave(self, request: pb.LeaveRequest, caller: Caller) -> pb.LeaveReply:
        checks.check(request)
        self._node.on_leave(request.peer_id, request.reason)
        return pb.LeaveReply()

    def _require_leader(self) -> Leader:
        if self.context.leader is None:
            raise UnreachableError("This node does not lead; ask it who does.")
        return self.context.leader

    def expect(self, envelope: pb.Envelope, caller: Caller) -> CheckedContribution:
        return self._node.reducer.expect(envelope)

    async def submit(self, contribution: CheckedContribution, data: bytes, caller: Caller) -> pb.SubmitReply:
        return await self._node.reducer.submit(contribution, data)

    async def report(self, request: pb.ReportRequest, caller: Caller) -> pb.ReportReply:
        checks.check(request)
        return await self._require_leader().round_reporter.report(request)

    async def watch(self, request: pb.WatchRequest, caller: Caller) -> pb.WatchReply:
        """Serve the events after the ones that this monitor, or another node, has seen."""
        checks.check(request)
        run_log = self.context.run_log
        if not request.without_progress:
            await run_log.read()
        await run_log.log.wait(request.after, request.wait_ms / 1000)
        lines, last = run_log.log.since(request.after, with_progress=not request.without_progress)
        return lines_to_proto(lines, last)
