"""The first call, at an address that was named or where nodes were last seen, and whether both are of one run."""

import time
from dataclasses import dataclass

from tsr_swarm import __version__
from tsr_swarm.config.manifest import PROTOCOL_VERSION, Manifest
from tsr_swarm.discovery.addresses import split_address
from tsr_swarm.errors import ConfigError, PeerError, RefusedError, UnreachableError
from tsr_swarm.node.address_book import AddressBook, ClientPool
from tsr_swarm.wire import checks
from tsr_swarm.wire.v1 import swarm_pb2 as pb

OTHERS_SECONDS = 10.0  # for all that were seen before


@dataclass(frozen=True, slots=True)
class Handshake:
    """Who answered."""

    hello: pb.HelloReply
    host: str

    @property
    def known(self) -> tuple[str, ...]:
        """peer_ids of nodes that may know the leader."""
        return tuple(dict.fromkeys([self.hello.peer_id, *(contact.peer_id for contact in self.hello.contacts)]))


async def meet(clients: ClientPool, book: AddressBook, address: str) -> Handshake:
    """Say hello at ``address``, or else to a node that was seen before. Raises UnreachableError or RefusedError."""
    try:
        return await _say_hello(clients, book, address)
    except UnreachableError as error:
        until = time.monotonic() + OTHERS_SECONDS
        for other in book.addresses:
            if time.monotonic() < until and other != address:
                try:
                    return await _say_hello(clients, book, other)
                except (UnreachableError, RefusedError, PeerError, ConfigError):
                    continue
        raise error


async def _say_hello(clients: ClientPool, book: AddressBook, address: str) -> Handshake:
    client = await clients.at(address)
    hello = await client.hello(pb.HelloRequest(protocol=PROTOCOL_VERSION, package_version=__version__))
    checks.check_hello_reply(hello)
    host, _ = split_address(client.address)
    book.update_from(host, hello.contacts)
    book.update(hello.peer_id, client.address)  # whatever it calls itself, this is how it is reached from here
    return Handshake(hello, host)


def require_protocol(request: pb.HelloRequest) -> None:
    """It speaks as this program does."""
    checks.check_hello(request)
    if request.protocol != PROTOCOL_VERSION:
        raise RefusedError(
            f"You speak protocol {request.protocol} (tsr-swarm {request.package_version}), this run speaks "
            f"{PROTOCOL_VERSION} (tsr-swarm {__version__}); install tsr-swarm {__version__}."
        )


def require_run(manifest: Manifest, digest: bytes) -> None:
    """It was set up for this manifest."""
    if digest.hex() != manifest.digest:
        raise RefusedError(
            f"You are set up for another run ({digest.hex()[:12]}) than '{manifest.config.run.name}' "
            f"({manifest.digest[:12]}); join in a new folder, without --resume."
        )
