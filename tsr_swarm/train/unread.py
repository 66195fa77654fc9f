"""What of the data is not read, and the sentences that say so. Pure."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path

from tsr_swarm.telemetry.text import clean, plural
from tsr_swarm.train.decoding import NOT_UTF8, Decoded

FOLDER_LINK = "link to a folder"
REMEDIES = {
    NOT_UTF8: "convert what is Latin-1 with 'iconv -f LATIN1 -t UTF-8'",
    "Parquet": "write its text to a .jsonl file",
    "PDF": "write its text to a .txt file",
    "compressed": "unpack it",
    FOLDER_LINK: "name that folder as well",
}
_NAME_LENGTH = 80

Warn = Callable[[str], None]  # hears one sentence
LeftOut = dict[str, list[str]]  # names of files by the reason why they are not read


def ignore(sentence: str) -> None:
    """Warn nobody."""


def once(warn: Warn) -> Warn:
    """Pass each sentence on the first time only: the same files are looked through for every part of the data."""
    heard: set[str] = set()

    def pass_on(sentence: str) -> None:
        if sentence not in heard:
            heard.add(sentence)
            warn(sentence)

    return pass_on


def reasons(left_out: LeftOut) -> str:
    """``2 Parquet (such as a.parquet; export its text as .jsonl)``, the most frequent reason first."""
    found = sorted(left_out.items(), key=lambda item: (-len(item[1]), item[0]))
    return ", ".join(f"{len(names)} {reason} ({_example(reason, names)})" for reason, names in found)


def _example(reason: str, names: Sequence[str]) -> str:
    such_as = "such as " if len(names) > 1 else ""
    remedy = f"; {REMEDIES[reason]}" if reason in REMEDIES else ""
    return f"{such_as}{clean(min(names), _NAME_LENGTH)}{remedy}"


def losses(lossy: Mapping[Path, Decoded]) -> Iterator[str]:
    """Sentences about files that were not read whole."""
    wrong = {path: decoded.wrong for path, decoded in lossy.items() if decoded.wrong}
    if wrong:
        yield (
            f"{plural(sum(wrong.values()), 'character')} in {_files(wrong)} cannot be decoded, read as U+FFFD; "
            f"{REMEDIES[NOT_UTF8]}."
        )
    short = {path: decoded.lines_left_out for path, decoded in lossy.items() if decoded.lines_left_out}
    if short:
        lines = sum(lossy[path].lines for path in short)
        yield f'{sum(short.values())} of {lines} lines in {_files(short)} have no "text" and are left out.'


def _files(paths: Collection[Path]) -> str:
    first = clean(str(min(paths)), _NAME_LENGTH)
    return first if len(paths) == 1 else f"{len(paths)} files, such as {first},"
