"""One machine of a rehearsed swarm: what remains when its process is killed, and the clock by which it runs."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from tests.rehearsal.clock import Timer
from tests.rehearsal.disk import Disk
from tests.rehearsal.process import Process
from tests.rehearsal.trace import brief
from tests.rehearsal.work import Work
from tsr_swarm.errors import RunError
from tsr_swarm.rounds import protocol as pt
from tsr_swarm.rounds.raft_state import HardState
from tsr_swarm.rounds.state import Node

if TYPE_CHECKING:
    from tests.rehearsal.swarm import Swarm

SOON = 1e-6  # clocks are floats: a timer a little late finds that its time has come


@dataclass(slots=True)
class Pace:
    """How fast a machine is: seconds at ordinary speed, and how many times slower it is."""

    train: float = 4.0
    apply: float = 0.3
    average: float = 0.2
    transfer: float = 0.02  # a unit of shard size
    slowness: float = 1.0
    connection: float = 1.0  # slowness of its connection
    reducing: float = 1.0  # slowness of its averages


@dataclass(slots=True)
class LocalClock:
    """The machine's own clock."""

    rate: float = 1.0
    ahead: float = 0.0


@dataclass(slots=True, eq=False)
class Machine:
    """A computer whose process can be killed, suspended and started again. It is the journal and clock of a driver."""

    swarm: "Swarm"
    name: str
    trains: bool
    is_dialable: bool
    disk: Disk
    pace: Pace
    checkpoint_every: int = 1
    known: tuple[str, ...] = ()
    process: Process | None = None
    life: int = 0
    is_suspended: bool = False
    has_left: bool = False
    clock: LocalClock = field(default_factory=LocalClock)
    work: Work = field(init=False)
    _backlog: list[pt.Event] = field(default_factory=list)  # what came while it was suspended
    _late_calls: list[Callable[[], None]] = field(default_factory=list)  # timers that rang meanwhile

    def __post_init__(self) -> None:
        self.work = Work(len(self.swarm.layout.sizes))

    @property
    def node(self) -> Node | None:
        return self.process.driver.node if self.process is not None else None

    @property
    def is_up(self) -> bool:
        return self.process is not None

    @property
    def slowness(self) -> float:
        return self.pace.connection

    # --- process ------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin a life with what the disk has."""
        assert self.process is None, f"{self.name} runs already"
        self.life += 1
        self.has_left = self.is_suspended = False
        self.process = self.new_process()
        self.note(f"starts, life {self.life}")
        self.swarm.checker.started(self)
        self.process.driver.reset_timer()

    def new_process(self) -> Process:
        return Process(self)

    def kill(self) -> None:
        """Lose everything but the disk."""
        if self.process is None:
            return
        self.note("dies")
        self.process.driver.close()
        self.process = None
        self.life += 1  # calls to the dead reach no life
        self.work.forget()
        self._backlog.clear()
        self._late_calls.clear()
        self.is_suspended = False
        self.swarm.network.died(self)

    def suspend(self) -> None:
        self.is_suspended = True
        self.note("is suspended")

    def resume(self) -> None:
        """Take in what came in between, before or after the process learns that it slept."""
        if not self.is_suspended:
            return
        self.is_suspended = False
        self.note("resumes")
        backlog, self._backlog = self._backlog, []
        woken: list[pt.Event] = [pt.Resumed()]
        for event in [*woken, *backlog] if self.swarm.chance.random() < 0.5 else [*backlog, *woken]:
            self.put(event)
        late_calls, self._late_calls = self._late_calls, []
        for call in late_calls:
            call()

    def put(self, event: pt.Event) -> None:
        """Let the process take in an event, if it runs."""
        if self.process is None:
            return
        if not self.is_suspended:
            self.note(brief(event))
            self.process.take_in(event)
        elif not isinstance(event, pt.Received) or self.swarm.chance.random() < 0.5:
            self._backlog.append(event)

    def note(self, what: str) -> None:
        self.swarm.note(self.name, what)

    # --- clock and journal of its driver ------------------------------------------------------------------------------

    def local(self) -> float:
        """Return the time by the machine's own clock."""
        return self.swarm.clock.now * self.clock.rate + self.clock.ahead

    def call_at(self, when: float, call: Callable[[], None]) -> Timer:
        """Make ``call`` when the machine's own clock says ``when``, or once the machine is awake again."""
        due = (when - self.clock.ahead) / self.clock.rate + SOON
        return self.swarm.clock.at(due, partial(self._ring, call))

    def _ring(self, call: Callable[[], None]) -> None:
        if self.is_suspended:
            self._late_calls.append(call)
        else:
            call()

    def set_clock(self, rate: float, ahead: float = 0.0) -> None:
        """Let the clock go on from where it is at this rate, after a jump by ``ahead`` seconds."""
        self.clock.ahead += ahead + self.swarm.clock.now * (self.clock.rate - rate)
        self.clock.rate = rate
        if self.process is not None:
            self.process.driver.reset_timer()

    def write(self, hard_state: HardState) -> None:
        """Journal what the node promises. Raises RunError if the disk refuses it."""
        if not self.disk.save_hard_state(hard_state):
            self.note("the disk refuses the journal")
            raise RunError("The disk refuses the journal.")
