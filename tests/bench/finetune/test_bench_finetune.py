"""The fine-tuning bench without its download: sentences, shares, intervals, tables, and tiny runs of each method."""

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from tests.bench.finetune.classifier import Classifier, correct
from tests.bench.finetune.dataset import Sentence, by_length, deal, pack_bits, read_ratings, split, unpack_bits
from tests.bench.finetune.jobs import SEARCH_SEED, Comparison, Run
from tests.bench.finetune.methods import (
    METHODS,
    JointBatches,
    Method,
    Trained,
    config_of,
    first_bases,
    manifest_of,
    spec_of,
    train,
)
from tests.bench.finetune.table import MAX_SEEDS, PARTS, difference, of_accuracy, over_seeds, over_sentences, report
from tsr_swarm.config.blocks import BlockRole
from tsr_swarm.config.load import configure

# --- sentences --------------------------------------------------------------------------------------------------------


def test_the_label_is_the_sign_of_the_rating_and_a_repeated_sentence_counts_once() -> None:
    ratings = "1\t2.5\tA joy.\r\n2\t-0.1\tA bore.\r\n3\t0.0\tA film.\r\n4\t-1.0\tA JOY. \n"
    assert read_ratings(ratings) == [Sentence("A joy.", 1), Sentence("A bore.", 0)]


@pytest.mark.parametrize("line", ["1\t2.0", "1\t5.0\ttoo high", "1\tgood\ttext", "1\t1.0\t ", "1\tnan\ttext"])
def test_lines_that_are_no_ratings_are_refused(line: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        read_ratings(line)


@settings(max_examples=25)
@given(st.lists(st.text(min_size=1, max_size=9), unique=True, min_size=2, max_size=30), st.randoms(), st.data())
def test_the_held_out_sentences_depend_on_the_sentences_alone(texts: list[str], random: Any, data: Any) -> None:
    sentences = [Sentence(text, len(text) % 2) for text in texts]
    heldout = data.draw(st.integers(1, len(sentences) - 1))
    training, held = split(sentences, heldout)
    assert len(held) == heldout
    assert sorted(s.text for s in training + held) == sorted(texts)
    random.shuffle(sentences)
    assert split(sentences, heldout) == (training, held)


def test_a_split_or_a_share_without_enough_sentences_is_refused() -> None:
    for heldout in (0, 3, 4):
        with pytest.raises(ValueError, match="held out"):
            split([Sentence(text, 0) for text in "abc"], heldout)
    with pytest.raises(ValueError, match="7 sentences"):
        deal(numbered(7), 4, 2, seed=0)


@given(st.integers(8, 60), st.integers(1, 4), st.integers(1, 2), st.integers(0, 9))
def test_sentences_are_dealt_once_each(rows: int, peers: int, batch_size: int, seed: int) -> None:
    shares = deal(numbered(rows), peers, batch_size, seed)
    dealt = [row for share in shares for row in share.rows[:, 0].tolist()]
    assert sorted(dealt) == list(range(rows))
    assert {len(share.rows) for share in shares} <= {rows // peers, rows // peers + 1}
    assert len(shares) == peers
    assert all(
        torch.equal(a.rows, b.rows) for a, b in zip(shares, deal(numbered(rows), peers, batch_size, seed), strict=True)
    )


def test_batches_go_through_a_share_and_begin_again() -> None:
    share = deal(numbered(9), 1, 2, seed=0)[0]
    seen = torch.cat([share.batch(step) for step in range(9)])
    assert torch.equal(seen, torch.cat((share.rows, share.rows)))
    assert all(torch.equal(share.batch(4, micro), share.batch(4 + micro - 1)) for micro in (1, 2, 8))


def test_one_machine_takes_the_batches_of_all_peers() -> None:
    shares = deal(numbered(40), 4, 2, seed=3)
    batch = JointBatches(shares).batch(5)
    assert sorted(batch[:, 0].tolist()) == sorted(row for share in shares for row in share.batch(5)[:, 0].tolist())


def test_batches_by_length_hold_every_row_once_and_little_padding() -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 13, (40,), generator=generator)
    rows = torch.cat(((torch.arange(12) < lengths[:, None]).long(), torch.zeros(40, 1, dtype=torch.long)), 1)
    batches = by_length(rows, 8, pad=0)
    assert sorted(torch.cat(batches).tolist()) == list(range(40))
    ends = [(int(lengths[places].min()), int(lengths[places].max())) for places in batches]
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(ends))


@given(st.lists(st.booleans(), max_size=40))
def test_packed_bits_are_unpacked(bits: list[bool]) -> None:
    digits = pack_bits(bits)
    assert len(digits) == math.ceil(len(bits) / 4)
    assert unpack_bits(digits, len(bits)) == bits


# --- intervals --------------------------------------------------------------------------------------------------------


def probability_within(half: float, freedom: int, steps: int = 20000) -> float:
    """P(|t| < half) of Student's t, by the trapezoid rule on its density."""
    scale = math.gamma((freedom + 1) / 2) / math.gamma(freedom / 2) / math.sqrt(freedom * math.pi)
    xs = [half * step / steps for step in range(steps + 1)]
    ys = [scale * (1 + x * x / freedom) ** (-(freedom + 1) / 2) for x in xs]
    return 2 * half / steps * (sum(ys) - (ys[0] + ys[-1]) / 2)


@pytest.mark.parametrize("count", range(2, MAX_SEEDS + 1))
def test_the_interval_over_seeds_covers_95_percent(count: int) -> None:
    differences = [0.3 * place**2 - 1.1 for place in range(count)]
    mean, half = over_seeds(differences)
    assert mean == pytest.approx(sum(differences) / count)
    error = statistics.stdev(differences) / math.sqrt(count)
    assert probability_within(half / error, count - 1) == pytest.approx(0.95, abs=1e-4)


def test_one_seed_says_nothing_about_the_spread() -> None:
    assert over_seeds([0.4]) == (0.4, math.inf)
    with pytest.raises(ValueError, match="0 seeds"):
        over_seeds([])


def test_the_interval_over_sentences_is_that_of_paired_differences() -> None:
    ours, theirs = [[True, True, False, True]], [[True, False, False, False]]
    differences = [0.0, 1.0, 0.0, 1.0]
    expected = 1.96 * statistics.stdev(differences) / 2
    assert over_sentences(ours, theirs) == pytest.approx(expected)
    assert over_sentences(ours * 3, theirs * 3) == pytest.approx(expected)  # a sentence's mean over the seeds
    assert over_sentences(ours, ours) == 0
    assert 100 * of_accuracy(0.84, 3000) == pytest.approx(1.31, abs=0.01)


# --- searches and the page --------------------------------------------------------------------------------------------


def comparison(**rates: tuple[float, ...]) -> Comparison:
    """All methods on 8 held-out sentences, with other ``rates`` for some (underscores for hyphens)."""
    chosen = {
        name: replace(method, rates=rates.get(name.replace("-", "_"), (1e-4,))) for name, method in METHODS.items()
    }
    return Comparison(file=tiny_file(), heldout=8, tune=4, methods=chosen)


def search_all(compared: Comparison, method: str, accuracy: dict[float, float | None]) -> dict[str, Run]:
    """Do the runs of a search, in the order in which they are asked for, with the ``accuracy`` of each rate."""
    done: dict[str, Run] = {}
    while job := compared.next_job([method], [], done):
        assert (job.spec.seed, job.tune) == (SEARCH_SEED, 4)
        done[job.name] = {"accuracy": accuracy[job.spec.lr]}
    return done


def test_a_rate_is_searched_until_the_best_has_a_worse_neighbour_on_either_side() -> None:
    compared = comparison(lean=(1e-3, 2e-3, 4e-3))
    done = search_all(compared, "lean", {1e-3: 0.6, 2e-3: 0.7, 4e-3: 0.8, 8e-3: None})
    assert len(done) == 4
    assert compared.best_rate("lean", done) == 4e-3
    assert [(job.spec.lr, job.spec.seed, job.tune) for job in compared.finals("lean", [0, 1], done)] == [
        (4e-3, 0, 0), (4e-3, 1, 0),
    ]  # fmt: skip
    assert "0.001 60.0, 0.002 70.0, **0.004 80.0**, 0.008 diverged" in report(compared, [0], done)


def test_no_seed_is_run_before_its_rate_is_known_and_done_runs_are_not_asked_for_again() -> None:
    compared = comparison(lean=(1e-3, 2e-3, 4e-3))
    assert compared.best_rate("lean", {}) is None
    assert compared.finals("lean", [0], {}) == []
    done: dict[str, Run] = {}
    asked = []
    while job := compared.next_job(["dense", "lean"], [0, 1], done):
        done[job.name] = {"accuracy": 0.8 if job.spec.lr == 2e-3 else 0.7}
        asked.append((job.method, job.spec.seed))
    searched = [("lean", SEARCH_SEED)] * 3
    assert asked == [*searched, ("dense", 0), ("lean", 0), ("dense", 1), ("lean", 1)]
    assert len(done) == len(asked)


def test_a_rate_that_is_given_is_not_searched() -> None:
    compared = replace(comparison(), file=tiny_file() | {"optimizer": {"lr": 3e-3}}, methods=METHODS)
    for method in METHODS:
        assert compared.search(method, {}) == []
        assert compared.best_rate(method, {}) == 3e-3


def finished(compared: Comparison, method: str, seed: int, correct: Sequence[bool], sent: float) -> dict[str, Run]:
    """A run by its name, as it would be stored."""
    [job] = compared.finals(method, [seed], {})
    numbers = {"rounds": 3, "seconds": 9.0, "bases": 100.0 if method == "tsr-adam" else 0.0}
    accuracy = {"accuracy": sum(correct) / len(correct), "sentences": len(correct), "correct": pack_bits(correct)}
    return {job.name: {**numbers, **accuracy, "sent": {"core": sent}, "received": {"core": sent}}}


RIGHT, WRONG = [True] * 6 + [False] * 2, [True] * 5 + [False] * 3


def test_the_page_compares_what_has_been_run_and_says_what_is_pending() -> None:
    compared = comparison()
    done = finished(compared, "ours", 0, RIGHT, 10) | finished(compared, "ours", 1, WRONG, 10)
    done |= finished(compared, "dense", 0, WRONG, 2000) | finished(compared, "tsr-adam", 0, WRONG, 50)
    text = report(compared, [0, 1], done)
    ours = METHODS["ours"].title
    assert (
        f"| {ours} | 68.75 (62.50 to 75.00) | +12.50 (one seed; ± 24.50), 1 of 2 seeds | 0.0 | 0.0 | 200 | 9 |" in text
    )
    assert f"| {METHODS['lordo'].title} | pending | - |" in text
    assert "| 1 | 62.50 | pending |" in text
    assert f"with tsr-adam 0.0 MB of bases (with them the factor is {4000 / 200:.0f})" in text
    assert "| Muon's part | dense-muon minus dense | pending |" in text


def test_a_page_without_runs_is_all_pending() -> None:
    lines = report(comparison(), [0, 1], {}).splitlines()
    for method in METHODS.values():
        assert any(line.startswith(f"| {method.title} | pending |") for line in lines)
    for mine, theirs, what in PARTS:
        assert f"| {what} | {mine} minus {theirs} | pending |" in lines


def test_the_parts_of_the_gain_add_up_over_the_same_seeds() -> None:
    half = [True] * 4 + [False] * 4
    runs = {
        name: {
            seed: {"accuracy": sum(c) / 8, "sentences": 8, "correct": pack_bits(c)} for seed, c in enumerate(by_seed)
        }
        for name, by_seed in {"ours": (RIGHT, half), "dense-muon": (half, RIGHT), "dense": (WRONG, half)}.items()
    }
    exchange, muon, both = (
        float(difference(runs, mine, theirs, 2).split()[0])
        for mine, theirs in (("ours", "dense-muon"), ("dense-muon", "dense"), ("ours", "dense"))
    )
    assert (exchange, muon) == (0.0, 6.25)
    assert both == exchange + muon


# --- runs -------------------------------------------------------------------------------------------------------------


class Tiny(nn.Module):
    """A bag of words with a hidden layer: matrices, a small head, vectors, and an embedding named as one."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(20, 16)
        self.hidden = nn.Linear(16, 16)
        self.head = nn.Linear(16, 2)
        generator = torch.Generator().manual_seed(0)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.3, generator=generator)

    def loss(self, batch: Tensor) -> Tensor:
        hidden = torch.relu(self.hidden(self.embed_tokens(batch[:, :-1]).mean(1)))
        return F.cross_entropy(self.head(hidden), batch[:, -1])


def tiny_file() -> dict[str, Any]:
    return {
        "run": {"rounds": 3},
        "model": {"hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 2},
        "data": {"parts": 2, "batch_size": 4, "sequence_length": 6},
        "optimizer": {"embedding_rank": 4, "warmup_steps": 1},
        "periods": {"k_x": 4},
    }


def numbered(rows: int, length: int = 6) -> Tensor:
    """Rows whose first token is their number, so that they can be told apart."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(1, 20, (rows, length), generator=generator)
    labels = (tokens[:, 1:].sum(1) > 10 * (length - 1)).long()
    return torch.cat((torch.arange(rows)[:, None], tokens[:, 1:], labels[:, None]), 1)


def trained(method: str, lr: float = 1e-2) -> Trained:
    torch.set_num_threads(1)
    shares = deal(numbered(20), 2, 4, seed=0)
    return train(spec_of(tiny(method), tiny_file(), lr, 0), Tiny(), shares, lambda steps, loss: None)


def tiny(name: str) -> Method:
    """A method of the table with periods that fit short rounds."""
    settings = {"periods.k_r": 4, "periods.k_r_embedding": 12} if name == "ours" else {}
    return replace(METHODS[name], settings={**METHODS[name].settings, **settings})


def test_every_parameter_is_exchanged_small_ones_whole() -> None:
    blocks = {block.name: block for block in manifest_of(config_of(tiny("ours"), tiny_file()), Tiny()).blocks}
    assert list(blocks) == [name for name, _ in Tiny().named_parameters()]
    roles = {name: block.role for name, block in blocks.items()}
    assert roles["embed_tokens.weight"] is BlockRole.EMBEDDING
    assert roles["hidden.weight"] is BlockRole.MATRIX
    assert roles["head.weight"] is roles["hidden.bias"] is BlockRole.DENSE
    assert (blocks["head.weight"].rows, blocks["head.weight"].cols) == (2, 16)


@pytest.mark.parametrize("method", METHODS)
def test_a_run_depends_on_its_seed_alone_and_leaves_the_start_as_it_was(method: str) -> None:
    first, again, start = trained(method), trained(method), dict(Tiny().named_parameters())
    assert first.weights.keys() == start.keys()
    for name, weight in first.weights.items():
        assert torch.equal(weight, again.weights[name])
        assert weight.shape == start[name].shape
        assert not torch.equal(weight, start[name])
    assert (first.sent, first.received) == (again.sent, again.received)


def test_bytes_are_those_of_the_exchange() -> None:
    found = {method: trained(method) for method in METHODS}
    parameters = sum(parameter.numel() for parameter in Tiny().parameters())
    for dense in (found["dense"], found["dense-muon"]):
        assert sum(dense.sent.values()) == sum(dense.received.values()) == 3 * 4 * parameters
    for method in ("ours", "lean", "tsr-adam", "lordo"):
        assert 0 < sum(found[method].sent.values()) < 3 * 4 * parameters
    assert {"core", "dense"} <= found["ours"].sent.keys()
    assert found["ours"].bases == found["lean"].bases == 0, "they are drawn from the seed"
    aimed = manifest_of(config_of(tiny("tsr-adam"), tiny_file()), Tiny())
    assert found["tsr-adam"].bases == first_bases(aimed) == 1.5 * ((20 + 16) * 4 + (16 + 16) * 4)
    assert found["tsr-adam-paper"].sent.keys() == {"core", "sketch", "dense"}
    assert not found["single"].sent
    assert not found["single"].received


def test_methods_differ_in_their_own_settings_alone() -> None:
    dense, muon = (spec_of(METHODS[name], tiny_file(), 1e-2, 0).identity() for name in ("dense", "dense-muon"))
    assert dense | {"settings": dense["settings"] | {"inner": "muon"}} == muon
    lean = configure(tiny_file() | {"run": {"rounds": 3, "preset": "lean"}})
    assert config_of(METHODS["lean"], tiny_file()) == lean
    assert config_of(METHODS["ours"], tiny_file()).wire == replace(lean.wire, core_bits=4, published_bits=4)


def test_a_key_of_the_file_comes_before_those_of_a_method() -> None:
    file = tiny_file() | {"wire": {"core_bits": 8}}
    assert [config_of(METHODS[name], file).wire.core_bits for name in ("ours", "lean", "tsr-adam")] == [8, 8, 8]


def test_one_machine_is_torch_adamw_on_the_joint_batches() -> None:
    spec = spec_of(METHODS["single"], tiny_file(), 1e-2, 0)
    model, shares = Tiny(), deal(numbered(20), 2, 4, seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.0, betas=(0.9, 0.99), weight_decay=0.0)
    for step in range(12):
        optimizer.param_groups[0]["lr"] = 1e-2 * (0.1 + 0.45 * (1 + math.cos(math.pi * max(0, step - 1) / 11)))
        optimizer.zero_grad()
        model.loss(torch.cat([share.batch(step) for share in shares])).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    found = train(spec, Tiny(), shares, lambda steps, loss: None).weights
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name], parameter.detach(), rtol=1e-4, atol=1e-5)


def tiny_bert(vocabulary: int) -> Any:
    config = transformers.BertConfig(
        vocab_size=vocabulary, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        num_labels=2, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return transformers.BertForSequenceClassification(config)


def test_the_classifier_ignores_padding() -> None:
    model = Classifier(tiny_bert(20))
    assert next(name for name, _ in model.named_parameters()) == "embed_tokens.weight"
    rows = torch.tensor([[2, 5, 7, 3, 0, 0, 1], [2, 6, 3, 0, 0, 0, 0]])
    alone = torch.cat([model.logits(rows[:1, :4]), model.logits(rows[1:, :3])])
    torch.testing.assert_close(model.logits(rows[:, :-1]), alone)
    torch.testing.assert_close(model.loss(rows), F.cross_entropy(alone, rows[:, -1]))
    assert correct(model, rows) == (alone.argmax(1) == rows[:, -1]).tolist()
