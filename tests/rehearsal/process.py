"""What runs on a machine: the driver of a node (node/driver.py), and what it has done for it in virtual time.

It does what a process would do for the driver: carry messages, train, average, store, fetch and apply.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeVarTuple

from tests.rehearsal.disk import Published
from tests.rehearsal.network import TIMEOUT_SECONDS
from tests.rehearsal.trace import brief
from tests.rehearsal.work import Units
from tsr_swarm.node.driver import AGAIN_SECONDS, Driver
from tsr_swarm.rounds import protocol as pt
from tsr_swarm.rounds.protocol import ShardDigest
from tsr_swarm.rounds.raft_state import RoundRecord
from tsr_swarm.rounds.state import Node, NodeIdentity, PeerState, is_stale
from tsr_swarm.rounds.step import begin

if TYPE_CHECKING:
    from tests.rehearsal.clock import Timer
    from tests.rehearsal.machine import Machine

Arguments = TypeVarTuple("Arguments")
MOST_AT_ONCE = 400  # steps of one node at one instant; more is a loop without end


@dataclass(frozen=True, slots=True, eq=False)
class Delivery:
    """A shard of a contribution, on its way or arrived."""

    sender: "Process"
    upload: pt.Upload
    units: Units


class Process:
    """One life of a machine, from its start until it is killed; it carries out what its driver decides."""

    def __init__(self, machine: "Machine") -> None:
        self.machine, self.name, self.swarm = machine, machine.name, machine.swarm
        self.disk, self.pace, self.work = machine.disk, machine.pace, machine.work
        self._put = machine.put
        self.held: dict[tuple[int, str, int], Units] = {}  # (round, peer, shard)
        self._training: pt.OpenRound | None = None
        self._training_end: Timer | None = None
        self._storing: set[str] = set()  # chain hashes
        self._arriving: dict[tuple[str, int, int], Delivery] = {}  # (peer, round, shard)
        self._sending: dict[tuple[int, int], Delivery] = {}  # (round, shard)
        self._loaded: pt.Applied | pt.Restored | None = None  # what was fetched last
        self._burst = (-1.0, 0)
        layout, record = self.swarm.layout, self.disk.record
        identity = NodeIdentity(
            me=self.name,
            incarnation=machine.life,
            trains=machine.trains,
            is_dialable=machine.is_dialable,
            first=layout.first,
            sizes=layout.sizes,
            policy=layout.policy,
            known=machine.known,
        )
        peer = PeerState() if record is None else PeerState(applied=record.round, chain=record.chain)
        node = begin(identity, self.disk.hard_state, peer, machine.local())
        self.driver = Driver(node, machine, lambda text: None, machine.local, machine.call_at)
        self.driver.handler = self

    @property
    def node(self) -> Node:
        return self.driver.node

    # --- steps --------------------------------------------------------------------------------------------------------

    def take_in(self, event: pt.Event) -> None:
        """Let the node take in an event now."""
        if isinstance(event, pt.Applied | pt.Restored):
            self._loaded = event
        self.driver.put(event)

    def on_step(self, before: Node, after: Node) -> None:
        """Check a step, and end the training that is stale after it."""
        self._count_burst()
        self.swarm.checker.stepped(self.machine, before, after)
        self._settle(before, after)
        if self._training is not None and is_stale(after.peer, self._training.round):
            self._end_training(self._training, False)

    def _count_burst(self) -> None:
        now = self.swarm.clock.now
        since, count = self._burst
        self._burst = (now, count + 1) if now - since < 1e-3 else (now, 1)
        if count > MOST_AT_ONCE:
            self._complain(f"takes {count} steps at one instant: it loops")
            self.swarm.stop()

    def _settle(self, before: Node, after: Node) -> None:
        """Account for the work and keep a checkpoint, if a round was applied or a state restored."""
        if (before.peer.applied, before.peer.chain) == (after.peer.applied, after.peer.chain):
            return
        assert self._loaded is not None, "a round or a state was fetched"
        record = self._loaded.record
        if isinstance(self._loaded, pt.Restored):
            self.work.jump(before.peer.applied, record.round)
            self.disk.save_checkpoint(record)
            return
        published = self.disk.find(record.round, record.chain)
        assert published is not None, "what was applied was on disk"
        self.work.settle(self.name, record.round, published.results)
        if record.round % self.machine.checkpoint_every == 0:
            self.disk.save_checkpoint(record)

    def _after(self, seconds: float, call: Callable[[*Arguments], None], *args: *Arguments) -> "Timer":
        """Call later, if the process still runs then."""
        return self.swarm.clock.after(seconds, partial(self._call_if_running, call, args))

    def _call_if_running(self, call: Callable[[*Arguments], None], args: tuple[*Arguments]) -> None:
        if self.machine.process is self:
            call(*args)

    # --- actions ------------------------------------------------------------------------------------------------------

    def carry_out(self, action: pt.Action) -> None:
        """Begin what the node has decided."""
        self.machine.note(f"-> {brief(action)}")
        match action:
            case pt.Send(to, message):
                self.swarm.checker.sent(self.machine, to, message)
                self.swarm.network.send(self.machine, to, message)
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
                self._fetch_round(round, donors)
            case pt.FetchState(donors):
                self._after(2 * self._transfer_seconds(), self._state_fetched, donors)
            case pt.Quit():
                self._after(0.2, self._leave)

    def _leave(self) -> None:
        last = self.swarm.layout.policy.last_round
        if not self.node.is_leaving and (not last or self.node.peer.applied < last):
            self._complain(f"quits after round {self.node.peer.applied} of {last}")
        self.machine.has_left = True
        self.machine.kill()

    def _complain(self, text: str) -> None:
        self.swarm.checker.complain(f"{self.name} {text}")

    # training

    def _train(self, plan: pt.OpenRound) -> None:
        if self._training is not None:
            self._complain("trains twice at once")
        self.swarm.reached(plan.round, "train")
        self._training = plan
        seconds = self.pace.train * self.pace.slowness * (0.8 + 0.4 * self.swarm.chance.random())
        self._training_end = self._after(seconds, self._end_training, plan, True)

    def _end_training(self, plan: pt.OpenRound, is_whole: bool) -> None:
        """End training, maybe early: what was done by then stays in the residual."""
        assert self._training_end is not None, "it has begun"
        self._training_end.cancel()
        self._training = None
        self.work.train()
        if is_whole:
            self.work.contribute(plan.round, plan.parent)
        if is_whole or self.machine.is_suspended:
            self._put(pt.Trained(plan.round, is_whole))
        else:
            self._after(0.05, self._put, pt.Trained(plan.round, False))

    # contributions

    def _upload(self, upload: pt.Upload) -> None:
        if self.work.round != upload.round:
            self._complain(f"sends round {upload.round} and has that of {self.work.round}")
            return
        self.swarm.reached(upload.round, "exchange")
        self.swarm.checker.uploads(self.machine, upload)
        delivery = Delivery(self, upload, self.work.carried[upload.shard])
        self._sending[upload.round, upload.shard] = delivery
        size = self.swarm.layout.sizes[upload.shard]
        seconds = size * self.pace.transfer * self.pace.connection + self.swarm.network.delay(self.name, self.name)
        if upload.reducer.node == self.name:
            seconds = 0.001
        self._after(seconds, self._arrive, delivery)
        self._after(seconds + 2 * TIMEOUT_SECONDS, self._upload_failed, delivery)

    def _arrive(self, delivery: Delivery) -> None:
        upload, parent = delivery.upload, self.work.parent
        target = self.swarm.machines[upload.reducer.node]
        if not self.swarm.network.passes(self.name, target.name):
            return
        if target.process is None or target.life != upload.reducer.incarnation:
            self._after(0.1, self._upload_failed, delivery)
            return
        target.process._arriving[self.name, upload.round, upload.shard] = delivery
        tokens = len(delivery.units)
        target.put(pt.Offered(self.name, upload.term, upload.round, parent, upload.shard, tokens))

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
            seconds = self.swarm.network.delay(self.name, reply.peer)
            delivery.sender._after(seconds, delivery.sender._uploaded, delivery, reply.verdict.counted)

    def _uploaded(self, delivery: Delivery, counted: bool) -> None:
        upload = delivery.upload
        if self._end_sending(delivery):
            self._put(pt.Uploaded(upload.term, upload.round, upload.shard, upload.reducer, counted))

    def _upload_failed(self, delivery: Delivery) -> None:
        upload = delivery.upload
        if self._end_sending(delivery):
            self._put(pt.UploadFailed(upload.round, upload.shard, upload.reducer))

    def _end_sending(self, delivery: Delivery) -> bool:
        """Return whether this delivery was under way until now."""
        key = delivery.upload.round, delivery.upload.shard
        return self._sending.get(key) is delivery and self._sending.pop(key) is delivery

    # averages

    def _average(self, average: pt.Average) -> None:
        self.swarm.reached(average.round, "commit")
        seconds = self.pace.average * self.pace.reducing
        for count, (shard, peers) in enumerate(average.included.items(), 1):
            units = tuple((peer, self.held.get((average.round, peer, shard))) for peer in sorted(peers))
            if any(held is None for _, held in units):
                self._complain(f"is to average what it has not: {units}")
                continue
            digest = self.swarm.remember(average.round, shard, units)
            result = ShardDigest(frozenset(peers), digest)
            self._after(seconds * count, self._put, pt.Averaged(average.term, average.round, shard, result))

    # rounds

    def _seal(self, seal: pt.Seal) -> None:
        self.swarm.reached(seal.round, "commit")
        self.swarm.checker.sealing(self.machine, seal)
        text = f"{seal.parent}/{seal.round}/{[result.digest for result in seal.results]}/{seal.voters}"
        chain = hashlib.blake2b(text.encode(), digest_size=6).hexdigest()
        published = Published(RoundRecord(seal.round, chain, seal.parent, seal.voters), seal.results)
        self._after(0.1, self._save_sealed, published)

    def _save_sealed(self, published: Published) -> None:
        if self.disk.save_round(published):
            self._put(pt.Sealed(published.record))
        else:
            self._after(AGAIN_SECONDS, self._save_sealed, published)

    def _store(self, record: RoundRecord, donors: tuple[str, ...]) -> None:
        if record.chain in self._storing:
            return
        self._storing.add(record.chain)
        is_here = self.disk.find(record.round, record.chain) is not None
        self._after(0.0 if is_here else self._transfer_seconds(), self._stored, record, donors)

    def _stored(self, record: RoundRecord, donors: tuple[str, ...]) -> None:
        self._storing.discard(record.chain)
        if self.disk.find(record.round, record.chain) is None:
            found = (machine.disk.find(record.round, record.chain) for machine in self._reachable(donors))
            published = next((published for published in found if published is not None), None)
            if published is None or not self.disk.save_round(published):
                return
        self._put(pt.Stored(record))

    def _reachable(self, donors: tuple[str, ...]) -> "Iterator[Machine]":
        """Iterate over the donors that answer a call."""
        for machine in map(self.swarm.machines.__getitem__, donors):
            if self.swarm.network.reaches(self.name, machine.name) and not machine.is_suspended:
                yield machine

    def _transfer_seconds(self) -> float:
        size = sum(self.swarm.layout.sizes)
        return size * self.pace.transfer * self.pace.connection + 2 * self.swarm.network.delay(self.name, self.name)

    def _serve(self, round: int) -> tuple[Published | None, bool]:
        """Return a round that this node knows to be committed, and whether it is not kept any more."""
        base, peer = self.node.voter.hard_state.base, self.node.peer
        newest = max(base.round, peer.applied)
        if round > newest:
            return None, False
        chain = self.disk.chain_of(round, ((base.round, base.chain), (peer.applied, peer.chain)))
        published = self.disk.find(round, chain) if chain else None
        return published, published is None and round <= newest - self.disk.keeps

    def _fetch_round(self, round: int, donors: tuple[str, ...]) -> None:
        self.swarm.reached(round, "apply")
        seconds = 0.01 if self._serve(round)[0] is not None else self._transfer_seconds()
        self._after(seconds, self._fetched, round, donors)

    def _fetched(self, round: int, donors: tuple[str, ...]) -> None:
        published, _ = self._serve(round)
        is_gone = False
        for machine in self._reachable(donors):
            if published is not None:
                break
            if machine.is_dialable and machine.process is not None:
                published, is_over = machine.process._serve(round)
                is_gone |= is_over
        if published is None or not self.disk.save_round(published):
            self._put(pt.FetchFailed(is_gone and published is None))
            return
        self._apply(published)

    def _apply(self, published: Published) -> None:
        """Apply a round once the training under way has ended."""
        if self._training is not None:
            self._after(0.1, self._apply, published)
            return
        self._after(self.pace.apply * self.pace.slowness, self._applied, published)

    def _applied(self, published: Published) -> None:
        contributors = frozenset(peer for result in published.results for peer in result.included)
        self._put(pt.Applied(published.record, contributors))

    def _state_fetched(self, donors: tuple[str, ...]) -> None:
        for machine in self._reachable(donors):
            if machine.is_dialable and machine.disk.record is not None:
                self._put(pt.Restored(machine.disk.record))
                return
        self._put(pt.FetchFailed(False))
