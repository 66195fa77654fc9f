"""Peers find each other through hivemind's DHT. Nothing else knows hivemind, and it is imported when first needed.

A ``DHTNode`` runs in our own event loop; a guard sees that its libp2p daemon, p2pd, never outlives this process.
Discovery is a convenience: whoever cannot start it still joins through the coordinator's port alone.
"""

import asyncio
import logging
import time
import warnings
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from tsr_swarm.discovery.addresses import dialable, host_of
from tsr_swarm.discovery.identity import Identity
from tsr_swarm.discovery.records import (
    MAX_LIFETIME_SECONDS,
    MAX_RECORD_BYTES,
    PeerRecord,
    authentic_record,
    decode_record,
    encode_record,
)
from tsr_swarm.errors import PeerError, UnreachableError
from tsr_swarm.process.supervisor import Guard
from tsr_swarm.telemetry.text import reason_text

LOOPBACK = "/ip4/127.0.0.1/tcp/0"
START_SECONDS = 15.0
CALL_SECONDS = 10.0
CLOSE_SECONDS = 3.0
MAX_RECORDS = 4096  # of one answer: a reader checks this many signatures at most
RUNS = "tsr/v2/runs"  # key of the list of runs: an entry is the newest record that any peer of that run has put there

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DhtDirectory:
    """A DHT node: stores this peer's record and finds those of others. Made by ``start``, ended by ``close``."""

    identity: Identity
    p2p: Any
    node: Any  # hivemind's DHTNode
    has_joined: bool  # others, rather than begun a DHT of its own
    exits: AsyncExitStack

    @classmethod
    async def start(
        cls,
        *,
        identity: Identity,
        host_maddrs: Sequence[str] = (LOOPBACK,),
        initial_peers: Sequence[str] = (),
        announce_maddrs: Sequence[str] = (),
        timeout: float = START_SECONDS,
    ) -> "DhtDirectory":
        """Start a node and, given ``initial_peers`` (multiaddrs with ``/p2p/``), join the DHT they are in.

        Without ``host_maddrs``, which it listens on, the node dials out and holds nothing for others. Raises
        UnreachableError when hivemind is missing, the daemon cannot start, or nobody answers in ``timeout`` seconds.
        """
        client_only = not host_maddrs
        await asyncio.to_thread(_import_hivemind)
        peers = dialable(initial_peers)
        if initial_peers and not peers:
            raise _unusable(f"none of {len(initial_peers)} addresses can be dialled")
        async with AsyncExitStack() as exits:
            try:
                guard = await Guard.start()
                exits.push_async_callback(guard.close)
                async with asyncio.timeout(timeout):
                    with _libp2p_key_file(guard.folder, identity) as key_file:
                        p2p = await _guarded_p2p(guard, exits).create(
                            initial_peers=peers or None,
                            host_maddrs=None if client_only else host_maddrs,
                            announce_maddrs=announce_maddrs or None,
                            no_listen=client_only,
                            dht_mode="client" if client_only else "server",
                            identity_path=str(key_file),
                            check_if_identity_free=False,  # it would start a second daemon, and reads RSA keys only
                            auto_nat=False,
                            nat_port_map=False,  # never opens a port in somebody's router unasked
                            use_relay=False,
                            startup_timeout=timeout,
                        )
                    node = await _start_node(p2p, peers, client_only)
                exits.push_async_callback(_stop_node, node)
            except Exception as error:  # of whatever kind hivemind, its daemon or this machine may raise
                where = f"nobody answered at {host_of(peers[0])}" if peers else "p2pd did not start"
                why = f"waited {timeout:.0f} s" if isinstance(error, TimeoutError) else reason_text(error)
                raise _unusable(f"{where}: {why}") from error
            return cls(identity=identity, p2p=p2p, node=node, has_joined=bool(peers), exits=exits.pop_all())

    async def visible_maddrs(self) -> tuple[str, ...]:
        """Give the multiaddrs, ending in ``/p2p/<id>``, at which others may reach this node; none if client-only."""
        try:
            found = await _within(CALL_SECONDS, self.p2p.get_visible_maddrs(latest=True))
        except UnreachableError:  # it listens nowhere, or is gone
            return ()
        return tuple(str(multiaddr) for multiaddr in found)

    async def announce(self, record: PeerRecord) -> None:
        """Sign and store ``record`` until it expires, in its run's place and as the run's entry in the list of runs.

        Costs two look-ups and up to ten stores, about 0.7 kB each.

        Raises UnreachableError when no other node took it; before others have joined, this node's own copy counts.
        """
        data = encode_record(record, self.identity)
        keys, subkeys = zip(*_places(record), strict=True)
        # A node's own copy proves nothing about the network, so one that joined others does not count itself.
        storing = self.node.store_many(
            [*keys], [data] * len(keys), float(record.expires), [*subkeys], exclude_self=self.has_joined
        )
        stored = await _within(CALL_SECONDS, storing)
        if not stored[keys[0], subkeys[0]]:  # the run's entry may be another peer's, which is newer
            raise UnreachableError("No DHT node took this peer's record, so others cannot find it there.")

    async def records(self, run_id: str) -> tuple[PeerRecord, ...]:
        """Give the valid records of a run, this peer's own among them, by peer id. Bad ones are silently left out."""
        records: dict[str, PeerRecord] = {}
        for record in await self._read(_key(run_id), run_id):
            records[record.peer_id] = max(record, records.get(record.peer_id, record), key=lambda r: r.expires)
        return tuple(records[peer_id] for peer_id in sorted(records))

    async def runs(self) -> tuple[PeerRecord, ...]:
        """Give a valid record of each run that is listed, the newest first. What they say of their run is a claim."""
        return tuple(sorted(await self._read(RUNS), key=lambda record: -record.issued))

    async def _read(self, key: str, run_id: str | None = None) -> list[PeerRecord]:
        found = await _within(CALL_SECONDS, self.node.get(key, latest=True))
        if found is None or not isinstance(found.value, dict):
            return []
        now, records = time.time(), []
        for entry in islice(found.value.values(), MAX_RECORDS):
            if isinstance(entry.value, bytes):
                with suppress(PeerError):
                    records.append(decode_record(entry.value, run_id=run_id, now=now))
        return records

    def healthy(self) -> bool:
        """Say whether the daemon runs and, if this node joined others, it still knows one."""
        is_alive = self.node.is_alive and self.p2p.is_alive and self.p2p._child.returncode is None
        return bool(is_alive and (not self.has_joined or self.node.protocol.routing_table.uid_to_peer_id))

    async def close(self) -> None:
        """Stop node and daemon and remove the sockets' folder, whatever state they are in. May be repeated."""
        await self.exits.aclose()


def _import_hivemind() -> None:
    """Import hivemind, which takes seconds, and have it log like everybody else.

    Its import does more than define names: it makes locks in /dev/shm, which may be full or read-only.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its own use of torch and protobuf
            import hivemind.dht.node  # noqa: F401
            from hivemind.utils.logging import use_hivemind_log_handler
    except Exception as error:
        remedy = "; 'pip install tsr-swarm[dht]' may help" if isinstance(error, ImportError) else ""
        raise _unusable(f"hivemind cannot be imported ({reason_text(error)}){remedy}") from error
    use_hivemind_log_handler("nowhere")
    logging.getLogger("hivemind").setLevel(logging.WARNING)
    logging.addLevelName(logging.WARNING, "WARNING")  # hivemind renames it for the whole process


def _guarded_p2p(guard: Guard, exits: AsyncExitStack) -> Any:
    """Make the kind of P2P whose daemon runs under ``guard`` and is stopped by ``exits``."""
    from hivemind.p2p import P2P

    class GuardedP2P(P2P):  # type: ignore[misc]  # hivemind has no types
        _UNIX_SOCKET_PREFIX = f"/unix{guard.folder}/"

        def __init__(self) -> None:
            super().__init__()
            exits.push_async_callback(_stop_p2pd, self)  # also when create() fails half-way

        @staticmethod
        def _make_process_args(*args: Any, **options: Any) -> list[str]:
            return guard.launch_command(P2P._make_process_args(*args, **options))

    return GuardedP2P


@contextmanager
def _libp2p_key_file(folder: Path, identity: Identity) -> Iterator[Path]:
    """Give the daemon our own key, so that its peer id survives a restart. The folder is for this user alone.

    libp2p's PrivateKey message: type (1: Ed25519), data (64 bytes: the private key, then the public one).
    """
    path = folder / "key"
    path.touch(mode=0o600)
    path.write_bytes(b"\x08\x01\x12\x40" + identity.private_key + identity.public_key)
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


async def _start_node(p2p: Any, initial_peers: Sequence[str], client_only: bool) -> Any:
    from hivemind.dht.node import DHTNode

    return await DHTNode.create(
        p2p=p2p,
        initial_peers=initial_peers or None,
        client_mode=client_only,
        record_validator=_record_gate(),
        strict=False,  # clocks that differ are a warning
        # Records are few, small and signed: caches would only hold on to old ones.
        cache_locally=False,
        cache_nearest=0,
        cache_on_store=False,
        cache_refresh_before_expiry=0,
    )


def _record_gate() -> Any:
    """What this node agrees to hold for others: authentic records, in the two places of each.

    Looser in time than ``decode_record``: a reader drops a whole answer when its gate refuses one record of it, and a
    clock may be some seconds off.
    """
    from hivemind.dht.protocol import DHTProtocol
    from hivemind.dht.routing import DHTID
    from hivemind.dht.validation import DHTRecord, RecordValidatorBase

    pack: Callable[[object], bytes] = DHTProtocol.serializer.dumps

    class RecordGate(RecordValidatorBase):  # type: ignore[misc]  # hivemind has no types
        def validate(self, stored: DHTRecord) -> bool:
            # Packed bytes are compared, never unpacked: what unpacks what a stranger sent can be made to do more.
            if len(stored.value) > MAX_RECORD_BYTES + 3:
                return False
            data = next((stored.value[skip:] for skip in (2, 3) if pack(stored.value[skip:]) == stored.value), b"")
            try:
                record = authentic_record(data)
            except PeerError:
                return False
            return (
                any(
                    stored.key == DHTID.generate(source=key).to_bytes() and stored.subkey == pack(subkey)
                    for key, subkey in _places(record)
                )
                and stored.expiration_time == record.expires
                and record.expires <= time.time() + 2 * MAX_LIFETIME_SECONDS
            )

    return RecordGate()


async def _stop_node(node: Any) -> None:
    node.is_alive = False
    if node.p2p._child.returncode is None:  # else it would wait for ever for the daemon's answer
        with suppress(Exception):  # the daemon is stopped next, whatever it says to this
            async with asyncio.timeout(CLOSE_SECONDS):
                await node.shutdown()


async def _stop_p2pd(p2p: Any) -> None:
    with suppress(Exception):  # the guard kills what is left
        async with asyncio.timeout(CLOSE_SECONDS):
            await p2p.shutdown()
    if p2p._child is not None and p2p._child.returncode is None:
        with suppress(ProcessLookupError):
            p2p._child.kill()
        await p2p._child.wait()


async def _within(seconds: float, call: Coroutine[Any, Any, T]) -> T:
    try:
        async with asyncio.timeout(seconds):
            return await call
    except TimeoutError:
        raise _unusable(f"no answer in {seconds:.0f} s") from None
    except Exception as error:  # such as a daemon that was killed
        raise _unusable(reason_text(error)) from error


def _unusable(reason: str) -> UnreachableError:
    return UnreachableError(f"The DHT cannot be used: {reason}.")


def _key(run_id: str) -> str:
    return f"tsr/v2/run/{run_id}"


def _places(record: PeerRecord) -> tuple[tuple[str, str], tuple[str, str]]:
    """Give key and sub-key of both places of a record: among its run's peers, and as its run in the list of runs.

    A run has one entry there, however many peers it has; and who claims another name for it has an entry beside.
    """
    return (_key(record.run_id), record.peer_id), (RUNS, f"{record.run}@{record.run_id}")
