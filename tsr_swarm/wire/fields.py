"""Bounds of single fields, checked once where a message comes in. Each function raises PeerError."""

import itertools
import math
import re
from collections.abc import Sequence

from tsr_swarm.errors import PeerError

DIGEST_BYTES = 32  # of a BLAKE2b-256
PEER_ID_BYTES = 16
MAX_ROUND = 2**40
MAX_TERM = 2**40
MAX_INCARNATION = 2**63 - 1
MAX_COUNT = 2**50  # of bytes, versions and calls
MAX_VOTERS = 5
MAX_TOKENS = 2**40
MAX_STEPS = 10**6
MAX_SEED = 2**31 - 1
MAX_WAIT_MS = 20_000
MAX_REASON = 160  # characters, for people

_NAME = re.compile(r"[A-Za-z0-9_-]{1,32}")
_PEER_ID = re.compile(r"[0-9a-f]{32}")
_ADDRESS = re.compile(r"[0-9A-Za-z._:%\[\]-]{3,262}")


def require(condition: bool, field: str, value: object, limit: str) -> None:
    """Refuse ``field`` unless ``condition``. Its name is the PeerError's reason."""
    if not condition:
        raise PeerError(field, f"{field} = {_show(value)} is out of range; it must be {limit}.")


def require_between(field: str, value: int, low: int, high: int) -> None:
    require(low <= value <= high, field, value, f"{low} to {high}")


def require_real(field: str, value: float, low: float, high: float) -> None:
    """Require a finite number from ``low`` to ``high``."""
    require(math.isfinite(value) and low <= value <= high, field, value, f"a number from {low} to {high}")


def require_digest(field: str, value: bytes) -> None:
    require(len(value) == DIGEST_BYTES, field, value, f"{DIGEST_BYTES} bytes")


def require_chain(field: str, value: bytes, round: int) -> None:
    """Require a chain hash of ``round``; before round 1 there is none."""
    require(len(value) == (DIGEST_BYTES if round > 0 else 0), field, value, "32 bytes, or empty before round 1")


def require_peer_id(field: str, value: str) -> None:
    require(_PEER_ID.fullmatch(value) is not None, field, value, "32 lower-case hexadecimal digits")


def require_peer_bytes(field: str, value: bytes) -> None:
    require(len(value) == PEER_ID_BYTES, field, value, f"{PEER_ID_BYTES} bytes a peer")


def require_name(field: str, value: str) -> None:
    """Require a name of a peer, safe to show and to use in a file's name."""
    require(_NAME.fullmatch(value) is not None, field, value, "1 to 32 letters, digits, '-' or '_'")


def require_text(field: str, value: str, limit: int) -> None:
    """Require short and printable text, which cannot control the terminal that shows it."""
    require(len(value) <= limit and value.isprintable(), field, value, f"at most {limit} printable characters")


def require_address(field: str, value: str) -> None:
    """Require nothing, or something of the form host:port."""
    require(not value or _ADDRESS.fullmatch(value) is not None, field, value, "empty or host:port")


def require_ascending(field: str, values: Sequence[int], end: int) -> None:
    """Require strictly ascending indices below ``end``; a list that is too long is not read."""
    ok = len(values) <= end and all(a < b for a, b in itertools.pairwise(values))
    require(ok and (not values or values[-1] < end), field, values[:8], f"ascending numbers below {end}")


def require_voters(field: str, values: Sequence[str], least: int) -> None:
    """Require peer ids of ``least`` to MAX_VOTERS voters, ascending."""
    require(least <= len(values) <= MAX_VOTERS, field, len(values), f"{least} to {MAX_VOTERS} voters")
    for value in values:
        require_peer_id(field, value)
    require(all(a < b for a, b in itertools.pairwise(values)), field, list(values), "ascending, each voter once")


def _show(value: object) -> str:
    text = value.hex() if isinstance(value, bytes) else repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
