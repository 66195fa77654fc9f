"""Addresses: where a process listens, where others find it, and which address each caller is given.

Pure: text in, text out, nothing is looked up.

An address is ``host:port`` (IPv6 in brackets); a multiaddr is libp2p's way of writing one, ``/ip4/192.0.2.7/tcp/4001``.
A caller from elsewhere is never told to dial its own loopback.
"""

import ipaddress
import re
from collections.abc import Iterable
from functools import lru_cache

from tsr_swarm.errors import ConfigError
from tsr_swarm.transport.address import Address, parse_address

MAX_MULTIADDRS = 16
MAX_MULTIADDR_CHARS = 256
CLOCK_LIMIT_SECONDS = 3.0  # what the DHT tolerates between two nodes

_HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,251}[A-Za-z0-9_])?")
_MULTIADDR = re.compile(r"/(ip4|ip6|dns|dns4|dns6)/([A-Za-z0-9.:_-]+)/tcp/([0-9]{1,5})/p2p/([A-Za-z0-9]{32,64})")


def is_loopback(host: str) -> bool:
    """Say whether ``host`` means the machine that dials it."""
    ip = _unmapped(host)
    return f".{host}".lower().rstrip(".").endswith(".localhost") if ip is None else ip.is_loopback


def is_unspecified(host: str) -> bool:
    """Say whether ``host`` is 0.0.0.0 or ::, which one can listen on but nobody can dial."""
    ip = _unmapped(host)
    return ip is not None and ip.is_unspecified


def require_consent(listen: str, announce: str | None, insecure: bool, lets: str) -> None:
    """Raise ConfigError for listening beyond this machine without ``insecure``, or where nobody can dial.

    ``lets`` says what anybody who reaches the port can do.
    """
    host, _ = parse_address(listen)
    if not is_loopback(host) and not insecure:
        raise ConfigError(
            f"Listening on {listen} lets anybody who reaches that port {lets}, "
            "unencrypted; add --insecure if you mean it, or listen on 127.0.0.1."
        )
    if is_unspecified(host) and announce is None:
        raise ConfigError(f"Nobody can dial {listen}; add --announce HOST, the name that others reach you by.")


def announced_address(text: str, port: int) -> Address:
    """Host and port of ``HOST`` or ``HOST:PORT``; ``port`` where none is written."""
    is_bare_ipv6 = text.count(":") > 1 and not text.startswith("[")
    if is_bare_ipv6 or text.endswith("]") or ":" not in text:
        return Address(text.strip("[]"), port)
    return parse_address(text)


def shown_address(listen: str, announce: str | None, port: int) -> str:
    """Give the address that others type, once the ``port`` that is listened on is known."""
    host, _ = parse_address(listen)
    return str(announced_address(announce, port) if announce else Address(host, port))


def dht_addresses(listen: str, announce: str | None, dht_port: int) -> tuple[Address, Address | None]:
    """Give where the DHT node listens, and where others find it if that is elsewhere; port 0: at its own port."""
    host, _ = parse_address(listen)
    announced = Address(announced_address(announce, 0).host, dht_port) if announce else None
    return Address(host, dht_port), announced


def address_for(caller: str, address: str) -> str:
    """Give the ``host:port`` at which a caller from host ``caller`` can dial ``address``, or "" if there is none."""
    host, port = parse_address(address)
    if is_loopback(caller):
        return str(Address("127.0.0.1", port)) if is_unspecified(host) else address
    return "" if is_loopback(host) or is_unspecified(host) else address


def dialable_address(caller: str, address: str) -> str:
    """Give the ``address`` that a caller from host ``caller`` gave for itself, or "" if nobody else can dial it.

    Only a caller on this machine may say that it is found on loopback.
    """
    try:
        host, port = parse_address(address)
    except ConfigError:
        return ""
    is_elsewhere = not is_loopback(host) or is_loopback(caller)
    return address if port and is_elsewhere and not is_unspecified(host) else ""


def host_multiaddr(host: str, port: int) -> str:
    """Write a bare host and a port as a multiaddr without a peer id, to listen on or to announce."""
    ip = _ip(host)
    return f"/{'dns4' if ip is None else f'ip{ip.version}'}/{host}/tcp/{port}"


def multiaddrs_for(caller: str, visible: Iterable[str], announce: str = "") -> tuple[str, ...]:
    """Give those of this node's ``visible`` multiaddrs that a caller from host ``caller`` can dial, best first.

    ``announce`` takes the place of the host in each; the others follow, for callers on the same network.
    """
    known = dialable(visible)
    if is_loopback(caller):
        return tuple(sorted(known, key=lambda multiaddr: not is_loopback(host_of(multiaddr))))
    announced = [_with_host(multiaddr, announce) for multiaddr in known] if announce else []
    seen = [multiaddr for multiaddr in known if not is_loopback(host_of(multiaddr))]
    return tuple(dict.fromkeys([*announced, *seen]))[:MAX_MULTIADDRS]


def is_multiaddr(text: str) -> bool:
    """Say whether ``text`` is a multiaddr that names a host, a port and a peer."""
    return dialable([text]) == (text,)


def is_way_in(text: str) -> bool:
    """Say whether ``text`` can lead into the DHT: a multiaddr, or the host:port at which a node tells its own."""
    return is_multiaddr(text) or dialable_address("127.0.0.1", text) != ""


def dialable(multiaddrs: Iterable[str]) -> tuple[str, ...]:
    """Keep the multiaddrs of legal form that name a host, a port and a peer; at most 16."""
    kept = [text for text in multiaddrs if len(text) <= MAX_MULTIADDR_CHARS and _is_dialable(text)]
    return tuple(dict.fromkeys(kept))[:MAX_MULTIADDRS]


def host_of(multiaddr: str) -> str:
    """Give the host of a multiaddr that starts with one, else ""."""
    parts = multiaddr.split("/")
    return parts[2] if len(parts) > 2 else ""


def clock_warning(coordinator_time: float, local_time: float) -> str | None:
    """Say, in one sentence, by how much this clock is off the coordinator's, if the DHT does not tolerate that."""
    ahead = local_time - coordinator_time
    if abs(ahead) <= CLOCK_LIMIT_SECONDS:
        return None
    way = "ahead of" if ahead > 0 else "behind"
    return (
        f"This machine's clock is {abs(ahead):.0f} s {way} the coordinator's, more than {CLOCK_LIMIT_SECONDS:.0f} s; "
        "training goes on, but peers may not find this one in the DHT until the clock is set."
    )


def _is_dialable(multiaddr: str) -> bool:
    match = _MULTIADDR.fullmatch(multiaddr)
    if match is None:
        return False
    protocol, host, port, _ = match.groups()
    ip = _ip(host)
    kind_ok = protocol == f"ip{ip.version}" if ip else protocol.startswith("dns") and bool(_HOST.fullmatch(host))
    return kind_ok and 0 < int(port) <= 65535 and not is_unspecified(host)


def _with_host(multiaddr: str, host: str) -> str:
    _, _, _, _, port, *rest = multiaddr.split("/")
    return "/".join([host_multiaddr(host, int(port)), *rest])


@lru_cache(4096)  # a leader tells each caller where hundreds of others are
def _unmapped(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """As ``_ip``; but a dual-stack socket shows an IPv4 caller as ::ffff:a.b.c.d, and it is that IPv4 host."""
    ip = _ip(host)
    return ip.ipv4_mapped or ip if isinstance(ip, ipaddress.IPv6Address) else ip


def _ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
