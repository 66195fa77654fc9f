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
from tests.rehearsal.disk import Published
from tests.rehearsal.machine import Delivery, Machine, new_disk
from tests.rehearsal.network import Weather
from tests.rehearsal.swarm import Layout, Member, Swarm
from tsr_swarm.rounds import peer as pr
from tsr_swarm.rounds import protocol as pt
from tsr_swarm.rounds.deadlines import DeadlinePolicy
from tsr_swarm.rounds.header_tree import header_givers
from tsr_swarm.rounds.raft_state import RoundRecord
from tsr_swarm.rounds.round_phases import LeaderPolicy
from tsr_swarm.rounds.step import step

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

    def put(self, event: pt.Event) -> None:
        """Take a step and carry out its actions. Without faults there is nothing to trace."""
        before = self.node
        if before is None:
            return
        started = time.perf_counter()
        after, actions = step(before, event, self.local())
        if after.leading is not None:
            self.swarm.leader_seconds += time.perf_counter() - started
        if after.council.ledger is not before.council.ledger:
            self.disk.save_ledger(after.council.ledger)
        self.node = after
        self.swarm.judge.stepped(self, before, after)
        self._settle(event, before, after)
        for action in actions:
            self._carry_out(action)
        if self._training is not None and pr.is_stale(after.peer, self._training.round):
            self._trained(self._training_token, False)
        self.swarm.log.stepped(before, after)
        if after.plan is not None and after.plan is not before.plan and after.plan != before.plan:
            self._on_plan(after.plan)
        self._wake()

    def _on_plan(self, plan: pt.OpenRound) -> None:
        """Have a reducer ask the leader for the list of peers."""
        assert self.node is not None, "it is up"
        if self.node.leading is None and any(place.node == self.name for place in plan.places):
            swarm, leader = self.swarm, self.node.guide.leader
            has_list = self.name in swarm.listed  # no peer joins or leaves
            swarm.listed.add(self.name)
            answer = partial(swarm.carry, leader, self.name, swarm.sizer.peers_reply(has_list), lambda: None)
            swarm.carry(self.name, leader, swarm.sizer.peers_request(has_list), answer)

    def _carry_out(self, action: pt.Action) -> None:
        swarm = self.swarm
        match action:
            case pt.Send(to, message):
                swarm.judge.sent(self, to, message)
                swarm.network.send(self, to, message)
            case pt.Upload():
                self._upload(action)
            case pt.Reply():
                self._reply(action)
            case pt.Store(record, sources, donors):
                self._fetch_proposal(record, sources, donors)
            case pt.FetchRound(round, sources, donors):
                self._download(round, sources, donors)
            case pt.Open(round):
                swarm.opened(round, self)
            case pt.Explain(round, phase, deadline, reason):
                swarm.log.explained(round, phase, deadline, reason)
            case pt.Commit(record):
                swarm.committed(record)
            case pt.Average(round=round, included=included):
                swarm.made.setdefault(self.name, set()).update((round, shard) for shard in included)
                super()._carry_out(action)
            case _:
                super()._carry_out(action)

    def _train(self, plan: pt.OpenRound) -> None:
        begun = self.swarm.clock.now
        super()._train(plan)
        self._begun = begun

    def _trained(self, token: int, is_whole: bool) -> None:
        if self._training is not None and token == self._training_token:
            self.swarm.rounds[self._training.round].trained[self.name] = self.swarm.clock.now - self._begun
        super()._trained(token, is_whole)

    @property
    def step(self) -> int:
        """Steps of its training that are done, of 20."""
        if self._training is None:
            return 20
        return min(20, int(20 * (self.swarm.clock.now - self._begun) / TRAIN_SECONDS))

    # --- contributions ------------------------------------------------------------------------------------------------

    def _upload(self, upload: pt.Upload) -> None:
        self._tokens += 1
        self._sending[upload.round, upload.shard] = self._tokens
        delivery = Delivery(self, self.life, self._tokens, upload.term, self.work.carried[upload.shard], upload.place)
        self._after(PACK_SECONDS * self.swarm.chance.random(), partial(self._submit, upload, delivery))

    def _submit(self, upload: pt.Upload, delivery: Delivery) -> None:
        to, arrive = upload.place.node, partial(self._arrive, upload, delivery)
        if to == self.name:
            arrive()
        else:
            message = self.swarm.sizer.submission(upload.term, upload.round, upload.shard, self.name)
            self.swarm.carry(self.name, to, message, arrive)

    def _reply(self, reply: pt.Reply) -> None:
        delivery = self._arriving.pop((reply.peer, reply.round, reply.shard))
        if reply.verdict.is_new:
            if any(round < reply.round for round, _, _ in list(self.held)[:1]):
                self.held.clear()
            self.held[reply.round, reply.peer, reply.shard] = delivery.units
        answer = partial(delivery.sender._uploaded, delivery, reply)
        if reply.peer == self.name:
            self._after(0.0, answer)
        else:
            message = self.swarm.sizer.submit_reply(reply.verdict.counted, reply.verdict.reason)
            self.swarm.carry(self.name, reply.peer, message, answer)

    # --- rounds -------------------------------------------------------------------------------------------------------

    def _fetch_proposal(self, record: RoundRecord, sources: tuple[str, ...], donors: tuple[str, ...]) -> None:
        if record.chain in self._storing:
            return
        self._storing.add(record.chain)
        if self.disk.find(record.round, record.chain) is not None:
            self._after(0.0, partial(self._stored, record, ()))
        else:
            Download(self, record, sources, donors, self._fetched_proposal).begin()

    def _fetched_proposal(self, published: Published) -> None:
        self.disk.save_round(published)
        self._stored(published.record, ())

    def _download(self, round: int, sources: tuple[str, ...], donors: tuple[str, ...]) -> None:
        record = self.swarm.records[self.swarm.judge.standing[round]]
        if record.chain in self._storing:  # it comes as a proposal
            self._after(0.02, partial(self._download, round, sources, donors))
        elif (published := self.disk.find(round, record.chain)) is not None:
            self._apply(published)
        else:
            Download(self, record, sources, self._header_order(record, sources, donors), self._downloaded).begin()

    def _header_order(self, record: RoundRecord, sources: tuple[str, ...], donors: tuple[str, ...]) -> list[str]:
        """The order in which nodes are asked for a header, as Fetcher._newest has it."""
        turn = int(self.name, 16) % len(donors)
        order = [*donors[turn:], *donors[:turn]]
        if self.name in sources:
            order.sort(key=lambda donor: donor not in record.voters)
        return [*header_givers(self.name, record.chain, sources), *order]

    def _downloaded(self, published: Published) -> None:
        self.disk.save_round(published)
        self._apply(published)

    def _applied(self, published: Published) -> None:
        super()._applied(published)
        if self.node is None or self.node.leading is not None:
            return
        leader, round = self.node.guide.leader, published.record.round
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
        deadlines = DeadlinePolicy(quorum=1, floor_seconds=10.0, ceiling_seconds=600.0)
        peers = [member.name for member in members if member.trains]
        policy = LeaderPolicy(deadlines, len(peers), 0)
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
        leading = leader.node.leading if leader.node is not None else None
        plan = leading.plan if leading is not None else None
        self.log.opened(round, [place.node for place in plan.places] if plan is not None else [])

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
