"""Who trains on which text, and what comes out of it as batches."""

import os
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tsr_swarm.config.run import DataConfig
from tsr_swarm.errors import ConfigError
from tsr_swarm.train import data as training_data
from tsr_swarm.train.corpus import Document, find_documents, once, read_documents

MINIMUM = 9  # bytes of one sequence in these tests

documents = st.dictionaries(
    st.text(alphabet="abc/.", min_size=1, max_size=12), st.integers(1, 10_000), min_size=1, max_size=60
).map(lambda sizes: tuple(Document(name=name, path=Path(name), size=sizes[name]) for name in sorted(sizes)))


def size(chosen: tuple[Document, ...]) -> int:
    return sum(document.size for document in chosen)


def write_files(folder: Path, count: int, length: int) -> dict[str, bytes]:
    """``count`` files, each of its own repeated word, so that any piece of text tells where it came from."""
    texts = {f"{index:03d}.txt": (f"<{index:03d}>" * length)[:length].encode() for index in range(count)}
    for name, text in texts.items():
        (folder / name).write_bytes(text)
    return texts


def data_of(path: Path, *, parts: int = 4, sequence_length: int = 8) -> DataConfig:
    return DataConfig(source=str(path), parts=parts, sequence_length=sequence_length)


def all_parts(data: DataConfig) -> list[bytes]:
    return [bytes(training_data.training_tokens(data, part).tolist()) for part in range(data.parts)]


@given(documents)
def test_held_out_documents_are_enough_at_most_a_fifth_and_the_same_in_any_order(found: tuple[Document, ...]) -> None:
    heldout = training_data.heldout_documents(found, MINIMUM)
    assert set(heldout) <= set(found)
    assert not heldout or MINIMUM <= size(heldout) <= 0.2 * size(found)
    assert training_data.heldout_documents(found[::-1], MINIMUM) == heldout


def test_about_a_twentieth_of_many_documents_is_held_out() -> None:
    many = tuple(Document(name=f"{index}.py", path=Path(), size=1000) for index in range(4000))
    assert 0.04 < size(training_data.heldout_documents(many, MINIMUM)) / size(many) < 0.06


@given(documents, st.integers(1, 12))
def test_parts_are_disjoint_complete_and_fair(found: tuple[Document, ...], parts: int) -> None:
    by_part = training_data.part_documents(found, parts, MINIMUM)
    if by_part is not None:
        assert Counter(document for part in by_part for document in part) == Counter(found)
        assert all(size(part) >= max(MINIMUM, size(found) / parts / 4) for part in by_part)


@given(st.integers(0, 10**12), st.integers(1, 1000))
def test_ranges_cover_the_text_once(length: int, parts: int) -> None:
    ranges = [training_data.part_range(length, parts, part) for part in range(parts)]
    assert (ranges[0][0], ranges[-1][1]) == (0, length)
    assert all(before[1] == after[0] for before, after in pairwise(ranges))
    assert all(abs(end - start - length / parts) < 1 for start, end in ranges)


def test_peers_take_the_parts_in_turn() -> None:
    assert [training_data.part_of(number, 3) for number in (1, 2, 3, 4)] == [0, 1, 2, 0]


def test_many_files_stay_whole_and_the_held_out_ones_are_in_no_part(tmp_path: Path) -> None:
    texts = write_files(tmp_path, count=200, length=200)
    data = data_of(tmp_path)
    heldout = bytes(training_data.heldout_tokens(data).tolist())
    found = Counter(piece for text in [heldout, *all_parts(data)] for piece in text.split(b"\0") if piece)
    assert found == Counter(texts.values())
    assert 0 < heldout.count(b"\0") < 40


@pytest.mark.parametrize("count", [1, 2, 5])
def test_few_files_are_cut_into_ranges_that_cover_the_text_once(tmp_path: Path, count: int) -> None:
    texts = write_files(tmp_path, count=count, length=1000)
    data = data_of(tmp_path, parts=8)
    pieces = [*all_parts(data), bytes(training_data.heldout_tokens(data).tolist())]
    assert min(map(len, pieces)) > data.sequence_length
    whole = b"".join(text + b"\0" for text in texts.values())
    assert Counter(b"".join(pieces)) == Counter(whole)
    assert len(pieces[-1]) <= len(whole) / 5


@pytest.mark.parametrize(("length", "heldout_length"), [(2000, 100), (100, 9)])  # never less than a sequence
def test_a_single_file_holds_out_its_last_twentieth(tmp_path: Path, length: int, heldout_length: int) -> None:
    path = tmp_path / "book.txt"
    path.write_text("".join(chr(33 + index % 90) for index in range(length)))
    data = data_of(path, parts=1)
    training, heldout = training_data.training_tokens(data, 0), training_data.heldout_tokens(data)
    assert len(heldout) == heldout_length
    assert bytes([*training.tolist(), *heldout.tolist()]) == path.read_bytes() + b"\0"


def test_one_small_note_beside_a_big_file_does_not_hold_the_big_file_out(tmp_path: Path) -> None:
    for name in ("big.txt", "big2.txt", "zzz.txt", "1.txt"):  # whatever their hashes order first
        folder = tmp_path / name.removesuffix(".txt")
        folder.mkdir()
        (folder / name).write_bytes(b"x" * 5000)
        (folder / "note.txt").write_bytes(b"y" * 20)
        assert len(training_data.heldout_tokens(data_of(folder))) <= 300


def test_the_standard_library_is_split_into_eight_fair_parts() -> None:
    data = DataConfig()
    found = find_documents(data.source)
    heldout = training_data.heldout_documents(found, data.sequence_length + 1)
    training = tuple(document for document in found if document not in set(heldout))
    assert size(found) > 5_000_000
    assert 0.02 < size(heldout) / size(found) < 0.1
    assert training_data.part_documents(training, data.parts, data.sequence_length + 1) is not None
    assert all("test" not in document.name.split("/")[:-1] for document in found)
    assert all("site-packages" not in document.name for document in found)


def test_own_data_is_used_whole(tmp_path: Path) -> None:
    texts = write_files(tmp_path, count=3, length=50)
    tokens = training_data.private_tokens((str(tmp_path),), data_of(Path("elsewhere")))
    assert bytes(tokens.tolist()) == b"".join(text + b"\0" for text in texts.values())


def test_folders_are_searched_to_the_bottom_and_binary_hidden_and_empty_files_left_out(tmp_path: Path) -> None:
    for name in ("b/c/deep.txt", "a.md", "no_suffix", ".git/config", "b/__pycache__/x.py", ".hidden", "wide.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"text of {name}")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0")
    (tmp_path / "archive").write_bytes(bytes(range(128, 256)) * 20)
    (tmp_path / "empty.txt").touch()
    (tmp_path / "twice.txt").symlink_to(tmp_path / "a.md")
    found = find_documents((str(tmp_path), str(tmp_path / "b")))
    assert [document.name for document in found] == ["a.md", "b/c/deep.txt", "no_suffix", "wide.txt"]
    assert bytes(read_documents(found, b"|")).startswith(b"text of a.md|text of b/c/deep.txt|")


def test_json_lines_give_their_text_fields(tmp_path: Path) -> None:
    path = tmp_path / "set.jsonl"
    path.write_text('{"text": "one\\ntwo"}\n\n{"meta": 1}\n{"text": "n\\u00e4ive"}\n')
    assert bytes(read_documents(find_documents(str(path)), b"")) == "one\ntwo\nnäive".encode()


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_a_byte_order_mark_names_the_encoding_and_is_no_text(tmp_path: Path, encoding: str, name: str) -> None:
    text = "grün, 緑"
    (tmp_path / name).write_bytes((text if name == "a.txt" else f'{{"text": "{text}"}}\n').encode(encoding))
    found = find_documents(str(tmp_path), pytest.fail)
    assert bytes(read_documents(found, b"", pytest.fail)).decode() == text


def test_unread_files_are_warned_of_by_reason_with_an_example(tmp_path: Path) -> None:
    (tmp_path / "good.txt").write_text("x" * 50)
    for name in ("b.parquet", "a.parquet"):
        (tmp_path / name).write_bytes(b"PAR1\x15\x04")
    (tmp_path / "latin1.txt").write_bytes("déjà vu à Köln".encode("latin-1"))
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0")
    (tmp_path / "sub").symlink_to(tmp_path)
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty.txt").touch()
    (tmp_path / ".hidden").write_bytes(b"\0")
    warnings: list[str] = []
    assert [document.name for document in find_documents(str(tmp_path), warnings.append)] == ["good.txt"]
    assert warnings == [
        f"Of the data '{tmp_path}', 1 file of 50 B can be read; left out: "
        "2 Parquet (such as a.parquet; write its text to a .jsonl file), 1 binary (picture.png), 1 broken link (gone), "
        "1 link to a folder (sub; name that folder as well), 1 no regular file (pipe), 1 not UTF-8 (latin1.txt; "
        "convert what is Latin-1 with 'iconv -f LATIN1 -t UTF-8')."
    ]


def test_unread_parts_of_files_are_warned_of(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"x" * 500 + b"\xff!" + "\ufffd".encode())
    (tmp_path / "b.jsonl").write_text('{"text": "one"}\n{"body": 1}\n\n[]\n')
    warnings: list[str] = []
    text = read_documents(find_documents(str(tmp_path), warnings.append), b"", warnings.append)
    assert bytes(text) == b"x" * 500 + "\ufffd!\ufffdone".encode()
    assert warnings == [
        f"1 character in {tmp_path}/a.txt cannot be decoded, read as U+FFFD; convert what is Latin-1 with 'iconv -f "
        "LATIN1 -t UTF-8'.",
        f'2 of 3 lines in {tmp_path}/b.jsonl have no "text" and are left out.',
    ]


def test_every_way_to_the_data_warns_of_unread_files(tmp_path: Path) -> None:
    write_files(tmp_path, count=3, length=1000)
    (tmp_path / "a.parquet").write_bytes(b"PAR1\x15\x04")
    data = data_of(tmp_path)
    for read, arguments in (
        (training_data.heldout_tokens, (data,)),
        (training_data.training_tokens, (data, 0)),
        (training_data.private_tokens, (str(tmp_path), data)),
    ):
        warnings: list[str] = []
        read(*arguments, warnings.append)
        assert ["a.parquet" in sentence for sentence in warnings] == [True]


def test_a_repeated_warning_is_passed_on_once() -> None:
    warnings: list[str] = []
    warn = once(warnings.append)
    for sentence in ("a", "b", "a"):
        warn(sentence)
    assert warnings == ["a", "b"]


def test_paths_that_can_hold_no_text_are_refused_in_one_sentence(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty").mkdir()
    (tmp_path / "parquet").mkdir()
    (tmp_path / "parquet" / "a.parquet").write_bytes(b"PAR1\x15\x04")
    for source, message in {
        f"{tmp_path}/pipe": "neither a file nor a folder",
        "~no-such-user/text": "~no-such-user/text names no home folder",
        f"{tmp_path}/empty": f"'{tmp_path}/empty' holds 0 bytes of text",
        f"{tmp_path}/parquet": r"holds 0 bytes of text, but 1 Parquet \(a\.parquet; ",
    }.items():
        with pytest.raises(ConfigError, match=message):
            find_documents(source)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing", None, r"/missing does not exist; check data\.source or --data\."),
        ("binary", b"\0\1\2", r"cannot be read as text \(binary\); name a text file"),
        ("empty.txt", b"", "holds 0 bytes of text"),
        ("short.txt", b"12345678", r"has 9 bytes, fewer than the 18 .* add text or lower data\.sequence_length = 8"),
        ("some.txt", b"x" * 60, r"Part 1 of 8 .* has 6 bytes, fewer than the 9 .* lower data\.parts = 8"),
        ("latin1.txt", "déjà vu à Köln".encode("latin-1"), r"\(not UTF-8\); convert .* 'iconv -f LATIN1 -t UTF-8'"),
        ("a.parquet", b"PAR1\x15\x04", r"\(Parquet\); write its text to a \.jsonl file"),
        ("a.txt.gz", b"\x1f\x8b\x08\0", r"\(compressed\); unpack it"),
        ("bad.jsonl", b'{"text": "a"}\n{"text": ', "line 2, is not JSON; correct it or leave the file out"),
        ("other.jsonl", b'{"body": "a"}\n', 'has no line with a "text" field'),
    ],
)
def test_unusable_data_is_refused_in_one_sentence(
    tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=message) as caught:
        training_data.training_tokens(data_of(tmp_path / name, parts=8), 0)
    assert "\n" not in str(caught.value)


def test_own_text_that_is_too_short_is_named_by_its_paths(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("hi")
    paths = (str(tmp_path / "a.txt"), str(tmp_path / "b.txt"))
    with pytest.raises(ConfigError, match=f"The data '{paths[0]}', '{paths[1]}' has 6 bytes, fewer than"):
        training_data.private_tokens(paths, data_of(tmp_path))


def stream(length: int = 1000, **changes: int) -> training_data.TokenStream:
    tokens = torch.arange(length).remainder(251).to(torch.uint8)
    plain = training_data.TokenStream(tokens=tokens, seed=0, number=1, batch_size=4, sequence_length=16)
    return replace(plain, **changes)


@given(st.integers(0, 2**31 - 1), st.integers(1, 10**5), st.integers(0, 10**12), st.integers(0, 100))
def test_a_batch_follows_from_seed_peer_step_and_micro_batch(seed: int, number: int, step: int, micro: int) -> None:
    def draw(seed: int, number: int, step: int, micro: int) -> torch.Tensor:
        return stream(seed=seed, number=number).batch(step, micro)

    given = (seed, number, step, micro)
    batch = draw(*given)
    assert (batch.shape, batch.dtype) == ((4, 17), torch.int64)
    assert torch.equal(draw(*given), batch)
    for changed in range(4):
        assert not torch.equal(draw(*(value + (position == changed) for position, value in enumerate(given))), batch)


@given(st.integers(17, 60), st.integers(0, 10**6))
def test_windows_are_pieces_of_the_text(length: int, step: int) -> None:
    for window in stream(length).batch(step):
        start = int(window[0])
        assert window.tolist() == list(range(start, start + 17))
        assert start + 17 <= length


def test_every_position_of_the_text_is_drawn_about_equally_often() -> None:
    small = stream(17 + 9, batch_size=5000)
    counts = Counter(small.batch(0)[:, 0].tolist())
    assert sorted(counts) == list(range(10))
    assert all(400 < count < 600 for count in counts.values())


def test_batches_never_change_between_versions_and_machines() -> None:
    # shake_256(b"0/1/7/0"), eight bytes a window, little-endian, 63 bits, modulo 984; the text repeats after 251
    assert stream().batch(7)[:, 0].tolist() == [position % 251 for position in (187, 849, 765, 173)]
