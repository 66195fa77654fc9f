"""The study's report: what it pairs, whom it lets win, what it says of runs that are not done. On made-up curves."""

import math
import statistics
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.bench.study import __main__ as study
from tests.bench.study import cells
from tests.bench.study.candidates import CORE, DENSE, OURS, Candidate, ours, rival
from tests.bench.study.clock import at_time, equal_time, home_link
from tests.bench.study.finals import finalists, operating_points, verdict
from tests.bench.study.report import write_report
from tests.bench.study.rows import Duel, Row, best_run, dense_bytes, duels, paired
from tests.bench.study.search import ablation, search
from tests.bench.study.stages import CORE_STAGE, FULL_STAGE
from tsr_swarm.baselines.registry import METHODS
from tsr_swarm.config.link import Link
from tsr_swarm.config.run import OptimizerConfig, RunConfig, RunSection
from tsr_swarm.simulate.engine import check
from tsr_swarm.simulate.heterogeneity import Heterogeneity
from tsr_swarm.simulate.result import Point, ResultStore, RunResult
from tsr_swarm.simulate.run_spec import RunSpec
from tsr_swarm.simulate.runner import Progress

LINK = Link(up=1e6, down=2e6, rtt=0.1, step_seconds=0.5)
MUON = "dense averaging, Muon"  # a control
INT8, SPARSE, FINE, COARSE, SMALL = "int8", "sparse", "ours, 4 bits", "ours, 2 bits", "ours, rank 1/4"
MADE_UP = (
    ours(OURS, rates=(0.01, 0.03, 0.06)),
    ours(FINE, "wire.core_bits=4"),
    ours(COARSE, "wire.core_bits=2"),
    ours(SMALL, 'optimizer.rank="1/4"'),
    rival(DENSE, "diloco", (0.001, 0.003, 0.006), outer="average"),
    rival(MUON, "diloco", outer="average", inner="muon"),
    rival(INT8, "diloco", bits=8),
    rival(SPARSE, "sparseloco"),
)
CANDIDATES = {candidate.name: candidate for candidate in MADE_UP}
LOSSES = st.one_of(st.floats(0.1, 9), st.none())


def made_up(spec: RunSpec, losses: Sequence[float | None], size: float = 1.0) -> RunResult:
    """A result of ``spec`` with ``size`` MB either way between two points, equally far apart."""
    each = spec.steps // (len(losses) - 1)
    moved = [{"core": 1e6 * size * place} for place in range(len(losses))]
    curve = tuple(
        Point(
            step=each * place, tokens=100 * place, loss=loss, local_loss=None, sent=moved[place],
            received=moved[place], round_trips=place, step_times=float(each * place),
        )
        for place, loss in enumerate(losses)
    )  # fmt: skip
    return RunResult(
        name=spec.name, spec=spec.identity(), parameters=10**6, period=20, text="t", curve=curve, digests=(),
        ended="" if losses[-1] is not None else "broken",
        about={"date": "2030-01-02T03:04:05+00:00", "machine": "m", "wall_seconds": 60.0},
    )  # fmt: skip


def run(candidate: Candidate, loss: float | None, seed: int = 0, rate: float = 0.1, size: float = 1.0) -> RunResult:
    config = RunConfig(optimizer=OptimizerConfig(lr=rate), run=RunSection(seed=seed))
    spec = RunSpec(method=candidate.method, config=config, settings=candidate.settings, peers=8, steps=40)
    return made_up(spec, [5.0, 4.0, loss], size)


def row(name: str, losses: Sequence[float | None] = (), size: float = 1.0, wanted: int = 3) -> Row:
    """The candidate of that name, with a run a seed."""
    runs = tuple(run(CANDIDATES[name], loss, seed, size=size) for seed, loss in enumerate(losses))
    return Row(candidate=CANDIDATES[name], runs=runs, wanted=wanted)


def cells_of(lines: Sequence[str]) -> dict[str, list[str]]:
    """The rows of a Markdown table by their first cell."""
    split = [line.strip("| ").split(" | ") for line in lines if line.startswith("|")]
    return {first: rest for first, *rest in split}


# Pairs


@given(st.dictionaries(st.integers(0, 5), LOSSES), st.dictionaries(st.integers(0, 5), LOSSES))
def test_losses_are_paired_by_seed(mine: dict[int, float | None], theirs: dict[int, float | None]) -> None:
    made = [[run(CANDIDATES[DENSE], loss, seed) for seed, loss in side.items()] for side in (mine, theirs)]
    expected = []
    for seed in range(6):
        if seed in mine and seed in theirs:
            a, b = mine[seed], theirs[seed]
            expected.append((math.inf if a is None else a) - (math.inf if b is None else b))
    assert paired(*made) == pytest.approx(expected, nan_ok=True)
    assert paired(*reversed(made)) == pytest.approx([-value for value in expected], nan_ok=True)


@given(st.lists(LOSSES, min_size=1, max_size=6))
def test_the_best_run_is_the_first_of_the_lowest_and_none_that_diverged(losses: list[float | None]) -> None:
    runs = [run(CANDIDATES[OURS], loss, rate=0.01 * (place + 1)) for place, loss in enumerate(losses)]
    known = [loss for loss in losses if loss is not None]
    assert best_run(runs) is runs[losses.index(min(known)) if known else 0]


# Operating points


@given(st.lists(st.tuples(st.floats(0.1, 9), st.floats(0.01, 2)), min_size=1, max_size=4), st.floats(0.01, 2))
def test_ours_is_the_best_that_moves_no_more(sizes: list[tuple[float, float]], size: float) -> None:
    names = [name for name, candidate in CANDIDATES.items() if candidate.method == "tsr"]
    mine = [row(name, [loss, loss + 1], moved) for name, (loss, moved) in zip(names, sizes, strict=False)]
    (duel,) = duels([*mine, row(DENSE, [3.0], size), row(MUON)])
    fitting = [loss + 0.5 for loss, moved in sizes if moved <= size]
    assert (duel.ours is None) == (not fitting)
    if duel.ours is not None:
        assert duel.ours.bytes_total <= duel.rival.bytes_total
        assert duel.ours.entry.loss == pytest.approx(min(fitting))
        assert duel.differences == pytest.approx([min(fitting) - 0.5 - 3.0])


@pytest.mark.parametrize(
    ("differences", "words"),
    [
        ([-0.1, -0.2, -0.3], "ours"),
        ([0.1, 0.2, 0.3], "**rival**"),
        ([-0.1, -0.2, 0.1], "ours on the mean, ours with 2 of 3 seeds"),
        ([-0.1, 0.3, 0.1], "**rival** on the mean, ours with 1 of 3 seeds"),
        ([0.0, 0.0, 0.0], "equal"),
        ([-0.1, -0.1], "ours, 2 of 3 seeds"),
        ([0.1], "**rival**, 1 of 3 seeds"),
        ([-math.inf, -0.1, -0.1], "ours"),
        ([math.nan, -0.1, -0.1], "neither: both diverged"),
        ([], "pending"),
    ],
)
def test_who_wins_is_said_with_its_exceptions(differences: list[float], words: str) -> None:
    assert verdict(Duel(row(DENSE, [1.0]), row(OURS, [1.0]), differences)) == words


def test_a_rival_that_wins_is_named_in_words() -> None:
    rows = [row(OURS, [2.0, 2.1, 2.2], 0.1), row(DENSE, [2.5, 2.5, 2.5]), row(MUON, [1.9, 2.0, 2.0], 0.2)]
    lines = operating_points([*rows, row(INT8), row(SPARSE, [3.0], 0.05)])
    found = cells_of(lines)
    assert list(found)[2:] == [SPARSE, f"{MUON} (control)", DENSE]  # by bytes
    assert found[DENSE] == [
        "4", "2.500 (2.500 to 2.500)", OURS, "0.4", "2.100 (2.000 to 2.200)", "-0.400 (-0.500 to -0.300)", "ours",
    ]  # fmt: skip
    assert found[SPARSE][-1] == "not comparable"
    assert lines[-4:] == [
        "Ours has the lower loss at 1 of 3 operating points.",
        f"A rival has it at 1 (ours minus rival, nats): {MUON} (control), +0.133 (+0.100 to +0.200).",
        "Nothing of ours among the finalists moves as little as sparse.",
        "Pending: int8.",
    ]


# Cells


def test_what_is_not_done_says_so() -> None:
    assert cells.losses([], 3) == cells.differences([], 3) == "pending"
    assert cells.losses([2.0, 2.2], 3) == "2.100 (2.000 to 2.200), 2 of 3 seeds"
    assert cells.losses([2.0], 1) == "2.000"
    assert cells.losses([1.0, 2.0, math.inf], 3) == "2.000 (1.000 to diverged)"
    assert cells.differences([0.1], 3) == "+0.100, 1 of 3 seeds"
    assert cells.differences([math.inf, 0.1], 2) == "diverged"
    assert [cells.factor(number) for number in (174.4, 9.94, 1.0, 0.05)] == ["174x", "9.9x", "1.0x", "0.05x"]
    assert [cells.megabytes(count) for count in (274.6e6, 13.73e6, 59.4e3)] == ["275", "13.7", "0.0594"]


def test_the_finalists_stand_beside_dense_averaging_of_the_same_seeds() -> None:
    found = cells_of(finalists([row(DENSE, [2.5, 2.6]), row(MUON), row(OURS, [2.0, 2.2, 2.4], 0.1)], k_x=20))
    moved = dense_bytes(run(CANDIDATES[DENSE], 2.0), 20)
    assert moved == 2 * 2 * 4 * 10**6  # two exchanges of a million numbers, up and down
    assert list(found)[2:5] == [OURS, DENSE, f"{MUON} (control)"]
    assert found[OURS][:6] == ["0.1", "2.200 (2.000 to 2.400)", "0.2", "0.2", "0.4", cells.factor(moved / 0.4e6)]
    assert found[OURS][6:] == ["-0.450 (-0.500 to -0.400), 2 of 3 seeds", "pending"]
    assert found[DENSE][1] == "2.550 (2.500 to 2.600), 2 of 3 seeds"
    assert found[DENSE][6:] == ["-", "pending"]
    assert set(found[f"{MUON} (control)"]) == {"pending"}


# Time


@given(seconds=st.floats(0, 80))
def test_a_run_is_between_its_points_and_then_at_its_end(seconds: float) -> None:
    done = run(CANDIDATES[DENSE], 2.0)
    times = [point.seconds(LINK) for point in done.curve]
    state = at_time(done, seconds, LINK)
    if seconds >= times[-1]:
        assert state == (2.0, 40)
    else:
        place = 1 if seconds < times[1] else 2
        share = (seconds - times[place - 1]) / (times[place] - times[place - 1])
        assert state.steps == pytest.approx(20 * (place - 1) + 20 * share, abs=1)
        assert (4.0, 2.0)[place - 1] <= state.loss <= (5.0, 4.0)[place - 1]


@given(st.integers(10**4, 10**9))
def test_on_the_home_line_a_dense_exchange_takes_200_steps(parameters: int) -> None:
    link = home_link(parameters)
    assert link.line_seconds(4 * parameters, 4 * parameters) == pytest.approx(200 * link.step_seconds)
    assert link.step_seconds == pytest.approx(home_link(1).step_seconds)


def test_all_are_compared_when_ours_has_done_its_steps() -> None:
    small, large = row(OURS, [2.0, 2.2], 0.01), row(DENSE, [1.0, 1.0], 4.0)
    lines = equal_time([large, small, row(MUON)])
    found = cells_of(lines)
    link = home_link(10**6)
    states = [at_time(done, small.entry.seconds(link), link) for done in large.runs]
    assert found[OURS][:3] == ["2.100 (2.000 to 2.200), 2 of 3 seeds", "-", "40 of 40"]
    assert states[0].steps < 20
    assert found[DENSE][0].startswith(f"{statistics.median(state.loss for state in states):.3f}")
    assert found[DENSE][2] == f"{states[0].steps} of 40"
    assert set(found[f"{MUON} (control)"]) == {"pending"}
    assert "Pending" in equal_time([large, row(OURS)])[0]


# The search


def test_the_search_shows_every_rate_and_where_the_best_is_at_an_edge() -> None:
    dense, mine = CANDIDATES[DENSE], CANDIDATES[OURS]
    tried = tuple(run(dense, loss, rate=rate) for rate, loss in zip(dense.rates, (2.5, None, 2.7), strict=True))
    begun = (run(mine, 2.2, rate=mine.rates[0], size=0.5),)
    lines = search([Row(candidate=dense, runs=tried, wanted=3), Row(candidate=mine, runs=begun, wanted=3)], k_x=20)
    found = cells_of(lines)
    assert list(found)[2:] == [OURS, DENSE]
    assert found[DENSE][:3] == ["**2.500**", "diverged", "2.700"]
    assert set(found[DENSE][3:-2]) == {"-"}
    assert found[OURS].count("pending") == len(mine.rates) - 1
    assert lines[-1].endswith(f"beyond: {DENSE} {dense.rates[0]:g}.")


def test_a_change_is_compared_at_its_own_rate_and_with_the_best() -> None:
    mine, fine = CANDIDATES[OURS], CANDIDATES[FINE]
    rows = [
        Row(candidate=fine, runs=(run(fine, 2.3, rate=0.03, size=0.2),), wanted=1),
        Row(candidate=mine, runs=(run(mine, 2.4, rate=0.03, size=0.1), run(mine, 2.1, rate=0.06, size=0.1)), wanted=2),
        row(COARSE),
    ]
    found = cells_of(ablation(rows))
    assert found[FINE][1:] == ["-0.100", "+0.200", "0.8", "2.00"]
    assert found[COARSE][1:] == ["pending"] * 4


# The page


def test_a_study_that_is_not_begun_has_a_page_and_no_pictures(tmp_path: Path) -> None:
    for stage in (CORE_STAGE, FULL_STAGE):
        text = study.report(stage, tmp_path).read_text("utf-8")
        assert text.startswith(f"# {stage.title}\n")
        assert all(candidate.name in text for candidate in stage.candidates)
        assert "No run is done yet." in text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["study-full.md", "study.md"]


def test_a_finalist_is_run_at_its_best_rate_once_the_search_is_done_and_found_again(tmp_path: Path) -> None:
    store = ResultStore(tmp_path / "study")
    candidate = next(candidate for candidate in CORE if candidate.name == DENSE)
    specs = CORE_STAGE.search_specs(candidate)
    assert len({spec.name for spec in specs}) == len(candidate.rates) > 1
    for place, spec in enumerate(specs):
        assert CORE_STAGE.best_rate(store, candidate) is None
        assert not CORE_STAGE.final_specs(store, 0)
        store.save(made_up(spec, [5.0, 4.0, 2.0 + abs(place - 1)]))
    assert CORE_STAGE.best_rate(store, candidate) == candidate.rates[1]
    for seed in (0, 1):
        (spec,) = CORE_STAGE.final_specs(store, seed)
        assert (spec.lr, spec.seed, spec.steps) == (candidate.rates[1], seed, CORE_STAGE.final_steps)
        store.save(made_up(spec, [5.0, 4.0, 1.5 + seed / 10]))
    text = study.report(CORE_STAGE, tmp_path).read_text("utf-8")
    assert "1.550 (1.500 to 1.600), 2 of 3 seeds" in text
    for name in ("study-loss-by-bytes.png", "study-loss-by-time.png"):
        assert f"]({name})" in text
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_runs_on_unlike_texts_are_not_passed_over(tmp_path: Path) -> None:
    dense = CANDIDATES[DENSE]
    runs = [run(dense, 2.0), RunResult.from_json({**run(dense, 2.1, seed=1).to_json(), "text": "u"})]
    page = write_report(CORE_STAGE, {DENSE: (dense, runs)}, {}, tmp_path)
    assert "did not all read the same text" in page.read_text("utf-8")


# The stages


def test_every_stored_run_is_still_known_by_its_name() -> None:
    """What a run is called may not change with what else can be asked for: it would all be run again."""
    store = ResultStore(study.RESULTS / CORE_STAGE.name)
    specs = [spec for candidate in CORE for spec in CORE_STAGE.search_specs(candidate)]
    specs += [spec for seed in CORE_STAGE.seeds for spec in CORE_STAGE.final_specs(store, seed)]
    stored = set((store.folder / "runs").iterdir())
    assert stored
    assert stored <= {store.path(spec.name) for spec in specs}


def test_the_second_stage_can_be_run_and_has_every_method_and_those_that_say_most_first() -> None:
    specs = [FULL_STAGE.search_specs(candidate) for candidate in FULL_STAGE.candidates]
    assert {spec.method for several in specs for spec in several} == {"tsr", *METHODS}
    assert FULL_STAGE.finalists == FULL_STAGE.candidates
    for first, *others in specs:
        check(first)
        check(replace(first, steps=FULL_STAGE.final_steps))
        assert first.name not in {spec.name for spec in others}
    names = [candidate.name for candidate in FULL_STAGE.candidates]
    assert names[:4] == [OURS, DENSE, "DiLoCo int4", "SparseLoCo 1/64, mean of senders"]


SMALL_SETTING = """
[model]
vocab_size = 270
hidden_size = 16
intermediate_size = 24
num_hidden_layers = 1
num_attention_heads = 2
num_key_value_heads = 2
max_position_embeddings = 32
[data]
source = "{source}"
sequence_length = 16
batch_size = 2
heldout_sequences = 4
[periods]
k_x = 20
"""


def test_the_second_stage_goes_on_where_it_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text").mkdir()
    for part in range(8):
        (tmp_path / "text" / f"{part}.txt").write_text(f"Once upon a time there were {part} little rabbits.\n" * 40)
    (tmp_path / "small.toml").write_text(SMALL_SETTING.format(source=tmp_path / "text"))
    small = replace(
        FULL_STAGE, setting=str(tmp_path / "small.toml"), candidates=FULL_STAGE.candidates[:2], peers=2,
        search_steps=20, final_steps=40, seeds=(0, 1), heterogeneity=Heterogeneity(heterogeneous=True, vocabulary=270),
    )  # fmt: skip
    finished: list[str] = []

    def stop_in_the_long_runs(news: Progress) -> None:
        finished.extend([news.name] if news.finished else [])
        if len(finished) == 6:  # five rates of two candidates, and the first long run of ours
            raise KeyboardInterrupt

    monkeypatch.setattr(study, "FULL_STAGE", small)
    monkeypatch.setattr(study, "RESULTS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["study.py", "--stage", "full", "--jobs", "1"])
    monkeypatch.setattr(study, "say", stop_in_the_long_runs)
    with pytest.raises(KeyboardInterrupt):
        study.main()
    page = tmp_path / "study-full.md"
    begun = cells_of(page.read_text("utf-8").partition("## Finalists")[2].partition("##")[0].splitlines())
    assert begun[OURS][1].endswith(", 1 of 2 seeds")
    assert set(begun[DENSE]) == {cells.PENDING}

    monkeypatch.setattr(study, "say", lambda news: finished.extend([news.name] if news.finished else []))
    study.main()
    study.main()
    assert len(finished) == len(set(finished)) == 9
    text = page.read_text("utf-8")
    assert "of 2 seeds" not in text
    assert "each peer has a different kind of text; the text is in 270 BPE tokens" in text
    assert {path.stem for path in (tmp_path / "study-full" / "runs").iterdir()} == set(finished)
    assert (tmp_path / "study-full-loss-by-time.png").exists()
