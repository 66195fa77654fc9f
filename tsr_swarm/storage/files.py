"""Files that survive a crash, and JSON documents that close with the digest of all before it.

With the digest any flipped bit is found when a document is read.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_DIGEST = "blake2b"


def fsync(path: Path) -> None:
    """Force a file, or a folder's list of names, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_file(path: Path, temporary: Path, data: bytes) -> None:
    """Write ``data`` to ``temporary``, force it to disk and rename it to ``path``; the name is forced by ``fsync``.

    If the disk refuses, nothing is left behind.
    """
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def encode_digested(body: Mapping[str, Any]) -> bytes:
    """The one legal form of ``body``, with its BLAKE2b-256 as the last key. Raises ValueError for NaN and infinity."""
    text = json.dumps(body, sort_keys=True, indent=1, allow_nan=False).removesuffix("\n}")
    digest = hashlib.blake2b(text.encode(), digest_size=32).hexdigest()
    return f'{text},\n "{_DIGEST}": "{digest}"\n}}\n'.encode()


def decode_digested(encoded: bytes, format: int) -> dict[str, Any]:
    """The body that ``encode_digested`` was given. Raises ValueError for anything else, and for another "format"."""
    try:
        body: dict[str, Any] = json.loads(encoded)
        del body[_DIGEST]
        is_whole = encode_digested(body) == encoded
    except (ValueError, KeyError, TypeError, RecursionError):
        is_whole = False
    if not is_whole:
        raise ValueError("it does not have its digest")
    if (found := body.get("format")) != format:
        raise ValueError(f"its format is {found}, this program reads {format}: use the version that wrote it")
    return body
