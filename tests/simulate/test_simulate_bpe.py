"""BPE text: nothing is lost in it, nothing is learned from what is held out, and runs read it as they read bytes."""

import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.swarm_rig import TEXT, tiny_config
from tsr_swarm.errors import ConfigError
from tsr_swarm.simulate.bpe import encode, in_tokens, learn
from tsr_swarm.simulate.engine import run_one
from tsr_swarm.simulate.heterogeneity import Heterogeneity
from tsr_swarm.simulate.run_spec import RunSpec

SIZE = 300
LEARNED = TEXT.encode()[:20_000]
VOCABULARY = learn([LEARNED], SIZE)


def tokens_of(text: bytes) -> Tensor:
    return torch.frombuffer(bytearray(text), dtype=torch.uint8)


def bpe_spec(folder: Path, method: str = "tsr") -> RunSpec:
    config, settings = tiny_config(folder, model={"vocab_size": SIZE}), {"k_x": 3} if method != "tsr" else {}
    bpe = Heterogeneity(vocabulary=SIZE)
    return RunSpec(method=method, config=config, settings=settings, peers=3, steps=12, heterogeneity=bpe)


def text_of(ids: Sequence[int]) -> str:
    """What the ids say, by the library's own decoder."""
    from tokenizers import decoders

    pieces = [VOCABULARY.id_to_token(token) or "" for token in ids]
    said: str = decoders.ByteLevel().decode(pieces)
    return said


@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])), min_size=1, max_size=4))
def test_nothing_is_lost_and_no_token_has_parts_of_two_documents(documents: list[str]) -> None:
    (end,) = encode(VOCABULARY, b"\0a")[:1].tolist()
    ids = encode(VOCABULARY, "\0".join(documents).encode())
    assert ids.dtype == torch.int32
    assert text_of(ids.tolist()) == "\0".join(documents)
    assert int((ids == end).sum()) == len(documents) - 1
    assert all(0 <= token < SIZE for token in ids.tolist())


def test_a_character_that_was_cut_in_two_is_replaced() -> None:
    assert text_of(encode(VOCABULARY, "aé".encode()[:-1]).tolist()) == "a\ufffd"


def test_the_same_text_gives_the_same_tokens_and_fewer_than_bytes() -> None:
    again = learn([LEARNED], SIZE)
    assert again.get_vocab() == VOCABULARY.get_vocab()
    assert again.get_vocab_size() == SIZE
    assert encode(again, LEARNED).numel() < len(LEARNED) / 2


def test_nothing_is_learned_from_what_is_held_out() -> None:
    text, other = tokens_of(LEARNED), tokens_of(b"never seen in training " * 100)
    _, (first,) = in_tokens(text, [text], SIZE, 17)
    held, (second,) = in_tokens(other, [text], SIZE, 17)
    assert torch.equal(first, second)
    assert torch.equal(first, encode(VOCABULARY, LEARNED))
    assert torch.equal(held, encode(VOCABULARY, b"never seen in training " * 100))


@pytest.mark.parametrize("method", ["tsr", "diloco"])
def test_a_run_reads_tokens_from_its_first_loss_to_its_last(tmp_path: Path, method: str) -> None:
    spec = bpe_spec(tmp_path, method)
    result = run_one(spec)
    losses = [point.loss for point in result.curve if point.loss is not None]
    assert losses[0] == pytest.approx(math.log(SIZE), abs=0.2)
    assert losses[-1] < losses[0] - 0.05
    assert (run_one(spec).curve, run_one(spec).text) == (result.curve, result.text)


def test_all_methods_read_the_same_tokens_and_other_ones_than_bytes(tmp_path: Path) -> None:
    own, baseline = (run_one(replace(bpe_spec(tmp_path, method), steps=3)) for method in ("tsr", "diloco"))
    unlike, as_bytes = (
        run_one(replace(bpe_spec(tmp_path), steps=3, heterogeneity=other))
        for other in (Heterogeneity(heterogeneous=True, vocabulary=SIZE), Heterogeneity())
    )
    assert own.text == baseline.text
    assert own.text != as_bytes.text
    assert len({run.name for run in (own, baseline, unlike, as_bytes)}) == 4


def test_a_run_on_bytes_has_the_name_it_had_before_there_was_any_other_text(tmp_path: Path) -> None:
    spec = bpe_spec(tmp_path)
    assert spec.identity()["world"]["vocabulary"] == SIZE
    known = {"churn", "away_steps", "straggler_share", "straggler_factor", "heterogeneous"}
    assert set(replace(spec, heterogeneity=Heterogeneity()).identity()["world"]) == known


def test_a_model_of_another_vocabulary_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model.vocab_size = 256 .* 300 BPE tokens; set model.vocab_size = 300"):
        RunSpec(method="tsr", config=tiny_config(tmp_path), heterogeneity=Heterogeneity(vocabulary=SIZE))


def test_too_little_text_is_one_sentence() -> None:
    text, short = tokens_of(LEARNED), tokens_of(b"def f1(x):\n    return x")
    with pytest.raises(ConfigError, match=r"peer 2's text has \d+, fewer than the 17 of one sequence; add text"):
        in_tokens(text, [text, short], SIZE, 17)
    with pytest.raises(ConfigError, match=r"the held-out text has \d+, fewer"):
        in_tokens(short, [text], SIZE, 17)
    with pytest.raises(
        ConfigError, match=r"pieces for \d+ BPE tokens, fewer than vocabulary = 5000; add text or lower"
    ):
        in_tokens(text, [text], 5000, 17)


def test_without_the_library_it_is_said_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ConfigError, match="pip install tokenizers"):
        learn([LEARNED], SIZE)
