"""A peer's answers to other peers: the states and the rounds that it has. It takes nothing and decides nothing."""

import asyncio
import time
from collections.abc import Iterator
from typing import NoReturn

from tsr_swarm import __version__
from tsr_swarm.config.manifest import PROTOCOL_VERSION
from tsr_swarm.errors import RefusedError, RunError
from tsr_swarm.runtime.donor import Donor
from tsr_swarm.transport.base import Caller
from tsr_swarm.wire import control
from tsr_swarm.wire.v1 import swarm_pb2 as pb

MAX_CALLS = 64  # at a time


class PeerService:
    """Implements transport.base.SwarmHandler."""

    def __init__(self, donor: Donor, name: str, coordinator: str) -> None:
        self._donor, self._name, self._coordinator = donor, name, coordinator

    async def hello(self, request: pb.HelloRequest, caller: Caller) -> pb.HelloReply:
        """Tell what run this is; refuse another protocol."""
        check_protocol(request)
        return pb.HelloReply(
            protocol=PROTOCOL_VERSION,
            package_version=__version__,
            manifest=self._donor.manifest.encoded,
            unix_time=time.time(),
        )

    async def describe_state(self, request: pb.DescribeStateRequest, caller: Caller) -> pb.StateDescription:
        """Name the newest state that is kept here."""
        control.check_describe_state(request)
        require_manifest(self._donor, request.manifest_digest)
        description = self._donor.describe(request.round)
        if description is None:
            raise RefusedError(f"{self._name} keeps no state yet; ask the coordinator at {self._coordinator}.")
        self._donor.lease(description.round)
        return description

    async def fetch_state(self, request: pb.FetchStateRequest, caller: Caller) -> Iterator[pb.StateChunk]:
        """Serve chunks of a state that is kept here."""
        return self._donor.chunks(request)

    async def fetch_published(
        self, request: pb.FetchPublishedRequest, caller: Caller
    ) -> tuple[pb.PublishedHeader, bytes]:
        """Serve a round that is kept here."""
        try:
            kept = await asyncio.to_thread(self._donor.delta_log.get, request.round)
        except RunError:
            self._donor.delta_log.forget(request.round)
            kept = None
        if kept is None:
            raise RefusedError(f"{self._name} does not keep round {request.round}; ask the coordinator.")
        return kept

    async def join(self, request: pb.JoinRequest, caller: Caller) -> pb.JoinReply:
        self._refuse()

    async def follow(self, request: pb.FollowRequest, caller: Caller) -> pb.FollowReply:
        self._refuse()

    def expect(self, envelope: pb.Envelope, caller: Caller) -> int:
        self._refuse()

    async def submit(self, envelope: pb.Envelope, data: bytes, caller: Caller) -> pb.SubmitReply:
        self._refuse()

    async def report(self, request: pb.ReportRequest, caller: Caller) -> pb.ReportReply:
        self._refuse()

    async def leave(self, request: pb.LeaveRequest, caller: Caller) -> pb.LeaveReply:
        self._refuse()

    async def watch(self, request: pb.WatchRequest, caller: Caller) -> pb.WatchReply:
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise RefusedError(
            f"{self._name} is a peer, which only gives states and rounds; ask the coordinator at {self._coordinator}."
        )


def check_protocol(request: pb.HelloRequest) -> None:
    """Raises RefusedError for another protocol."""
    control.check_hello(request)
    if request.protocol != PROTOCOL_VERSION:
        raise RefusedError(
            f"You speak protocol {request.protocol} (tsr-swarm {request.package_version}), this run speaks "
            f"{PROTOCOL_VERSION} (tsr-swarm {__version__}); install tsr-swarm {__version__}."
        )


def require_manifest(donor: Donor, digest: bytes) -> None:
    """Raises RefusedError for another run."""
    manifest = donor.manifest
    if digest.hex() != manifest.digest:
        raise RefusedError(
            f"You are set up for another run than '{manifest.config.run.name}' ({manifest.digest[:12]}); "
            "its configuration differs: join in a new folder, without --resume."
        )
