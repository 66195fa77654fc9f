"""Shared data in whole swarms: all of it is trained on, a lost peer's part passes on, and nobody counts twice."""

import asyncio
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from tests.swarm_rig import TEXT, Swarm, run_swarm, stop_all, tiny_config
from tsr_swarm.config.run import DataConfig, RunConfig
from tsr_swarm.errors import ConfigError
from tsr_swarm.node import data_leases, workspace
from tsr_swarm.node.workspace import Workspace
from tsr_swarm.telemetry import events as ev
from tsr_swarm.train.corpus import Warn
from tsr_swarm.train.trainer import Trainer


def small_config(folder: Path, parts: int, rounds: int, min_peers: int = 3, **changes: dict[str, object]) -> RunConfig:
    """A part of the data is a round or three of one peer's work."""
    text = folder / "text"
    text.mkdir(parents=True)
    for number in range(8):
        (text / f"part{number}.py").write_text(TEXT[number * 2000 :][: 300 + 40 * number])
    data, run = {"source": str(text), "parts": parts}, {"rounds": rounds, "min_peers": min_peers}
    return tiny_config(folder, data=data, run=run, periods={"k_x": 6}, **changes)


def assert_never_falls(events: list[ev.DataCovered]) -> None:
    assert all((a.epoch, a.done) <= (b.epoch, b.done) for a, b in pairwise(events))
    assert all(event.share == event.done / event.parts for event in events)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[int]]:
    """The parts that each peer trained on, by the name of its folder, in order."""
    seen: dict[str, list[int]] = {}
    workspaces: list[tuple[Workspace, str]] = []
    init, train = Workspace.__init__, Trainer.train

    def remember(self: Workspace, *of: Any) -> None:
        init(self, *of)
        workspaces.append((self, of[4].name))

    def watch(self: Trainer, plan, should_stop, on_step):  # type: ignore[no-untyped-def]
        for each, name in workspaces:
            if each.consensus is self.consensus:
                seen.setdefault(name, []).append(each.part)
        return train(self, plan, should_stop, on_step)

    monkeypatch.setattr(Workspace, "__init__", remember)
    monkeypatch.setattr(Trainer, "train", watch)
    return seen


async def test_two_peers_train_on_all_of_four_parts_and_go_on_with_the_next_epoch(
    tmp_path: Path, reads: dict[str, list[int]]
) -> None:
    swarm = await run_swarm(tmp_path, small_config(tmp_path, parts=4, rounds=16), peers=2)
    assert set(reads["peer-1"]) | set(reads["peer-2"]) == {0, 1, 2, 3}
    assert (reads["peer-1"][0], reads["peer-2"][0]) == (0, 1)
    told = swarm.of(ev.DataCovered)
    assert_never_falls(told)
    assert any((event.epoch, event.done, event.share) == (1, 4, 1.0) for event in told)
    assert told[-1].epoch >= 2
    assert all(event.included == 2 for event in swarm.closed())


async def test_who_has_which_part_is_the_same_each_time(tmp_path: Path) -> None:
    """Two peers that finish in the same round are served by number, not by whose poll came first."""
    digests = set[tuple[str, ...]]()
    for attempt in ("a", "b"):
        swarm = await run_swarm(tmp_path / attempt, small_config(tmp_path / attempt, parts=5, rounds=10), peers=2)
        digests.add(tuple(event.digest for event in swarm.closed()))
    assert len(digests) == 1


async def test_as_many_peers_as_parts_train_as_without_leases_epoch_after_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads: dict[str, list[int]]
) -> None:
    leased = await run_swarm(tmp_path / "leased", small_config(tmp_path / "leased", parts=3, rounds=14))
    assert leased.of(ev.DataCovered)[-1].epoch >= 2
    assert {name: set(parts) for name, parts in reads.items()} == {"peer-1": {0}, "peer-2": {1}, "peer-3": {2}}
    monkeypatch.setattr(data_leases, "MAX_PARTS", 2)
    plain = await run_swarm(tmp_path / "plain", small_config(tmp_path / "plain", parts=3, rounds=14))
    assert not plain.of(ev.DataCovered)
    assert [event.digest for event in leased.closed()] == [event.digest for event in plain.closed()]


async def test_a_lost_peers_part_passes_on(tmp_path: Path, reads: dict[str, list[int]]) -> None:
    """Of a run that ends once both parts are done: rounds do not wait until it is given up."""

    def lose(swarm: Swarm, event: ev.Event) -> None:
        if isinstance(event, ev.RoundOpened) and event.round == 2:
            swarm.peers.pop(2).stop.terminate()  # at once, without a goodbye
        if isinstance(event, ev.DataCovered) and event.done == 2:
            swarm.on_event = lambda swarm, event: None
            stop_all(swarm)

    swarm = await run_swarm(tmp_path, small_config(tmp_path, parts=2, rounds=0), peers=2, on_event=lose)
    told = swarm.of(ev.DataCovered)
    assert [(event.part, event.was, event.now) for event in told if event.part] == [(2, "peer-2", "peer-1")]
    assert set(reads["peer-1"]) == {0, 1}
    assert_never_falls(told)
    assert any((event.epoch, event.done) == (1, 2) for event in told)


async def test_the_next_leader_knows_what_is_done_and_who_has_what(tmp_path: Path, reads: dict[str, list[int]]) -> None:
    def kill(swarm: Swarm, event: ev.Event) -> None:
        if isinstance(event, ev.DataCovered) and event.done >= 2:
            asyncio.get_running_loop().call_later(0.5, swarm.coordinator.stop.terminate)
            swarm.on_event = lambda swarm, event: None

    swarm = await run_swarm(tmp_path, small_config(tmp_path, parts=8, rounds=20), on_event=kill, listening=3)
    before = swarm.of(ev.DataCovered)
    (after,) = filter(None, (member.of(ev.DataCovered) for member in swarm.peers.values()))
    assert_never_falls([*before, *after])
    assert after[-1].epoch >= 2, "it is covered to its end"
    assert not any(event.part for event in after), "nobody who came to it lost anything"
    assert set().union(*reads.values()) == set(range(8))


async def test_a_resumed_run_goes_on_with_what_was_done(tmp_path: Path) -> None:
    config = small_config(tmp_path, parts=8, rounds=5, checkpoint={"dir": str(tmp_path / "run"), "every": 1})
    before = (await run_swarm(tmp_path, config, peers=2)).of(ev.DataCovered)
    assert before, "something was done"
    config = replace(config, run=replace(config.run, rounds=18, min_peers=2))
    swarm = await Swarm(tmp_path, config).start(2, resume=True)
    await swarm.finish()
    assert_never_falls([*before, *swarm.of(ev.DataCovered)])
    assert any((event.epoch, event.done) == (1, 8) for event in swarm.of(ev.DataCovered))


async def test_a_peer_with_data_of_its_own_borrows_none(tmp_path: Path, reads: dict[str, list[int]]) -> None:
    """Its number's part is left to the others."""
    swarm = await Swarm(tmp_path, small_config(tmp_path, parts=2, rounds=14, min_peers=2)).start()
    swarm.start_peer(1)
    swarm.start_peer(2, data=(str(tmp_path / "text"),))
    await swarm.finish()
    assert set(reads["peer-1"]) == {0, 1}
    assert set(reads["peer-2"]) == {-1}
    assert any((event.epoch, event.done) == (1, 2) for event in swarm.of(ev.DataCovered))


async def test_a_part_that_cannot_be_read_is_left_to_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads: dict[str, list[int]]
) -> None:
    """This peer stays with what it has, and says so once."""
    read = workspace.training_tokens

    def fail(data: DataConfig, part: int, warn: Warn) -> Tensor:
        if part == 1:
            raise ConfigError("The data source 'text' is not there; mount it again.")
        return read(data, part, warn)

    monkeypatch.setattr(workspace, "training_tokens", fail)
    swarm = await run_swarm(tmp_path, small_config(tmp_path, parts=2, rounds=10), peers=1)
    assert set(reads["peer-1"]) == {0}
    (warning,) = swarm.peers[1].warnings()
    assert warning == "The data source 'text' is not there; mount it again. This peer stays with the part that it has."
    assert all(event.included == 1 for event in swarm.closed())
