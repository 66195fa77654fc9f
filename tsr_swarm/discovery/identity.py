"""Who a peer is: one Ed25519 key an installation. Its public half names the peer and vouches for what it says."""

import contextlib
import hashlib
import os
import stat
from functools import cached_property
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from tsr_swarm.errors import ConfigError
from tsr_swarm.process.machine_limits import disk_errors

PUBLIC_KEY_BYTES = 32
SIGNATURE_BYTES = 64
_MAX_FILE_BYTES = 4096
_RESTORE = "restore it from a copy, or choose another folder to take part as a new node"


class Identity:
    """A private key. The same key always gives the same ``peer_id``, so nobody can speak for another's."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key

    @cached_property
    def public_key(self) -> bytes:
        return self._key.public_key().public_bytes_raw()

    @cached_property
    def private_key(self) -> bytes:
        """The 32 secret bytes. Never logged, sent, or written to a file that others can read."""
        return self._key.private_bytes_raw()

    @property
    def peer_id(self) -> str:
        return peer_id_of(self.public_key)

    def sign(self, kind: str, data: bytes) -> bytes:
        """Sign ``data`` for one purpose: a signature of one ``kind`` is worth nothing as another."""
        return self._key.sign(_domain(kind) + data)

    def write_to(self, path: Path) -> None:
        """Write the key to a new file that its owner alone may read. Raises OSError."""
        pem, kind = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(self._key.private_bytes(pem, kind, serialization.NoEncryption()))
            file.flush()
            os.fsync(file.fileno())


def new_identity() -> Identity:
    return Identity(Ed25519PrivateKey.generate())


def load_identity(path: Path, *, is_new: bool = True) -> Identity:
    """Read the key file at ``path``; if there is none and the node ``is_new``, draw a key and write it, mode 0600.

    The file is PEM (PKCS #8), as OpenSSL writes it. Raises ConfigError when others may read it, it is no such key, or
    it is missing and should be there.
    """
    with contextlib.suppress(FileNotFoundError):
        return _read(path, is_new)
    if not is_new:
        raise ConfigError(
            f"The key file {path} is missing, but its folder holds what this node did under that key; {_RESTORE}."
        )
    identity = new_identity()
    with disk_errors(f"The key file {path} cannot be written", "choose a folder you can write to", ConfigError):
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            identity.write_to(path)
        except FileExistsError:  # another process was first: its key is this installation's
            return _read(path, is_new)
    return identity


def peer_id_of(public_key: bytes) -> str:
    """Give the peer id that belongs to a public key: 32 hexadecimal digits of its BLAKE2b."""
    return hashlib.blake2b(public_key, digest_size=16).hexdigest()


def is_signed_by(public_key: bytes, kind: str, data: bytes, signature: bytes) -> bool:
    """Say whether ``signature`` is one of ``data`` for the purpose ``kind`` by the holder of ``public_key``."""
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, _domain(kind) + data)
    except (InvalidSignature, ValueError):
        return False
    return True


def _domain(kind: str) -> bytes:
    return b"tsr/v1/" + kind.encode() + b"\0"


def _read(path: Path, is_new: bool) -> Identity:
    remedy = "delete it to be given a new identity" if is_new else _RESTORE
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            if mode & 0o077:
                raise ConfigError(
                    f"The key file {path} has mode {mode:04o}, so others can use it; run 'chmod 600 {path}'."
                )
            data = file.read(_MAX_FILE_BYTES)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ConfigError(
            f"The key file {path} cannot be read ({error.strerror}); check its owner and path."
        ) from error
    try:
        key = serialization.load_pem_private_key(data, password=None)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"The key file {path} is damaged or holds no key; {remedy}.") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(f"{path} holds a {type(key).__name__}, not an Ed25519 key; {remedy}.")
    return Identity(key)
