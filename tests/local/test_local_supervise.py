"""The supervisor of a local swarm against processes that play their parts. Real swarms are in tests/e2e."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from tsr_swarm.config.load import read_toml, run_config_from_mapping
from tsr_swarm.config.run import RunConfig
from tsr_swarm.errors import RunError, SwarmError
from tsr_swarm.local import supervise
from tsr_swarm.local.faults import LocalPlan
from tsr_swarm.local.folder import RUN_FILE, coordinator_folder
from tsr_swarm.local.network.base import LocalNetwork, Loopback
from tsr_swarm.local.network.packet_network import Pairs
from tsr_swarm.local.placing import FaultError, plan_local
from tsr_swarm.local.supervise import LocalOptions, fit_config, run_local
from tsr_swarm.process.shutdown import Shutdown
from tsr_swarm.process.supervisor import ChildError, ProcessGroup
from tsr_swarm.telemetry.events import (
    Event,
    FaultPlaced,
    LeaderChanged,
    PeerJoined,
    RoundOpened,
    RunFinished,
    Warned,
    event_name,
)

# Plays the coordinator (prints a run whose peers it finds by their files) or a peer (leaves a file, waits to be ended).
# In the play "heir" both peers vote too, and peer-1 leads once the coordinator is gone.
PLAYER = """
import json, os, pathlib, signal, sys, time
what, place, *rest = sys.argv[1:]
place = pathlib.Path(place)
play = os.environ.get("PLAY")
ids = {"coordinator": "0" * 32, "peer-1": "1" * 32, "peer-2": "2" * 32}
def say(event, **fields):
    print(json.dumps({"event": event, "time": 1.0, **fields}), flush=True)
def wait(name):
    while not (place / name).exists(): time.sleep(0.01)
def finish(*_):
    say("run_finished", rounds=1, first_loss=5.0, last_loss=4.0, wire_bytes=1, dense_bytes=2, digest="", reason="done")
    (place / "over").touch()
    sys.exit(0)
def lead(name, term):
    say("leader_changed", peer=ids[name], name=name, term=term, voters=3, is_safe=True,
        voter_ids=",".join(ids.values()))
def open(round, reducers=""):
    say("round_opened", round=round, peers=2, steps=1, lr=0.1, refresh=0, reducers=reducers)
if what == "coordinate":
    signal.signal(signal.SIGINT, finish)
    (place / "arguments").write_text(json.dumps(rest))
    (place / "pid").write_text(str(os.getpid()))
    if play == "refuse":
        sys.exit("tsr-swarm: There is no such data; check data.source.")
    say("run_started", run="r", run_id="1", address="127.0.0.1:9", rounds=3, min_peers=2, parameters=1, k_x=1,
        local_space="core", rank="d/2", voters=1, version="0")
    if "--resume" in rest:
        lead("peer-1", 2)  # relayed, as all that follows
        open(2)
        (place / "coordinator is back").touch()
        while not (place / "over").exists(): time.sleep(0.01)
        sys.exit(0)
    if play == "crash":
        sys.exit("tsr-swarm: The disk is full; make room.")
    for name in ("peer-1", "peer-2"):
        wait(name)
        say("peer_joined", peer=ids[name], name=name, number=1, address=f"{name}:1", device="cpu", local_space="core")
    if play == "peers fail":
        signal.pause()
    if play == "heir":
        lead("coordinator", 1)
    for round in (1, 2, 3):
        open(round, "peer-2")
        say("phase_changed", round=round, phase="commit", deadline=None, reason="")
        if play == "join" and round == 2:
            wait("peer-3")
        if play in ("kill", "heir") and round == 2:
            signal.pause()
    if play == "endless":
        signal.pause()
    if play == "asleep":
        pid = json.loads((place / "peer-1").read_text())["pid"]
        while pathlib.Path(f"/proc/{pid}/stat").read_text().split()[2] != "T": time.sleep(0.01)
    finish()
name = rest[rest.index("--name") + 1]
threads = os.environ.get("OMP_NUM_THREADS")
(place / f"{name}.new").write_text(json.dumps({"arguments": rest, "threads": threads, "pid": os.getpid()}))
(place / f"{name}.new").rename(place / name)
if play == "peers fail":
    sys.exit("tsr-swarm: The data folder is empty; name another.")
if play == "heir" and "--resume" in rest:
    (place / f"{name} is back").touch()
if play == "heir" and name == "peer-1":
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    wait("pid")
    coordinator = int((place / "pid").read_text())
    while os.path.exists(f"/proc/{coordinator}"): time.sleep(0.01)
    say("leader_lost", reason="it does not answer")
    lead("peer-1", 2)
    say("joined", run="r", name=name, number=1, address="", round=2)
    open(2, "peer-2")
    say("phase_changed", round=2, phase="exchange", deadline=None, reason="")
    if os.environ.get("WAIT"):
        wait(os.environ["WAIT"])
    open(3, "peer-2")
    finish()
while not (place / "over").exists(): time.sleep(0.01)
"""


class Stage:
    """Runs one local swarm of players and keeps what it emitted."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.events: list[Event] = []
        self.stop = Shutdown()

        def command(what: str, *arguments: str) -> list[str]:
            return [sys.executable, "-c", PLAYER, what, str(folder), *arguments]

        monkeypatch.setattr(supervise, "own_command", command)

    def plan(self, play: str, kills: Sequence[str] = (), joins: Sequence[int] = (), **more: Any) -> LocalPlan:
        environment = [f"{who}:PLAY={play}" for who in ("coordinator", "1", "2")] + more.pop("environment", [])
        return plan_local(peers=2, rounds=3, kills=kills, join_rounds=joins, environment=environment, **more)

    async def run(self, plan: LocalPlan, **options: bool) -> None:
        config = fit_config(RunConfig(), plan, self.folder)
        async with ProcessGroup() as group, asyncio.timeout(60):
            all_options = LocalOptions(config=config, plan=plan, folder=self.folder, **options)
            await run_local(all_options, group, self.see, self.stop)

    def see(self, event: Event) -> None:
        self.events.append(event)

    def rounds(self) -> list[int]:
        return [event.round for event in self.events if isinstance(event, RoundOpened)]

    def warnings(self) -> list[str]:
        return [event.message for event in self.events if isinstance(event, Warned)]

    def names(self) -> list[str]:
        return [event_name(event) for event in self.events]

    def peer(self, name: str) -> dict[str, Any]:
        told: dict[str, Any] = json.loads((self.folder / name).read_text())
        return told


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    return Stage(tmp_path, monkeypatch)


async def test_the_coordinators_events_are_passed_on_and_the_run_ends_with_it(stage: Stage) -> None:
    await stage.run(stage.plan("plain"))
    assert isinstance(stage.events[-1], RunFinished)
    assert {event.name for event in stage.events if isinstance(event, PeerJoined)} == {"peer-1", "peer-2"}


async def test_peers_are_told_where_the_coordinator_is_and_use_one_thread_each(stage: Stage) -> None:
    await stage.run(stage.plan("plain"), use_dht=False)
    told = stage.peer("peer-2")
    arguments = told["arguments"]
    assert arguments[arguments.index("--coordinator") + 1] == "127.0.0.1:9"
    assert arguments[arguments.index("--dir") + 1] == str(stage.folder / "peer-2")
    assert "--json" in arguments
    assert "--no-dht" in arguments
    assert arguments[arguments.index("--listen") + 1] == "127.0.0.1:0", "others can dial it: it can lead and average"
    assert told["threads"] == "1"


async def test_the_run_file_that_the_coordinator_reads_fits_the_swarm(stage: Stage) -> None:
    await stage.run(stage.plan("join", joins=[2]))
    config = run_config_from_mapping(read_toml(stage.folder / RUN_FILE))
    assert (config.run.min_peers, config.data.parts) == (2, 3)
    assert config.checkpoint.dir == str(coordinator_folder(stage.folder))
    assert json.loads((stage.folder / "arguments").read_text())[0] == str(stage.folder / RUN_FILE)


async def test_a_further_peer_starts_when_its_round_opens(stage: Stage) -> None:
    await stage.run(stage.plan("join", joins=[2]))
    assert (stage.folder / "peer-3").exists()


async def test_a_killed_coordinator_that_decides_alone_ends_the_run_with_a_sentence(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervise, "VOTERS_SECONDS", 0.1)
    with pytest.raises(RunError, match="Too few voters are left to choose a leader, 0 of 1, and none comes back"):
        await stage.run(stage.plan("kill", kills=["coordinator@2/commit"]))
    assert stage.rounds() == [1, 2]
    assert "the run waits until one comes back" in stage.warnings()[-1]


async def test_the_run_goes_on_with_the_events_of_whoever_leads_it_next(stage: Stage) -> None:
    await stage.run(stage.plan("heir", kills=["leader@2/commit"]))
    assert placed(stage) == [("--kill leader@2/commit (coordinator)", False)]
    assert [event.name for event in stage.events if isinstance(event, LeaderChanged)] == ["coordinator", "peer-1"]
    assert stage.names().count("leader_lost") == 1
    assert stage.rounds() == [1, 2, 2, 3]
    assert stage.names()[-1] == "run_finished"
    assert "joined" not in stage.names(), "what a peer says of itself is no news of the run"
    assert '"joined"' in (stage.folder / "logs" / "peer-1.jsonl").read_text()


async def test_who_averages_can_be_killed_by_that_and_a_fault_without_anybody_to_have_it_is_told(stage: Stage) -> None:
    """Also if who was killed has not quite died yet: once it was killed twice, now and then."""
    await stage.run(stage.plan("heir", kills=["reducer@1/commit", "coordinator@2/commit", "reducer@3"]))
    assert placed(stage)[0] == ("--kill reducer@1/commit (peer-2)", False)
    assert "--kill reducer@3/train cannot be placed: nobody does that now." in stage.warnings()


async def test_a_coordinator_that_comes_back_relays_what_is_told_already(stage: Stage) -> None:
    """It is where it was, goes on with what it had, and is not heard while another leads."""
    faults = {"kills": ["coordinator@2/commit"], "backs": ["coordinator@2/exchange:100ms"]}
    with pytest.raises(FaultError, match="needs somebody who was killed before"):
        stage.plan("heir", **faults)
    faults["backs"] = ["coordinator@2/commit:100ms"]
    await stage.run(stage.plan("heir", environment=["1:WAIT=coordinator is back"], **faults))
    assert stage.rounds() == [1, 2, 2, 3]
    assert stage.names().count("run_started") == 1
    arguments = json.loads((stage.folder / "arguments").read_text())
    assert arguments[arguments.index("--listen") + 1] == "127.0.0.1:9"
    assert "--resume" in arguments


async def test_a_peer_that_comes_back_asks_whoever_leads(stage: Stage) -> None:
    faults = {"kills": ["2@1", "coordinator@2/commit"], "backs": ["2@2/exchange"]}
    await stage.run(stage.plan("heir", environment=["1:WAIT=peer-2 is back"], **faults))
    arguments = stage.peer("peer-2")["arguments"]
    assert arguments[arguments.index("--coordinator") + 1] in ("peer-1:1", "127.0.0.1:9")
    assert "--resume" in arguments


async def test_with_too_few_voters_the_run_waits_for_those_that_come_back_and_for_nobody_else(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervise, "VOTERS_SECONDS", 0.1)
    monkeypatch.setattr(supervise, "LOOK_SECONDS", 0.05)
    kills = ["coordinator@2/commit", "1@2/commit"]
    with pytest.raises(RunError, match="choose a leader, 1 of 3, and none comes back"):
        await stage.run(stage.plan("heir", kills=kills, backs=["1@3"]))
    backs = ["1@2/commit:300ms"]
    stage.events.clear()
    await stage.run(stage.plan("heir", kills=kills, backs=backs))
    assert "1 of 3; the run waits until one comes back." in stage.warnings()[0]
    assert stage.names()[-1] == "run_finished"


async def test_who_was_to_come_back_holds_nothing_up_once_the_run_is_asked_to_stop(stage: Stage) -> None:
    stop_when(stage, lambda event: isinstance(event, Warned) and "Too few voters" in event.message)
    kills = ["coordinator@2/commit", "1@2/commit", "2@2/commit"]
    await stage.run(stage.plan("heir", kills=kills, backs=["1@2/commit:1h", "2@2/commit:1h"]))


@pytest.mark.parametrize(("joins", "says"), [([], "No peer is left"), ([3], "No process of the swarm is left")])
async def test_with_nobody_left_the_run_ends_with_a_sentence(stage: Stage, joins: list[int], says: str) -> None:
    with pytest.raises(RunError, match=says):
        await stage.run(stage.plan("heir", kills=["coordinator@2/commit", "1@2/commit", "2@2/commit"], joins=joins))


async def test_the_run_goes_on_without_a_killed_peer_but_not_without_any(stage: Stage) -> None:
    with pytest.raises(RunError, match="No peer is left"):
        await stage.run(stage.plan("kill", kills=["1@1", "2@2"]))
    assert stage.rounds() == [1, 2]


@pytest.mark.parametrize("before", [None, "# as it was"])
async def test_a_run_that_is_refused_leaves_the_run_file_as_it_was(stage: Stage, before: str | None) -> None:
    path = stage.folder / RUN_FILE
    if before is not None:
        path.write_text(before)
    with pytest.raises(ChildError, match="There is no such data"):
        await stage.run(stage.plan("refuse"), resume=before is not None)
    assert (path.read_text() if path.exists() else None) == before


async def test_a_coordinator_that_fails_is_quoted(stage: Stage) -> None:
    with pytest.raises(ChildError, match=r"^The disk is full; make room\.$") as caught:
        await stage.run(stage.plan("crash"))
    assert caught.value.exit_code == 1


async def test_a_peer_that_fails_before_the_first_round_ends_a_run_that_waits_for_it(stage: Stage) -> None:
    with pytest.raises(ChildError, match="The data folder is empty"):
        await stage.run(stage.plan("peers fail"))


async def test_a_request_to_stop_is_passed_to_the_coordinator_which_ends_the_run(stage: Stage) -> None:
    plan = stage.plan("endless")
    seen = stage.see

    def stop_in_round_3(event: Event) -> None:
        seen(event)
        if isinstance(event, RoundOpened) and event.round == 3:
            stage.stop.request()

    stage.see = stop_in_round_3  # type: ignore[method-assign]
    await stage.run(plan)
    assert stage.names()[-1] == "run_finished"


async def test_a_fault_that_never_came_due_is_told(stage: Stage) -> None:
    await stage.run(stage.plan("plain", kills=["1@3/apply"]))
    assert stage.events[-1] == Warned(message="The run ended before --kill peer-1@3/apply was due.")


class Recorder(Loopback):
    """Loopback that keeps what it is told to cut."""

    def __init__(self) -> None:
        super().__init__(use_dht=True)
        self.cuts: list[set[frozenset[int]]] = []
        self.error = asyncio.get_running_loop().create_future()

    def cut(self, pairs: Pairs) -> None:
        self.cuts.append(set(pairs))

    async def broken(self) -> SwarmError:
        return cast(SwarmError, await self.error)


@pytest.fixture
async def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    place = Recorder()

    @asynccontextmanager
    async def open_place(*_: object, **__: object) -> AsyncIterator[LocalNetwork]:
        yield place

    monkeypatch.setattr(supervise, "open_place", open_place)
    return place


def placed(stage: Stage) -> list[tuple[str, bool]]:
    return [(event.fault, event.is_over) for event in stage.events if isinstance(event, FaultPlaced)]


def stop_when(stage: Stage, is_time: Callable[[Event], bool]) -> None:
    seen = stage.see

    def see(event: Event) -> None:
        seen(event)
        if is_time(event):
            stage.stop.request()

    stage.see = see  # type: ignore[method-assign]


async def test_a_stopped_peer_goes_on_when_its_time_is_over(stage: Stage) -> None:
    stop_when(stage, lambda event: isinstance(event, FaultPlaced) and event.is_over)
    await stage.run(stage.plan("endless", stops=["1@2:10ms"]))
    assert placed(stage) == [("--stop peer-1@2/train:0.01s", False), ("--stop peer-1@2/train:0.01s", True)]
    assert stage.names()[-1] == "run_finished"


async def test_a_peer_that_is_still_stopped_when_the_run_ends_can_leave(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervise, "LEAVE_SECONDS", 60.0)
    await stage.run(stage.plan("asleep", stops=["1@2:1h", "1@3:1h"]))
    assert placed(stage)[2:] == [("--stop peer-1@2/train:3600s", True), ("--stop peer-1@3/train:3600s", True)]


async def test_partitions_add_up_and_are_over_one_by_one(stage: Stage, recorder: Recorder) -> None:
    stop_when(stage, lambda event: isinstance(event, FaultPlaced) and event.is_over)
    await stage.run(stage.plan("endless", partitions=["1|2@2:1h", "coordinator|1,2@3:10ms"]))
    first = {frozenset((1, 2))}
    both = first | {frozenset((0, 1)), frozenset((0, 2))}
    assert recorder.cuts == [first, both, first, set()]
    assert [is_over for _, is_over in placed(stage)] == [False, False, True, True]


async def test_a_lab_that_breaks_ends_the_run_with_its_sentence(stage: Stage, recorder: Recorder) -> None:
    seen = stage.see

    def break_in_round_3(event: Event) -> None:
        seen(event)
        if isinstance(event, RoundOpened) and event.round == 3:
            recorder.error.set_result(RunError("The router is gone."))

    stage.see = break_in_round_3  # type: ignore[method-assign]
    with pytest.raises(RunError, match="The router is gone"):
        await stage.run(stage.plan("endless"))


async def test_a_slow_peer_is_told_to_be(stage: Stage) -> None:
    await stage.run(stage.plan("plain", slow=["2:4"]))
    arguments = stage.peer("peer-2")["arguments"]
    assert arguments[arguments.index("--slowdown") + 1] == "4.0"
    assert "--slowdown" not in stage.peer("peer-1")["arguments"]
