"""Real processes through the command line: what a person does, and what must be left when they are done."""

import json
import signal
import subprocess
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from tests.processes import TINY, Event, Run, digests, events_of, of_kind, start, tsr_swarm

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]

TOLD = ("digest_reported", "round_closed")

RUN = "[run]\nrounds = 5\n[round]\nfloor_seconds = 60.0\n" + TINY


def test_a_killed_peer_and_a_newcomer_cost_no_round(folder: Path) -> None:
    """Killed in round 3, joined in round 5; the run is asked to stop once the newcomer has been counted."""
    with Run(folder, "--kill", "2@3", "--join-at", "5") as run:
        run.until(lambda event: event["event"] == "round_closed" and event["round"] > 5 and event["included"] == 3)
        run.finish()
    closed = [event["round"] for event in of_kind(run.events, "round_closed")]
    assert closed == list(range(1, len(closed) + 1))
    assert not of_kind(run.events, "round_void")
    assert of_kind(run.events, "peer_left")[0]["name"] == "peer-2"
    assert "peer-4" in {event["name"] for event in of_kind(run.events, "digest_reported")}
    assert run.events[-1]["event"] == "run_finished"


def led_by(events: list[Event]) -> list[object]:
    names = [event["name"] for event in of_kind(events, "leader_changed")]
    return [name for name, before in zip(names, [None, *names], strict=False) if name != before]


def run_rounds(folder: Path, rounds: int, peers: int, *faults: str) -> list[Event]:
    """A run that reaches its last round, whoever dies: every round stands once, with the same weights everywhere."""
    options = ["--peers", str(peers), "--rounds", str(rounds), "--no-dht", "--json", "--dir", "kept"]
    events = events_of(tsr_swarm(folder, "local", "tiny.toml", *options, *faults).stdout)
    # A round whose leader died as it was told is told by the next one too: with the same digest.
    closed = [event["round"] for event in of_kind(events, "round_closed")]
    assert sorted(set(closed)) == list(range(1, rounds + 1))
    logs = [folder / "kept" / "logs" / f"peer-{who}.jsonl" for who in range(1, peers + 1)]
    own = digests((event for log in logs for event in events_of(log.read_text())), "round_applied")
    assert own.keys() == set(range(1, rounds + 1))
    assert digests(events, *TOLD).items() <= own.items()
    assert not of_kind(events, "digest_mismatch")
    assert events[-1]["event"] == "run_finished"
    return events


@pytest.mark.parametrize(
    ("rounds", "peers", "kills"),
    [(6, 3, ["coordinator@3/commit"]), (7, 5, ["leader@3/commit", "leader@5"])],
    ids=["its coordinator", "two leaders"],
)
def test_a_run_survives(rounds: int, peers: int, kills: list[str], folder: Path) -> None:
    first, *later = led_by(run_rounds(folder, rounds, peers, *(part for kill in kills for part in ("--kill", kill))))
    assert first == "coordinator"
    assert len(later) == len(kills)


def test_a_reducer_that_is_killed_costs_no_round_and_comes_back(folder: Path) -> None:
    """Killed with what it was sent; it returns under its old name, from its own checkpoint or with the state."""
    events = run_rounds(folder, 12, 3, "--kill", "reducer@3/exchange", "--back", "reducer@3/exchange:100ms")
    assert led_by(events) == ["coordinator"]
    killed, back = (event["fault"] for event in of_kind(events, "fault_placed"))
    name = killed.partition("(")[2].rstrip(")")
    assert name.startswith("peer-")
    assert name in back
    assert not of_kind(events, "round_void")


def test_with_too_few_voters_left_the_run_waits_and_then_ends_with_a_sentence(folder: Path) -> None:
    faults = ["--kill", "coordinator@3/commit", "--kill", "leader@4", "--no-dht"]
    done = tsr_swarm(folder, "local", "tiny.toml", "--peers", "3", "--rounds", "8", "--json", *faults, code=1)
    assert done.stderr == (
        "tsr-swarm: Too few voters are left to choose a leader, 1 of 3, and none comes back; the run ends here.\n"
    )
    events = events_of(done.stdout)
    warnings = [event["message"] for event in of_kind(events, "warning")]
    assert "Too few voters are left to choose a leader, 1 of 3; the run waits until one comes back." in warnings
    assert not of_kind(events, "run_finished")


def test_by_hand_init_coordinate_join_status(folder: Path) -> None:
    tsr_swarm(folder, "init", "run.toml")
    tsr_swarm(folder, "init", "run.toml", code=2)
    coordinate = ["coordinate", "tiny.toml", "--listen", "127.0.0.1:0", "--json", "--no-dht", "--rounds", "3"]
    with start(folder, *coordinate) as coordinator:
        address = json.loads(coordinator.stdout.readline())["address"]
        status = tsr_swarm(folder, "status", "--coordinator", address, "--json")
        assert json.loads(status.stdout)["run"] == "my-run"
        join = ["join", "--coordinator", address, "--no-dht"]
        refused = tsr_swarm(folder, *join, "--local-space", "full", code=76)
        assert refused.stdout == ""
        assert len(refused.stderr.strip().splitlines()) == 1
        tsr_swarm(folder, *join, "--plain")
        events = events_of(coordinator.stdout)
    assert coordinator.returncode == 0
    assert events[-1]["event"] == "run_finished"


def test_a_killed_coordinators_run_is_listed_and_joined_by_its_name(folder: Path) -> None:
    """Real processes, of which the newcomer knows one, a volunteer's."""
    with ExitStack() as stack:

        def begin(*arguments: str) -> subprocess.Popen[str]:
            process = stack.enter_context(start(folder, *arguments, "--json"))
            stack.callback(process.kill)
            return process

        coordinator = begin("coordinate", "tiny.toml", "--listen", "127.0.0.1:0", "--rounds", "0")
        address = json.loads(coordinator.stdout.readline())["address"]
        for number in range(2):
            begin("join", "--coordinator", address, "--listen", "127.0.0.1:0", "--dir", f"peer-{number}")
        told: list[Event] = []
        for event in map(json.loads, coordinator.stdout):
            told.append(event)
            is_safe = any(event["is_safe"] for event in of_kind(told, "leader_changed"))
            if is_safe and any(event["records"] == 3 for event in of_kind(told, "dht_found")):
                break
        coordinator.kill()
        way_in = of_kind(told, "peer_joined")[0]["address"]
        [listed] = events_of(tsr_swarm(folder, "runs", "--dht", way_in, "--json").stdout)
        assert (listed["run"], listed["peers"]) == ("my-run", 3)
        assert "my-run@" in tsr_swarm(folder, "runs", "--dht", way_in).stdout
        newcomer = begin("join", "--run", f"my-run@{listed['run_id'][:6]}", "--dht", way_in, "--dir", "newcomer")
        assert any(event.get("included") for event in map(json.loads, newcomer.stdout))


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGHUP, signal.SIGKILL])
def test_peers_meet_in_the_dht_and_nothing_is_left_however_a_swarm_ends(folder: Path, end: signal.Signals) -> None:
    """Ended once every process is up: coordinator, two peers and three DHT daemons."""
    with Run(folder, "--peers", "2") as run:
        run.until(lambda event: event["event"] == "dht_found" and event["names"] == "coordinator, peer-1, peer-2")
        children = psutil.Process(run.process.pid).children(recursive=True)
        assert sum("p2pd" in child.name() for child in children) == 3
        run.process.send_signal(end)
        run.process.stdout.read()
        assert run.process.wait(60) == (130 if end != signal.SIGKILL else -signal.SIGKILL)
    assert not psutil.wait_procs(children, timeout=30)[1]
