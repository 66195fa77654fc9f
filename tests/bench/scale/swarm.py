"""A rehearsed swarm on home lines: the real decisions, every message encoded and carried, nothing going wrong."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from random import Random

from tests.bench.scale.cargo import Cargo
from tests.bench.scale.download import Download, Headers
from tests.bench.scale.letters import Letter, Office
from tests.bench.scale.lines import Lines
from tests.bench.scale.log import RunLog
from tests.bench.scale.tally import Tally
from tests.rehearsal.disk import Published
from tests.rehearsal.machine import Delivery, Machine, new_disk
from tests.rehearsal.network import Host, Network, Weather
from tests.rehearsal.swarm import Layout, Member, Swarm
from tsr_swarm.rounds import peer as pr
from tsr_swarm.rounds import protocol as pt
from tsr_swarm.rounds.catch_up import header_givers
from tsr_swarm.rounds.raft_state import RoundRecord
from tsr_swarm.rounds.round_phases import RoundPolicy
from tsr_swarm.rounds.step import step

UP, DOWN, LATENCY = 20e6, 100e6, 0.02  # bits a second; seconds one way
TRAIN_SECONDS, APPLY_SECONDS, AVERAGE_SECONDS = 30.0, 0.3, 0.2
PACK_SECONDS = 0.1  # in which a node's shards are packed, in any order
MOST_CALLS = 10**9


@dataclass
class RoundCost:
    """Of one round, by virtual time."""

    opened: float
    trained: dict[str, float] = field(default_factory=dict)  # by peer: seconds that it trained
    counted: frozenset[str] = frozenset()
    arrived: float = 0.0  # when the leader heard of the last contribution
    sealed: float = 0.0
    stands: float = 0.0

    def overhead(self, next_opened: float) -> float:
        """Seconds of the round beyond the training of the slowest peer whose work is in it."""
        return next_opened - self.opened - max(self.trained[peer] for peer in self.counted)


class HomeNode(Machine):
    """A machine on a home line."""

    swarm: "HomeSwarm"
    headers: Headers

    def put(self, event: pt.Event) -> None:
        """Take a step and do what follows. Nothing goes wrong here, so nothing is traced either."""
        before = self.node
        if before is None:
            return
        started = time.perf_counter()
        after, actions = step(before, event, self.local())
        if after.leader_role is not None:
            self.swarm.leader_seconds += time.perf_counter() - started
        if after.voter.hard_state is not before.voter.hard_state:
            self.disk.save_hard_state(after.voter.hard_state)
        self.node = after
        self.swarm.checker.stepped(self, before, after)
        self._settle(event, before, after)
        for action in actions:
            self._carry_out(action)
        if self._training is not None and pr.is_stale(after.peer, self._training.round):
            self._trained(self._training_token, False)
        self.swarm.log.stepped(before, after)
        if after.plan is not None and after.plan is not before.plan and after.plan != before.plan:
            self._hear_plan(after.plan)
        self._wake()

    def _hear_plan(self, plan: pt.OpenRound) -> None:
        """Who reduces asks who is here."""
        assert self.node is not None, "it hears"
        if self.node.leader_role is None and self.name in plan.nodes:
            swarm, leader = self.swarm, self.node.tracking.leader
            has_list = self.name in swarm.listed  # nobody comes or goes
            swarm.listed.add(self.name)
            answer = partial(swarm.carry, leader, self.name, swarm.office.peers(has_list), lambda: None)
            swarm.carry(self.name, leader, swarm.office.peers_request(has_list), answer)

    def _carry_out(self, action: pt.Action) -> None:
        swarm = self.swarm
        match action:
            case pt.Send(to, message):
                swarm.checker.sent(self, to, message)
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
        """How far its training is, of 20 steps."""
        if self._training is None:
            return 20
        return min(20, int(20 * (self.swarm.clock.now - self._begun) / TRAIN_SECONDS))

    # --- contributions ------------------------------------------------------------------------------------------------

    def _upload(self, upload: pt.Upload) -> None:
        self._tokens += 1
        self._sending[upload.round, upload.shard] = self._tokens
        delivery = Delivery(self, self.life, self._tokens, upload.term, self.work.carried[upload.shard], upload.reducer)
        self._after(PACK_SECONDS * self.swarm.chance.random(), partial(self._submit, upload, delivery))

    def _submit(self, upload: pt.Upload, delivery: Delivery) -> None:
        to, arrive = upload.reducer.node, partial(self._arrive, upload, delivery)
        if to == self.name:
            arrive()
        else:
            letter = self.swarm.office.submission(upload.term, upload.round, upload.shard, self.name)
            self.swarm.carry(self.name, to, letter, arrive)

    def _reply(self, reply: pt.Reply) -> None:
        delivery = self._arriving.pop((reply.peer, reply.round, reply.shard))
        if reply.verdict.is_new:
            if any(round < reply.round for round, _, _ in list(self.held)[:1]):
                self.held.clear()
            self.held[reply.round, reply.peer, reply.shard] = delivery.units
        told = partial(delivery.sender._uploaded, delivery, reply)
        if reply.peer == self.name:
            self._after(0.0, told)
        else:
            letter = self.swarm.office.receipt(reply.verdict.counted, reply.verdict.reason)
            self.swarm.carry(self.name, reply.peer, letter, told)

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
        record = self.swarm.records[self.swarm.checker.committed[round]]
        if record.chain in self._storing:  # it comes as a proposal
            self._after(0.02, partial(self._download, round, sources, donors))
        elif (published := self.disk.find(round, record.chain)) is not None:
            self._apply(published)
        else:
            Download(self, record, sources, self._header_order(record, sources, donors), self._downloaded).begin()

    def _header_order(self, record: RoundRecord, sources: tuple[str, ...], donors: tuple[str, ...]) -> list[str]:
        """As Fetcher._newest has it."""
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
        if self.node is None or self.node.leader_role is not None:
            return
        leader, round = self.node.tracking.leader, published.record.round
        letter = self.swarm.office.report(round, self.name)
        self.swarm.carry(self.name, leader, letter, partial(self.swarm.log.reported, round, self.name))

    def _save_sealed(self, published: Published) -> None:
        self.swarm.records[published.record.chain] = published.record
        cost = self.swarm.rounds[published.record.round]
        cost.sealed = self.swarm.clock.now
        cost.counted = frozenset(peer for result in published.results for peer in result.included)
        super()._save_sealed(published)


class HomeNetwork(Network):
    """Messages take their time on the lines of both ends."""

    def __init__(self, swarm: "HomeSwarm", chance: Random) -> None:
        super().__init__(swarm.clock, chance, swarm.machines, Weather(latency=LATENCY), swarm.checker.complain)
        self._swarm = swarm
        self._gathering: set[tuple[int, int, int]] = set()

    def send(self, sender: Host, to: str, message: pt.Message) -> None:
        swarm, target = self._swarm, self._swarm.nodes[to]
        deliver = partial(self._deliver, sender, sender.life, target, message)
        match message:
            case pt.Poll():
                step = swarm.nodes[sender.name].step if message.trains else 0
                swarm.carry(sender.name, to, swarm.office.poll(message, step), deliver)
            case pt.RoundUpdate() | pt.Redirect():
                _, poll = self._polls.get((to, sender.name), (0, None))
                if self._answers(sender.name, target):
                    assert poll is not None, "it is answered"
                    swarm.carry(sender.name, to, swarm.office.answer(message, to, poll), deliver)
            case pt.Goodbye():
                deliver()
            case _:
                swarm.carry(sender.name, to, swarm.office.told(message, sender.name), deliver)

    def _deliver(self, sender: Host, life: int, target: Host, message: pt.Message) -> None:
        """A shard that is done is fetched before it counts."""
        if not isinstance(message, pt.ShardDone) or message.result.is_void:
            super()._deliver(sender, life, target, message)
            return
        key = message.term, message.round, message.shard
        if key not in self._gathering:
            self._gathering.add(key)
            deliver = partial(super()._deliver, sender, life, target, message)
            self._swarm.fetch(target.name, sender.name, message.round, message.shard, deliver)


class HomeSwarm(Swarm):
    """Runs until ``rounds`` rounds stand and the next is open."""

    def __init__(self, members: tuple[Member, ...], cargo: Cargo, chance: Random) -> None:
        peers = [member.name for member in members if member.trains]
        policy = RoundPolicy(quorum=1, floor_seconds=10.0, ceiling_seconds=600.0, min_peers=len(peers), last_round=0)
        self.peers = peers
        self.names = {member.name: f"peer-{number}" for number, member in enumerate(members)}
        self.names[members[0].name] = "coordinator"
        addresses = {m.name: f"203.0.{100 + n // 100}.{100 + n % 100}:{30000 + n}" for n, m in enumerate(members)}
        dialable = {member.name for member in members if member.is_dialable}
        numbers = {peer: number for number, peer in enumerate(peers, 1)}
        self.office = Office(cargo, {name: at for name, at in addresses.items() if name in dialable}, numbers)
        self.tally = Tally()
        self.rounds: dict[int, RoundCost] = {}
        self.records: dict[str, RoundRecord] = {}
        self.made: dict[str, set[tuple[int, int]]] = {}
        self.listed: set[str] = set()  # who has the list of all that take part
        self.leader_seconds = 0.0
        self.nodes: dict[str, HomeNode] = {}
        self.log = RunLog(self)
        layout = Layout(
            first=members[0].name, members=members, sizes=cargo.sizes, policy=policy, weather=Weather(latency=LATENCY)
        )
        super().__init__(layout, chance)
        self.lines = Lines(self.clock, UP, DOWN, LATENCY)
        self.network = HomeNetwork(self, chance)

    @property
    def leading(self) -> str:
        """Who leads: nothing goes wrong, so it is the first."""
        return self.layout.first

    def add(self, member: Member) -> Machine:
        """One more node, which starts when it joins."""
        disk = new_disk(self.layout.keeps, self.layout.first, member.is_new)
        node = HomeNode(self, member.name, member.trains, member.is_dialable, disk, member.pace)
        node.headers = Headers(node)
        self.machines[member.name] = self.nodes[member.name] = node
        self.clock.after(member.joins_at, node.start)
        return node

    def measure(self, first: int, last: int) -> None:
        """Run until round ``last`` is over; count from the opening of round ``first`` on."""
        self._first, self._last = first, last
        self.clock.run(lambda: self.is_over, MOST_CALLS)

    def opened(self, round: int, leader: "HomeNode") -> None:
        """A round opens."""
        self.rounds[round] = RoundCost(self.clock.now)
        if round == self._first:
            self.tally.is_counting, self.leader_seconds = True, 0.0
        if round > self._last:
            self.stop()
            return
        leading = leader.node.leader_role if leader.node is not None else None
        plan = leading.plan if leading is not None else None
        self.log.opened(round, [*plan.nodes] if plan is not None else [])

    def committed(self, record: RoundRecord) -> None:
        """A round stands."""
        self.rounds[record.round].stands = self.clock.now
        self.log.committed(record)

    def note(self, who: str, what: str) -> None:
        """No trace is kept of so much."""

    def carry(self, source: str, to: str, letter: Letter, then: Callable[[], None]) -> None:
        """Have a letter brought."""
        self.tally.count(source, to, letter)
        self.lines.carry(source, to, letter.size, then)

    def fetch(self, to: str, source: str, round: int, shard: int, then: Callable[[], None]) -> None:
        """A shard's bytes, asked for by ``to``."""
        if source == to:
            self.clock.after(0.0, then)
            return
        answer = partial(self.carry, source, to, self.office.shard(shard), then)
        self.carry(to, source, self.office.shard_request(round, shard), answer)
