"""Where a peer works: as fast as it is told to, on data that is named by path."""

import os
from pathlib import Path

import pytest
import torch

from tests.swarm_rig import tiny_config
from tsr_swarm.config.manifest import make_manifest
from tsr_swarm.config.run import DataConfig
from tsr_swarm.node.workspace import Workspace, advise_organiser
from tsr_swarm.optim.periods import plan_round
from tsr_swarm.train.corpus import absolute_source
from tsr_swarm.train.llama import parameter_shapes
from tsr_swarm.train.trainer import STOP_CHECK_SECONDS, RoundWork, fresh_consensus


class Clock:
    """Each look takes a second; sleeping takes what it is told to."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []

    def look(self) -> float:
        self.now += 1.0
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def train(folder: Path, slowdown: float, clock: Clock, stop_after: float = float("inf")) -> RoundWork | None:
    """One round of three steps, aimed by nothing, so that only steps take time."""
    config = tiny_config(folder, optimizer={"aim": "seed"}, periods={"k_r": 0, "k_r_embedding": 0})
    manifest = make_manifest("0" * 32, config, parameter_shapes(config.model))
    workspace = Workspace(manifest, "core", torch.device("cpu"), (), None, slowdown)
    workspace.take_number(1)
    workspace.replace(fresh_consensus(manifest))
    plan = plan_round(config, manifest.blocks, 1, "")
    return workspace.trainer.train(
        plan, lambda: sum(clock.slept) >= stop_after, lambda progress: None, clock.look, clock.sleep
    )


def test_each_step_takes_the_factor_times_as_long_and_the_work_is_the_same(tmp_path: Path) -> None:
    clock, idle = Clock(), Clock()
    slow, plain = train(tmp_path, 4.0, clock), train(tmp_path, 1.0, idle)
    assert sum(clock.slept) == pytest.approx(3 * 3.0), "a step took a second, and three more are waited"
    assert max(clock.slept) <= STOP_CHECK_SECONDS
    assert idle.slept == []
    assert (slow.tokens, slow.local_loss) == (plain.tokens, plain.local_loss)


def test_a_slowed_peer_stops_when_it_should(tmp_path: Path) -> None:
    clock = Clock()
    assert train(tmp_path, 1000.0, clock, stop_after=0.5) is None
    assert sum(clock.slept) == 0.5


@pytest.mark.parametrize(
    ("source", "listen", "says"),
    [
        ("stdlib", "0.0.0.0:1", None),
        ("/srv/text", "127.0.0.1:1", None),
        ("text", "127.0.0.1:1", "data.source = 'text' is relative"),
        ("/srv/text", "0.0.0.0:1", "data.source = '/srv/text' is a path and no text is sent"),
        (("/srv/a", "b"), "[::1]:1", "data.source = '/srv/a', 'b' is relative"),
        (("/srv/a", "/srv/b"), "swarm.example.org:1", "'/srv/a', '/srv/b' is a path"),
    ],
)
def test_an_organiser_is_told_where_volunteers_will_not_find_the_data(
    source: str | tuple[str, ...], listen: str, says: str | None
) -> None:
    advice = advise_organiser(DataConfig(source=source), listen)
    assert (advice is None) == (says is None)
    if advice is not None and says is not None:
        assert says in advice
        assert "--data PATH" in advice


def test_a_source_is_made_absolute_unless_it_is_no_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/ann")
    assert absolute_source("stdlib") == "stdlib"
    assert absolute_source("text") == os.path.join(tmp_path, "text")
    assert absolute_source(("~/text", "/b")) == ("/home/ann/text", "/b")
