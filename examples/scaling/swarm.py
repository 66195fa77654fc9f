"""A rehearsed swarm on home lines: the real decisions, every message encoded and carried, nothing going wrong."""

import hashlib
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from random import Random

from scaling.cargo import Cargo
from scaling.letters import Letter, Office
from scaling.lines import Lines
from scaling.tally import Tally
from tsr_swarm.rounds import peer as pr
from tsr_swarm.rounds import protocol as pt
from tsr_swarm.rounds.council import Record
from tsr_swarm.rounds.deadlines import DeadlinePolicy
from tsr_swarm.rounds.leader import LeaderPolicy
from tsr_swarm.rounds.node import Node
from tsr_swarm.rounds.step import step
from tsr_swarm.runtime.rehearsal.disk import Published
from tsr_swarm.runtime.rehearsal.machine import Machine, Parcel, new_disk
from tsr_swarm.runtime.rehearsal.network import Host, Network, Weather
from tsr_swarm.runtime.rehearsal.swarm import Layout, Member, Swarm
from tsr_swarm.runtime.round_download import SHARDS_AT_A_TIME
from tsr_swarm.telemetry import events
from tsr_swarm.telemetry.log import EventLog

UP, DOWN, LATENCY = 20e6, 100e6, 0.02  # bits a second; seconds one way
TRAIN_SECONDS, APPLY_SECONDS, AVERAGE_SECONDS = 30.0, 0.3, 0.2
PACK_SECONDS = 0.1  # in which a node's shards are packed, in any order
WATCH_SECONDS = 5.0  # between two looks at the leader's log
REPORTS_SECONDS = 5.0  # that a leader waits for reports
MOST_CALLS = 10**9


@dataclass(frozen=True, kw_only=True)
class Wire:
    """How a swarm's shell talks, and over what."""

    mend: Callable[[Letter], Letter] = lambda letter: letter  # what is sent in place of a letter
    leader: float = UP  # bits a second that the coordinator can send


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

    def put(self, event: pt.Event) -> None:
        """Take a step and do what follows. Nothing goes wrong here, so nothing is traced either."""
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
            self._hear_plan(after.plan)
        self._wake()

    def _hear_plan(self, plan: pt.Plan) -> None:
        """Who reduces asks who is here."""
        assert self.node is not None, "it hears"
        if self.node.leading is None and any(place.node == self.name for place in plan.places):
            swarm, leader = self.swarm, self.node.guide.leader
            has_list = self.name in swarm.listed  # nobody comes or goes
            swarm.listed.add(self.name)
            answer = partial(swarm.carry, leader, self.name, swarm.office.peers(has_list), lambda: None)
            swarm.carry(self.name, leader, swarm.office.peers_request(has_list), answer)

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

    def _train(self, plan: pt.Plan) -> None:
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
        parcel = Parcel(self, self.life, self._tokens, upload.term, self.work.carried[upload.shard], upload.place)
        self._after(PACK_SECONDS * self.swarm.chance.random(), partial(self._submit, upload, parcel))

    def _submit(self, upload: pt.Upload, parcel: Parcel) -> None:
        to, arrive = upload.place.node, partial(self._arrive, upload, parcel)
        if to == self.name:
            arrive()
        else:
            letter = self.swarm.office.submission(upload.term, upload.round, upload.shard, self.name)
            self.swarm.carry(self.name, to, letter, arrive)

    def _reply(self, reply: pt.Reply) -> None:
        parcel = self._arriving.pop((reply.peer, reply.round, reply.shard))
        if reply.verdict.is_new:
            if any(round < reply.round for round, _, _ in list(self.held)[:1]):
                self.held.clear()
            self.held[reply.round, reply.peer, reply.shard] = parcel.units
        told = partial(parcel.sender._uploaded, parcel, reply)
        if reply.peer == self.name:
            self._after(0.0, told)
        else:
            letter = self.swarm.office.receipt(reply.verdict.counted, reply.verdict.reason)
            self.swarm.carry(self.name, reply.peer, letter, told)

    # --- rounds -------------------------------------------------------------------------------------------------------

    def _store(self, record: Record, donors: tuple[str, ...]) -> None:
        if record.chain in self._storing:
            return
        self._storing.add(record.chain)
        if self.disk.find(record.round, record.chain) is not None:
            self._after(0.0, partial(self._stored, record, ()))
        else:
            Download(self, record, (), donors, partial(self._stored, record, donors)).begin()

    def _download(self, round: int, sources: tuple[str, ...], donors: tuple[str, ...]) -> None:
        record = self.swarm.records[self.swarm.judge.standing[round]]
        if record.chain in self._storing:  # it comes as a proposal
            self._after(0.02, partial(self._download, round, sources, donors))
        elif (published := self.disk.find(round, record.chain)) is not None:
            self._apply(published)
        else:
            turn = int(self.name, 16) % len(donors)
            order = (*donors[turn:], *donors[:turn])
            Download(self, record, sources, order, partial(self._downloaded, record, donors)).begin()

    def _downloaded(self, record: Record, donors: tuple[str, ...]) -> None:
        published = next(found for donor in donors if (found := self._read(donor, record)) is not None)
        self.disk.save_round(published)
        self._apply(published)

    def _applied(self, published: Published) -> None:
        super()._applied(published)
        if self.node is None or self.node.leading is not None:
            return
        leader, round = self.node.guide.leader, published.record.round
        letter = self.swarm.office.report(round, self.name)
        self.swarm.carry(self.name, leader, letter, partial(self.swarm.log.reported, round, self.name))

    def _save_sealed(self, published: Published) -> None:
        self.swarm.records[published.record.chain] = published.record
        cost = self.swarm.rounds[published.record.round]
        cost.sealed = self.swarm.clock.now
        cost.counted = frozenset(peer for result in published.results for peer in result.included)
        super()._save_sealed(published)


class Download:
    """A round, shard by shard: some at a time, each from who made it, else from who gave the header."""

    def __init__(
        self,
        node: HomeNode,
        record: Record,
        sources: tuple[str, ...],
        donors: tuple[str, ...],
        then: Callable[[], None],
    ) -> None:
        self._node, self._swarm, self._record = node, node.swarm, record
        self._sources, self._donors, self._then = sources, donors, then
        self._left: deque[int] = deque()
        self._under_way = 0

    def begin(self) -> None:
        self._ask(0)

    def _ask(self, turn: int) -> None:
        donor = self._donors[turn % len(self._donors)]
        letter = self._swarm.office.header_request(self._record.round, self._node.name)
        self._swarm.carry(self._node.name, donor, letter, partial(self._asked, turn, donor))

    def _asked(self, turn: int, donor: str) -> None:
        published = self._swarm.machines[donor].disk.find(self._record.round, self._record.chain)
        if published is None:  # it refuses: it is behind
            self._swarm.clock.after(LATENCY, partial(self._ask, turn + 1))
            return
        letter = self._swarm.office.header(self._record, published.results)
        self._swarm.carry(donor, self._node.name, letter, partial(self._headed, published, donor))

    def _headed(self, published: Published, donor: str) -> None:
        self._donor = donor
        shards = [shard for shard, result in enumerate(published.results) if not result.is_void]
        self._left.extend(shards)
        self._next()

    def _next(self) -> None:
        if not self._left and not self._under_way:
            self._then()
        while self._left and self._under_way < SHARDS_AT_A_TIME:
            shard = self._left.popleft()
            source = self._sources[shard] if self._sources else self._donor
            if (self._record.round, shard) in self._swarm.made.get(self._node.name, ()):
                continue
            self._under_way += 1
            self._swarm.fetch(self._node.name, source, self._record.round, shard, self._fetched)
        if not self._left and not self._under_way and self._then is not None:
            then, self._then = self._then, lambda: None
            then()

    def _fetched(self) -> None:
        self._under_way -= 1
        self._next()


class HomeNetwork(Network):
    """Messages take their time on the lines of both ends."""

    def __init__(self, swarm: "HomeSwarm", chance: Random) -> None:
        super().__init__(swarm.clock, chance, swarm.machines, Weather(latency=LATENCY), swarm.judge.complain)
        self._swarm = swarm
        self._gathering: set[tuple[int, int, int]] = set()

    def send(self, sender: Host, to: str, message: pt.Message) -> None:
        swarm, target = self._swarm, self._swarm.nodes[to]
        deliver = partial(self._deliver, sender, sender.life, target, message)
        match message:
            case pt.Poll():
                step = swarm.nodes[sender.name].step if message.trains else 0
                swarm.log.polled(sender.name, message, step)
                swarm.carry(sender.name, to, swarm.office.poll(message, step), deliver)
            case pt.News() | pt.Redirect():
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


class RunLog:
    """What the leader tells people, and who reads along."""

    def __init__(self, swarm: "HomeSwarm") -> None:
        self._swarm = swarm
        self._log = EventLog(lambda: 1.7e9 + swarm.clock.now)
        self._shown: dict[str, float] = {}
        self._reported: set[tuple[int, str]] = set()
        self._closed = 0

    def watch(self, name: str, after: int = 0) -> None:
        """``name`` reads on, for ever."""
        swarm = self._swarm
        again = partial(swarm.clock.after, WATCH_SECONDS, partial(self.watch, name, self._log.last))
        leader = swarm.leader
        if leader is None or leader.name == name:
            again()
            return
        lines, last = self._log.since(after)
        is_voter = leader.node is not None and name in leader.node.council.voters
        swarm.carry(name, leader.name, swarm.office.watch(after), lambda: None)
        go_on = partial(swarm.clock.after, WATCH_SECONDS, partial(self.watch, name, last))
        swarm.carry(leader.name, name, swarm.office.events(lines, last, is_voter), go_on)

    def polled(self, peer: str, poll: pt.Poll, step: int) -> None:
        swarm = self._swarm
        if not step or not poll.trains or swarm.clock.now - self._shown.get(peer, -1.0) < 1.0:
            return
        self._shown[peer] = swarm.clock.now
        name, speed = swarm.names[peer], 27306.5
        self._log.append(
            events.PeerProgress(
                peer=peer, name=name, round=max(1, poll.applied + 1), step=step, steps=20, tokens_per_second=speed
            )
        )

    def stepped(self, before: Node, after: Node) -> None:
        """Tell of rounds as a chronicle does."""
        if after.leading is None:
            return
        state, known = after.leading.state, before.leading.state.arrivals if before.leading is not None else {}
        if len(state.arrivals) > len(known):
            self._swarm.rounds[state.round].arrived = self._swarm.clock.now
            for peer in state.arrivals.keys() - known.keys():
                self._log.append(
                    events.PayloadReceived(
                        round=state.round,
                        peer=peer,
                        name=self._swarm.names[peer],
                        seconds=round(state.arrivals[peer], 3),
                        wire_bytes=1_131_072,
                        local_loss=3.2101230621337890,
                    )
                )

    def opened(self, round: int, reducers: list[str]) -> None:
        names = ",".join(self._swarm.names[node] for node in dict.fromkeys(reducers))
        peers = len(self._swarm.peers)
        self._log.append(events.RoundOpened(round=round, peers=peers, steps=20, lr=0.03, refresh=58, reducers=names))
        self.explained(round, "train", None, "peers take their local steps")

    def explained(self, round: int, phase: str, deadline: float | None, reason: str) -> None:
        self._log.append(events.PhaseChanged(round=round, phase=phase, deadline=deadline, reason=reason))

    def reported(self, round: int, peer: str) -> None:
        self._reported.add((round, peer))
        digest = hashlib.blake2b(f"{round}".encode(), digest_size=32).hexdigest()
        self._log.append(events.DigestReported(round=round, peer=peer, name=self._swarm.names[peer], digest=digest))
        if all((round, other) in self._reported for other in self._swarm.peers):
            self.close(round)

    def close(self, round: int) -> None:
        """All have reported, or should have."""
        if round <= self._closed:
            return
        self._closed, peers = round, len(self._swarm.peers)
        count = {"core": 1_091_072, "dense": 32_268, "control": 222_222}
        traffic: events.PeerTraffic = {"sent": count, "received": count, "overhead": 123_456}
        self._log.append(
            events.RoundClosed(
                round=round,
                peers=peers,
                included=peers,
                late=0,
                loss=3.2101230621337890,
                local_loss=3.2101230621337890,
                tokens=655_360 * peers,
                seconds=33.333,
                wire_bytes={"sent": count, "received": count},
                per_peer={self._swarm.names[peer]: traffic for peer in self._swarm.peers},
                raw_bytes={"sent": 2 * 10**6 * peers, "received": 2 * 10**6 * peers},
                dense_bytes=20 * peers * 2 * 4 * 58 * 10**6,
                digest="0" * 64,
            )
        )


class HomeSwarm(Swarm):
    """Runs until ``rounds`` rounds stand and the next is open."""

    def __init__(self, members: tuple[Member, ...], cargo: Cargo, chance: Random, wire: Wire) -> None:
        deadlines = DeadlinePolicy(quorum=1, floor_seconds=10.0, ceiling_seconds=600.0)
        peers = [member.name for member in members if member.trains]
        policy = LeaderPolicy(deadlines, len(peers), 0)
        self.peers, self.wire = peers, wire
        self.names = {member.name: f"peer-{number}" for number, member in enumerate(members)}
        self.names[members[0].name] = "coordinator"
        addresses = {m.name: f"203.0.{100 + n // 100}.{100 + n % 100}:{30000 + n}" for n, m in enumerate(members)}
        dialable = {member.name for member in members if member.is_dialable}
        numbers = {peer: number for number, peer in enumerate(peers, 1)}
        self.office = Office(cargo, {name: at for name, at in addresses.items() if name in dialable}, numbers)
        self.tally = Tally()
        self.rounds: dict[int, RoundCost] = {}
        self.records: dict[str, Record] = {}
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
        self.lines.widen(members[0].name, wire.leader, max(DOWN, wire.leader))
        self.network = HomeNetwork(self, chance)
        for name in dialable:
            self.clock.after(WATCH_SECONDS * chance.random(), partial(self.log.watch, name))

    def add(self, member: Member) -> Machine:
        """One more node, which starts when it joins."""
        disk = new_disk(self.layout.keeps, self.layout.first, member.is_new)
        node = HomeNode(self, member.name, member.trains, member.is_dialable, disk, member.pace)
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
        leading = leader.node.leading if leader.node is not None else None
        plan = leading.plan if leading is not None else None
        self.log.opened(round, [place.node for place in plan.places] if plan is not None else [])

    def committed(self, record: Record) -> None:
        """A round stands."""
        self.rounds[record.round].stands = self.clock.now
        self.log.explained(record.round, "apply", None, "committed: fetch, apply, report")
        self.clock.after(REPORTS_SECONDS, partial(self.log.close, record.round))

    def note(self, who: str, what: str) -> None:
        """No trace is kept of so much."""

    def carry(self, source: str, to: str, letter: Letter, then: Callable[[], None]) -> None:
        """Have a letter brought."""
        letter = self.wire.mend(letter)
        self.tally.count(source, to, letter)
        self.lines.carry(source, to, letter.size, then)

    def fetch(self, to: str, source: str, round: int, shard: int, then: Callable[[], None]) -> None:
        """A shard's bytes, asked for by ``to``."""
        if source == to:
            self.clock.after(0.0, then)
            return
        answer = partial(self.carry, source, to, self.office.shard(shard), then)
        self.carry(to, source, self.office.shard_request(round, shard), answer)
