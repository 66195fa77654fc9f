"""A rehearsed swarm on home links: the real decisions, every message encoded and carried, without faults."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from random import Random

from tests.bench.scale.download import Download, Headers
from tests.bench.scale.messages import MessageSizer, SizedMessage, Traffic
from tests.bench.scale.network import HomeNetwork, Links
from tests.bench.scale.payloads import RoundPayloads
from tests.bench.scale.run_log import RunLog
from tests.rehearsal.disk import Published, new_disk
from tests.rehearsal.machine import Machine
from tests.rehearsal.network import Weather
from tests.rehearsal.process import Delivery, Process
from tests.rehearsal.swarm import Layout, Member, Swarm
from tsr_swarm.rounds import protocol as pt
from tsr_swarm.rounds.catch_up import donors_of_header
from tsr_swarm.rounds.raft_state import RoundRecord
from tsr_swarm.rounds.round_phases import RoundPolicy
from tsr_swarm.rounds.state import Node

UP, DOWN, LATENCY = 20e6, 100e6, 0.02  # bits a second; seconds one way
TRAIN_SECONDS, APPLY_SECONDS, AVERAGE_SECONDS = 30.0, 0.3, 0.2
PACK_SECONDS = 0.1  # within which a node packs all its shards, in any order
MOST_CALLS = 10**9


@dataclass
class RoundCost:
    """The times of one round, in virtual seconds."""

    opened: float
    trained: dict[str, float] = field(default_factory=dict)  # by peer: seconds that it trained
    counted: frozenset[str] = frozenset()
    arrived: float = 0.0  # when the leader heard of the last contribution
    sealed: float = 0.0
    committed: float = 0.0

    def overhead(self, next_opened: float) -> float:
        """Seconds of the round beyond the training of the slowest peer whose work is in it."""
        return next_opened - self.opened - max(self.trained[peer] for peer in self.counted)


class HomeNode(Machine):
    """A machine on a home link."""

    swarm: "HomeSwarm"
    headers: Headers
    step_began: float = 0.0  # by the clock of this computer

    def new_process(self) -> Process:
        return HomeProcess(self)

    def local(self) -> float:
        """Return the time; the driver asks for it just before it takes a step."""
        self.step_began = time.perf_counter()
        return super().local()

    @property
    def step(self) -> int:
        """Steps of its training that are done, of 20."""
        return self.process.step if isinstance(self.process, HomeProcess) else 20


class HomeProcess(Process):
    """What runs on a machine on a home link."""

    machine: HomeNode
    swarm: "HomeSwarm"

    def on_step(self, before: Node, after: Node) -> None:
        if after.leader_role is not None:
            self.swarm.leader_seconds += time.perf_counter() - self.machine.step_began
        super().on_step(before, after)
        self.swarm.log.stepped(before, after)
        if after.plan is not None and after.plan is not before.plan and after.plan != before.plan:
            self._on_plan(after.plan)

    def _on_plan(self, plan: pt.OpenRound) -> None:
        """Have a reducer ask the leader for the list of peers."""
        if self.node.leader_role is None and self.name in plan.nodes:
            swarm, leader = self.swarm, self.node.tracking.leader
            has_list = self.name in swarm.listed  # no peer joins or leaves
            swarm.listed.add(self.name)
            answer = partial(swarm.carry, leader, self.name, swarm.sizer.peers_reply(has_list), lambda: None)
            swarm.carry(self.name, leader, swarm.sizer.peers_request(has_list), answer)

    def carry_out(self, action: pt.Action) -> None:
        swarm = self.swarm
        match action:
            case pt.Send(to, message):
                swarm.checker.sent(self.machine, to, message)
                swarm.network.send(self.machine, to, message)
            case pt.Upload():
                self._upload(action)
            case pt.Reply():
                self._reply(action)
            case pt.Store(record, sources, donors):
                self._fetch_proposal(record, sources, donors)
            case pt.FetchRound(round, sources, donors):
                self._download(round, sources, donors)
            case pt.Open(round):
                swarm.opened(round, self.machine)
            case pt.Explain(round, phase, deadline, reason):
                swarm.log.explained(round, phase, deadline, reason)
            case pt.Commit(record):
                swarm.committed(record)
            case pt.Average(round=round, included=included):
                swarm.made.setdefault(self.name, set()).update((round, shard) for shard in included)
                super().carry_out(action)
            case _:
                super().carry_out(action)

    def _train(self, plan: pt.OpenRound) -> None:
        begun = self.swarm.clock.now
        super()._train(plan)
        self._begun = begun

    def _end_training(self, plan: pt.OpenRound, is_whole: bool) -> None:
        self.swarm.rounds[plan.round].trained[self.name] = self.swarm.clock.now - self._begun
        super()._end_training(plan, is_whole)

    @property
    def step(self) -> int:
        """Steps of its training that are done, of 20."""
        if self._training is None:
            return 20
        return min(20, int(20 * (self.swarm.clock.now - self._begun) / TRAIN_SECONDS))

    # --- contributions ------------------------------------------------------------------------------------------------

    def _upload(self, upload: pt.Upload) -> None:
        delivery = Delivery(self, upload, self.work.carried[upload.shard])
        self._sending[upload.round, upload.shard] = delivery
        self._after(PACK_SECONDS * self.swarm.chance.random(), self._submit, delivery)

    def _submit(self, delivery: Delivery) -> None:
        upload, arrive = delivery.upload, partial(self._arrive, delivery)
        if upload.reducer.node == self.name:
            arrive()
        else:
            message = self.swarm.sizer.submission(upload.term, upload.round, upload.shard, self.name)
            self.swarm.carry(self.name, upload.reducer.node, message, arrive)

    def _reply(self, reply: pt.Reply) -> None:
        delivery = self._arriving.pop((reply.peer, reply.round, reply.shard))
        if reply.verdict.is_new:
            if any(round < reply.round for round, _, _ in list(self.held)[:1]):
                self.held.clear()
            self.held[reply.round, reply.peer, reply.shard] = delivery.units
        answer = partial(delivery.sender._uploaded, delivery, reply.verdict.counted)
        if reply.peer == self.name:
            self.swarm.clock.after(0.0, answer)
        else:
            message = self.swarm.sizer.submit_reply(reply.verdict.counted, reply.verdict.reason)
            self.swarm.carry(self.name, reply.peer, message, answer)

    # --- rounds -------------------------------------------------------------------------------------------------------

    def _fetch_proposal(self, record: RoundRecord, sources: tuple[str, ...], donors: tuple[str, ...]) -> None:
        if record.chain in self._storing:
            return
        self._storing.add(record.chain)
        if self.disk.find(record.round, record.chain) is not None:
            self._after(0.0, self._stored, record, ())
        else:
            Download(self.machine, record, sources, donors, self._fetched_proposal).begin()

    def _fetched_proposal(self, published: Published) -> None:
        self.disk.save_round(published)
        self._stored(published.record, ())

    def _download(self, round: int, sources: tuple[str, ...], donors: tuple[str, ...]) -> None:
        record = self.swarm.records[self.swarm.checker.committed[round]]
        if record.chain in self._storing:  # it comes as a proposal
            self._after(0.02, self._download, round, sources, donors)
        elif (published := self.disk.find(round, record.chain)) is not None:
            self._apply(published)
        else:
            Download(
                self.machine, record, sources, self._header_order(record, sources, donors), self._downloaded
            ).begin()

    def _header_order(self, record: RoundRecord, sources: tuple[str, ...], donors: tuple[str, ...]) -> list[str]:
        """The order in which nodes are asked for a header, as Fetcher._newest has it."""
        turn = int(self.name, 16) % len(donors)
        order = [*donors[turn:], *donors[:turn]]
        if self.name in sources:
            order.sort(key=lambda donor: donor not in record.voters)
        return [*donors_of_header(self.name, record.chain, sources), *order]

    def _downloaded(self, published: Published) -> None:
        self.disk.save_round(published)
        self._apply(published)

    def _applied(self, published: Published) -> None:
        super()._applied(published)
        if self.node.leader_role is not None:
            return
        leader, round = self.node.tracking.leader, published.record.round
        message = self.swarm.sizer.report(round, self.name)
        self.swarm.carry(self.name, leader, message, partial(self.swarm.log.reported, round, self.name))

    def _save_sealed(self, published: Published) -> None:
        self.swarm.records[published.record.chain] = published.record
        cost = self.swarm.rounds[published.record.round]
        cost.sealed = self.swarm.clock.now
        cost.counted = frozenset(peer for result in published.results for peer in result.included)
        super()._save_sealed(published)


class HomeSwarm(Swarm):
    """A swarm of home nodes, and the cost of each of its rounds."""

    def __init__(self, members: tuple[Member, ...], payloads: RoundPayloads, chance: Random) -> None:
        peers = [member.name for member in members if member.trains]
        policy = RoundPolicy(quorum=1, floor_seconds=10.0, ceiling_seconds=600.0, min_peers=len(peers), last_round=0)
        self.peers = peers
        self.names = {member.name: f"peer-{number}" for number, member in enumerate(members)}
        self.names[members[0].name] = "coordinator"
        addresses = {m.name: f"203.0.{100 + n // 100}.{100 + n % 100}:{30000 + n}" for n, m in enumerate(members)}
        dialable = {member.name for member in members if member.is_dialable}
        numbers = {peer: number for number, peer in enumerate(peers, 1)}
        self.sizer = MessageSizer(payloads, {name: at for name, at in addresses.items() if name in dialable}, numbers)
        self.traffic: dict[str, Traffic] = {}  # by node
        self.is_counting = False
        self.rounds: dict[int, RoundCost] = {}
        self.records: dict[str, RoundRecord] = {}
        self.made: dict[str, set[tuple[int, int]]] = {}
        self.listed: set[str] = set()  # nodes that have the list of peers
        self.leader_seconds = 0.0
        self.nodes: dict[str, HomeNode] = {}
        self.log = RunLog(self)
        layout = Layout(
            first=members[0].name,
            members=members,
            sizes=payloads.sizes,
            policy=policy,
            weather=Weather(latency=LATENCY),
        )
        super().__init__(layout, chance)
        self.links = Links(self.clock, UP, DOWN, LATENCY)
        self.network = HomeNetwork(self, chance, Weather(latency=LATENCY))

    @property
    def leading(self) -> str:
        """The leader: without faults, the first."""
        return self.layout.first

    def add(self, member: Member) -> Machine:
        """Add a node, which starts when it joins."""
        disk = new_disk(self.layout.keeps, self.layout.first, member.is_new)
        node = HomeNode(self, member.name, member.trains, member.is_dialable, disk, member.pace)
        node.headers = Headers(node)
        self.machines[member.name] = self.nodes[member.name] = node
        self.clock.after(member.joins_at, node.start)
        return node

    def measure(self, first: int, last: int) -> None:
        """Run until round ``last`` is over; count messages from the opening of round ``first`` on."""
        self._first, self._last = first, last
        self.clock.run(lambda: self.is_over, MOST_CALLS)

    def opened(self, round: int, leader: "HomeNode") -> None:
        self.rounds[round] = RoundCost(self.clock.now)
        if round == self._first:
            self.is_counting, self.leader_seconds = True, 0.0
        if round > self._last:
            self.stop()
            return
        leading = leader.node.leader_role if leader.node is not None else None
        plan = leading.plan if leading is not None else None
        self.log.opened(round, [*plan.nodes] if plan is not None else [])

    def committed(self, record: RoundRecord) -> None:
        self.rounds[record.round].committed = self.clock.now
        self.log.committed(record)

    def note(self, who: str, what: str) -> None:
        """Keep no trace: it would be too long."""

    def carry(self, source: str, to: str, message: SizedMessage, then: Callable[[], None]) -> None:
        """Count a message, and call ``then`` when it has come to ``to``."""
        if self.is_counting:
            self.traffic.setdefault(source, Traffic()).sent[message] += 1
            self.traffic.setdefault(to, Traffic()).received[message] += 1
        self.links.carry(source, to, message.size, then)

    def fetch(self, to: str, source: str, round: int, shard: int, then: Callable[[], None]) -> None:
        """Have ``to`` fetch a shard's average from ``source``."""
        if source == to:
            self.clock.after(0.0, then)
            return
        answer = partial(self.carry, source, to, self.sizer.shard(shard), then)
        self.carry(to, source, self.sizer.shard_request(round, shard), answer)
