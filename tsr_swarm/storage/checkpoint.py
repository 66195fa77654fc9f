"""Checkpoints that are whole or not there: written to a temporary folder, forced to disk, renamed; verified when read.

A checkpoint is a folder ``round-000012`` of safetensors files and ``checkpoint.json``, which names each file's size
and BLAKE2b-256 and closes with its own. One writer a folder at a time; readers need no lock.
"""

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

from tsr_swarm.errors import CheckpointError
from tsr_swarm.storage.files import decode_digested, encode_digested, fsync
from tsr_swarm.telemetry.text import reason_text

FORMAT = 1
MANIFEST = "checkpoint.json"
_TEMPORARY = ".saving-"  # a folder that is being written; the next writer removes what a dead one left
_REPLACED = ".replaced"  # a checkpoint whose successor of the same round is about to take its name
_NAME = re.compile(r"round-(\d{6,})(\.replaced)?")
TensorFiles = Mapping[str, Mapping[str, Tensor]]  # by file stem, then by tensor name
_STEM = re.compile(r"[a-z0-9_-]{1,64}")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Checkpoint:
    """What ``save`` was given, read back and verified.

    warnings: a sentence about each newer checkpoint that was passed over as damaged.
    """

    round: int
    path: Path
    files: Mapping[str, dict[str, Tensor]]  # by file stem, then by tensor name
    document: Mapping[str, Any]
    warnings: tuple[str, ...]


def save(folder: Path, round: int, files: TensorFiles, document: Mapping[str, Any], keep: int) -> Path:
    """Write the checkpoint of ``round`` and remove all but it and the ``keep`` - 1 before it. Returns its folder.

    It is on disk when this returns; if this raises, the folder is as it was. ``document`` is JSON. A checkpoint of
    the same round is replaced; those of later rounds are left alone. Raises CheckpointError, on a full disk too.
    """
    final = folder / f"round-{round:06d}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder):
            _remove_leftovers(folder)
            temporary = Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=folder))
            try:
                _write(temporary, round, files, document)
                _take_name(temporary, final)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)  # gone already if it was renamed
            _prune(folder, round, keep)
    except OSError as error:
        raise CheckpointError(_cannot_write(final, files, error)) from error
    return final


def load_latest(folder: Path) -> Checkpoint | None:
    """Read the newest checkpoint whose digests are right; None when there is none at all.

    A damaged one is passed over with a warning. Raises CheckpointError when every one is damaged.
    """
    damages: list[str] = []
    for _, path in reversed(_checkpoints(folder)):
        try:
            return _read(path, tuple(f"{damage}; the one before it is used." for damage in damages))
        except (OSError, ValueError, SafetensorError) as error:
            name = f"{Path(error.filename).name}: " if isinstance(error, OSError) and error.filename else ""
            damages.append(f"Checkpoint {path} is damaged ({name}{reason_text(error)})")
    if not damages:
        return None
    raise CheckpointError(
        f"{damages[0]}, and none of the {len(damages)} in its folder is whole; "
        "restore the folder from a copy, or start a new run in another one."
    )


def saved_rounds(folder: Path) -> tuple[int, ...]:
    """The rounds that ``folder`` has checkpoints of, oldest first, damaged ones included."""
    return tuple(sorted({round for round, _ in _checkpoints(folder)}))


# -- writing


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep other writers out of ``folder``: with the lock held, every temporary folder belongs to a dead one."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems lock no folders; then one writer is the rule
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _write(temporary: Path, round: int, files: TensorFiles, document: Mapping[str, Any]) -> None:
    entries = {}
    for stem, tensors in files.items():
        if not _STEM.fullmatch(stem):
            raise ValueError(f"file stem {stem!r}")
        path = temporary / f"{stem}.safetensors"
        write_tensors(path, tensors)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=32)).hexdigest()
        entries[path.name] = {"bytes": path.stat().st_size, "blake2b": digest}
    body = {"format": FORMAT, "round": round, "files": entries, "document": document}
    manifest = temporary / MANIFEST
    manifest.write_bytes(encode_digested(body))
    fsync(manifest)
    fsync(temporary)


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write one safetensors file as transformers reads it, and force it to disk. Raises OSError."""
    try:
        save_file(_unshared(tensors), path, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(str(error)) from error
    fsync(path)


def _unshared(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``tensors`` on the CPU, contiguous, none a view of another's memory, which safetensors refuses to write."""
    own: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous()
        storage = plain.untyped_storage()
        own[name] = plain.clone() if storage.nbytes() != plain.nbytes or storage.data_ptr() in seen else plain
        seen.add(storage.data_ptr())
    return own


def _take_name(temporary: Path, final: Path) -> None:
    """Rename ``temporary`` to ``final``. At every instant a whole checkpoint of the round has one of its two names."""
    replaced = final.with_name(final.name + _REPLACED)
    if final.exists():
        shutil.rmtree(replaced, ignore_errors=True)
        final.rename(replaced)
    temporary.rename(final)
    fsync(final.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def _remove_leftovers(folder: Path) -> None:
    replaced = [path for path in folder.glob(f"*{_REPLACED}") if path.with_suffix("").exists()]
    for path in [*folder.glob(f"{_TEMPORARY}*"), *replaced]:
        shutil.rmtree(path, ignore_errors=True)


def _prune(folder: Path, round: int, keep: int) -> None:
    # Later rounds are not counted: after going back to an older state they would push out the one just saved.
    past = [path for saved, path in _checkpoints(folder) if saved <= round]
    for path in past[:-keep]:
        shutil.rmtree(path, ignore_errors=True)


def _cannot_write(final: Path, files: TensorFiles, error: Exception) -> str:
    needed = sum(tensor.nbytes for tensors in files.values() for tensor in tensors.values())
    existing = next(path for path in (final, *final.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    reason = reason_text(error).removeprefix("Error while serializing: ")
    return (
        f"Checkpoint {final} cannot be written ({reason}): it needs {needed / 1e6:.1f} MB and {free / 1e6:.1f} MB "
        "is free; make room or choose another checkpoint.dir, the older checkpoints are untouched."
    )


# -- reading


def _checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """Round and folder of each checkpoint, oldest first; one that was replaced comes before its successor."""
    paths = folder.iterdir() if folder.is_dir() else iter(())
    found = [(match, path) for path in paths if (match := _NAME.fullmatch(path.name))]
    found.sort(key=lambda item: (int(item[0][1]), item[0][2] is None))
    return [(int(match[1]), path) for match, path in found]


def _read(path: Path, warnings: tuple[str, ...]) -> Checkpoint:
    """Verify and read one checkpoint. Raises OSError, ValueError or SafetensorError when it is damaged."""
    try:
        body = decode_digested((path / MANIFEST).read_bytes(), FORMAT)
    except ValueError as error:
        raise ValueError(f"{MANIFEST} cannot be used: {error}") from error
    if not {"round", "files", "document"} <= body.keys():
        raise ValueError(f"{MANIFEST} is of no checkpoint")
    files = {name.removesuffix(".safetensors"): _read_file(path / name, entry) for name, entry in body["files"].items()}
    return Checkpoint(round=body["round"], path=path, files=files, document=body["document"], warnings=warnings)


def _read_file(path: Path, entry: Mapping[str, Any]) -> dict[str, Tensor]:
    if path.stat().st_size != entry["bytes"]:
        raise ValueError(f"{path.name} has {path.stat().st_size} bytes instead of {entry['bytes']}")
    data = path.read_bytes()  # once, so that what is checked is what is used
    if hashlib.blake2b(data, digest_size=32).hexdigest() != entry["blake2b"]:
        raise ValueError(f"{path.name} does not have its digest")
    return dict(sorted(load(data).items()))  # load's own order is a hash table's
