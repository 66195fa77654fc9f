"""Decode the bytes of a file into text as UTF-8, or say what else they are. Pure."""

import codecs
import json
from dataclasses import dataclass

NOT_UTF8 = "not UTF-8"
# The longer marks first: that of UTF-32 begins with that of UTF-16.
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_FORMATS = {
    b"PAR1": "Parquet",
    b"PK\3\4": "compressed",  # zip
    b"\x1f\x8b": "compressed",  # gzip
    b"BZh": "compressed",
    b"\xfd7zXZ\0": "compressed",
    b"\x28\xb5\x2f\xfd": "compressed",  # zstd
    b"%PDF-": "PDF",
}
_TEXT_CONTROLS = "\t\n\v\f\r\b\x1a\x1b"
_WRONG = "\ufffd"
_DAMAGED = 100  # one wrong character in so many is damage; more of them are another encoding


def why_no_text(head: bytes) -> str | None:
    """What a file that begins with ``head`` is instead of text, such as "Parquet"; None if it is text."""
    for magic, name in _FORMATS.items():
        if head.startswith(magic):
            return name
    text, wrong = _decode(head)
    limit = len(text) // _DAMAGED + 1  # at least one: the last character of the head may be cut
    if "\0" in text or sum(character < " " and character not in _TEXT_CONTROLS for character in text) > limit:
        return "binary"
    return NOT_UTF8 if wrong > limit else None


@dataclass(frozen=True, slots=True)
class Decoded:
    """The text of one file, UTF-8 without a byte-order mark, and how much of the file is not in it."""

    text: bytes
    wrong: int = 0  # places that were not in the file's encoding, each now U+FFFD
    lines: int = 0  # of JSON lines ...
    lines_left_out: int = 0  # ... and those without a "text"


def decode(raw: bytes) -> Decoded:
    """Decode a file: UTF-8, or the encoding of its byte-order mark."""
    text, wrong = _decode(raw)
    return Decoded(text.encode(), wrong)


def decode_json_lines(raw: bytes) -> Decoded:
    """Join the "text" fields of JSON lines. Raises ValueError that names a line which is no JSON."""
    decoded = decode(raw)
    texts, lines = [], 0
    for number, line in enumerate(decoded.text.splitlines(), start=1):  # of bytes: U+2028 ends no line of JSON
        if not line.strip():
            continue
        lines += 1
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            raise ValueError(f"line {number}") from None
        if isinstance(record, dict) and isinstance(record.get("text"), str):
            texts.append(record["text"])
    text = "\n".join(texts).encode("utf-8", "replace")
    return Decoded(text, decoded.wrong, lines, lines - len(texts))


def _decode(raw: bytes) -> tuple[str, int]:
    """Return the text, and how many U+FFFD in it stand for something wrong, and not for themselves."""
    encoding = next((encoding for mark, encoding in _MARKS.items() if raw.startswith(mark)), "utf-8")
    text = raw.decode(encoding, "replace")
    wrong = text.count(_WRONG) - raw.decode(encoding, "ignore").count(_WRONG) if _WRONG in text else 0
    return text, wrong
