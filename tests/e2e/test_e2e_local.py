"""Real processes through the command line: what a person does, and what must be left when they are done."""

import json
import signal
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.processes import COMMAND, ENVIRONMENT, TINY

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]

RUN = "[run]\nrounds = 5\n[round]\nfloor_seconds = 60.0\n" + TINY
Event = dict[str, Any]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder with a run file and a temporary folder of its own, which must be empty in the end."""
    (tmp_path / "tiny.toml").write_text(RUN)
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    yield tmp_path
    left = [
        process.cmdline()
        for process in psutil.process_iter(["cmdline"])
        if str(tmp_path) in " ".join(process.info["cmdline"] or [])
    ]
    assert not left, "no process is left behind"
    assert not list(temporary.iterdir()), "no stray file is left behind"


def tsr_swarm(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments],
        cwd=folder,
        env={**ENVIRONMENT, "TMPDIR": str(folder / "tmp")},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = {**ENVIRONMENT, "TMPDIR": str(folder / "tmp")}
    return subprocess.Popen(
        [*COMMAND, *arguments],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def events_of(output: str) -> list[Event]:
    return [json.loads(line) for line in output.splitlines()]


def digests(events: list[Event]) -> dict[object, set[object]]:
    seen: dict[object, set[object]] = defaultdict(set)
    for event in events:
        if event["event"] in ("digest_reported", "round_closed"):
            seen[event["round"]].add(event["digest"])
    return seen


UNLIKE = [
    "local", "tiny.toml", "--peers", "3", "--json", "--env", "1:OMP_NUM_THREADS=2",
    "--env", "2:ATEN_CPU_CAPABILITY=default", "--env", "2:MKL_ENABLE_INSTRUCTIONS=SSE4_2",
]  # fmt: skip


def assert_bit_identical(events: list[Event], refreshes: list[int]) -> None:
    """Five rounds, nobody left out, and one digest after each."""
    closed = [event for event in events if event["event"] == "round_closed"]
    assert [event["round"] for event in closed] == [1, 2, 3, 4, 5]
    assert all(event["included"] == 3 for event in closed)
    assert all(len(found) == 1 for found in digests(events).values())
    assert sum(event["event"] == "digest_reported" for event in events) == 15
    assert [event["refresh"] for event in events if event["event"] == "round_opened"] == refreshes
    assert events[-1]["event"] == "run_finished"


def test_a_swarm_of_unlike_machines_stays_bit_identical_with_bases_drawn_anew_every_round(folder: Path) -> None:
    """One peer on two threads, one on another instruction set: exact sums do not care."""
    done = tsr_swarm(folder, *UNLIKE, "--dir", "kept")
    assert done.returncode == 0, done.stderr
    events = events_of(done.stdout)
    assert_bit_identical(events, [8, 8, 8, 8, 8])

    shown = tsr_swarm(folder, "sample", "kept", "--length", "20")
    assert shown.returncode == 0, shown.stderr

    resumed = tsr_swarm(
        folder, "local", "tiny.toml", "--peers", "3", "--json", "--dir", "kept", "--resume", "--rounds", "7"
    )
    assert resumed.returncode == 0, resumed.stderr
    events = events_of(resumed.stdout)
    closed = [event["round"] for event in events if event["event"] == "round_closed"]
    # Any voter may lead now; a peer that does tells the round before once more: nobody saw it tell that one.
    assert closed in ([6, 7], [5, 6, 7])
    assert all(len(found) == 1 for found in digests(events).values())


def test_unlike_machines_stay_bit_identical_through_two_refreshes_aimed_by_gradients(folder: Path) -> None:
    """The bases come from an orthonormalisation, which differs between machines: one does it for all."""
    keys = ("optimizer.aim=gradient", "optimizer.rank=d/2", "optimizer.inner=adam", "optimizer.lr=3e-3")
    periods = ("periods.k_r=20", "periods.k_r_embedding=20")
    done = tsr_swarm(folder, *UNLIKE, *(part for key in (*keys, *periods) for part in ("--set", key)))
    assert done.returncode == 0, done.stderr
    assert_bit_identical(events_of(done.stdout), [8, 0, 0, 0, 8])


def test_a_killed_peer_and_a_newcomer_cost_no_round(folder: Path) -> None:
    """Killed in round 3, joined in round 5; the run is asked to stop once the newcomer has been counted."""
    command = ["local", "tiny.toml", "--peers", "3", "--rounds", "100000", "--json", "--kill", "2@3", "--join-at", "5"]
    events = []
    with start(folder, *command) as local:
        assert local.stdout is not None
        for line in local.stdout:
            events.append(json.loads(line))
            if events[-1]["event"] == "round_closed" and events[-1]["round"] > 5 and events[-1]["included"] == 3:
                break
        local.send_signal(signal.SIGINT)
        events += events_of(local.stdout.read())
    assert local.returncode == 130
    closed = [event["round"] for event in events if event["event"] == "round_closed"]
    assert closed == list(range(1, len(closed) + 1))
    assert not [event for event in events if event["event"] in ("round_void", "digest_mismatch")]
    assert all(len(found) == 1 for found in digests(events).values())
    assert next(event["name"] for event in events if event["event"] == "peer_left") == "peer-2"
    assert "peer-4" in {event["name"] for event in events if event["event"] == "digest_reported"}
    assert events[-1]["event"] == "run_finished"


def own_digests(folder: Path, peers: int) -> dict[object, set[object]]:
    """By round: what each peer that lived to apply it says in its own events."""
    seen: dict[object, set[object]] = defaultdict(set)
    for who in range(1, peers + 1):
        for event in events_of((folder / "logs" / f"peer-{who}.jsonl").read_text()):
            if event["event"] == "round_applied":
                seen[event["round"]].add(event["digest"])
    return seen


def led_by(events: list[Event]) -> list[object]:
    """Who led, one after the other."""
    names = [event["name"] for event in events if event["event"] == "leader_changed"]
    return [name for name, before in zip(names, [None, *names], strict=False) if name != before]


def run_rounds(folder: Path, rounds: int, peers: int, *faults: str) -> list[Event]:
    """A run that reaches its last round, whoever dies: every round stands once, with the same weights everywhere."""
    options = ["--peers", str(peers), "--rounds", str(rounds), "--no-dht", "--json", "--dir", "kept"]
    done = tsr_swarm(folder, "local", "tiny.toml", *options, *faults)
    assert done.returncode == 0, done.stderr
    events = events_of(done.stdout)
    # A round whose leader died as it was told is told by the next one too: with the same digest.
    closed = [event["round"] for event in events if event["event"] == "round_closed"]
    assert sorted(set(closed)) == list(range(1, rounds + 1))
    own = own_digests(folder / "kept", peers)
    assert own.keys() == set(range(1, rounds + 1))
    assert all(len(found) == 1 for found in own.values())
    assert all(found == own[round] for round, found in digests(events).items())
    assert not [event for event in events if event["event"] == "digest_mismatch"]
    assert events[-1]["event"] == "run_finished"
    return events


def pauses(events: list[Event]) -> list[float]:
    """Seconds from each kill to the next round that opened."""
    kills = [place for place, event in enumerate(events) if event["event"] == "fault_placed"]
    opened = [next(event["time"] for event in events[kill:] if event["event"] == "round_opened") for kill in kills]
    return [round(time - events[kill]["time"], 1) for time, kill in zip(opened, kills, strict=True)]


def test_a_run_survives_its_coordinator(folder: Path) -> None:
    events = run_rounds(folder, 6, 3, "--kill", "coordinator@3/commit")
    first, second = led_by(events)
    assert first == "coordinator"
    assert second in ("peer-1", "peer-2", "peer-3")
    print(f"the next round opened after {pauses(events)} s")


def test_a_run_survives_two_leaders(folder: Path) -> None:
    events = run_rounds(folder, 7, 5, "--kill", "leader@3/commit", "--kill", "leader@5")
    assert len(led_by(events)) == 3
    print(f"the next round opened after {pauses(events)} s")


def test_a_reducer_that_is_killed_costs_no_round_and_comes_back(folder: Path) -> None:
    """Killed with what it was sent; it returns under its old name, from its own checkpoint or with the state."""
    events = run_rounds(folder, 12, 3, "--kill", "reducer@3/exchange", "--back", "reducer@3/exchange:100ms")
    assert led_by(events) == ["coordinator"]
    killed, back = (event["fault"] for event in events if event["event"] == "fault_placed")
    name = killed.partition("(")[2].rstrip(")")
    assert name.startswith("peer-")
    assert name in back
    assert not [event for event in events if event["event"] == "round_void"]


def test_with_too_few_voters_left_the_run_waits_and_then_ends_with_a_sentence(folder: Path) -> None:
    faults = ["--kill", "coordinator@3/commit", "--kill", "leader@4"]
    done = tsr_swarm(folder, "local", "tiny.toml", "--peers", "3", "--rounds", "8", "--no-dht", "--json", *faults)
    assert done.returncode == 1
    assert done.stderr == (
        "tsr-swarm: Too few voters are left to choose a leader, 1 of 3, and none comes back; the run ends here.\n"
    )
    warnings = [event["message"] for event in events_of(done.stdout) if event["event"] == "warning"]
    assert "Too few voters are left to choose a leader, 1 of 3; the run waits until one comes back." in warnings
    assert not [event for event in events_of(done.stdout) if event["event"] == "run_finished"]


def test_by_hand_init_coordinate_join_status(folder: Path) -> None:
    made = tsr_swarm(folder, "init", "run.toml")
    assert made.returncode == 0, made.stderr
    assert tsr_swarm(folder, "init", "run.toml").returncode == 2
    coordinate = ["coordinate", "tiny.toml", "--listen", "127.0.0.1:0", "--json", "--no-dht", "--rounds", "3"]
    with start(folder, *coordinate) as coordinator:
        assert coordinator.stdout is not None
        address = json.loads(coordinator.stdout.readline())["address"]
        status = tsr_swarm(folder, "status", "--coordinator", address, "--json")
        assert status.returncode == 0, status.stderr
        assert json.loads(status.stdout)["run"] == "my-run"
        refused = tsr_swarm(folder, "join", "--coordinator", address, "--local-space", "full", "--no-dht")
        assert (refused.returncode, refused.stdout) == (76, "")
        assert len(refused.stderr.strip().splitlines()) == 1
        joined = tsr_swarm(folder, "join", "--coordinator", address, "--plain", "--no-dht")
        assert joined.returncode == 0, joined.stderr
        rest = coordinator.stdout.read()
    assert coordinator.returncode == 0
    assert events_of(rest)[-1]["event"] == "run_finished"


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGHUP, signal.SIGKILL])
def test_peers_meet_in_the_dht_and_nothing_is_left_however_a_swarm_ends(folder: Path, end: signal.Signals) -> None:
    """Ended once every process is up: coordinator, two peers and three DHT daemons."""
    with start(folder, "local", "tiny.toml", "--peers", "2", "--rounds", "100000", "--json") as local:
        assert local.stdout is not None
        family = psutil.Process(local.pid)
        for line in local.stdout:
            event = json.loads(line)
            if event["event"] == "dht_found" and event["names"] == "coordinator, peer-1, peer-2":
                break
        children = family.children(recursive=True)
        assert sum("p2pd" in child.name() for child in children) == 3
        local.send_signal(end)
        local.stdout.read()
        local.wait(60)
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive
    assert local.returncode == (130 if end != signal.SIGKILL else -signal.SIGKILL)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["coordinate", "absent.toml"], 78, "does not exist"),
        (["coordinate", "tiny.toml", "--set", "optimizer.lrr=1"], 78, "did you mean 'optimizer.lr'"),
        (["coordinate", "tiny.toml", "--set", "optimizer.rank=999"], 78, "is more than block"),
        (["coordinate", "tiny.toml", "--set", "data.source=tmp"], 78, "0 bytes of text"),
        (["coordinate", "tiny.toml", "--listen", "0.0.0.0:0"], 78, "--insecure"),
        (["coordinate", "tiny.toml", "--resume"], 1, "holds no run"),
        (["join", "--coordinator", "127.0.0.1:9", "--wait", "0"], 69, "127.0.0.1:9"),
        (["join", "--coordinator", "nonsense"], 2, "host:port"),
        (["join"], 2, "--coordinator"),
        (["local", "tiny.toml", "--kill", "9@1"], 2, "9@1"),
        (["local", "tiny.toml", "--kill", "soon"], 2, "WHO@ROUND"),
        (["monitor", "--coordinator", "127.0.0.1:9", "--wait", "0", "--plain"], 69, "127.0.0.1:9"),
        (["status", "--coordinator", "127.0.0.1:9"], 69, "127.0.0.1:9"),
        (["frobnicate"], 2, "frobnicate"),
    ],
)
def test_bad_input_is_one_sentence_and_the_documented_exit_code(
    folder: Path, arguments: list[str], code: int, words: str
) -> None:
    done = tsr_swarm(folder, *arguments)
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
