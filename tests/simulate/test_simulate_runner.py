"""Many runs: nothing is run twice, nothing finished is lost, and what they come to."""

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.swarm_rig import tiny_config
from tsr_swarm.config.link import Link
from tsr_swarm.config.run import OptimizerConfig, RunConfig, RunSection, WireConfig
from tsr_swarm.errors import ConfigError, RunError
from tsr_swarm.simulate.compare import best_of_methods, entries, loss_after, untuned_text
from tsr_swarm.simulate.engine import run_one
from tsr_swarm.simulate.plots import spread, title_of, write_plots
from tsr_swarm.simulate.report import document, equal_seconds, markdown, settings_text
from tsr_swarm.simulate.result import Point, ResultStore, RunResult
from tsr_swarm.simulate.run_spec import RunSpec, specs_of
from tsr_swarm.simulate.runner import Progress, run_all, seconds_left, work

LINK = Link(up=1e6, down=2e6, rtt=0.1, step_seconds=0.5)


def study(
    folder: Path,
    methods: Sequence[str] = ("tsr", "ddp"),
    config: RunConfig | None = None,
    steps: int = 6,
    exact: bool = False,
    **asked: Any,
) -> list[RunSpec]:
    spec = RunSpec(method="tsr", config=config or tiny_config(folder), peers=2, steps=steps, exact=exact)
    return specs_of(spec, methods, **{"seeds": [0, 1], **asked})


def made_up(method: str, lr: float, seed: int, losses: Sequence[float | None], size: float = 1.0) -> RunResult:
    """A result with a point each 10 steps, ``size`` MB either way between two of them."""
    spec = RunSpec(
        method=method,
        config=RunConfig(optimizer=OptimizerConfig(lr=lr), run=RunSection(seed=seed)),
        settings={"k_x": 10} if method != "tsr" else {},
        steps=10 * (len(losses) - 1),
    )
    curve = tuple(
        Point(
            step=10 * number,
            tokens=100 * number,
            loss=loss,
            local_loss=None,
            sent={"dense": 1e6 * size * number},
            received={"dense": 1e6 * size * number},
            round_trips=number,
            step_times=10.0 * number,
        )
        for number, loss in enumerate(losses)
    )
    ended = "" if losses[-1] is not None else "broken"
    return RunResult(
        name=spec.name, spec=spec.identity(), parameters=10**6, period=10, text="t", curve=curve, digests=(),
        ended=ended, about={"date": "2030-01-02T03:04:05+00:00", "machine": "m", "wall_seconds": 1.0},
    )  # fmt: skip


def test_what_is_on_disk_is_not_run_again_and_side_by_side_is_the_same_as_one_after_the_other(tmp_path: Path) -> None:
    specs = study(tmp_path)
    progress: list[Progress] = []
    results = run_all([*specs, specs[0]], ResultStore(tmp_path / "out"), 1, progress.append)
    assert [result.name for result in results] == [*(spec.name for spec in specs), specs[0].name]
    finished = [entry for entry in progress if entry.finished is not None]
    assert [entry.done for entry in finished] == [1, 2, 3, 4]
    assert finished[-1].seconds_left == 0

    again: list[Progress] = []
    assert run_all(specs, ResultStore(tmp_path / "out"), 1, again.append) == results[:4]
    assert not again

    ResultStore(tmp_path / "out").path(specs[2].name).unlink()
    beside = run_all(specs, ResultStore(tmp_path / "out"), 2, again.append)
    assert [entry.name for entry in again if entry.finished is not None] == [specs[2].name]
    assert [(r.curve, r.digests) for r in beside] == [(r.curve, r.digests) for r in results[:4]]


def test_a_worker_whose_messages_are_not_read_any_more_ends_without_an_error() -> None:
    """A command that was interrupted closes the pipe with messages in it, which resets the connection."""
    ours, theirs = Pipe()
    theirs.send(1)
    ours.close()
    work(theirs)


def test_a_run_that_cannot_be_run_is_refused_before_any_other_is(tmp_path: Path) -> None:
    good, bad = study(tmp_path, methods=["tsr"]), study(tmp_path, methods=["tsr"], steps=7)
    progress: list[Progress] = []
    with pytest.raises(ConfigError, match="multiple of the 3 steps"):
        run_all([*good, *bad], ResultStore(tmp_path / "out"), 1, progress.append)
    assert not progress


def test_a_damaged_result_is_named(tmp_path: Path) -> None:
    spec, store = study(tmp_path)[0], ResultStore(tmp_path)
    store.path(spec.name).parent.mkdir()
    for text in ("{", "[]", '{"name": 1, "curve": []}'):
        store.path(spec.name).write_text(text)
        with pytest.raises(RunError, match=r"is not the result of a run .* remove it"):
            store.load(spec)


def test_the_estimate_follows_from_the_steps_of_all_peers(tmp_path: Path) -> None:
    specs = study(tmp_path, methods=["tsr"], seeds=[0, 1])
    assert seconds_left(specs, {}, 5.0) is None
    assert seconds_left(specs, {specs[0].name: 3}, 6.0) == pytest.approx(18.0)  # a quarter took 6 seconds


def test_flags_become_runs(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    specs = study(
        tmp_path, ["tsr", "diloco", "powersgd", "ddp"], seeds=[3], lrs=[0.1, 0.2], k_x=6, rank="d/4",
        method_sets=["diloco.bits=8", "tsr.wire.core_bits=16"], exact=True,
    )  # fmt: skip
    assert [(spec.method, spec.lr, spec.seed) for spec in specs] == [
        (method, lr, 3) for method in ("tsr", "diloco", "powersgd", "ddp") for lr in (0.1, 0.2)
    ]
    own, diloco, powersgd, ddp = specs[::2]
    assert own.config.optimizer.rank == own.config.optimizer.embedding_rank == "d/4"
    assert (own.config.periods.k_x, own.config.wire.core_bits, own.exact) == (6, 16, True)
    assert own.config.checkpoint == config.checkpoint
    assert (diloco.settings["k_x"], diloco.settings["bits"], diloco.exact) == (6, 8, False)
    assert (powersgd.settings["rank"], ddp.settings["k_x"]) == ("d/4", 1)
    assert study(tmp_path, seeds=())[0].seed == config.run.seed


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"methods": ["dillco"]}, "did you mean 'diloco'"),
        ({"methods": ["tsr", ""]}, "'' is not a method"),
        ({"method_sets": ["dillco.bits=8"]}, "did you mean 'diloco'"),
        ({"method_sets": ["tsr.lr=1"]}, "tsr.section.key=value"),
        ({"method_sets": ["tsr.wire.bits=1"]}, "did you mean 'wire."),
        ({"method_sets": ["diloco"]}, "section.key=value"),
        ({"rank": "half"}, "half"),
        ({"k_x": 7}, "a multiple of k_x = 7"),
        ({"lrs": [-1.0]}, "optimizer.lr = -1.0"),
        ({"methods": ["diloco"], "method_sets": ["diloco.bit=8"]}, "did you mean 'diloco.bits'"),
    ],
)
def test_invalid_flags_are_refused_in_one_sentence(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        run_one(study(tmp_path, **change)[0])


def test_the_best_rate_is_that_of_the_lowest_median_and_a_diverged_run_never_wins() -> None:
    results = [
        *(made_up("diloco", 0.1, seed, [5.0, loss]) for seed, loss in enumerate([2.0, 3.0, 1.0])),
        *(made_up("diloco", 0.2, seed, [5.0, loss]) for seed, loss in enumerate([1.0, None, None])),
        made_up("tsr", 0.1, 0, [5.0, 2.5]),
    ]
    first, second = entries(results)
    assert (first.method, first.lr, first.rates, first.loss) == ("diloco", 0.1, (0.1, 0.2), 2.0)
    assert first.losses == (1.0, 2.0, 3.0)
    assert [run.seed for run in first.runs] == [0, 1, 2]
    assert (second.label, second.sent, second.dense_bytes) == ("tsr", 1e6, 8e7)
    assert math.isinf(entries(results[3:6])[0].loss)


@pytest.mark.parametrize(
    ("losses", "words"),
    [
        ({0.1: 2.0}, "diloco (only 0.1 tried)"),
        ({0.1: 2.0, 0.2: 3.0, 0.4: 4.0}, "diloco (0.1 is the lowest tried)"),
        ({0.1: 4.0, 0.2: 3.0, 0.4: 2.0}, "diloco (0.4 is the highest tried)"),
        ({0.1: 4.0, 0.2: 3.0, 0.4: None}, ""),
    ],
)
def test_a_rate_without_a_worse_neighbour_on_either_side_is_not_tuned(
    losses: dict[float, float | None], words: str
) -> None:
    found = entries([made_up("diloco", lr, 0, [5.0, loss]) for lr, loss in losses.items()])
    said = untuned_text(found)
    assert said == (f"Rates are not tuned, and a better loss may lie beyond: {words}." if words else "")
    assert said in markdown(found, LINK, "tsr-swarm simulate")


def test_the_best_of_each_method_stands_out() -> None:
    results = [made_up("tsr", 0.1, 0, [5.0, 2.2]), made_up("diloco", 0.1, 0, [5.0, 2.0])]
    worse = made_up("diloco", 0.1, 0, [5.0, 2.1])
    results.append(replace(worse, name="other", spec={**worse.spec, "settings": {**worse.spec["settings"], "bits": 2}}))
    assert [entry.label for entry in best_of_methods(entries(results))] == ["diloco (bits 32)", "tsr"]
    assert title_of(results) == "1M parameters, 4 peers, 10 steps, 0.0001M tokens"


def test_entries_of_one_method_are_told_apart_by_what_differs() -> None:
    coarse = made_up("diloco", 0.1, 0, [5.0, 2.0])
    fine = replace(coarse, name="other", spec={**coarse.spec, "settings": {**coarse.spec["settings"], "k_x": 20}})
    assert sorted(entry.label for entry in entries([coarse, fine])) == ["diloco (k_x 10)", "diloco (k_x 20)"]


@given(seconds=st.floats(0, 40))
def test_a_loss_after_a_time_is_between_its_neighbours(seconds: float) -> None:
    curve = made_up("ddp", 0.1, 0, [5.0, 3.0, 2.0]).curve
    times = [point.seconds(LINK) for point in curve]
    loss = loss_after(curve, seconds, LINK)
    if seconds > times[-1] * (1 + 1e-9):
        assert loss is None
    else:
        number = 1 if seconds <= times[1] else 2
        assert loss is not None
        assert curve[number].loss <= loss <= curve[number - 1].loss  # type: ignore[operator]
    assert loss_after(curve, times[1], LINK) == pytest.approx(3.0)
    assert loss_after(curve, times[2], LINK) == pytest.approx(2.0)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.floats(0.001, 0.08))
def test_labels_never_touch_nor_change_places(heights: list[float], gap: float) -> None:
    placed = spread(sorted(heights), gap)
    assert all(b - a >= gap * (1 - 1e-6) for a, b in pairwise(placed))
    assert all(-1e-9 <= height <= 1 + 1e-9 for height in placed)
    apart = [b - a >= gap for a, b in pairwise(sorted(heights))]
    if all(apart):
        assert placed == pytest.approx(sorted(heights))


def test_the_report_names_each_method_its_bytes_and_its_loss_at_the_same_time(tmp_path: Path) -> None:
    results = [
        *(made_up("tsr", 0.1, seed, [5.0, 3.0, 2.0 + seed / 10], size=0.01) for seed in range(3)),
        *(made_up("ddp", 0.1, seed, [5.0, 2.5, 1.5]) for seed in range(3)),
        made_up("diloco", 0.1, 0, [5.0, None]),
    ]
    found = entries(results)
    text = markdown(found, LINK, "tsr-swarm simulate")
    rows = {row.split(" | ")[0].strip("| "): row.strip("| ").split(" | ") for row in text.splitlines() if "|" in row}
    assert rows["tsr"][3:9] == ["2.100 (2.000 to 2.200)", "0.02", "0.02", "0.04", "4000x", "400x"]
    assert rows["ddp"][3] == "1.500 (1.500 to 1.500)"
    assert "diverged" in rows["diloco"][3]
    assert "Diverged:" in text
    equal = equal_seconds(found, LINK)
    assert equal == pytest.approx(min(run.curve[-1].seconds(LINK) for run in results))
    expected = statistics.median(loss_after(run.curve, equal, LINK) or 0 for run in results[3:6])
    assert rows["ddp"][-1] == f"{expected:.3f}"
    saved = json.loads(json.dumps(document(results, LINK, "c"), allow_nan=False))
    assert saved["runs"][0]["curve"][1]["seconds"] == results[0].curve[1].seconds(LINK)


def test_a_baseline_is_not_run_at_a_rate_made_for_another_inner_optimizer(tmp_path: Path) -> None:
    """The defaults' rate is Muon's; once every baseline diverged at it."""
    config = replace(tiny_config(tmp_path), optimizer=OptimizerConfig(inner="muon", lr=0.02))
    methods, muon = ["tsr", "ddp", "diloco"], ["diloco.inner=muon"]
    tsr, ddp, diloco = study(tmp_path, methods, config, seeds=[0], method_sets=muon)
    assert (tsr.lr, diloco.lr) == (0.02, 0.02)
    assert ddp.lr == pytest.approx(0.002)
    assert {spec.lr for spec in study(tmp_path, methods, config, lrs=[0.5], method_sets=muon)} == {0.5}


def test_settings_are_shown_where_they_are_not_the_defaults(tmp_path: Path) -> None:
    config = replace(tiny_config(tmp_path), optimizer=OptimizerConfig(), wire=WireConfig())
    changed = ["tsr.wire.core_bits=16", "ddp.weight_decay=0.1"]
    own, ddp = study(tmp_path, config=config, seeds=[0], method_sets=changed)
    assert settings_text(own.identity()) == "k_x 3, k_r 6, k_r_embedding 6, core_bits 16"
    assert settings_text(ddp.identity()) == "k_x 1, weight_decay 0.1"


def test_plots_are_pictures_also_of_runs_without_an_end(tmp_path: Path) -> None:
    results = [made_up("tsr", 0.1, 0, [5.0, 3.0, 2.0], 0.01), made_up("ddp", 0.1, 0, [5.0, None])]
    for path in write_plots(entries(results), LINK, tmp_path):
        assert path.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(RunError, match="cannot be written"):
        write_plots(entries(results), LINK, tmp_path / "absent")


@pytest.mark.parametrize("method", ["tsr", "ddp"])
def test_products_in_bfloat16_are_another_run_with_nearly_the_same_losses(method: str, tmp_path: Path) -> None:
    [plain] = study(tmp_path, [method], seeds=[0])
    mixed = replace(plain, autocast=True)
    assert plain.name != mixed.name
    losses = [run_one(spec).loss for spec in (plain, mixed)]
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], abs=0.02)
