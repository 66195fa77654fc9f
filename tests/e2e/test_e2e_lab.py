"""Real swarms over shaped lines: what happens to them, and what must be left of a lab when they are done."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.processes import TINY, Event, Run

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]

RUN = "[round]\nfloor_seconds = 0.5\n" + TINY


def begins(what: str) -> Callable[[Event], bool]:
    return lambda event: event["event"] == "fault_placed" and what in event["fault"] and not event["is_over"]


def is_over(what: str) -> Callable[[Event], bool]:
    return lambda event: event["event"] == "fault_placed" and what in event["fault"] and event["is_over"]


def opens(event: Event) -> bool:
    return bool(event["event"] == "round_opened")


def closes_with(peers: int) -> Callable[[Event], bool]:
    return lambda event: event["event"] == "round_closed" and event["included"] == peers


def test_a_stopped_and_a_cut_off_peer_fall_behind_and_come_back(folder: Path) -> None:
    """Shaped lines in the kind of lab that this machine gives.

    No round waits long for the peer that falls asleep behind NAT. The one that is cut off can be dialled, so that it
    averages a part of the round: the others' rounds go on once it is missed.
    """
    lines = ["--rtt", "all:10ms", "--up", "all:20mbit", "--loss", "1:1%", "--nat", "3", "--slow", "1:2"]
    faults = ["--stop", "3@3:2r", "--partition", "coordinator,1,3|2@12:2r", "--no-dht"]
    with Run(folder, *lines, *faults, "--set", "round.floor_seconds=1.5") as run:
        [ready] = run.until(lambda event: event["event"] == "lab_ready")
        print(f"lab: {ready['mode']}: {ready['reason']}")
        assert ready["mode"] in ("namespaces", "proxy")
        missed = []
        for fault in ("--stop", "--partition"):
            run.until(begins(fault))
            *without, _ = [event["round"] for event in run.until(is_over(fault)) if opens(event)]
            missed += without
            run.until(closes_with(3))  # it is back
        run.finish()
    closed = {event["round"]: event["included"] for event in run.events if event["event"] == "round_closed"}
    assert list(closed) == list(range(1, len(closed) + 1))
    assert missed == [4, 13]
    assert [closed[round] for round in missed] == [2, 2], "the others' rounds go on"


def test_a_swarm_trains_through_proxies_and_a_partition_of_them_heals(folder: Path) -> None:
    shaped = ["--rtt", "all:5ms", "--down", "1:20mbit", "--loss", "2:1%", "--partition", "coordinator|2@2:1r"]
    with Run(folder, "--lab", "proxy", *shaped) as run:
        [ready] = run.until(lambda event: event["event"] == "lab_ready")
        assert ready["mode"] == "proxy"
        run.until(is_over("--partition"))
        run.until(closes_with(3))  # it is back
        run.finish()


def test_nothing_of_a_lab_is_left_when_the_command_is_killed_with_peers_asleep_and_cut_off(folder: Path) -> None:
    with Run(folder, "--rtt", "all:2ms", "--stop", "2@2:1h", "--partition", "coordinator|1@2:1h") as run:
        run.until(begins("--stop"))
        run.until(begins("--partition"))
        run.kill()
