"""Find a node of a run: at the address that was given, at those that were kept, or by the run's name in the DHT."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any, TypeVar

from tsr_swarm.config.manifest import decode_manifest
from tsr_swarm.discovery.addresses import dht_addresses, host_of, is_loopback, is_multiaddr
from tsr_swarm.discovery.announcer import Announcer
from tsr_swarm.discovery.identity import new_identity
from tsr_swarm.discovery.runs import FoundRun, WantedRun, choose_run, dial_order, find_runs, parse_wanted_run
from tsr_swarm.errors import RefusedError, SwarmError, UnreachableError
from tsr_swarm.node.address_book import AddressBook, ClientPool
from tsr_swarm.node.calls import Accept, Handshake, accept_any, greet, say_hello
from tsr_swarm.node.join_options import JoinOptions
from tsr_swarm.telemetry.text import plural
from tsr_swarm.transport.address import Address
from tsr_swarm.transport.client import retry_while_unreachable
from tsr_swarm.wire.v1 import swarm_pb2 as pb

STAGGER_SECONDS = 0.25  # between the starts of two calls (RFC 8305, section 5); those before go on

T = TypeVar("T")


async def find_run(
    options: JoinOptions, clients: ClientPool, book: AddressBook, announcer: Announcer | None
) -> Handshake:
    """Say hello to a node of the run that a peer is to join. ``announcer``: None for one that does without the DHT.

    Raises UnreachableError, which may be over in a while, or another SwarmError.
    """
    accept = accept_run(parse_wanted_run(options.run)) if options.run else accept_any
    first, failure = options.coordinator or next(iter(book.addresses), ""), None
    if first:
        try:
            return await say_hello(clients, book, first, accept)
        except UnreachableError as error:
            failure = error
    wanted, known = options.run or book.run, (*options.dht, *book.multiaddrs)
    if announcer is None or not wanted or not known:
        raise failure or UnreachableError(
            "A run is not found by its name without the DHT; add --coordinator HOST:PORT."
        )
    try:
        return await _find_in_dht(options, clients, book, announcer, parse_wanted_run(wanted), known)
    except UnreachableError as error:
        raise error if failure is None else UnreachableError(f"{failure} {error}") from error


async def _find_in_dht(
    options: JoinOptions,
    clients: ClientPool,
    book: AddressBook,
    announcer: Announcer,
    wanted: WantedRun,
    known: Sequence[str],
) -> Handshake:
    multiaddrs = await ask_multiaddrs(clients, known)
    listen, announce = dht_listen(options, is_here=all(is_loopback(host_of(multiaddr)) for multiaddr in multiaddrs))
    await announcer.open(listen=listen, announce=announce, initial_peers=multiaddrs)
    run = choose_run(await find_runs(announcer.directory, wanted), wanted)
    addresses = dial_order(run.records, announcer.seen_from, time.time())
    if not addresses:
        raise UnreachableError(
            f"The DHT has {plural(len(run.records), 'peer')} of '{run.name}', none of which can be dialled from here; "
            "wait for one that listens."
        )
    accept = accept_run(WantedRun(run.name, run.run_id))
    try:
        return await first_result(greet(clients, book, address, accept) for address in addresses)
    except UnreachableError as error:
        raise UnreachableError(f"Nobody of '{run.name}' answers whom the DHT names: {error}") from error


@asynccontextmanager
async def _visiting(proxy: str | None = None) -> AsyncIterator[tuple[ClientPool, AddressBook, Announcer]]:
    """Give what it takes to look into the DHT as nobody in particular."""
    async with AsyncExitStack() as stack:
        book = AddressBook("")
        clients = await stack.enter_async_context(ClientPool(book, proxy))
        announcer = Announcer(new_identity(), lambda event: None)
        stack.push_async_callback(announcer.close)
        yield clients, book, announcer


async def look_up_runs(known: Sequence[str]) -> list[FoundRun]:
    """Give the runs in the DHT that ``known`` leads to. Raises SwarmError."""
    async with _visiting() as (clients, _, announcer):
        await announcer.open(listen=None, announce=None, initial_peers=await ask_multiaddrs(clients, known))
        return await find_runs(announcer.directory)


async def look_up_address(options: JoinOptions, say: Callable[[str], None]) -> str:
    """Give the host:port of a node of the run that these options name, tried for as long. Raises SwarmError."""
    options = replace(options, listen="", announce="", dht_port=0, outbound_only=True)
    async with _visiting(options.proxy) as (clients, book, announcer):
        met = await retry_while_unreachable(lambda: find_run(options, clients, book, announcer), options.wait, say)
        return book.address(met.hello.peer_id)


async def ask_multiaddrs(clients: ClientPool, known: Sequence[str]) -> list[str]:
    """Give the multiaddrs among ``known``, and those that the nodes among them, by host:port, tell.

    Raises UnreachableError where there are none, or what the first node raised.
    """
    found = [text for text in known if is_multiaddr(text)]
    nodes = [text for text in known if not is_multiaddr(text)]
    book = AddressBook("")  # whatever run they are of, it is not this peer's
    calls = (greet(clients, book, node, accept_any) for node in nodes)
    answers = await asyncio.gather(*calls, return_exceptions=True)
    failures = [answer for answer in answers if isinstance(answer, BaseException)]
    for answer in answers:
        found += [] if isinstance(answer, BaseException) else answer.hello.initial_peers
    if not found:
        raise next(iter(failures), UnreachableError(f"{', '.join(nodes)} is in no DHT; name another node with --dht."))
    return found


async def first_result(calls: Iterable[Coroutine[Any, Any, T]], stagger: float = STAGGER_SECONDS) -> T:
    """Start ``calls``, at least one, ``stagger`` seconds apart or as soon as one has failed; give the first result.

    Raises UnreachableError if any call did and none succeeded, else the last SwarmError.
    """
    failures: list[SwarmError] = []
    waiting, pending = list(calls), set[asyncio.Task[T]]()
    try:
        while waiting or pending:
            if waiting:
                pending.add(asyncio.create_task(waiting.pop(0)))
            timeout = stagger if waiting else None
            done, pending = await asyncio.wait(pending, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                try:
                    return task.result()
                except SwarmError as error:
                    failures.append(error)
    finally:
        for task in pending:
            task.cancel()
        for call in waiting:
            call.close()
    raise next((error for error in failures if isinstance(error, UnreachableError)), failures[-1])


def accept_run(wanted: WantedRun) -> Accept:
    """Refuse a node of another run than this."""

    def accept(hello: pb.HelloReply) -> None:
        manifest = decode_manifest(hello.manifest)
        run = WantedRun(manifest.config.run.name, manifest.run_id)
        if not wanted.matches(*run):
            raise RefusedError(f"A node of the run '{run}' answers, not of '{wanted}'; name another node or run.")

    return accept


def dht_listen(options: JoinOptions, is_here: bool) -> tuple[Address | None, Address | None]:
    """Give where a peer's DHT node listens and is announced: as told, or on loopback where the run ``is_here``."""
    if options.listen:
        return dht_addresses(options.listen, options.announce, options.dht_port)
    return (Address("127.0.0.1", options.dht_port) if is_here and not options.outbound_only else None), None
