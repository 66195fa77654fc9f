"""host:port, as people write it and as gRPC reports it."""

import ipaddress
import re
from typing import NamedTuple
from urllib.parse import unquote

from tsr_swarm.errors import ConfigError
from tsr_swarm.transport.base import Caller

_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?")


class Address(NamedTuple):
    """A host name or IP address, without brackets, and a port; port 0 asks for any free one."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str) -> Address:
    """Read ``host:port`` or ``[IPv6]:port``, port 0 to 65535. Raises ConfigError."""
    host, colon, port = text.rpartition(":")
    is_number = port.isascii() and port.isdigit() and len(port) <= 5 and int(port) <= 65535
    if not (colon and is_number and _is_host(host)):
        raise ConfigError(
            f"'{text[:80]}' is not an address; write host:port, such as 192.0.2.7:7700 or [2001:db8::7]:7700."
        )
    return Address(host.strip("[]"), int(port))


def caller_of(peer: str) -> Caller:
    """Read gRPC's name of the other end: ``ipv4:192.0.2.7:41234`` or ``ipv6:%5B::1%5D:41234``."""
    _, _, rest = peer.partition(":")
    host = unquote(rest).rpartition(":")[0].strip("[]").partition("%")[0]
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        return Caller(host or peer)
    # An IPv4 caller of a socket that listens on both looks like ::ffff:192.0.2.7.
    return Caller(str(getattr(ip, "ipv4_mapped", None) or ip))


def _is_host(host: str) -> bool:
    if not (host.startswith("[") and host.endswith("]")):
        return _HOST.fullmatch(host) is not None
    try:
        return ipaddress.ip_address(host[1:-1]).version == 6
    except ValueError:
        return False
