"""What a person who plans a run types and reads."""

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Refusal
from tsr_swarm.cli.main import run

pytestmark = pytest.mark.usefixtures("elsewhere")


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert run(["plan", *arguments]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


def shown_object(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    [line] = shown(capsys, "--json", *arguments).splitlines()
    document: dict[str, Any] = json.loads(line)
    assert document["event"] == "plan"
    return document


def test_the_tables_fit_a_hundred_columns_and_name_every_method(capsys: pytest.CaptureFixture[str]) -> None:
    out = shown(capsys, "--model", "1B", "--fit", "20mbit", "--peers", "64", "--set", "optimizer.rank=d/4")
    assert max(map(len, out.splitlines())) <= 100
    for name in ("tsr", "ddp", "galore", "tsr-adam-paper", "des-loc", "lordo-paper", "diloco", "sparseloco"):
        assert f"\n  {name} " in out
    for word in ("1.34 G parameters", "64 peers", "20 Mbit/s up, 100 Mbit/s down", "memory of a peer", "residual"):
        assert word in out


def test_a_run_file_and_overrides_are_planned(capsys: pytest.CaptureFixture[str]) -> None:
    Path("run.toml").write_text('[run]\nname = "otters"\n[optimizer]\nrank = "d/4"\n')
    quarter = shown_object(capsys, "run.toml", "--peers", "3")
    half = shown_object(capsys, "run.toml", "--peers", "3", "--set", "optimizer.rank=d/2")
    assert (quarter["model"], quarter["peers"]) == ("otters", 3)
    assert quarter["methods"][0]["exchange"]["sent"]["core"] < half["methods"][0]["exchange"]["sent"]["core"]
    assert quarter["methods"][1] == half["methods"][1]


def test_a_model_size_takes_the_place_of_the_files_model(capsys: pytest.CaptureFixture[str]) -> None:
    Path("run.toml").write_text("[model]\nhidden_size = 64\n[optimizer]\nrank = 32\nembedding_rank = 16\n")
    planned = shown_object(capsys, "run.toml", "--model", "60m")
    assert (planned["model"], planned["parameters"]) == ("60M", 58_073_600)
    assert planned["tokens_per_step"] == 262_144
    assert "rank 32 (16)" in planned["methods"][0]["settings"]


def test_bytes_seconds_and_shares_follow_the_line_and_the_pace(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--up", "10mbit", "--down", "50mbit", "--peers", "4", "--tokens-per-step", "8000")
    by_seconds = shown_object(capsys, *arguments, "--step-seconds", "2")
    by_tokens = shown_object(capsys, *arguments, "--tokens-per-second", "1000")
    assert by_seconds == by_tokens
    for m in by_seconds["methods"]:
        up, down = sum(m["exchange"]["sent"].values()), sum(m["exchange"]["received"].values())
        seconds = 8 * up / 10e6 + 8 * down / 50e6
        steps = m["exchange"]["every"]
        assert m["line_seconds"] == pytest.approx(seconds)
        assert m["line_share"] == pytest.approx(seconds / (seconds + 2 * steps))
        assert m["bytes_per_token"]["sent"] == pytest.approx(up / (2000 * steps))
        assert m["bytes_per_token"]["received"] == pytest.approx(down / (2000 * steps))


def test_the_papers_count_and_the_head_beside_it(capsys: pytest.CaptureFixture[str]) -> None:
    out = shown(capsys, "--model", "60M", "--count", "paper")
    [row] = [line for line in out.splitlines() if line.startswith("  tsr-adam-paper") and "GB" in line]
    assert row.split() == ["tsr-adam-paper", "0.0200", "GB", "8.3x", "0.0855", "GB", "2.7x"]
    [dense] = [line for line in out.splitlines() if line.startswith("  ddp") and "GB" in line]
    assert dense.split()[4:6] == ["0.2323", "GB"]
    assert max(map(len, out.splitlines())) <= 100
    planned = shown_object(capsys, "--model", "60M", "--count", "paper")
    [tsr] = [m for m in planned["methods"] if m["method"] == "tsr-adam-paper"]
    assert tsr["bytes_per_step"] / 1e9 == pytest.approx(0.02, rel=2.5e-3)


def test_a_proposal_can_be_pasted_and_keeps_its_promise(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--model", "60M", "--step-seconds", "0.3")
    out = shown(capsys, *arguments, "--fit", "5mbit", "--share", "0.1")
    lines = out[out.index("  [optimizer]") :].splitlines()
    Path("run.toml").write_text("\n".join(line.strip() for line in lines))
    assert tomllib.loads(Path("run.toml").read_text())["periods"]["k_x"] <= 100
    planned = shown_object(capsys, "run.toml", *arguments, "--up", "5mbit")
    assert planned["methods"][0]["line_share"] <= 0.1


def test_it_says_plainly_when_nothing_fits(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--model", "350M", "--step-seconds", "0.01", "--fit", "20kbit")
    out = shown(capsys, *arguments)
    assert "\nNothing fits: " in out
    assert max(map(len, out.splitlines())) <= 100
    planned = shown_object(capsys, *arguments)
    assert planned["fit"]["run_file"] is None
    assert planned["fit"]["candidates"]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--up", "fast"], 2, "--up"),
        (["--up", "0mbit"], 2, "above 0"),
        (["--down", "20"], 2, "--down"),
        (["--fit", "20 parsecs"], 2, "--fit"),
        (["--model", "7B"], 2, "60M, 130M, 350M, 1B"),
        (["--peers", "0"], 2, "--peers"),
        (["--tokens-per-step", "0"], 2, "--tokens-per-step"),
        (["--step-seconds", "0"], 2, "above 0"),
        (["--step-seconds", "nan"], 2, "above 0"),
        (["--tokens-per-second", "-1"], 2, "above 0"),
        (["--step-seconds", "1", "--tokens-per-second", "1"], 2, "exclude each other"),
        (["--share", "1"], 2, "below 1"),
        (["--count", "some"], 2, "all or paper"),
        (["--count", "paper", "--fit", "20mbit"], 2, "exclude each other"),
        (["missing.toml"], 78, "tsr-swarm init"),
        (["--set", "optimizer.rang=1"], 78, "did you mean"),
        (["--model", "60M", "--set", "optimizer.rank=600"], 78, "rank 512"),
    ],
)
def test_what_cannot_be_planned_is_one_sentence(arguments: list[str], code: int, says: str, refusal: Refusal) -> None:
    refusal(["plan", *arguments], code, says)
