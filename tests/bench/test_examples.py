"""The programs in examples/ run, and train."""

import re
import runpy

import pytest

from tests.bench.tables import EXAMPLES


@pytest.mark.parametrize("name", ["optimizer.py", "custom_model/main.py"])
def test_an_example_trains(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    losses = [float(text) for text in re.findall(r"loss ([\d.]+)", capsys.readouterr().out)]
    assert len(losses) > 5
    assert losses[-1] < losses[0] / 4
