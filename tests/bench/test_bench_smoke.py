"""Every bench runs at size 1, through its command, and leaves its page in the folder that it is given.

Smoke runs of survive, study and finetune need more than options and stand beside these benches.
"""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.bench import catch_up, lab, measure, payloads, screenshot, step
from tests.bench.json_lines import JsonLines
from tests.bench.scale import __main__ as scale
from tests.bench.study import __main__ as study
from tests.bench.tables import RESULTS
from tsr_swarm.errors import RunError

TINY = ["model.hidden_size=32", "model.intermediate_size=48", "model.num_hidden_layers=1", "periods.k_x=2"]


@pytest.mark.parametrize(
    ("main", "options", "page"),
    [
        pytest.param(catch_up.main, "--model tiny --missed 5 --aims seed", "catch-up.md", id="catch_up"),
        pytest.param(step.main, "--model tiny --repeats 1 --threads 1", "step.md", id="step"),
        pytest.param(payloads.main, "--sources normal --bits 2", "payloads.md", id="payloads"),
        pytest.param(study.main, "--stage table", "study.md", id="study"),
        pytest.param(scale.main, "--sizes 2", "scale.md", id="scale"),
        pytest.param(
            measure.main,
            f"quickstart --seeds 0 --rounds 1 --no-dht {' '.join(f'--set {key}' for key in TINY)}",
            "quickstart.md",
            id="measure",
            marks=pytest.mark.e2e,
        ),
        pytest.param(
            lab.main, "--repeats 1 --modes proxy --only partitions", "lab.md", id="lab", marks=pytest.mark.e2e
        ),
    ],
)
def test_a_bench_writes_its_page(main: Callable[[list[str]], None], options: str, page: str, tmp_path: Path) -> None:
    main([*options.split(), "--out", str(tmp_path)])
    lines = (tmp_path / page).read_text("utf-8").splitlines()
    assert lines[0].startswith("# ")
    assert "Command: `python -m tests.bench." in lines[2]
    assert any(line.startswith("| --- |") for line in lines)


def test_the_screenshot_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = tmp_path / "monitor.svg"
    monkeypatch.setattr("sys.argv", ["screenshot", str(RESULTS / "recorded-run.jsonl"), str(picture)])
    screenshot.main()
    assert picture.read_text("utf-8").startswith("<svg")


def test_an_unfinished_last_line_is_replaced_and_any_other_damage_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "runs.jsonl"
    for number in range(3):
        JsonLines(path).append({"number": number})
        with path.open("a") as file:
            file.write('{"numb')
    assert [document["number"] for document in JsonLines(path).documents] == [0, 1, 2]
    lines = path.read_text("utf-8").splitlines()
    assert [json.loads(line)["number"] for line in lines[:-1]] == [0, 1, 2]
    path.write_text("\n".join([lines[0], '{"numb', lines[1]]), "utf-8")
    with pytest.raises(RunError, match="line 2"):
        JsonLines(path)
