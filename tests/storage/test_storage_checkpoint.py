"""A checkpoint is whole or not there, whatever happens to the process, the disk or the bytes."""

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tsr_swarm.errors import CheckpointError
from tsr_swarm.storage.checkpoint import Checkpoint, load_latest, save, saved_rounds
from tsr_swarm.storage.files import decode_digested, encode_digested


def some_files(seed: int) -> dict[str, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    weights = {"a.weight": torch.randn(6, 5, generator=generator), "b": torch.randn(7, generator=generator)}
    return {"model": weights, "peer": {"left": torch.randint(-9, 9, (4, 3), generator=generator, dtype=torch.int16)}}


def save_round(folder: Path, round: int, keep: int = 3) -> Path:
    return save(folder, round, some_files(round), {"round": round, "note": "naïve"}, keep)


def latest(folder: Path) -> Checkpoint:
    checkpoint = load_latest(folder)
    assert checkpoint is not None
    return checkpoint


def warnings_at_round(folder: Path, round: int) -> tuple[str, ...]:
    """Check that the newest sound checkpoint is this round's; returns what is said of those that were passed over."""
    checkpoint = latest(folder)
    assert checkpoint.document == {"round": round, "note": "naïve"}
    assert_equal(checkpoint.files, some_files(round))
    assert checkpoint.round == round
    return checkpoint.warnings


def assert_equal(found: Mapping[str, Mapping[str, Tensor]], expected: Mapping[str, Mapping[str, Tensor]]) -> None:
    assert {stem: list(tensors) for stem, tensors in found.items()} == {
        stem: sorted(tensors) for stem, tensors in expected.items()
    }
    for stem, name, tensor in ((stem, *item) for stem, tensors in expected.items() for item in tensors.items()):
        assert found[stem][name].dtype == tensor.dtype
        assert torch.equal(found[stem][name], tensor)


def test_a_checkpoint_keeps_its_bytes_and_their_meaning(tmp_path: Path) -> None:
    """What an older version wrote, a later one reads and writes again: the files in golden must not change."""
    golden = Path(__file__).parent / "golden"
    weights = {"weight/a": torch.tensor([[1.5, -2.0], [0.25, 3.0]]), "left/a": torch.tensor([[2047], [-1]]).short()}
    files = {"consensus": weights, "space": {"steps/a": torch.tensor(7)}}
    document = {"chain": "ab" * 32, "sent_round": 12}
    found, saved = latest(golden), save(tmp_path, 12, files, document, 1)
    assert (found.round, found.document, found.warnings) == (12, document, ())
    assert_equal(found.files, files)
    for name in ("checkpoint.json", "consensus.safetensors", "space.safetensors"):
        assert (saved / name).read_bytes() == (golden / saved.name / name).read_bytes()


def test_what_was_saved_is_read_back(tmp_path: Path) -> None:
    base = torch.arange(24.0)
    files = {
        "odd": {
            "scalar": torch.tensor(3.5),
            "empty": torch.zeros(0, 4),
            "flags": torch.tensor([True, False]),
            "half": torch.randn(3, 3).bfloat16(),
            "integers": torch.tensor([-(2**62), 2**62]),
            "transposed": base.reshape(4, 6).T,
            "view": base[3:9],
            "again": base,
            "same": base,
            "trained": torch.nn.Parameter(torch.ones(2)),
        },
        "nothing": {},
    }
    document = {"text": "naïve \u2028", "numbers": [1, 0.1, -1e300, None, True], "nested": {"b": 1, "a": {}}}
    path = save(tmp_path / "new" / "folder", 12, files, document, keep=1)
    assert path.name == "round-000012"
    checkpoint = latest(tmp_path / "new" / "folder")
    assert checkpoint.path == path
    assert checkpoint.document == document
    assert checkpoint.warnings == ()
    assert_equal(checkpoint.files, files)


def test_a_folder_without_checkpoints_is_not_an_error(tmp_path: Path) -> None:
    assert load_latest(tmp_path / "missing") is None
    assert load_latest(tmp_path) is None
    assert saved_rounds(tmp_path / "missing") == ()


@pytest.mark.parametrize(
    ("rounds", "keep", "kept"),
    [((1, 2, 10, 999_999, 1_000_000), 3, (10, 999_999, 1_000_000)), ((7, 8, 9, 5, 6), 2, (5, 6, 8, 9))],
    ids=["in order", "back to an older round"],
)
def test_only_the_newest_up_to_the_one_just_saved_are_counted(
    tmp_path: Path, rounds: tuple[int, ...], keep: int, kept: tuple[int, ...]
) -> None:
    for round in rounds:
        save_round(tmp_path, round, keep)
    assert saved_rounds(tmp_path) == kept
    assert warnings_at_round(tmp_path, kept[-1]) == ()


def test_a_round_saved_again_replaces_the_first(tmp_path: Path) -> None:
    save_round(tmp_path, 4)
    save(tmp_path, 4, some_files(9), {"again": True}, keep=1)
    assert latest(tmp_path).document == {"again": True}
    assert [path.name for path in tmp_path.iterdir()] == ["round-000004"]


@pytest.fixture(scope="module")
def two_rounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    save_round(folder, 1)
    save_round(folder, 2)
    return folder


FILES = ["checkpoint.json", "model.safetensors", "peer.safetensors"]

DAMAGES: dict[str, Callable[[bytes, int, int], bytes | None]] = {  # of the content, at a byte and a bit
    "flipped": lambda data, at, bit: data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :],
    "cut": lambda data, at, bit: data[:at],
    "longer": lambda data, at, bit: data + bytes(bit) + b"\n",
    "missing": lambda data, at, bit: None,
}


@pytest.mark.parametrize("damage", DAMAGES)
@given(name=st.sampled_from(FILES), at=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_damage_anywhere_falls_back_to_the_round_before_and_says_so(
    two_rounds: Path, damage: str, name: str, at: int, bit: int
) -> None:
    path = two_rounds / "round-000002" / name
    intact = path.read_bytes()
    damaged = DAMAGES[damage](intact, at % len(intact), bit)
    path.unlink() if damaged is None else path.write_bytes(damaged)
    try:
        [warning] = warnings_at_round(two_rounds, 1)
        assert "round-000002 is damaged" in warning
        assert name in warning
    finally:
        path.write_bytes(intact)


@pytest.mark.parametrize("changes", [{"format": 2}, {"files": None}])
def test_a_checkpoint_of_another_format_is_passed_over_whatever_its_digest(
    tmp_path: Path, changes: dict[str, object]
) -> None:
    save_round(tmp_path, 1)
    path = save_round(tmp_path, 2) / "checkpoint.json"
    body = decode_digested(path.read_bytes(), 1) | changes
    path.write_bytes(encode_digested({name: value for name, value in body.items() if value is not None}))
    assert len(warnings_at_round(tmp_path, 1)) == 1


def test_nothing_but_damage_is_an_error_in_one_sentence(tmp_path: Path) -> None:
    for round in (1, 2):
        (save_round(tmp_path, round) / "model.safetensors").write_bytes(b"")
    with pytest.raises(
        CheckpointError, match=r"round-000002 is damaged \(.*\), and none of the 2 in its folder is whole; restore"
    ):
        load_latest(tmp_path)


def test_a_document_that_is_not_json_leaves_nothing_behind(tmp_path: Path) -> None:
    save_round(tmp_path, 1)
    with pytest.raises(ValueError, match="JSON"):
        save(tmp_path, 2, some_files(2), {"loss": float("nan")}, keep=3)
    assert [path.name for path in tmp_path.iterdir()] == ["round-000001"]


def test_a_folder_that_cannot_be_made_is_an_error_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"cannot be written \(.*\): it needs 0\.0 MB and .* MB is free"):
        save_round(tmp_path / "file" / "runs", 1)


def run_python(program: str, folder: Path) -> str:
    command, environment = [sys.executable, "-c", program, str(folder)], {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


# A file size limit stands for a full disk: it fails the same writes, needs no root, and each limit fails another one.
FULL_DISK = """
import resource, sys
from pathlib import Path
import torch
from tsr_swarm.errors import CheckpointError
from tsr_swarm.storage.checkpoint import Checkpoint, load_latest, save

folder = Path(sys.argv[1])
files = {"model": {"w": torch.ones(2000)}, "peer": {"w": torch.ones(20000)}}
save(folder, 1, files, {}, keep=1)
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
for limit in (0, 100, 5000, 8100, 30000, 80000):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        save(folder, 2, files, {}, keep=1)
    except CheckpointError as error:
        print(error)
    else:
        raise SystemExit(f"saved under a limit of {limit}")
    assert [path.name for path in folder.iterdir()] == ["round-000001"], list(folder.iterdir())
    assert load_latest(folder).round == 1 and not load_latest(folder).warnings
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
save(folder, 2, files, {}, keep=1)
assert load_latest(folder).round == 2
"""


def test_a_full_disk_is_one_sentence_and_leaves_the_older_checkpoint(tmp_path: Path) -> None:
    sentences = run_python(FULL_DISK, tmp_path).splitlines()
    assert len(sentences) == 6
    for sentence in sentences:
        assert "round-000002 cannot be written (" in sentence
        assert "it needs 0.1 MB and " in sentence
        assert sentence.endswith("; make room or choose another checkpoint.dir, the older checkpoints are untouched.")


# An audit hook sees every step a save takes on the file system. One process dies at each, by SIGKILL.
KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from tsr_swarm.storage.checkpoint import Checkpoint, load_latest, save

torch.set_num_threads(1)
def save_round(folder, round):
    save(folder, round, {"model": {"w": torch.full((50,), float(round))}}, {"round": round}, keep=1)

def die_at(step):
    seen = 0
    def hook(event, _):
        nonlocal seen
        if event.startswith(("open", "os.", "shutil.", "fcntl.", "tempfile.")):
            seen += 1
            if seen == step:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)

for again in (0, 1):  # a new round, then the same one again
    folder = Path(sys.argv[1], str(again))
    save_round(folder, round := 1)
    for step in range(1, 1000):
        target = round + 1 - again
        child = os.fork()
        if child == 0:
            die_at(step)
            save_round(folder, target)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        latest = load_latest(folder)
        assert latest.round in (round, target) and not latest.warnings, (step, latest)
        assert latest.files["model"]["w"].eq(latest.round).all() and latest.document == {"round": latest.round}
        round = latest.round
        if status == 0:
            break
        assert os.WTERMSIG(status) == signal.SIGKILL
    assert [path.name for path in folder.iterdir()] == [latest.path.name], "the next writer cleans up"
    print(step)
"""


def test_a_writer_killed_at_any_step_leaves_a_checkpoint_to_load(tmp_path: Path) -> None:
    steps = [int(line) for line in run_python(KILLED, tmp_path).splitlines()]
    assert len(steps) == 2
    assert min(steps) > 15
