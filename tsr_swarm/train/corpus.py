"""Find and read text: the Python standard library's own source, or files and folders. A file is a document.

Each ``warn`` is called with one sentence at a time about text that cannot be read.
"""

import os
import sysconfig
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tsr_swarm.errors import ConfigError
from tsr_swarm.telemetry.text import bytes_text, clean, plural, reason_text
from tsr_swarm.train.decoding import NOT_UTF8, Decoded, decode, decode_json_lines, why_no_text

STDLIB = "stdlib"
MAX_READ_BYTES = 4 << 30  # what is read at once is held in memory
_SKIPPED_STDLIB_FOLDERS = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
_SNIFFED_BYTES = 8192
_FOLDER_LINK = "link to a folder"
_REMEDIES = {
    NOT_UTF8: "convert what is Latin-1 with 'iconv -f LATIN1 -t UTF-8'",
    "Parquet": "write its text to a .jsonl file",
    "PDF": "write its text to a .txt file",
    "compressed": "unpack it",
    _FOLDER_LINK: "name that folder as well",
}
_NAME_LENGTH = 80

Warn = Callable[[str], None]
_LeftOut = dict[str, list[str]]  # names of files by the reason why they are not read


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """One file. ``name`` is its path inside its source, with "/", and alone decides who trains on it."""

    name: str
    path: Path
    size: int  # bytes on disk


def ignore(sentence: str) -> None:
    """Warn nobody."""


def once(warn: Warn) -> Warn:
    """Pass on each sentence only the first time: the same files are searched for every part of the data."""
    warned: set[str] = set()

    def warn_once(sentence: str) -> None:
        if sentence not in warned:
            warned.add(sentence)
            warn(sentence)

    return warn_once


def find_documents(source: str | tuple[str, ...], warn: Warn = ignore) -> tuple[Document, ...]:
    """List the documents of ``source`` in the order of their names: "stdlib", a path, or several paths.

    Folders are searched to the bottom. Hidden and empty files are left out, and a file that is reached twice counts
    once; ``warn`` says what else is left out and why. Raises ConfigError when a path is missing or nothing is found.
    """
    left_out: _LeftOut = {}
    try:
        files = (pair for path in source_paths(source) for pair in _text_files(path, left_out))
        documents = _distinct(_stdlib_files() if source == STDLIB else files)
    except OSError as error:
        raise _unreadable(error) from error
    if not documents:
        but = f", but {_reasons(left_out)}" if left_out else ""
        raise ConfigError(
            f"The data source {source_text(source)} holds 0 bytes of text{but}; name files or folders that hold some."
        )
    if left_out:
        size = sum(document.size for document in documents)
        read = f"{plural(len(documents), 'file')} of {bytes_text(size)}"
        warn(f"Of the data {source_text(source)}, {read} can be read; left out: {_reasons(left_out)}.")
    return documents


def missing_paths(source: str | tuple[str, ...]) -> list[str]:
    """The paths of ``source`` at which there is nothing; "stdlib" is no path."""
    return [path for path in source_paths(source) if not os.path.exists(os.path.expanduser(path))]


def source_paths(source: str | tuple[str, ...]) -> tuple[str, ...]:
    """The paths that ``source`` names: none for "stdlib"."""
    if source == STDLIB:
        return ()
    return (source,) if isinstance(source, str) else source


def absolute_source(source: str | tuple[str, ...]) -> str | tuple[str, ...]:
    """``source`` as it is found from any folder of this machine."""
    paths = tuple(os.path.abspath(os.path.expanduser(path)) for path in source_paths(source))
    if not paths:
        return source
    return paths[0] if isinstance(source, str) else paths


def source_text(source: str | tuple[str, ...]) -> str:
    """``'stdlib'``, or ``'a', 'b'``: a source for a sentence."""
    return ", ".join(map(repr, source_paths(source) or (STDLIB,)))


def read_documents(documents: Iterable[Document], end: bytes, warn: Warn = ignore) -> bytearray:
    """Read the text of all ``documents`` in order as UTF-8, each followed by ``end``. Raises ConfigError."""
    documents = list(documents)
    total = sum(document.size for document in documents)
    if total > MAX_READ_BYTES:
        raise ConfigError(
            f"The data has {total} bytes, more than the {MAX_READ_BYTES} that are held in memory; "
            "name fewer files, or raise data.parts."
        )
    text = bytearray()
    lossy: dict[Path, Decoded] = {}
    for document in documents:
        decoded = _read(document.path)
        if decoded.wrong or decoded.lines_left_out:
            lossy[document.path] = decoded
        text += decoded.text
        text += end
    for sentence in _losses(lossy):
        warn(sentence)
    return text


def _stdlib_files() -> Iterator[tuple[str, Path]]:
    root = Path(sysconfig.get_paths()["stdlib"])
    return ((name, path) for name, path in _walk(root, _SKIPPED_STDLIB_FOLDERS, {}) if path.suffix == ".py")


def _text_files(given: str, left_out: _LeftOut) -> Iterator[tuple[str, Path]]:
    try:
        path = Path(given).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"The data path {given} names no home folder that is known; write the whole path.") from error
    if path.is_file():
        if reason := _why_no_text(path):
            remedy = _REMEDIES.get(reason, "name a text file")
            raise ConfigError(f"The data file {path} cannot be read as text ({reason}); {remedy}.")
        yield path.name, path
    elif path.is_dir():
        for name, file in _walk(path, {"__pycache__"}, left_out):
            if reason := _why_no_text(file):
                left_out.setdefault(reason, []).append(name)
            else:
                yield name, file
    elif path.exists():
        raise ConfigError(f"The data path {path} is neither a file nor a folder; copy what it gives into a file.")
    else:
        raise ConfigError(f"The data path {path} does not exist; check data.source or --data.")


def _walk(root: Path, skipped: set[str], left_out: _LeftOut) -> Iterator[tuple[str, Path]]:
    """Name and path of every regular file that is not hidden. Links to folders are not followed: they may go round."""

    def stop(error: OSError) -> None:
        raise error

    for folder, folders, files in os.walk(root, onerror=stop):
        folders[:] = [name for name in folders if name not in skipped and not name.startswith(".")]
        for path in (Path(folder, name) for name in folders + files if not name.startswith(".")):
            name = path.relative_to(root).as_posix()
            if path.is_file():
                yield name, path
            elif path.is_symlink():
                left_out.setdefault(_FOLDER_LINK if path.is_dir() else "broken link", []).append(name)
            elif not path.is_dir():  # a pipe, whose reading would never end
                left_out.setdefault("no regular file", []).append(name)


def _distinct(candidates: Iterable[tuple[str, Path]]) -> tuple[Document, ...]:
    found: dict[tuple[int, int], Document] = {}
    for name, path in candidates:
        status = path.stat()
        if status.st_size:
            # By inode: a file under two names could be held out under one and trained on under the other.
            found.setdefault((status.st_dev, status.st_ino), Document(name=name, path=path, size=status.st_size))
    return tuple(sorted(found.values(), key=lambda document: document.name))


def _why_no_text(path: Path) -> str | None:
    with path.open("rb") as file:
        return why_no_text(file.read(_SNIFFED_BYTES))


def _read(path: Path) -> Decoded:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise _unreadable(error, path) from error
    if path.suffix != ".jsonl":
        return decode(raw)
    try:
        decoded = decode_json_lines(raw)
    except ValueError as error:
        raise ConfigError(f"{path}, {error}, is not JSON; correct it or leave the file out.") from error
    if decoded.lines == decoded.lines_left_out:
        raise ConfigError(f'{path} has no line with a "text" field; name the field so, or leave the file out.')
    return decoded


def _unreadable(error: OSError, path: Path | None = None) -> ConfigError:
    name = error.filename or path
    return ConfigError(f"The data {name} cannot be read ({reason_text(error)}); check the path and its permissions.")


def _reasons(left_out: _LeftOut) -> str:
    """``2 Parquet (such as a.parquet; write its text to a .jsonl file)``, the most frequent reason first."""
    found = sorted(left_out.items(), key=lambda item: (-len(item[1]), item[0]))
    return ", ".join(f"{len(names)} {reason} ({_example(reason, names)})" for reason, names in found)


def _example(reason: str, names: Sequence[str]) -> str:
    such_as = "such as " if len(names) > 1 else ""
    remedy = f"; {_REMEDIES[reason]}" if reason in _REMEDIES else ""
    return f"{such_as}{clean(min(names), _NAME_LENGTH)}{remedy}"


def _losses(lossy: Mapping[Path, Decoded]) -> Iterator[str]:
    """Sentences about files that were not read whole."""
    wrong = {path: decoded.wrong for path, decoded in lossy.items() if decoded.wrong}
    if wrong:
        yield (
            f"{plural(sum(wrong.values()), 'character')} in {_files(wrong)} cannot be decoded, read as U+FFFD; "
            f"{_REMEDIES[NOT_UTF8]}."
        )
    short = {path: decoded.lines_left_out for path, decoded in lossy.items() if decoded.lines_left_out}
    if short:
        lines = sum(lossy[path].lines for path in short)
        yield f'{sum(short.values())} of {lines} lines in {_files(short)} have no "text" and are left out.'


def _files(paths: Collection[Path]) -> str:
    first = clean(str(min(paths)), _NAME_LENGTH)
    return first if len(paths) == 1 else f"{len(paths)} files, such as {first},"
