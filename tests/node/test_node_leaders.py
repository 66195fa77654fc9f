"""Whole swarms whose leader goes: the rounds go on, or the run waits and says so, and all weights stay the same."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.swarm_rig import LISTEN, Member, Swarm, kill_coordinator, stop_all, tiny_config, when
from tsr_swarm.node import coordinator, peer
from tsr_swarm.node.events import run_log
from tsr_swarm.rounds import follower, leader, raft
from tsr_swarm.telemetry import events as ev


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """All waits in proportion, a quarter of what they are: nodes in one process are never far away."""
    for module, name in (
        (raft, "SILENCE_SECONDS"),
        (raft, "BEAT_SECONDS"),
        (follower, "RETRY_SECONDS"),
        (leader, "SETTLE_SECONDS"),
        (run_log, "PACE_SECONDS"),
        (coordinator, "LINGER_SECONDS"),
        (peer, "LINGER_SECONDS"),
    ):
        monkeypatch.setattr(module, name, getattr(module, name) / 4)


async def started(folder: Path, rounds: int, dialable: int, client_only: int, *faults: Callable[..., None]) -> Swarm:
    """Peers are numbered from 1: those that can be dialled, then those that cannot.

    A round waits for everybody: nobody's work is left out because a machine was busy.
    """
    peers = dialable + client_only
    run, limits = {"rounds": rounds, "min_peers": peers}, {"floor_seconds": 30.0, "shards": 3}
    return await Swarm(folder, tiny_config(folder, run=run, round=limits), *faults).start(peers, listening=dialable)


def leaders_after(swarm: Swarm, member: Member) -> set[str]:
    """Who was said to lead once ``member`` did not any more."""
    before = max((event.term for event in member.of(ev.LeaderChanged)), default=0)
    return {event.name for event in swarm.told(ev.LeaderChanged) if event.term > before}


def check(swarm: Swarm, rounds: int, *whole: int, void: int = 0) -> None:
    """One history up to the last round; peers ``whole`` are in every round of it, but for as many as were ``void``."""
    assert sorted(swarm.digests()) == list(range(1, rounds + 1))
    assert len({event.round for event in swarm.told(ev.RoundVoid)}) <= void
    for number in whole:
        mine = swarm.peers[number].of(ev.RoundApplied)
        assert [event.round for event in mine] == list(range(1, rounds + 1))
        assert sum(not event.included for event in mine) <= void


@pytest.mark.parametrize("phase", ["train", "exchange", "commit", "apply"])
async def test_the_coordinator_dies_in_any_phase_and_a_volunteer_leads_on(tmp_path: Path, phase: str) -> None:
    """Nobody has to do anything, and no more than the open round is lost."""
    swarm = await started(tmp_path, 6, 3, 1, when(ev.PhaseChanged, 3, kill_coordinator, phase))
    await swarm.finish()
    assert max(event.round for event in swarm.closed()) <= 3
    check(swarm, 6, 1, 2, 3, 4, void=1)
    assert set() < leaders_after(swarm, swarm.coordinator) <= {"peer-1", "peer-2", "peer-3"}
    for member in swarm.peers.values():
        assert isinstance(member.events[-1], ev.Left)
        assert member.events[-1].reason == "the run has finished"


async def test_with_too_few_voters_the_run_says_that_it_waits_and_goes_on_with_its_coordinator(tmp_path: Path) -> None:
    """One that can be dialled makes no majority of its own: it might be cut off, and others lead."""
    swarm = await started(tmp_path, 5, 1, 2, when(ev.PhaseChanged, 3, kill_coordinator, "train"))
    safe = [event.is_safe for event in swarm.events if isinstance(event, ev.LeaderChanged)]
    await asyncio.wait({swarm.coordinator.task})

    await swarm.until(lambda: all(member.of(ev.LeaderLost) for member in swarm.peers.values()))
    assert not any(safe), "people were told beforehand"
    assert not any(member.of(ev.RoundApplied)[-1].round > 3 for member in swarm.peers.values())
    await swarm.resume_coordinator()
    await swarm.finish()
    assert leaders_after(swarm, Member(swarm.coordinator.stop, swarm.coordinator.task, [])) == {"coordinator"}
    check(swarm, 5, 1, 2, 3)


async def test_a_coordinator_that_comes_back_follows_and_tells_of_the_rounds_that_it_missed(tmp_path: Path) -> None:
    """It dies in round 3 of a run without end, and comes back, elsewhere, when round 5 has closed under a volunteer."""
    back: list[asyncio.Task[None]] = []

    def come_back(swarm: Swarm, number: int, event: ev.Event) -> None:
        if isinstance(event, ev.RoundClosed) and event.round == 5 and not back:
            swarm.on_event = lambda swarm, event: None
            back.append(asyncio.create_task(swarm.start_coordinator(resume=True)))

    swarm = await started(tmp_path, 0, 3, 1, when(ev.PhaseChanged, 3, kill_coordinator, "train"), come_back)
    first = swarm.coordinator
    await swarm.until(lambda: bool(back) and back[0].done())
    assert swarm.coordinator is not first
    await swarm.until(lambda: max(swarm.rounds(), default=0) > 6)
    await swarm.end()
    digests = swarm.digests()
    assert sorted(digests) == list(range(1, max(digests) + 1))
    shown = [event.round for event in swarm.recorded() if isinstance(event, ev.RoundClosed)]
    assert max(shown) > 6
    assert list(dict.fromkeys(shown)) == list(range(1, max(shown) + 1))  # a leader tells again what was not heard told
    assert "coordinator" not in leaders_after(swarm, first)


async def without_two_leaders(folder: Path, dialable: int, phase: str, stop: Callable[[Member], None]) -> Member:
    """The coordinator is killed in round 3, and the leader after it is stopped in round 5: returns that one."""
    gone: list[Member] = []

    def act(swarm: Swarm, number: int, event: ev.Event) -> None:
        if isinstance(event, ev.PhaseChanged) and (event.round, event.phase) == (5, phase) and not gone:
            gone.append(swarm.peers.pop(number))
            stop(gone[0])

    swarm = await started(folder, 7, dialable, 1, when(ev.PhaseChanged, 3, kill_coordinator, phase), act)
    await swarm.until(lambda: bool(gone))
    await swarm.finish()
    await asyncio.wait([gone[0].task])
    check(swarm, 7, *swarm.peers, void=1 if phase == "train" else 2)
    assert leaders_after(swarm, gone[0])
    assert all(isinstance(member.events[-1], ev.Left) for member in swarm.peers.values())
    return gone[0]


async def test_a_run_goes_on_after_the_death_of_two_leaders(tmp_path: Path) -> None:
    await without_two_leaders(tmp_path, 5, "exchange", lambda member: member.stop.terminate())


async def test_a_volunteer_that_leads_and_is_asked_to_stop_finishes_its_round(tmp_path: Path) -> None:
    asked = await without_two_leaders(tmp_path, 4, "train", lambda member: member.stop.request())
    last = asked.of(ev.RoundApplied)[-1]
    assert (last.round, last.included) == (5, True)
    assert [event.reason for event in asked.of(ev.Left)] == ["it was asked to stop"]


async def test_a_swarm_whose_processes_were_all_stopped_goes_on_with_its_history(tmp_path: Path) -> None:
    """At once, in the middle of round 3; all come back elsewhere."""

    before = await started(tmp_path, 6, 3, 1, when(ev.PhaseChanged, 3, stop_all, "exchange"))
    await before.finish()
    history = before.digests()
    assert max(history) in (2, 3)
    after = Swarm(tmp_path, before.config)
    await after.start_coordinator(resume=True)
    for number in (1, 2, 3, 4):
        after.start_peer(number, resume=True, listen=LISTEN if number <= 3 else "")
    await after.finish()
    assert after.address != before.address
    digests = after.digests()
    assert min(digests) <= max(history) + 1
    assert max(digests) == 6
    assert all(len(seen | history.get(round, set())) == 1 for round, seen in digests.items())
    assert all(
        event.included for member in after.peers.values() for event in member.of(ev.RoundApplied) if event.round > 3
    )


async def test_a_new_peer_joins_through_a_volunteer_while_the_coordinator_is_gone(tmp_path: Path) -> None:
    """It has been told of nobody but one volunteer, which need not lead."""

    def come(swarm: Swarm, number: int, event: ev.Event) -> None:
        if isinstance(event, ev.RoundOpened) and event.round == 5 and 5 not in swarm.peers:
            swarm.start_peer(5, at=swarm.address_of(1))

    swarm = await started(tmp_path, 12, 3, 1, when(ev.PhaseChanged, 3, kill_coordinator, "train"), come)
    await swarm.finish()
    check(swarm, 12, 1, 2, 3, 4, void=1)
    newcomer = swarm.peers[5]
    (joined,) = newcomer.of(ev.Joined)
    assert joined.number == 5
    assert newcomer.of(ev.StateReceived)
    last = newcomer.of(ev.RoundApplied)[-1]
    assert (last.round, last.included) == (12, True)
