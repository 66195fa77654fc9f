"""Peers on unlike machines end every round with the same weights, bit for bit, under every preset."""

from pathlib import Path

import pytest

from tests.processes import TINY, Event, digests, events_of, of_kind, tsr_swarm
from tsr_swarm.config.presets import PRESETS

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]

TOLD = ("digest_reported", "round_closed")
RUN = "[run]\nrounds = 5\n[round]\nfloor_seconds = 60.0\n" + TINY
UNLIKE = [
    "local", "tiny.toml", "--peers", "3", "--json", "--env", "1:OMP_NUM_THREADS=2",
    "--env", "2:ATEN_CPU_CAPABILITY=default", "--env", "2:MKL_ENABLE_INSTRUCTIONS=SSE4_2",
]  # fmt: skip


def assert_bit_identical(events: list[Event]) -> None:
    """Five rounds, nobody left out, and one digest after each."""
    closed = of_kind(events, "round_closed")
    assert [event["round"] for event in closed] == [1, 2, 3, 4, 5]
    assert all(event["included"] == 3 for event in closed)
    assert digests(events, *TOLD).keys() == {1, 2, 3, 4, 5}
    assert len(of_kind(events, "digest_reported")) == 15
    assert events[-1]["event"] == "run_finished"


def test_a_swarm_of_unlike_machines_stays_bit_identical_and_can_be_gone_on_with(folder: Path) -> None:
    """One peer on two threads, one on another instruction set: exact sums do not care."""
    events = events_of(tsr_swarm(folder, *UNLIKE, "--dir", "kept").stdout)
    assert_bit_identical(events)
    assert [event["refresh"] for event in of_kind(events, "round_opened")] == [8] * 5, "bases are drawn every round"
    tsr_swarm(folder, "sample", "kept", "--length", "20")
    again = ["local", "tiny.toml", "--peers", "3", "--json", "--dir", "kept", "--resume", "--rounds", "7"]
    events = events_of(tsr_swarm(folder, *again).stdout)
    closed = [event["round"] for event in of_kind(events, "round_closed")]
    # Any voter may lead now; a peer that does tells the round before once more: nobody saw it tell that one.
    assert closed in ([6, 7], [5, 6, 7])
    assert digests(events, *TOLD)


# With periods so short that every block has two randomized SVDs and every kind of moment is averaged.
SHORT = {"tsr-adam": ("k_r", "k_r_embedding", "k_u", "k_v"), "tsr-adam-dct": ("k_u", "k_v")}


@pytest.mark.parametrize("preset", [name for name in PRESETS if name != "lean"])  # which the other tests run
def test_unlike_machines_stay_bit_identical_under_every_preset(preset: str, folder: Path) -> None:
    """Also with bases from singular vectors and orthogonalisations, which differ between machines as a library does."""
    short = [part for key in SHORT.get(preset, ()) for part in ("--set", f"periods.{key}=10")]
    done = tsr_swarm(folder, *UNLIKE, "--preset", preset, *short)
    assert_bit_identical(events_of(done.stdout))
    finished = events_of(done.stdout)[-1]["by_kind"]
    assert bool(finished.get("sketch", 0) + finished.get("gradient", 0)) == (preset != "rich")
