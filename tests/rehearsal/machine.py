"""One machine of a rehearsed swarm: it drives ``step`` with a clock, a disk and work of its own.

It does what a process would do for rounds/step.py: journal before acting, carry messages, train, average, store,
fetch and apply, all in virtual time.
"""

import hashlib
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from tests.rehearsal.disk import Disk, Published
from tests.rehearsal.network import TIMEOUT_SECONDS
from tests.rehearsal.trace import brief
from tests.rehearsal.work import Units, Work
from tsr_swarm.rounds import peer as pr
from tsr_swarm.rounds import protocol as pt
from tsr_swarm.rounds.gather import ShardDigest
from tsr_swarm.rounds.peer import PeerState
from tsr_swarm.rounds.raft_state import HardState, RoundRecord
from tsr_swarm.rounds.state import Node, NodeIdentity
from tsr_swarm.rounds.step import begin, step, wake_at

if TYPE_CHECKING:
    from tests.rehearsal.swarm import Swarm

AGAIN_SECONDS = 1.0  # until what the disk refused is tried again
SOON = 1e-6  # clocks are floats: a timer a little late finds that its time has come
MOST_AT_ONCE = 400  # steps of one node at one instant; more is a loop without end


@dataclass(frozen=True, slots=True)
class Delivery:
    """A shard of a contribution, on its way or arrived."""

    sender: "Machine"
    life: int
    token: int
    term: int
    units: Units
    reducer: pt.ReducerSlot


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
    """A process that can be killed and started again, and the disk and the clock that remain."""

    swarm: "Swarm"
    name: str
    trains: bool
    is_dialable: bool
    disk: Disk
    pace: Pace
    checkpoint_every: int = 1
    known: tuple[str, ...] = ()
    node: Node | None = None
    life: int = 0
    is_suspended: bool = False
    has_left: bool = False
    clock: LocalClock = field(default_factory=LocalClock)
    work: Work = field(init=False)
    held: dict[tuple[int, str, int], Units] = field(default_factory=dict)  # (round, peer, shard)
    backlog: list[pt.Event] = field(default_factory=list)
    _training: pt.OpenRound | None = None
    _training_token: int = 0
    _storing: set[str] = field(default_factory=set)  # chain hashes
    _arriving: dict[tuple[str, int, int], Delivery] = field(default_factory=dict)  # (peer, round, shard)
    _sending: dict[tuple[int, int], int] = field(default_factory=dict)  # (round, shard) -> token
    _tokens: int = 0
    _waking: float = float("inf")
    _burst: tuple[float, int] = (-1.0, 0)

    def __post_init__(self) -> None:
        self.work = Work(len(self.swarm.layout.sizes))

    # --- process ------------------------------------------------------------------------------------------------------

    @property
    def is_up(self) -> bool:
        return self.node is not None

    @property
    def slowness(self) -> float:
        return self.pace.connection

    def local(self) -> float:
        return self.swarm.clock.now * self.clock.rate + self.clock.ahead

    def start(self) -> None:
        """Begin a life with what the disk has."""
        assert self.node is None, f"{self.name} runs already"
        self.life += 1
        self.has_left = self.is_suspended = False
        record = self.disk.record
        state = PeerState() if record is None else PeerState(applied=record.round, chain=record.chain)
        identity = NodeIdentity(
            me=self.name,
            incarnation=self.life,
            trains=self.trains,
            is_dialable=self.is_dialable,
            first=self.swarm.layout.first,
            sizes=self.swarm.layout.sizes,
            policy=self.swarm.layout.policy,
            known=self.known,
        )
        self.node = begin(identity, self.disk.hard_state, state, self.local())
        self.swarm.note(self.name, f"starts, life {self.life}")
        self.swarm.checker.started(self)
        self._wake()

    def kill(self) -> None:
        """Lose everything but the disk."""
        if self.node is None:
            return
        self.swarm.note(self.name, "dies")
        self.node = None
        self.life += 1  # whatever was under way belongs to no life
        self.work.forget()
        self.held.clear()
        self.backlog.clear()
        self._training = None
        self._storing.clear()
        self._arriving.clear()
        self._sending.clear()
        self._waking = float("inf")
        self.is_suspended = False
        self.swarm.network.died(self)

    def suspend(self) -> None:
        self.is_suspended = True
        self.swarm.note(self.name, "is suspended")

    def resume(self) -> None:
        """Take in what came in between, before or after the process learns that it slept."""
        if not self.is_suspended:
            return
        self.is_suspended = False
        self.swarm.note(self.name, "resumes")
        backlog, self.backlog = self.backlog, []
        woken: list[pt.Event] = [pt.Resumed()]
        for event in [*woken, *backlog] if self.swarm.chance.random() < 0.5 else [*backlog, *woken]:
            self.put(event)
        self.put(pt.Tick())

    # --- steps --------------------------------------------------------------------------------------------------------

    def put(self, event: pt.Event) -> None:
        """Let the node take in an event, if it is up."""
        if self.node is None:
            return
        if self.is_suspended:
            if not isinstance(event, pt.Received) or self.swarm.chance.random() < 0.5:
                self.backlog.append(event)
            return
        self._count_burst()
        before = self.node
        if not isinstance(event, pt.Tick):
            self.swarm.note(self.name, brief(event))
        after, actions = step(before, event, self.local())
        if after.voter.hard_state != before.voter.hard_state and not self.disk.save_hard_state(after.voter.hard_state):
            self.swarm.note(self.name, "the disk refuses the journal")
            if not isinstance(event, pt.Received):
                self._after(AGAIN_SECONDS, partial(self.put, event))
            self._wake(self.swarm.clock.now + AGAIN_SECONDS)
            return
        self.node = after
        self.swarm.checker.stepped(self, before, after)
        self._settle(event, before, after)
        for action in actions:
            self._carry_out(action)
        if self._training is not None and pr.is_stale(after.peer, self._training.round):
            self._trained(self._training_token, False)
        self._wake()

    def _count_burst(self) -> None:
        now = self.swarm.clock.now
        since, count = self._burst
        self._burst = (now, count + 1) if now - since < 1e-3 else (now, 1)
        if count > MOST_AT_ONCE:
            self.swarm.checker.complain(f"{self.name} takes {count} steps at one instant: it loops")
            self.swarm.stop()

    def _wake(self, not_before: float = 0.0) -> None:
        assert self.node is not None, "only the living wake"
        due = (wake_at(self.node) - self.clock.ahead) / self.clock.rate + SOON
        due = max(due, self.swarm.clock.now, not_before)
        if due < self._waking and due != float("inf"):
            self._waking = due
            self.swarm.clock.at(due, partial(self._tick, self.life, due))

    def _tick(self, life: int, due: float) -> None:
        if life != self.life or due != self._waking:
            return
        self._waking = float("inf")
        if self.node is None or self.is_suspended:
            return
        if wake_at(self.node) <= self.local():
            self.put(pt.Tick())
        else:
            self._wake()

    def reset_timer(self) -> None:
        """Wake at the right time again after the clock was set."""
        self._waking = float("inf")
        if self.node is not None and not self.is_suspended:
            self._wake()

    def _after(self, seconds: float, call: "partial[None]") -> None:
        """Call later, if the process still runs then."""
        self.swarm.clock.after(seconds, partial(self._in_life, self.life, call))

    def _in_life(self, life: int, call: "partial[None]") -> None:
        if life == self.life:
            call()

    # --- actions ------------------------------------------------------------------------------------------------------

    def _carry_out(self, action: pt.Action) -> None:
        swarm = self.swarm
        swarm.note(self.name, f"-> {brief(action)}")
        match action:
            case pt.Send(to, message):
                swarm.checker.sent(self, to, message)
                swarm.network.send(self, to, message)
            case pt.Train(plan):
                self._train(plan)
            case pt.Upload():
                self._upload(action)
            case pt.Reply():
                self._reply(action)
            case pt.Average():
                self._average(action)
            case pt.Seal():
                self._seal(action)
            case pt.Store(record, _, donors):
                self._store(record, donors)
            case pt.FetchRound(round, _, donors):
                swarm.reached(round, "apply")
                self._fetch_round(round, donors)
            case pt.FetchState(donors):
                self._fetch_state(donors)
            case pt.Quit():
                self._after(0.2, partial(self._leave))

    def _leave(self) -> None:
        assert self.node is not None, "it quits"
        last = self.swarm.layout.policy.last_round
        if not self.node.is_leaving and (not last or self.node.peer.applied < last):
            self.swarm.checker.complain(f"{self.name} quits after round {self.node.peer.applied} of {last}")
        self.has_left = True
        self.kill()

    # training

    def _train(self, plan: pt.OpenRound) -> None:
        if self._training is not None:
            self.swarm.checker.complain(f"{self.name} trains twice at once")
        self.swarm.reached(plan.round, "train")
        self._training = plan
        self._training_token += 1
        seconds = self.pace.train * self.pace.slowness * (0.8 + 0.4 * self.swarm.chance.random())
        self._after(seconds, partial(self._trained, self._training_token, True))

    def _trained(self, token: int, is_whole: bool) -> None:
        """End training, maybe early: what was done by then stays in the residual."""
        plan = self._training
        if plan is None or token != self._training_token:
            return
        self._training = None
        self.work.train()
        if is_whole:
            self.work.contribute(plan.round, plan.parent)
        if is_whole or self.is_suspended:
            self.put(pt.Trained(plan.round, is_whole))
        else:
            self._after(0.05, partial(self.put, pt.Trained(plan.round, False)))

    # contributions

    def _upload(self, upload: pt.Upload) -> None:
        if self.work.round != upload.round:
            self.swarm.checker.complain(f"{self.name} sends round {upload.round} and has that of {self.work.round}")
            return
        self.swarm.reached(upload.round, "exchange")
        self.swarm.checker.uploads(self, upload)
        self._tokens += 1
        token = self._tokens
        self._sending[upload.round, upload.shard] = token
        delivery = Delivery(self, self.life, token, upload.term, self.work.carried[upload.shard], upload.reducer)
        size = self.swarm.layout.sizes[upload.shard]
        seconds = size * self.pace.transfer * self.pace.connection + self.swarm.network.delay(self.name, self.name)
        if upload.reducer.node == self.name:
            seconds = 0.001
        self._after(seconds, partial(self._arrive, upload, delivery))
        self._after(seconds + 2 * TIMEOUT_SECONDS, partial(self._upload_failed, upload, token))

    def _arrive(self, upload: pt.Upload, delivery: Delivery) -> None:
        target = self.swarm.machines[upload.reducer.node]
        if not self.swarm.network.passes(self.name, target.name):
            return
        if not target.is_up or target.life != upload.reducer.incarnation:
            self._after(0.1, partial(self._upload_failed, upload, delivery.token))
            return
        target._arriving[self.name, upload.round, upload.shard] = delivery
        assert target.node is not None, "it is up"
        tokens = len(delivery.units)
        target.put(pt.Offered(self.name, upload.term, upload.round, self.work.parent, upload.shard, tokens))

    def _reply(self, reply: pt.Reply) -> None:
        """Keep what came if it is new; its sender learns what became of it, if that gets through."""
        delivery = self._arriving.pop((reply.peer, reply.round, reply.shard), None)
        if delivery is None:
            return
        if reply.verdict.is_new:
            self.held[reply.round, reply.peer, reply.shard] = delivery.units
            for old in [key for key in self.held if key[0] < reply.round]:
                del self.held[old]
        if self.swarm.network.passes(self.name, reply.peer):
            told = partial(delivery.sender._uploaded, delivery, reply)
            self.swarm.clock.after(self.swarm.network.delay(self.name, reply.peer), told)

    def _uploaded(self, delivery: Delivery, reply: pt.Reply) -> None:
        if self.life == delivery.life and self._sending.get((reply.round, reply.shard)) == delivery.token:
            del self._sending[reply.round, reply.shard]
            self.put(pt.Uploaded(delivery.term, reply.round, reply.shard, delivery.reducer, reply.verdict.counted))

    def _upload_failed(self, upload: pt.Upload, token: int) -> None:
        if self._sending.get((upload.round, upload.shard)) == token:
            del self._sending[upload.round, upload.shard]
            self.put(pt.UploadFailed(upload.round, upload.shard, upload.reducer))

    # averages

    def _average(self, average: pt.Average) -> None:
        self.swarm.reached(average.round, "commit")
        seconds = self.pace.average * self.pace.reducing
        for count, (shard, peers) in enumerate(average.included.items(), 1):
            units = tuple((peer, self.held.get((average.round, peer, shard))) for peer in sorted(peers))
            if any(held is None for _, held in units):
                self.swarm.checker.complain(f"{self.name} is to average what it has not: {units}")
                continue
            digest = self.swarm.remember(average.round, shard, units)
            done = pt.Averaged(average.term, average.round, shard, ShardDigest(frozenset(peers), digest))
            self._after(seconds * count, partial(self.put, done))

    # rounds

    def _seal(self, seal: pt.Seal) -> None:
        self.swarm.reached(seal.round, "commit")
        self.swarm.checker.sealing(self, seal)
        text = f"{seal.parent}/{seal.round}/{[result.digest for result in seal.results]}/{seal.voters}"
        chain = hashlib.blake2b(text.encode(), digest_size=6).hexdigest()
        published = Published(RoundRecord(seal.round, chain, seal.parent, seal.voters), seal.results)
        self._after(0.1, partial(self._save_sealed, published))

    def _save_sealed(self, published: Published) -> None:
        if not self.disk.save_round(published):
            self._after(AGAIN_SECONDS, partial(self._save_sealed, published))
            return
        self.put(pt.Sealed(published.record))

    def _store(self, record: RoundRecord, donors: tuple[str, ...]) -> None:
        if record.chain in self._storing:
            return
        self._storing.add(record.chain)
        if self.disk.find(record.round, record.chain) is not None:
            self._after(0.0, partial(self._stored, record, ()))
            return
        self._after(self._transfer_seconds(), partial(self._stored, record, donors))

    def _stored(self, record: RoundRecord, donors: tuple[str, ...]) -> None:
        self._storing.discard(record.chain)
        published = self.disk.find(record.round, record.chain)
        if published is None:
            found = (self._read(donor, record) for donor in donors)
            published = next((round for round in found if round is not None), None)
            if published is None or not self.disk.save_round(published):
                return
        self.put(pt.Stored(record))

    def _read(self, donor: str, record: RoundRecord) -> Published | None:
        """Return the bytes of a proposal from a donor that has them."""
        if not self.swarm.network.reaches(self.name, donor) or self.swarm.machines[donor].is_suspended:
            return None
        return self.swarm.machines[donor].disk.find(record.round, record.chain)

    def _transfer_seconds(self) -> float:
        size = sum(self.swarm.layout.sizes)
        return size * self.pace.transfer * self.pace.connection + 2 * self.swarm.network.delay(self.name, self.name)

    def serve(self, round: int) -> tuple[Published | None, bool]:
        """Return a round that this node knows to be committed, and whether it is not kept any more."""
        assert self.node is not None, "the dead serve nothing"
        base, peer = self.node.voter.hard_state.base, self.node.peer
        newest = max(base.round, peer.applied)
        if round > newest:
            return None, False
        chain = self.disk.chain_of(round, ((base.round, base.chain), (peer.applied, peer.chain)))
        published = self.disk.find(round, chain) if chain else None
        return published, published is None and round <= newest - self.disk.keeps

    def _fetch_round(self, round: int, donors: tuple[str, ...]) -> None:
        seconds = 0.01 if self.serve(round)[0] is not None else self._transfer_seconds()
        self._after(seconds, partial(self._fetched, round, donors))

    def _fetched(self, round: int, donors: tuple[str, ...]) -> None:
        published, _ = self.serve(round)
        is_gone = False
        for donor in donors:
            if published is not None:
                break
            machine = self.swarm.machines[donor]
            if self.swarm.network.reaches(self.name, donor) and machine.is_dialable and not machine.is_suspended:
                published, is_over = machine.serve(round)
                is_gone |= is_over
        if published is None or not self.disk.save_round(published):
            self.put(pt.FetchFailed(is_gone and published is None))
            return
        self._apply(published)

    def _apply(self, published: Published) -> None:
        """Apply a round once the training under way has ended."""
        if self._training is not None:
            self._after(0.1, partial(self._apply, published))
            return
        seconds = self.pace.apply * self.pace.slowness
        self._after(seconds, partial(self._applied, published))

    def _applied(self, published: Published) -> None:
        contributors = frozenset(peer for result in published.results for peer in result.included)
        self.put(pt.Applied(published.record, contributors))

    def _fetch_state(self, donors: tuple[str, ...]) -> None:
        self._after(2 * self._transfer_seconds(), partial(self._state_fetched, donors))

    def _state_fetched(self, donors: tuple[str, ...]) -> None:
        for donor in donors:
            machine = self.swarm.machines[donor]
            reachable = self.swarm.network.reaches(self.name, donor) and not machine.is_suspended
            if reachable and machine.is_dialable and machine.disk.record is not None:
                self.put(pt.Restored(machine.disk.record))
                return
        self.put(pt.FetchFailed(False))

    def _settle(self, event: pt.Event, before: Node, after: Node) -> None:
        """Account for the work and keep a checkpoint, if a round was applied or a state restored."""
        if (before.peer.applied, before.peer.chain) == (after.peer.applied, after.peer.chain):
            return
        match event:
            case pt.Applied(record):
                published = self.disk.find(record.round, record.chain)
                assert published is not None, "what was applied was on disk"
                self.work.settle(self.name, record.round, published.results)
                if record.round % self.checkpoint_every == 0:
                    self.disk.save_checkpoint(record)
            case pt.Restored(record):
                self.work.jump(before.peer.applied, record.round)
                self.disk.save_checkpoint(record)
            case _:
                self.swarm.checker.complain(f"{self.name} applied a round out of {brief(event)}")


def new_disk(keeps: int, first: str, is_new: bool) -> Disk:
    """Make the disk of a machine that has the first state, or that ``is_new`` and has nothing."""
    genesis = RoundRecord(voters=(first,))
    return Disk(keeps=keeps, hard_state=HardState(genesis), record=None if is_new else genesis)
