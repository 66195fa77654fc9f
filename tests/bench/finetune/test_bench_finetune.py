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
from tests.bench.finetune.methods import METHODS, JointBatches, Trained, first_bases, manifest_of, spec_of, train
from tests.bench.finetune.table import MAX_SEEDS, collect, of_accuracy, over_seeds, over_sentences, report
from tsr_swarm.config.blocks import BlockRole
from tsr_swarm.config.load import run_config_from_mapping
from tsr_swarm.config.run import RunConfig

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


# --- tables -----------------------------------------------------------------------------------------------------------


def document(method: str, seed: int, correct: Sequence[bool], sent: float) -> dict[str, Any]:
    numbers = {"rounds": 2, "k_x": 8, "peers": 4, "batch_size": 8, "lr": 1e-4, "seconds": 9.0, "bases": 100.0}
    accuracy = {"accuracy": sum(correct) / len(correct), "sentences": len(correct), "correct": pack_bits(correct)}
    moved = {"sent": {"core": sent}, "received": {"core": sent}}
    spec = spec_of("ours", tiny_config(), 1e-4).identity()
    return {"method": method, "seed": seed, "plan": spec, **numbers, **accuracy, **moved}


def test_the_report_compares_what_has_been_run() -> None:
    right = [True] * 6 + [False] * 2
    wrong = [True] * 5 + [False] * 3
    runs = [document("ours", 0, right, 10), document("ours", 1, wrong, 10), document("dense", 0, wrong, 2000)]
    text = report(collect(runs, METHODS))
    assert "| ours: cores | 68.75 (62.50 to 75.00) | +12.50 (one seed; ± 24.50) | 0.0 | 0.0 | 200 | 9 |" in text
    assert "| 1 | 62.50 | pending |" in text
    assert "one machine, AdamW" not in text
    assert f"the factor is {4000 / 120:.0f}." in text


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


def tiny_config() -> RunConfig:
    return run_config_from_mapping(
        {
            "run": {"rounds": 3},
            "model": {"hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 2},
            "data": {"parts": 2, "batch_size": 4, "sequence_length": 6},
            "optimizer": {"aim": "seed", "inner": "adam", "rank": "d/2", "embedding_rank": 4, "warmup_steps": 1},
            "periods": {"k_x": 4, "k_r": 4, "k_r_embedding": 12},
        }
    )


def numbered(rows: int, length: int = 6) -> Tensor:
    """Rows whose first token is their number, so that they can be told apart."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(1, 20, (rows, length), generator=generator)
    labels = (tokens[:, 1:].sum(1) > 10 * (length - 1)).long()
    return torch.cat((torch.arange(rows)[:, None], tokens[:, 1:], labels[:, None]), 1)


def trained(method: str, lr: float = 1e-2) -> Trained:
    torch.set_num_threads(1)
    shares = deal(numbered(20), 2, 4, seed=0)
    return train(spec_of(method, tiny_config(), lr), Tiny(), shares, lambda steps, loss: None)


def test_every_parameter_is_exchanged_small_ones_whole() -> None:
    blocks = {block.name: block for block in manifest_of(tiny_config(), Tiny()).blocks}
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
    ours, dense, single = (trained(method) for method in METHODS)
    parameters = sum(parameter.numel() for parameter in Tiny().parameters())
    assert sum(dense.sent.values()) == sum(dense.received.values()) == 3 * 4 * parameters
    assert {"core", "dense"} <= ours.sent.keys()
    assert 0 < sum(ours.sent.values()) < sum(dense.sent.values())
    assert ours.bases == 0, "they are drawn from the seed"
    aimed = replace(tiny_config(), optimizer=replace(tiny_config().optimizer, aim="gradient"))
    assert first_bases(manifest_of(aimed, Tiny())) == 1.5 * ((20 + 16) * 4 + (16 + 16) * 8)
    assert not single.sent
    assert not single.received


def test_one_machine_is_torch_adamw_on_the_joint_batches() -> None:
    spec = spec_of("single", tiny_config(), 1e-2)
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
