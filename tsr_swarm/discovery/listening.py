"""Where a process listens and where others find it: the rules that coordinator and peers share."""

from tsr_swarm.discovery.addresses import is_loopback, is_unspecified, join_address, split_address
from tsr_swarm.errors import ConfigError


def require_consent(listen: str, announce: str | None, insecure: bool, lets: str) -> None:
    """Refuse to listen beyond this machine without a word of consent, or where nobody can dial. Raises ConfigError.

    lets: what whoever reaches the port can do.
    """
    host, _ = split_address(listen)
    if not is_loopback(host) and not insecure:
        raise ConfigError(
            f"Listening on {listen} lets anybody who reaches that port {lets}, "
            "unencrypted; add --insecure if you mean it, or listen on 127.0.0.1."
        )
    if is_unspecified(host) and announce is None:
        raise ConfigError(f"Nobody can dial {listen}; add --announce HOST, the name that others reach you by.")


def announced(text: str, port: int) -> tuple[str, int]:
    """Host and port of ``HOST`` or ``HOST:PORT``; ``port`` where none is written."""
    is_bare_ipv6 = text.count(":") > 1 and not text.startswith("[")
    if is_bare_ipv6 or text.endswith("]") or ":" not in text:
        return text.strip("[]"), port
    return split_address(text)


def shown_address(listen: str, announce: str | None, port: int) -> str:
    """What others type, once ``port`` is known."""
    host, _ = split_address(listen)
    return join_address(*announced(announce, port)) if announce else join_address(host, port)


def dht_places(listen: str, announce: str | None, dht_port: int) -> tuple[tuple[str, int], tuple[str, int] | None]:
    """Where the DHT node listens, and where others find it if that is elsewhere."""
    host, _ = split_address(listen)
    return (host, dht_port), (announced(announce, 0)[0], dht_port) if announce and dht_port else None
