"""The study: which runs it pairs, which method it lets win, what it reports of runs that are not done."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.bench.study.__main__ import HERE
from tests.bench.study.candidates import CORE, DENSE, OURS, Candidate, baseline, ours
from tests.bench.study.comparison import (
    Matchup,
    Row,
    at_time,
    best_run,
    dense_bytes,
    home_link,
    matchups,
    paired_differences,
)
from tests.bench.study.report import write_report
from tests.bench.study.stages import CORE_STAGE, FULL_STAGE, RunStore, Stage
from tests.bench.study.tables import differences_text, losses_text, winner_text
from tests.bench.tables import RESULTS
from tsr_swarm.baselines.registry import METHODS
from tsr_swarm.config.link import Link
from tsr_swarm.config.run import OptimizerConfig, RunConfig, RunSection
from tsr_swarm.simulate.engine import check
from tsr_swarm.simulate.result import Point, RunResult
from tsr_swarm.simulate.run_spec import RunSpec

LINK = Link(up=1e6, down=2e6, rtt=0.1, step_seconds=0.5)
OWN_NAMES = (OURS, "ours, 4 bits", "ours, 2 bits", "ours, rank 1/4")
CANDIDATES = {name: ours(name) for name in OWN_NAMES} | {DENSE: baseline(DENSE, "diloco", outer="average")}
LOSSES = st.one_of(st.floats(0.1, 9), st.none())


def fake_result(spec: RunSpec, losses: Sequence[float | None], size: float = 1.0) -> RunResult:
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
    return fake_result(spec, [5.0, 4.0, loss], size)


def row(name: str, losses: Sequence[float | None] = (), size: float = 1.0) -> Row:
    """The candidate of that name, with a run a seed."""
    runs = tuple(run(CANDIDATES[name], loss, seed, size=size) for seed, loss in enumerate(losses))
    return Row(candidate=CANDIDATES[name], runs=runs, wanted=3)


@given(st.dictionaries(st.integers(0, 5), LOSSES), st.dictionaries(st.integers(0, 5), LOSSES))
def test_losses_are_paired_by_seed(mine: dict[int, float | None], theirs: dict[int, float | None]) -> None:
    made = [[run(CANDIDATES[DENSE], loss, seed) for seed, loss in side.items()] for side in (mine, theirs)]
    expected = []
    for seed in range(6):
        if seed in mine and seed in theirs:
            a, b = mine[seed], theirs[seed]
            expected.append((math.inf if a is None else a) - (math.inf if b is None else b))
    assert paired_differences(*made) == pytest.approx(expected, nan_ok=True)
    assert paired_differences(*reversed(made)) == pytest.approx([-value for value in expected], nan_ok=True)


@given(st.lists(LOSSES, min_size=1, max_size=6))
def test_the_best_run_is_the_first_of_the_lowest_and_none_that_diverged(losses: list[float | None]) -> None:
    runs = [run(CANDIDATES[OURS], loss, rate=0.01 * (place + 1)) for place, loss in enumerate(losses)]
    known = [loss for loss in losses if loss is not None]
    assert best_run(runs) is runs[losses.index(min(known)) if known else 0]


@given(st.lists(st.tuples(st.floats(0.1, 9), st.floats(0.01, 2)), min_size=1, max_size=4), st.floats(0.01, 2))
def test_ours_is_the_best_that_moves_no_more(sizes: list[tuple[float, float]], size: float) -> None:
    mine = [row(name, [loss, loss + 1], moved) for name, (loss, moved) in zip(OWN_NAMES, sizes, strict=False)]
    (found,) = matchups([*mine, row(DENSE, [3.0], size)])
    fitting = [loss + 0.5 for loss, moved in sizes if moved <= size]
    assert (found.ours is None) == (not fitting)
    if found.ours is not None:
        assert found.ours.bytes_total <= found.baseline.bytes_total
        assert found.ours.entry.loss == pytest.approx(min(fitting))
        assert found.differences == pytest.approx([min(fitting) - 0.5 - 3.0])


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
def test_the_winner_is_named_with_its_exceptions(differences: list[float], words: str) -> None:
    assert winner_text(Matchup(row(DENSE, [1.0]), row(OURS, [1.0]), differences)) == words


def test_unfinished_and_diverged_runs_are_named_in_the_cells() -> None:
    assert losses_text([], 3) == differences_text([], 3) == "pending"
    assert losses_text([2.0, 2.2], 3) == "2.100 (2.000 to 2.200), 2 of 3 seeds"
    assert losses_text([1.0, 2.0, math.inf], 3) == "2.000 (1.000 to diverged)"
    assert differences_text([math.inf, 0.1], 2) == "diverged"


def test_dense_averaging_moves_all_weights_both_ways() -> None:
    assert dense_bytes(run(CANDIDATES[DENSE], 2.0), 20) == 2 * 2 * 4 * 10**6  # two exchanges of a million numbers


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
def test_on_the_home_link_a_dense_exchange_takes_200_steps(parameters: int) -> None:
    link = home_link(parameters)
    assert link.line_seconds(4 * parameters, 4 * parameters) == pytest.approx(200 * link.step_seconds)
    assert link.step_seconds == pytest.approx(home_link(1).step_seconds)


@pytest.mark.parametrize("stage", [CORE_STAGE, FULL_STAGE], ids=lambda stage: stage.name)
def test_the_published_page_follows_from_the_stored_runs(stage: Stage, tmp_path: Path) -> None:
    published = (RESULTS / f"{stage.name}.md").read_text("utf-8").splitlines()
    again = write_report(stage, RunStore(HERE / stage.runs), tmp_path).read_text("utf-8").splitlines()
    assert [line for line in again if not line.startswith("Date ")] == [
        line for line in published if not line.startswith("Date ")
    ]


def test_every_stored_run_has_the_name_of_a_spec() -> None:
    """A run's name may not change with what else can be asked for: it would be run again."""
    store = RunStore(HERE / CORE_STAGE.runs)
    specs = [spec for candidate in CORE for spec in CORE_STAGE.search_specs(store, candidate)]
    specs += [spec for seed in CORE_STAGE.seeds for spec in CORE_STAGE.final_specs(store, seed)]
    assert store.results
    assert store.results.keys() <= {spec.name for spec in specs}


def test_a_stage_without_runs_has_a_page_and_no_pictures(tmp_path: Path) -> None:
    text = write_report(FULL_STAGE, RunStore(tmp_path / "none.jsonl"), tmp_path / "out").read_text("utf-8")
    assert all(candidate.name in text for candidate in FULL_STAGE.candidates)
    assert "No run is done yet." in text
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["study-full.md"]


def test_a_finalist_is_run_at_its_best_rate_once_its_search_is_done(tmp_path: Path) -> None:
    store = RunStore(tmp_path / "runs.jsonl")
    candidate = next(candidate for candidate in CORE if candidate.name == DENSE)
    for place, spec in enumerate(CORE_STAGE.search_specs(store, candidate)):
        assert CORE_STAGE.best_rate(store, candidate) is None
        assert not CORE_STAGE.final_specs(store, 0)
        store.save(fake_result(spec, [5.0, 4.0, 2.0 + abs(place - 1)]))
    for seed in (0, 1):
        (spec,) = CORE_STAGE.final_specs(store, seed)
        assert (spec.lr, spec.seed, spec.steps) == (candidate.rates[1], seed, CORE_STAGE.final_steps)
        store.save(replace(fake_result(spec, [5.0, 4.0, 1.5 + seed / 10]), text=f"text {seed}"))
    text = write_report(CORE_STAGE, RunStore(tmp_path / "runs.jsonl"), tmp_path).read_text("utf-8")
    assert "1.550 (1.500 to 1.600), 2 of 3 seeds" in text
    assert "did not all read the same text" in text
    for name in ("study-loss-by-bytes.png", "study-loss-by-time.png"):
        assert f"]({name})" in text
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_the_second_stage_can_be_run_and_has_every_method(tmp_path: Path) -> None:
    store = RunStore(tmp_path / "none.jsonl")
    specs = [FULL_STAGE.search_specs(store, candidate) for candidate in FULL_STAGE.candidates]
    assert {spec.method for several in specs for spec in several} == {"tsr", *METHODS}
    assert FULL_STAGE.finalists == FULL_STAGE.candidates
    for first, *others in specs:
        check(first)
        check(replace(first, steps=FULL_STAGE.final_steps))
        assert first.name not in {spec.name for spec in others}
