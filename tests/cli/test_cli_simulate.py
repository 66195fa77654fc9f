"""What ``simulate`` understands, shows and leaves behind."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Refusal
from tests.swarm_rig import tiny_config
from tsr_swarm.cli.main import run
from tsr_swarm.config.render import render
from tsr_swarm.simulate import runner

FEW = ["simulate", "tiny.toml", "--steps", "6", "--peers", "2", "--methods", "tsr,diloco", "--out", "out"]


@pytest.fixture(autouse=True)
def _tiny_run(elsewhere: Path) -> None:
    (elsewhere / "tiny.toml").write_text(render(tiny_config(elsewhere)))


def test_a_simulation_leaves_its_runs_a_table_and_plots_and_is_not_done_twice(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run([*FEW, "--lr", "1e-2,3e-3", "--seeds", "0,1"]) == 0
    shown = capsys.readouterr().out
    assert "[8/8]" in shown
    assert {path.name for path in Path("out").iterdir()} == {
        "runs", "results.json", "results.md", "loss-by-bytes.png", "loss-by-time.png",
    }  # fmt: skip
    results = json.loads(Path("out/results.json").read_text())
    assert len(results["runs"]) == len(list(Path("out/runs").iterdir())) == 8
    assert results["command"].startswith("tsr-swarm simulate tiny.toml --steps 6")
    assert results["link"]["up"] == 20e6
    assert results["runs"][0]["curve"][-1]["seconds"] > 0
    table = Path("out/results.md").read_text()
    assert "| tsr | k_x 3" in table
    assert "of 2 |" in table

    assert run([*FEW, "--lr", "1e-2,3e-3", "--seeds", "0,1", "--json", "--up", "5mbit", "--no-plots"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["event"] for line in lines] == ["warning", "simulation_finished"], (
        "on another line nothing is run again"
    )
    again = json.loads(Path("out/results.json").read_text())
    assert [run["digests"] for run in again["runs"]] == [run["digests"] for run in results["runs"]]
    assert again["runs"][0]["curve"][-1]["seconds"] > results["runs"][0]["curve"][-1]["seconds"]


def test_text_in_tokens_sets_the_vocabulary_of_the_model() -> None:
    assert run([*FEW, "--vocabulary", "270", "--no-plots"]) == 0
    for path in Path("out/runs").iterdir():
        spec = json.loads(path.read_text())["spec"]
        assert spec["world"]["vocabulary"] == spec["model"]["vocab_size"] == 270
    assert "World: the text is in 270 BPE tokens" in Path("out/results.md").read_text()


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_simulation_says_once_what_of_its_text_is_not_read(jobs: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("text/a.parquet").write_bytes(b"PAR1\x15\x04")
    assert run([*FEW, "--json", "--no-plots", "--jobs", jobs]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    unread, untuned = [line["message"] for line in lines if line["event"] == "warning"]
    assert "left out: 1 Parquet (a.parquet;" in unread
    assert "diloco (only 0.01 tried)" in untuned


def test_an_interrupted_simulation_says_how_to_go_on_and_does(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C while the second run is at work."""
    run_one = runner.run_side_by_side

    def interrupted(*arguments: Any) -> Any:
        results = run_one(*arguments)
        yield next(results)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(runner, "run_side_by_side", interrupted)
        assert run(FEW) == 130
    stopped = capsys.readouterr()
    assert stopped.err == "Stopped with 1 finished run in out; the same command goes on from there.\n"
    assert run([*FEW, "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["event"], line.get("method")) for line in lines] == [
        ("run_simulated", "diloco"), ("warning", None), ("simulation_finished", None),
    ]  # fmt: skip
    assert set(lines[0]) >= {"loss", "lr", "seed", "sent", "received", "seconds", "seconds_left", "done", "total"}


@pytest.mark.parametrize(
    ("is_damaged", "says"),
    [
        (False, "No plots: Plots need matplotlib; install it with 'pip install tsr-swarm[plots]'.\n"),
        (True, "matplotlib, which cannot be imported (a font is damaged)"),
    ],
)
def test_a_missing_or_damaged_matplotlib_costs_the_plots_only(
    is_damaged: bool, says: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    if is_damaged:
        damaged = tmp_path / "libraries" / "matplotlib"
        damaged.mkdir(parents=True)
        (damaged / "__init__.py").write_text("raise OSError('a font is damaged')")
        monkeypatch.syspath_prepend(damaged.parent)
    else:
        monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert run(["simulate", "tiny.toml", "--steps", "3", "--peers", "1", "--methods", "tsr", "--out", "out"]) == 0
    assert says in capsys.readouterr().err
    assert Path("out/results.md").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--up", "fast"], 2, "'fast' is not a rate"),
        (["--down", "0mbit"], 2, "out of range"),
        (["--rtt", "soon"], 2, "'soon' is not a time"),
        (["--step-seconds", "0"], 78, "link.step_seconds"),
        (["--lr", "much"], 2, "--lr 3e-3,1e-2"),
        (["--seeds", "1.5"], 2, "--seeds 0,1,2"),
        (["--stragglers", "3"], 2, "--stragglers 0.25:3"),
        (["--stragglers", "0.5:0.5"], 2, "--stragglers 0.25:3"),
        (["--churn", "1"], 2, "--churn"),
        (["--set", "data.source=absent"], 78, "does not exist"),
        (["--out", "tiny.toml"], 1, "tiny.toml"),
    ],
)
def test_bad_input_is_one_sentence(refusal: Refusal, arguments: list[str], code: int, words: str) -> None:
    assert "Unexpected" not in refusal([*FEW, *arguments], code, words)


def test_presets_are_arms_beside_the_methods(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each with its own inner optimizer and the rate that goes with it; a flag for all methods is for them too."""
    text = render(tiny_config(elsewhere))
    Path("bare.toml").write_text(text[: text.index("# How a peer steps")])
    few = [
        "simulate",
        "bare.toml",
        "--steps",
        "12",
        "--peers",
        "2",
        "--methods",
        "tsr,ddp",
        "--out",
        "out",
        "--no-plots",
    ]
    chosen = ["--preset", "rich,tsr-adam,sketch", "--k-x", "3", "--set", "optimizer.warmup_steps=2", "--json"]
    assert run([*few, *chosen, "--method-set", "sketch.wire.sketch_bits=16"]) == 0
    capsys.readouterr()
    runs = json.loads(Path("out/results.json").read_text())["runs"]
    specs = {
        (run["spec"]["method"], run["spec"]["optimizer"].get("local_space"), run["spec"]["optimizer"].get("inner")): (
            run["spec"]
        )
        for run in runs
    }
    assert len(runs) == 5
    adam = specs["tsr", "core", "adam"]
    assert adam["optimizer"]["lr"] == 0.003
    assert {key: adam["periods"][key] for key in ("k_x", "k_u", "k_v", "k_r")} == {
        "k_x": 3, "k_u": 72, "k_v": 144, "k_r": 48,
    }  # fmt: skip
    assert specs["tsr", "full", "adam"]["wire"]["sketch_bits"] == 16
    rows = [line.split(" | ")[0].strip("| ") for line in Path("out/results.md").read_text().splitlines() if "|" in line]
    assert sorted(rows[2:]) == ["ddp", "rich", "sketch", "tsr", "tsr-adam"]


def test_a_setting_of_ours_that_has_no_effect_is_refused(refusal: Refusal) -> None:
    refusal([*FEW, "--method-set", "tsr.optimizer.gamma=0.5"], 78, "optimizer.gamma = 0.5 has no effect beside")
