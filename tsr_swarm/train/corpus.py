"""Find and read text: the Python standard library's own source, or files and folders. A file is a document."""

import json
import os
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tsr_swarm.errors import ConfigError

STDLIB = "stdlib"
MAX_READ_BYTES = 4 << 30  # what is read at once is held in memory
_SKIPPED_STDLIB_FOLDERS = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
_SNIFFED_BYTES = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """One file. ``name`` is its path inside its source, with "/", and alone decides who trains on it."""

    name: str
    path: Path
    size: int  # bytes on disk


def find_documents(source: str | tuple[str, ...]) -> tuple[Document, ...]:
    """List the documents of ``source`` in the order of their names: "stdlib", a path, or several paths.

    Folders are searched to the bottom; hidden, empty and binary files are left out, and a file that is reached
    twice counts once. Raises ConfigError when a path is missing or nothing is found.
    """
    try:
        documents = _distinct(_stdlib_files() if source == STDLIB else _named_files(source))
    except OSError as error:
        raise _unreadable(error) from error
    if not documents:
        place = source if isinstance(source, str) else ", ".join(source)
        raise ConfigError(f"The data source '{place}' holds 0 bytes of text; name files or folders that hold some.")
    return documents


def missing_paths(source: str | tuple[str, ...]) -> list[str]:
    """Those paths of ``source`` at which there is nothing; "stdlib" is no path."""
    return [path for path in source_paths(source) if not os.path.exists(os.path.expanduser(path))]


def source_paths(source: str | tuple[str, ...]) -> tuple[str, ...]:
    """The paths that ``source`` names: none for "stdlib"."""
    if source == STDLIB:
        return ()
    return (source,) if isinstance(source, str) else source


def read_documents(documents: Iterable[Document], end: bytes) -> bytearray:
    """The text of all ``documents`` in order as UTF-8, each followed by ``end``. Raises ConfigError."""
    documents = list(documents)
    total = sum(document.size for document in documents)
    if total > MAX_READ_BYTES:
        raise ConfigError(
            f"The data has {total} bytes, more than the {MAX_READ_BYTES} that are held in memory; "
            "name fewer files, or raise data.parts."
        )
    text = bytearray()
    for document in documents:
        try:
            raw = document.path.read_bytes()
        except OSError as error:
            raise _unreadable(error) from error
        is_jsonl = document.path.suffix == ".jsonl"
        text += _jsonl_text(document.path, raw) if is_jsonl else raw.decode("utf-8", "replace").encode()
        text += end
    return text


def _stdlib_files() -> Iterator[tuple[str, Path]]:
    root = Path(sysconfig.get_paths()["stdlib"])
    return ((name, path) for name, path in _walk(root, _SKIPPED_STDLIB_FOLDERS) if path.suffix == ".py")


def _named_files(source: str | tuple[str, ...]) -> Iterator[tuple[str, Path]]:
    return (pair for path in source_paths(source) for pair in _text_files(Path(os.path.expanduser(path))))


def _text_files(path: Path) -> Iterator[tuple[str, Path]]:
    if path.is_file():
        if not _looks_like_text(path):
            raise ConfigError(f"The data file {path} is not text; name a text file.")
        yield path.name, path
    elif path.is_dir():
        yield from ((name, file) for name, file in _walk(path, {"__pycache__"}) if _looks_like_text(file))
    else:
        raise ConfigError(f"The data path {path} does not exist; check data.source or --data.")


def _walk(root: Path, skipped: set[str]) -> Iterator[tuple[str, Path]]:
    """Name and path of every regular file that is not hidden."""

    def stop(error: OSError) -> None:
        raise error

    for folder, folders, files in os.walk(root, onerror=stop):
        folders[:] = [name for name in folders if name not in skipped and not name.startswith(".")]
        for path in (Path(folder, name) for name in files if not name.startswith(".")):
            if path.is_file():  # not a pipe, whose reading would never end
                yield path.relative_to(root).as_posix(), path


def _distinct(candidates: Iterable[tuple[str, Path]]) -> tuple[Document, ...]:
    found: dict[tuple[int, int], Document] = {}
    for name, path in candidates:
        status = path.stat()
        if status.st_size:
            # By inode: a file under two names could be held out under one and trained on under the other.
            found.setdefault((status.st_dev, status.st_ino), Document(name=name, path=path, size=status.st_size))
    return tuple(sorted(found.values(), key=lambda document: document.name))


def _looks_like_text(path: Path) -> bool:
    """No NUL, and at most a tenth is not UTF-8, at the file's start."""
    with path.open("rb") as file:
        head = file.read(_SNIFFED_BYTES)
    text = head.decode("utf-8", "replace")
    return b"\0" not in head and text.count("\ufffd") <= len(text) // 10 + 1


def _jsonl_text(path: Path, raw: bytes) -> bytes:
    """The "text" fields of a JSON-lines file, one after the other. Lines without one are left out."""
    texts = []
    for number, line in enumerate(raw.splitlines(), start=1):
        if line.strip():
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ConfigError(f"{path}, line {number}, is not JSON; correct it or leave the file out.") from error
            if isinstance(record, dict) and isinstance(record.get("text"), str):
                texts.append(record["text"])
    if not texts:
        raise ConfigError(f'{path} has no line with a "text" field; name the field so, or leave the file out.')
    return "\n".join(texts).encode("utf-8", "replace")


def _unreadable(error: OSError) -> ConfigError:
    return ConfigError(f"The data file {error.filename} cannot be read ({error.strerror}); check its permissions.")
