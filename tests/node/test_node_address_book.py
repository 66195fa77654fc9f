"""Where others can be dialled: whatever anybody says, only what can be dialled is kept and told, and not for ever."""

import json
import os
import resource
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.node_context import serving
from tsr_swarm.discovery.addresses import is_loopback, is_unspecified
from tsr_swarm.errors import ConfigError, PeerError, UnreachableError
from tsr_swarm.node import address_book as module
from tsr_swarm.node.address_book import MOST_CONTACTS, MOST_KEPT, SAMPLE_SECONDS, AddressBook, ClientPool
from tsr_swarm.node.calls import PeerReporter
from tsr_swarm.transport.address import parse_address
from tsr_swarm.transport.base import Caller
from tsr_swarm.transport.tcp_info import KernelBytes, KernelTotals, is_supported
from tsr_swarm.wire.v1 import swarm_pb2 as pb

ME = "f" * 32
HOSTS = ["127.0.0.1", "[::1]", "localhost", "0.0.0.0", "[::]", "10.0.0.7", "192.0.2.9", "[2001:db8::7]", "node.example"]
CALLERS = ["127.0.0.1", "::1", "10.0.0.7", "192.0.2.9", "2001:db8::7"]

names = st.integers(0, 5).map(lambda number: f"{number:032x}") | st.just(ME)
addresses = (
    st.builds(lambda host, port: f"{host}:{port}", st.sampled_from(HOSTS), st.sampled_from([0, 1, 7700, 65535, 70000]))
    | st.sampled_from(["", "nothing", "a:b:c", "unix:1", "[::1]", ":7700", "host:7700 "])
    | st.text(max_size=12)
)
said = st.tuples(st.sampled_from(CALLERS), st.lists(st.tuples(names, addresses), max_size=4))


@given(story=st.lists(said, max_size=8), caller=st.sampled_from(CALLERS))
def test_only_what_can_be_dialled_is_kept_and_told(story: list[tuple[str, list[tuple[str, str]]]], caller: str) -> None:
    book = AddressBook(ME)
    for host, contacts in story:
        try:
            book.update_from(host, [pb.Contact(peer_id=name, address=address) for name, address in contacts])
        except PeerError:
            continue
    everybody = [ME, *(f"{number:032x}" for number in range(6))]
    assert book.address(ME) == "", "a node does not dial itself"
    for address in book.addresses:
        host, port = parse_address(address)
        assert port
        assert not is_unspecified(host)
    for address in book.seen_by(caller, everybody * 2).values():
        host, _ = parse_address(address)
        assert is_loopback(caller) or not is_loopback(host), "nobody is told to dial its own loopback"


@given(spoken=st.sampled_from(CALLERS), port=st.integers(1, 65535))
def test_only_a_neighbour_can_say_that_somebody_is_on_loopback(spoken: str, port: int) -> None:
    book = AddressBook(ME)
    book.update_from(spoken, [pb.Contact(peer_id="a" * 32, address=f"127.0.0.1:{port}")])
    assert bool(book.address("a" * 32)) == is_loopback(spoken)


def test_the_newest_address_of_a_node_counts() -> None:
    book = AddressBook(ME)
    for address in ("192.0.2.1:1", "192.0.2.2:2", ""):
        book.update("a" * 32, address)
    assert book.address("a" * 32) == "192.0.2.2:2", '"" says nothing'
    assert book.addresses == ["192.0.2.2:2"]


def test_a_full_book_forgets_the_address_that_was_updated_longest_ago() -> None:
    book = AddressBook(ME)
    book.update("a" * 32, "192.0.2.1:1")
    for number in range(3 * MOST_CONTACTS):
        book.update(f"{number:032x}", "192.0.2.2:2")
        if number % 500 == 0:
            book.update("a" * 32, "192.0.2.1:1")
    assert len(book.addresses) == MOST_CONTACTS
    assert book.address("a" * 32) == "192.0.2.1:1"
    assert book.address(f"{0:032x}") == ""


def test_a_restart_finds_the_addresses_that_were_kept(tmp_path: Path) -> None:
    before = AddressBook(ME, tmp_path / "contacts.json")
    for number in range(2 * MOST_KEPT):
        before.update(f"{number:032x}", f"192.0.2.1:{number + 1}")
    before.keep([f"{number:032x}" for number in range(2 * MOST_KEPT)])
    after = AddressBook(ME, tmp_path / "contacts.json")
    after.load()
    assert len(after.addresses) == MOST_KEPT
    assert after.address(f"{7:032x}") == "192.0.2.1:8"


def test_what_has_not_changed_is_not_written_again(tmp_path: Path) -> None:
    """It is asked for after every event."""
    path = tmp_path / "contacts.json"
    book = AddressBook(ME, path)
    book.keep(["a" * 32])
    assert not path.exists(), "nobody is known"
    book.update("a" * 32, "192.0.2.1:1")
    book.keep(["a" * 32, "b" * 32])
    first = os.stat(path).st_ino
    book.update("c" * 32, "192.0.2.3:1")
    book.keep(["b" * 32, "a" * 32])
    assert os.stat(path).st_ino == first
    book.update("a" * 32, "192.0.2.1:2")
    book.keep(["a" * 32])
    assert json.loads(path.read_text())["contacts"] == {"a" * 32: "192.0.2.1:2"}


def test_contacts_kept_of_a_run_with_another_coordinator_are_ignored(tmp_path: Path) -> None:
    """Else a peer could join its former run while the coordinator that was named is away."""
    before = AddressBook(ME, tmp_path / "contacts.json")
    before.load("192.0.2.7:7700")
    before.update("a" * 32, "192.0.2.1:1")
    before.keep(["a" * 32])
    for met, found in (("192.0.2.7:7700", ["192.0.2.1:1"]), ("192.0.2.8:7700", [])):
        after = AddressBook(ME, tmp_path / "contacts.json")
        after.load(met)
        assert after.addresses == found


OF_A = [
    b'{"%b": %b}' % (b"a" * 32, host)
    for host in (b"7", b"null", b'"nowhere"', b'"0.0.0.0:7700"', b'{"host": "192.0.2.1"}')
]


@pytest.mark.parametrize("contacts", [b"[]", b"7", b'{"not a name": "192.0.2.1:1"}', *OF_A, b"[" * 100_000])
@pytest.mark.parametrize("around", [b"%b", b'{"met": ""}%b', b'{"met": "", "contacts": %b}', b"\xff\xfe%b", b""])
def test_a_damaged_file_is_ignored(contacts: bytes, around: bytes, tmp_path: Path) -> None:
    (tmp_path / "contacts.json").write_bytes(around % contacts if around else b"")
    book = AddressBook(ME, tmp_path / "contacts.json")
    book.load()
    assert book.addresses == []
    assert book.seen_by("192.0.2.9", ["a" * 32]) == {}


def test_a_disk_that_cannot_be_written_changes_nothing_in_memory(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    book = AddressBook(ME, tmp_path / "file" / "contacts.json")
    book.load()
    book.update("a" * 32, "192.0.2.1:1")
    book.keep(["a" * 32])
    assert book.address("a" * 32)


def test_how_to_find_the_run_in_the_dht_is_kept_and_a_damaged_hint_is_none(tmp_path: Path) -> None:
    path, good = tmp_path / "contacts.json", f"/ip4/192.0.2.7/tcp/7701/p2p/{'1' * 52}"
    before = AddressBook(ME, path)
    before.run, before.multiaddrs = "chat@3fa2", (good,)
    before.keep([])
    after = AddressBook(ME, path)
    after.load()
    assert (after.run, after.multiaddrs) == ("chat@3fa2", (good,))
    kept = json.loads(path.read_text())
    for damage in ({"run": "a b"}, {"run": 7}, {"dht": 7}, {"dht": [7]}, {"dht": ["nowhere"] * 99}, {"dht": "x" * 99}):
        path.write_text(json.dumps(kept | damage))
        after = AddressBook(ME, path)
        after.load()
        assert after.multiaddrs == ()


class Listed:
    """Says who takes part; no more is asked of it."""

    async def list_peers(self, request: pb.ListPeersRequest, caller: Caller) -> pb.ListPeersReply:
        return pb.ListPeersReply()


@asynccontextmanager
async def listening() -> AsyncIterator[tuple[AddressBook, ClientPool, str]]:
    book = AddressBook(ME)
    async with ClientPool(book) as clients, serving(Listed()) as address:
        yield book, clients, address


async def test_a_client_is_kept_until_its_node_has_another_address() -> None:
    async with listening() as (book, clients, address):
        with pytest.raises(UnreachableError, match="Nobody has said where peer aaaaaaaa can be dialled"):
            await clients.to("a" * 32)
        book.update("a" * 32, "127.0.0.1:1")
        elsewhere = await clients.to("a" * 32)
        book.update("a" * 32, address)
        client = await clients.to("a" * 32)
        assert client is not elsewhere
        assert await clients.to("a" * 32) is client
        await client.list_peers(pb.ListPeersRequest())
        with pytest.raises(ConfigError, match="not an address"):
            await clients.at("nowhere")


async def test_of_too_many_clients_the_one_unused_longest_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody who says every minute that it has moved would cost a connection each time."""
    monkeypatch.setattr(module, "MOST_CLIENTS", 2)
    async with listening() as (_, clients, address):
        first = await clients.at(address)
        second = await clients.at("127.0.0.1:1")
        assert await clients.at(address) is first
        await clients.at("127.0.0.1:2")
        await first.list_peers(pb.ListPeersRequest())
        with pytest.raises(UnreachableError, match="closed"):
            await second.list_peers(pb.ListPeersRequest())
        assert await clients.at("127.0.0.1:1") is not second


def test_without_a_file_that_could_be_opened_the_kernels_bytes_are_unknown() -> None:
    kernel = KernelBytes([])
    assert kernel.sample() is not None
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, limits[1]))
    try:
        assert kernel.sample() is None
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


class CountedKernel(KernelBytes):
    samples = 0

    def sample(self) -> KernelTotals | None:
        self.samples += 1
        return super().sample()


@given(waits=st.lists(st.floats(0, 4 * SAMPLE_SECONDS), max_size=40))
def test_connections_are_sampled_every_few_seconds_however_often_a_node_polls(waits: list[float]) -> None:
    now, clients = 0.0, ClientPool(AddressBook(ME), clock=lambda: now)
    clients.kernel = kernel = CountedKernel([])
    clients.sample()
    for wait in waits:
        now += wait
        before = kernel.samples
        clients.sample()
        assert kernel.samples - before <= 1
    assert kernel.samples <= 1 + (now + 1e-6) / SAMPLE_SECONDS
    assert kernel.samples >= 1 + sum(wait >= SAMPLE_SECONDS for wait in waits)


def test_a_report_has_all_bytes_though_the_last_sample_was_a_moment_ago() -> None:
    clients = ClientPool(AddressBook(ME))
    reporter = PeerReporter(clients, ME)
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as there,
        server.accept()[0] as here,
    ):
        clients.kernel = kernel = CountedKernel([here.getsockname()[1]])
        clients.sample()
        for size in (1000, 2345):
            here.sendall(bytes(size))
            while size:
                size -= len(there.recv(size))
            clients.sample()
        assert kernel.samples == 1
        both_ends = 2 * (1000 + 2345) if is_supported() else 0
        assert reporter.prepare(1, bytes(32)).overhead_bytes == both_ends
        assert reporter.prepare(2, bytes(32)).overhead_bytes == 0
