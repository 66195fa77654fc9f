"""The ladder: every arm can be run at every size, a small one runs to its end, and its page says what it found."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from tests.bench.study import __main__ as study
from tests.bench.study.candidates import baseline, preset
from tests.bench.study.ladder import LADDER, RATE_EXPONENT, Ladder, Rung
from tests.bench.study.ladder_page import trend_text, write_ladder
from tests.bench.study.stages import RunStore
from tests.bench.study.test_bench_study import fake_result
from tests.bench.tables import RESULTS
from tsr_swarm.simulate.engine import check
from tsr_swarm.simulate.run_spec import RunSpec
from tsr_swarm.simulate.runner import Progress

SMALL = """
[run]
name = "small"
[model]
vocab_size = 256
hidden_size = 16
intermediate_size = 24
num_hidden_layers = 1
num_attention_heads = 2
num_key_value_heads = 2
max_position_embeddings = 32
[data]
source = "{source}"
sequence_length = 16
batch_size = 1
heldout_sequences = 4
[round]
shards = 1
"""


def save(store: RunStore, spec: RunSpec, loss: float) -> None:
    store.save(fake_result(spec, [5.0, 4.0, loss]))


def search_all(ladder: Ladder, store: RunStore) -> None:
    """Every arm is best at the second of its rates."""
    for arm in ladder.arms:
        for place, spec in enumerate(ladder.search_specs(store, arm)):
            save(store, spec, 2.0 + abs(place - 1))


def test_every_arm_can_be_run_at_every_size(tmp_path: Path) -> None:
    store = RunStore(tmp_path / "runs.jsonl")
    search_all(LADDER, store)
    sizes = [rung.parameters for rung in LADDER.rungs]
    assert sizes == sorted(sizes)
    for rung in LADDER.rungs:
        specs = [spec for name in rung.arms for spec in LADDER.final_specs(store, rung, name)]
        assert len({spec.name for spec in specs}) == len(rung.arms) * len(rung.seeds)
        for spec in specs:
            check(spec)
        assert LADDER.reference in rung.arms


def test_one_rate_an_arm_follows_the_width(tmp_path: Path) -> None:
    store = RunStore(tmp_path / "runs.jsonl")
    assert LADDER.rate(store, LADDER.rungs[1], LADDER.arms[0]) is None
    search_all(LADDER, store)
    for arm in LADDER.arms:
        rates = [LADDER.rate(store, rung, arm) for rung in LADDER.rungs]
        assert rates[0] == arm.rates[1]
        for rung, rate in zip(LADDER.rungs, rates, strict=True):
            assert rate == pytest.approx(arm.rates[1] * (rung.width / 64) ** RATE_EXPONENT, rel=0.05)


def test_the_longest_runs_come_when_no_arm_is_best_at_an_edge(tmp_path: Path) -> None:
    store, first = RunStore(tmp_path / "runs.jsonl"), LADDER.rungs[0]
    assert {spec.name for spec in LADDER.missing(store)} == {
        spec.name for arm in LADDER.arms for spec in LADDER.search_specs(store, arm)
    }
    for arm in LADDER.arms:
        for place, spec in enumerate(LADDER.search_specs(store, arm)):
            save(store, spec, 2.0 + place)  # the lowest rate is the best
    beyond = LADDER.missing(store)
    assert len(beyond) == len(LADDER.arms), "one further rate an arm"
    assert {spec.steps for spec in beyond} == {first.steps(LADDER.peers)}
    for spec in beyond:
        save(store, spec, 9.0)
    assert {spec.config.model.hidden_size for spec in LADDER.missing(store)} == {64, 128, 192}


def test_the_page_tells_distances_by_size_and_what_becomes_of_them(tmp_path: Path) -> None:
    store = RunStore(tmp_path / "runs.jsonl")
    search_all(LADDER, store)
    for number, rung in enumerate(LADDER.rungs):
        for name in rung.arms:
            for spec in LADDER.final_specs(store, rung, name):
                if store.load(spec) is None:
                    save(store, spec, 2.0 + 0.1 * spec.seed + (0.1 * number if name == "preset lean" else 0.0))
    text = write_ladder(LADDER, store, tmp_path).read_text("utf-8")
    assert (
        "| preset lean | +0.000 (+0.000 to +0.000) | +0.100 (+0.100 to +0.100) | +0.200 | grows: +0.0% to +10.0% |"
        in text
    )
    assert "| preset rich | +0.000 (+0.000 to +0.000) | +0.000 (+0.000 to +0.000) | - | stays: +0.0% to +0.0% |" in text
    assert "pending" not in text
    assert "at an edge" not in text


@pytest.mark.parametrize(
    ("shares", "words"),
    [([], "pending"), ([0.1], "pending"), ([0.1, 0.5, 0.3], "grows: +10.0% to +30.0%"),
     ([0.3, 0.1], "shrinks: +30.0% to +10.0%"), ([0.1, 0.11], "stays: +10.0% to +11.0%"),
     ([0.1, math.inf], "diverged")],
)  # fmt: skip
def test_a_trend_is_that_from_the_first_size_to_the_last(shares: list[float], words: str) -> None:
    assert trend_text(shares) == words


def test_the_published_page_follows_from_the_stored_runs(tmp_path: Path) -> None:
    published = (RESULTS / "ladder.md").read_text("utf-8").splitlines()
    again = write_ladder(LADDER, RunStore(study.HERE / LADDER.runs), tmp_path).read_text("utf-8").splitlines()
    assert [line for line in again if not line.startswith("Date ")] == [
        line for line in published if not line.startswith("Date ")
    ]


def test_a_small_ladder_is_climbed_and_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    for part in range(4):
        (tmp_path / "text" / f"{part}.txt").write_text(f"Once upon a time there were {part} little rabbits.\n" * 40)
    (tmp_path / "small.toml").write_text(SMALL.format(source=tmp_path / "text"))
    small, reference = str(tmp_path / "small.toml"), "data-parallel"
    arms = (preset("lean", (0.02, 0.2)), baseline(reference, "ddp", (0.01, 0.1), inner="muon"))
    names = tuple(arm.name for arm in arms)
    rung = Rung(setting=small, tokens_per_parameter=0.1, seeds=(0, 1), arms=names)
    wide = replace(rung, overrides=("model.hidden_size=24",), seeds=(0,), autocast=True)
    ladder = Ladder(arms=arms, rungs=(rung, wide), reference=reference, peers=2)
    finished: list[str] = []

    def stop_after_three(news: Progress) -> None:
        finished.extend([news.name] if news.finished else [])
        if len(finished) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        study.run_ladder(ladder, RunStore(tmp_path / "runs.jsonl"), tmp_path, progress=stop_after_three)
    assert "pending" in (tmp_path / "ladder.md").read_text("utf-8")
    study.run_ladder(ladder, RunStore(tmp_path / "runs.jsonl"), tmp_path, progress=lambda news: None)
    store = RunStore(tmp_path / "runs.jsonl")
    assert not ladder.missing(store)
    assert store.results.keys() >= set(finished)
    assert "pending" not in (tmp_path / "ladder.md").read_text("utf-8")
