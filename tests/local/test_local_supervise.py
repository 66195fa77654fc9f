"""The supervisor of a local swarm with scripted processes. Real swarms are in tests/e2e."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from tests.processes import argument
from tsr_swarm.config.load import read_toml, run_config_from_mapping
from tsr_swarm.config.run import RunConfig
from tsr_swarm.errors import RunError, SwarmError
from tsr_swarm.local import supervise
from tsr_swarm.local.flags import plan_local
from tsr_swarm.local.folder import RUN_FILE, coordinator_folder, fit_config
from tsr_swarm.local.network.local_network import LocalNetwork, Loopback
from tsr_swarm.local.network.packets import Pairs
from tsr_swarm.local.supervise import LocalOptions, run_local
from tsr_swarm.process.shutdown import Shutdown
from tsr_swarm.process.supervisor import ChildError, ProcessGroup
from tsr_swarm.telemetry import events as ev

# The script of the coordinator (prints a run whose peers it finds by their files) or of a peer (leaves a file, waits to
# be ended). In "heir" both peers vote too, and peer-1 leads once the coordinator is gone.
PLAYER = """
import json, os, pathlib, signal, sys, time
what, folder, *rest = sys.argv[1:]
folder = pathlib.Path(folder)
play = os.environ.get("PLAY")
ids = {"coordinator": "0" * 32, "peer-1": "1" * 32, "peer-2": "2" * 32}
def say(event, **fields):
    print(json.dumps({"event": event, "time": 1.0, **fields}), flush=True)
def wait(name):
    while not (folder / name).exists(): time.sleep(0.01)
def finish(*_):
    say("run_finished", rounds=1, first_loss=5.0, last_loss=4.0, wire_bytes=1, dense_bytes=2, digest="", reason="done")
    (folder / "over").touch()
    sys.exit(0)
def lead(name, term):
    say("leader_changed", peer=ids[name], name=name, term=term, voters=3, is_safe=True,
        voter_ids=",".join(ids.values()))
def open(round, reducers=""):
    say("round_opened", round=round, peers=2, steps=1, lr=0.1, refresh=0, reducers=reducers)
if what == "coordinate":
    signal.signal(signal.SIGINT, finish)
    (folder / "arguments").write_text(json.dumps(rest))
    (folder / "pid").write_text(str(os.getpid()))
    if play == "refuse":
        sys.exit("tsr-swarm: There is no such data; check data.source.")
    say("run_started", run="r", run_id="1", address="127.0.0.1:9", rounds=3, min_peers=2, parameters=1, k_x=1,
        local_space="core", rank="d/2", voters=1, version="0")
    if "--resume" in rest:
        lead("peer-1", 2)  # relayed, as all that follows
        open(2)
        (folder / "coordinator is back").touch()
        while not (folder / "over").exists(): time.sleep(0.01)
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
        pid = json.loads((folder / "peer-1").read_text())["pid"]
        while pathlib.Path(f"/proc/{pid}/stat").read_text().split()[2] != "T": time.sleep(0.01)
    finish()
name = rest[rest.index("--name") + 1]
threads = os.environ.get("OMP_NUM_THREADS")
(folder / f"{name}.new").write_text(json.dumps({"arguments": rest, "threads": threads, "pid": os.getpid()}))
(folder / f"{name}.new").rename(folder / name)
if play == "peers fail":
    sys.exit("tsr-swarm: The data folder is empty; name another.")
if play == "heir" and "--resume" in rest:
    (folder / f"{name} is back").touch()
if play == "heir" and name == "peer-1":
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    wait("pid")
    coordinator = int((folder / "pid").read_text())
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
while not (folder / "over").exists(): time.sleep(0.01)
"""


EVERYBODY = ["coordinator@2/commit", "1@2/commit", "2@2/commit"]
NO_HEIR = ["1:WAIT=nobody"]  # peer-1, which dies a moment after the coordinator, does not end the run meanwhile


class ScriptedSwarm:
    """Runs one local swarm of scripted processes and keeps what it emitted. ``on_event`` sees each event, too."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.events: list[ev.Event] = []
        self.stop = Shutdown()
        self.on_event: Callable[[ev.Event], None] = lambda event: None

        def command(what: str, *arguments: str) -> list[str]:
            return [sys.executable, "-c", PLAYER, what, str(folder), *arguments]

        monkeypatch.setattr(supervise, "own_command", command)

    async def run(
        self, play: str, *, use_dht: bool = True, resume: bool = False, join_at: Sequence[int] = (), **flags: Any
    ) -> None:
        environment = [f"{who}:PLAY={play}" for who in ("coordinator", "1", "2")] + flags.pop("env", [])
        plan = plan_local({"env": environment, **flags}, join_at, 2, 3)
        options = LocalOptions(
            config=fit_config(RunConfig(), plan, self.folder),
            plan=plan,
            folder=self.folder,
            resume=resume,
            use_dht=use_dht,
        )
        async with ProcessGroup() as group, asyncio.timeout(60):
            await run_local(options, group, self._emit, self.stop)

    def _emit(self, event: ev.Event) -> None:
        self.events.append(event)
        self.on_event(event)

    def stop_when(self, is_time: Callable[[ev.Event], bool]) -> None:
        self.on_event = lambda event: self.stop.request() if is_time(event) else None

    def rounds(self) -> list[int]:
        return [event.round for event in self.events if isinstance(event, ev.RoundOpened)]

    def warnings(self) -> list[str]:
        return [event.message for event in self.events if isinstance(event, ev.Warned)]

    def names(self) -> list[str]:
        return [ev.event_name(event) for event in self.events]

    def faults(self) -> list[tuple[str, bool]]:
        """The faults that were placed, and whether each event tells of the end of one."""
        return [(event.fault, event.is_over) for event in self.events if isinstance(event, ev.FaultPlaced)]

    def peer(self, name: str) -> dict[str, Any]:
        written: dict[str, Any] = json.loads((self.folder / name).read_text())
        return written

    def argument(self, peer: str, flag: str) -> str:
        return argument(self.peer(peer)["arguments"], flag)


@pytest.fixture
def swarm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ScriptedSwarm:
    return ScriptedSwarm(tmp_path, monkeypatch)


async def test_peers_are_told_where_the_coordinator_is_and_its_events_are_passed_on(swarm: ScriptedSwarm) -> None:
    await swarm.run("plain", use_dht=False, slow=["2:4"])
    assert {event.name for event in swarm.events if isinstance(event, ev.PeerJoined)} == {"peer-1", "peer-2"}
    assert isinstance(swarm.events[-1], ev.RunFinished)
    assert swarm.argument("peer-2", "--coordinator") == "127.0.0.1:9"
    assert swarm.argument("peer-2", "--dir") == str(swarm.folder / "peer-2")
    assert swarm.argument("peer-2", "--listen") == "127.0.0.1:0", "others can dial it: it can lead and average"
    assert {"--json", "--no-dht"} <= set(swarm.peer("peer-2")["arguments"])
    assert swarm.peer("peer-2")["threads"] == "1"
    assert (swarm.argument("peer-2", "--slowdown"), swarm.argument("peer-1", "--slowdown")) == ("4.0", "")


async def test_a_further_peer_starts_when_its_round_opens_and_the_run_file_fits_the_swarm(swarm: ScriptedSwarm) -> None:
    await swarm.run("join", join_at=[2])
    assert (swarm.folder / "peer-3").exists()
    config = run_config_from_mapping(read_toml(swarm.folder / RUN_FILE))
    assert (config.run.min_peers, config.data.parts) == (2, 3)
    assert config.checkpoint.dir == str(coordinator_folder(swarm.folder))
    assert json.loads((swarm.folder / "arguments").read_text())[0] == str(swarm.folder / RUN_FILE)


async def test_the_run_goes_on_with_the_events_of_its_next_leader(swarm: ScriptedSwarm) -> None:
    await swarm.run("heir", kill=["leader@2/commit"])
    assert swarm.faults() == [("--kill leader@2/commit (coordinator)", False)]
    assert [event.name for event in swarm.events if isinstance(event, ev.LeaderChanged)] == ["coordinator", "peer-1"]
    assert swarm.names().count("leader_lost") == 1
    assert swarm.rounds() == [1, 2, 2, 3]
    assert swarm.names()[-1] == "run_finished"
    assert "joined" not in swarm.names(), "what a peer says of itself is no news of the run"
    assert '"joined"' in (swarm.folder / "logs" / "peer-1.jsonl").read_text()


async def test_a_reducer_can_be_killed_by_role_and_a_role_that_nobody_has_is_a_warning(swarm: ScriptedSwarm) -> None:
    """A process that was killed but has not died yet has no role: once it was killed twice."""
    await swarm.run("heir", kill=["reducer@1/commit", "coordinator@2/commit", "reducer@3"])
    assert swarm.faults()[0] == ("--kill reducer@1/commit (peer-2)", False)
    assert "--kill reducer@3/train cannot be placed: nobody does that now." in swarm.warnings()


async def test_a_coordinator_that_comes_back_listens_where_it_was_and_its_relayed_events_are_no_news(
    swarm: ScriptedSwarm,
) -> None:
    faults = {"kill": ["coordinator@2/commit"], "back": ["coordinator@2/commit:100ms"]}
    await swarm.run("heir", env=["1:WAIT=coordinator is back"], **faults)
    assert swarm.rounds() == [1, 2, 2, 3]
    assert swarm.names().count("run_started") == 1
    arguments = json.loads((swarm.folder / "arguments").read_text())
    assert argument(arguments, "--listen") == "127.0.0.1:9"
    assert "--resume" in arguments


async def test_a_peer_that_comes_back_joins_through_a_running_node(swarm: ScriptedSwarm) -> None:
    faults = {"kill": ["2@1", "coordinator@2/commit"], "back": ["2@2/exchange"]}
    await swarm.run("heir", env=["1:WAIT=peer-2 is back"], **faults)
    assert swarm.argument("peer-2", "--coordinator") in ("peer-1:1", "127.0.0.1:9")
    assert "--resume" in swarm.peer("peer-2")["arguments"]


async def test_with_too_few_voters_the_run_waits_for_those_that_come_back_and_for_nobody_else(
    swarm: ScriptedSwarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervise, "VOTERS_SECONDS", 0.1)
    monkeypatch.setattr(supervise, "VOTERS_POLL_SECONDS", 0.05)
    kills = ["coordinator@2/commit", "1@2/commit"]
    with pytest.raises(RunError, match="choose a leader, 1 of 3, and none comes back"):
        await swarm.run("heir", kill=kills, back=["1@3"])
    swarm.events.clear()
    await swarm.run("heir", kill=kills, back=["1@2/commit:300ms"])
    assert "1 of 3; the run waits until one comes back." in swarm.warnings()[0]
    assert swarm.names()[-1] == "run_finished"


async def test_a_restart_that_is_due_later_does_not_delay_a_stop(swarm: ScriptedSwarm) -> None:
    swarm.stop_when(lambda event: isinstance(event, ev.Warned) and "Too few voters" in event.message)
    await swarm.run("heir", kill=EVERYBODY, back=["1@2/commit:1h", "2@2/commit:1h"], env=NO_HEIR)


@pytest.mark.parametrize(
    ("play", "kills", "joins", "says"),
    [
        ("heir", EVERYBODY, [], "No peer is left"),
        ("heir", EVERYBODY, [3], "No process of the swarm is left"),
        ("kill", ["1@1", "2@2"], [], "No peer is left"),
    ],
)
async def test_the_run_goes_on_without_one_of_its_peers_but_not_without_any(
    play: str, kills: list[str], joins: list[int], says: str, swarm: ScriptedSwarm
) -> None:
    with pytest.raises(RunError, match=says):
        await swarm.run(play, kill=kills, join_at=joins, env=NO_HEIR)
    assert set(swarm.rounds()) == {1, 2}, "the second one may be opened by peer-1 once more before it dies"


@pytest.mark.parametrize("before", [None, "# as it was"])
async def test_a_run_that_is_refused_leaves_the_run_file_as_it_was(swarm: ScriptedSwarm, before: str | None) -> None:
    path = swarm.folder / RUN_FILE
    if before is not None:
        path.write_text(before)
    with pytest.raises(ChildError, match="There is no such data"):
        await swarm.run("refuse", resume=before is not None)
    assert (path.read_text() if path.exists() else None) == before


@pytest.mark.parametrize(
    ("play", "says"), [("crash", r"^The disk is full; make room\.$"), ("peers fail", "The data folder is empty")]
)
async def test_a_process_that_fails_before_the_first_round_ends_the_run_with_its_sentence(
    swarm: ScriptedSwarm, play: str, says: str
) -> None:
    with pytest.raises(ChildError, match=says) as caught:
        await swarm.run(play)
    assert caught.value.exit_code == 1


async def test_a_fault_that_never_became_due_is_a_warning(swarm: ScriptedSwarm) -> None:
    await swarm.run("plain", kill=["1@3/apply"])
    assert swarm.events[-1] == ev.Warned(message="The run ended before --kill peer-1@3/apply was due.")


class Recorder(Loopback):
    """Loopback that records the pairs it is told to cut, and fails when the test says so."""

    def __init__(self) -> None:
        super().__init__(use_dht=True)
        self.cuts: list[set[frozenset[int]]] = []
        self.error = asyncio.get_running_loop().create_future()

    def cut(self, pairs: Pairs) -> None:
        self.cuts.append(set(pairs))

    async def failure(self) -> SwarmError:
        return cast(SwarmError, await self.error)


@pytest.fixture
async def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    network = Recorder()

    @asynccontextmanager
    async def open_network(*_: object, **__: object) -> AsyncIterator[LocalNetwork]:
        yield network

    monkeypatch.setattr(supervise, "open_network", open_network)
    return network


async def test_a_stopped_peer_goes_on_when_its_time_is_over(swarm: ScriptedSwarm) -> None:
    swarm.stop_when(lambda event: isinstance(event, ev.FaultPlaced) and event.is_over)
    await swarm.run("endless", stop=["1@2:10ms"])
    assert swarm.faults() == [("--stop peer-1@2/train:0.01s", False), ("--stop peer-1@2/train:0.01s", True)]
    assert swarm.names()[-1] == "run_finished"


async def test_a_fault_that_lasts_for_rounds_is_over_when_the_next_one_opens(
    swarm: ScriptedSwarm, recorder: Recorder
) -> None:
    swarm.stop_when(lambda event: isinstance(event, ev.FaultPlaced) and event.is_over)
    await swarm.run("endless", partition=["1|2@2:1r", "coordinator|1@2:1h"])
    both = {frozenset((1, 2)), frozenset((0, 1))}
    assert recorder.cuts[-3:] == [both, {frozenset((0, 1))}, set()]
    over = next(event for event in swarm.events if isinstance(event, ev.FaultPlaced) and event.is_over)
    opened = [event.round for event in swarm.events[: swarm.events.index(over)] if isinstance(event, ev.RoundOpened)]
    assert over.fault == "--partition peer-1|peer-2@2/train:1r"
    assert opened == [1, 2, 3]


async def test_a_peer_that_is_still_stopped_when_the_run_ends_can_leave(
    swarm: ScriptedSwarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervise, "EXIT_SECONDS", 60.0)
    await swarm.run("asleep", stop=["1@2:1h", "1@3:1h"])
    assert swarm.faults()[2:] == [("--stop peer-1@2/train:3600s", True), ("--stop peer-1@3/train:3600s", True)]


async def test_partitions_add_up_and_are_over_one_by_one(swarm: ScriptedSwarm, recorder: Recorder) -> None:
    swarm.stop_when(lambda event: isinstance(event, ev.FaultPlaced) and event.is_over)
    await swarm.run("endless", partition=["1|2@2:1h", "coordinator|1,2@3:10ms"])
    first = {frozenset((1, 2))}
    both = first | {frozenset((0, 1)), frozenset((0, 2))}
    assert recorder.cuts == [first, both, first, set()]
    assert [is_over for _, is_over in swarm.faults()] == [False, False, True, True]


async def test_a_lab_that_breaks_ends_the_run_with_its_sentence(swarm: ScriptedSwarm, recorder: Recorder) -> None:
    def break_in_round_3(event: ev.Event) -> None:
        if isinstance(event, ev.RoundOpened) and event.round == 3:
            recorder.error.set_result(RunError("The router is gone."))

    swarm.on_event = break_in_round_3
    with pytest.raises(RunError, match="The router is gone"):
        await swarm.run("endless")
