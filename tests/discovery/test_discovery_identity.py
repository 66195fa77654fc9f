"""A peer's key: kept private, the same after a restart, and worth something for one purpose only."""

import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import given
from hypothesis import strategies as st

from tsr_swarm.discovery.identity import Identity, is_signed_by, load_identity, new_identity, peer_id_of
from tsr_swarm.errors import ConfigError


@given(data=st.binary(max_size=200), other=st.binary(max_size=200))
def test_a_signature_is_of_one_text_for_one_purpose(data: bytes, other: bytes) -> None:
    identity = new_identity()
    signature = identity.sign("a", data)
    assert is_signed_by(identity.public_key, "a", data, signature)
    assert not is_signed_by(identity.public_key, "b", data, signature)
    assert is_signed_by(identity.public_key, "a", other, signature) == (other == data)
    assert not is_signed_by(new_identity().public_key, "a", data, signature)


@given(key=st.binary(max_size=40), signature=st.binary(max_size=70))
def test_arbitrary_bytes_are_no_signature_and_no_error(key: bytes, signature: bytes) -> None:
    assert not is_signed_by(key, "a", b"text", signature)


def test_the_peer_id_belongs_to_the_key() -> None:
    identity = new_identity()
    assert identity.peer_id == peer_id_of(identity.public_key) != new_identity().peer_id
    assert len(identity.peer_id) == 32
    assert set(identity.peer_id) <= set("0123456789abcdef")


def test_a_key_file_is_made_for_its_owner_alone_and_read_back(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "peer.key"
    made: Identity = load_identity(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert load_identity(path).public_key == made.public_key


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660])
def test_a_key_file_that_others_can_use_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "peer.key"
    load_identity(path)
    path.chmod(mode)
    with pytest.raises(ConfigError, match=f"mode {mode:04o}.*chmod 600"):
        load_identity(path)


PEM, NO_KEY = b"-----BEGIN PRIVATE KEY-----\n-----END PRIVATE KEY-----\n", r"peer\.key is damaged or holds no key"
OTHER_KIND = ec.generate_private_key(ec.SECP256R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


@pytest.mark.parametrize(
    ("content", "says"), [(b"", NO_KEY), (b"not a key", NO_KEY), (PEM, NO_KEY), (OTHER_KIND, "not an Ed25519 key")]
)
def test_a_damaged_key_file_or_one_of_another_kind_is_refused(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "peer.key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(ConfigError, match=f"{says}; delete it"):
        load_identity(path)
    with pytest.raises(ConfigError, match=f"{says}; restore it from a copy"):
        load_identity(path, is_new=False)


@pytest.mark.parametrize("path", ["", "file/peer.key"])
def test_a_path_that_can_be_no_key_file_is_refused(tmp_path: Path, path: str) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"cannot be (read|written)"):
        load_identity(tmp_path / path)
