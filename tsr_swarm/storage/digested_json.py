"""JSON documents that close with the digest of all before it, so that any flipped bit is found when they are read."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

_DIGEST = "blake2b"


def encode_sealed(body: Mapping[str, Any]) -> bytes:
    """The one legal form of ``body``, with its BLAKE2b-256 as the last key. Raises ValueError for NaN and infinity."""
    text = json.dumps(body, sort_keys=True, indent=1, allow_nan=False).removesuffix("\n}")
    digest = hashlib.blake2b(text.encode(), digest_size=32).hexdigest()
    return f'{text},\n "{_DIGEST}": "{digest}"\n}}\n'.encode()


def decode_sealed(encoded: bytes) -> dict[str, Any]:
    """The body that ``encode_sealed`` was given. Raises ValueError for anything else."""
    try:
        body: dict[str, Any] = json.loads(encoded)
        del body[_DIGEST]
        if encode_sealed(body) == encoded:
            return body
    except (ValueError, KeyError, TypeError, RecursionError):
        pass  # not what encode_sealed writes, which is all there is to say
    raise ValueError("it does not have its digest")
