"""One node at work: the parts that carry out what rounds/step.py decides, put together around one shell."""

import asyncio
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace

from tsr_swarm.errors import ConfigError, PeerError, RefusedError, UnreachableError
from tsr_swarm.lowrank.basis import Basis
from tsr_swarm.node import follower, trainer_task
from tsr_swarm.node import leader as leading
from tsr_swarm.node import reducer as reducing
from tsr_swarm.node.address_book import AddressBook, ClientPool
from tsr_swarm.node.context import Seams, Start, first_node, policy_of
from tsr_swarm.node.contribution_store import ContributionStore
from tsr_swarm.node.data_leases import DataLeases
from tsr_swarm.node.driver import Driver, awake_clock
from tsr_swarm.node.events import commit_reporter
from tsr_swarm.node.leader import FailoverStatus
from tsr_swarm.node.messenger import Desk, Messenger
from tsr_swarm.node.roster_cache import RosterCache
from tsr_swarm.node.round_cache import RoundCache
from tsr_swarm.node.shard_collector import ShardCollector
from tsr_swarm.node.sync.catch_up import Fetcher
from tsr_swarm.node.sync.rounds import Frames
from tsr_swarm.process.tasks import Background, Signal
from tsr_swarm.rounds import peer as pr
from tsr_swarm.rounds import protocol as pt
from tsr_swarm.rounds.follower import sources as sources_of
from tsr_swarm.rounds.raft_state import RoundRecord
from tsr_swarm.rounds.state import Node
from tsr_swarm.rounds.state import contacts as contacts_of
from tsr_swarm.telemetry import events
from tsr_swarm.train.trainer import RoundWork, Trainer
from tsr_swarm.transport.client import SwarmClient
from tsr_swarm.wire.messages import ContributionHeader, PublishedHeader
from tsr_swarm.wire.run_rules import with_rules
from tsr_swarm.wire.v1 import swarm_pb2 as pb

GIVE_UP_SECONDS = 1800.0  # without an answer from anybody
FORGET_SECONDS = 30.0  # a peer that has not come to a new leader by then is gone
LOOK_SECONDS = 2.0  # how often that is looked at, and a leader's own progress shown
GOODBYE_SECONDS = 2.0
LAST_REPORT_SECONDS = 5.0  # says whether all weights agree at the end
REPORT_SECONDS = 90.0  # a leader may be slower than we are, and answers when it has applied the round


class SwarmNode:
    """Implements shell.Hands. One event loop owns it."""

    def __init__(
        self, start: Start, book: AddressBook, clients: ClientPool, fetcher: Callable[[Frames], Fetcher], seams: Seams
    ) -> None:
        """``fetcher``: makes one that finds shards which were made here."""
        self.me, self.first, self.manifest = start.who.peer_id, start.first, start.manifest
        self.config = start.config
        self.who, self.book = start.who, book
        self.leading: leading.Leader | None = None
        self.number = 0
        self.name = start.who.name
        self._seams, self._clients, self._donor = seams, clients, start.donor
        self._background = Background()
        self._done = asyncio.Event()
        self._reason = ""
        self._failure: Exception | None = None
        self._newest = start.ledger.base  # the newest round that anybody told to stand
        self._reached_at = time.monotonic()
        self._leader = ""  # the newest that was known: it waits for reports of its last round as it goes
        self._safety = FailoverStatus()
        self._admitted_by: SwarmClient | None = None  # the newest leader that did
        self._left = ""  # the leader that is told goodbye in the end
        self._reporting = 0  # reports under way
        self._reported = Signal()

        self.shell = Driver(first_node(start), start.journal, self.warn)
        self.shell.handler = self
        self.round_cache = RoundCache()
        parts = self.manifest.config.data.parts
        self.lending = DataLeases(self.me, parts, start.coverage, seams.read_part)
        self.membership = RosterCache(bytes.fromhex(self.manifest.digest), clients, self._background)
        gathering = ShardCollector(self.manifest, clients, self.round_cache, self._parent, self.warn)
        self.post = Messenger(
            start.who,
            self.manifest,
            book,
            clients,
            self.round_cache,
            gathering,
            self.membership,
            self.lending,
            self._desk(),
            self._background,
        )
        log = start.donor.delta_log if start.donor is not None else None
        chain = start.record.chain if start.record is not None else ""
        contributions = ContributionStore(self.manifest, start.outer, chain)
        self.reducing = reducing.Reducer(
            self.manifest,
            contributions,
            self.round_cache,
            log,
            reducing.Seams(
                put=self.shell.put,
                warn=self.warn,
                is_member=self._is_member,
                term=lambda: max(self.node.guide.term, self.node.council.term),
                refused=self._show_refused,
                late=self._show_late,
                numbers=self._numbers,
                bases=lambda round: self.following.bases(round),
            ),
            self._background,
        )
        self._standing = commit_reporter.CommitReporter(
            self.me,
            start.who.trains,
            self.manifest,
            log,
            commit_reporter.Seams(
                warn=self.warn,
                leading=lambda: self.leading if self.node.leading is not None else None,
                members=lambda: frozenset(self.node.leading.state.members) if self.node.leading else frozenset(),
                sealed=lambda: self.reducing.sealed,
                outer=lambda: contributions.outer,
                applied=seams.applied,
                score=seams.score,
                told=seams.told,
                ask=seams.ask,
            ),
            self._background,
        )
        self.following = follower.Follower(
            self.me,
            self.manifest,
            start.weights,
            fetcher(contributions.frames),
            start.donor,
            follower.Seams(
                put=self.shell.put,
                emit=seams.emit,
                newest=lambda: max(self._newest, self.node.council.ledger.base, key=lambda record: record.round),
                at=lambda: (self.node.peer.applied, self.node.peer.chain),
                should_stop=lambda: self.node.is_leaving or self._done.is_set(),
                settle=self._settle,
                restored=self._restored,
                keep=seams.restored,
                applied=self._standing.applied,
            ),
            self._background,
        )
        self.training = trainer_task.TrainerTask(
            self.me,
            self.manifest,
            clients,
            self.round_cache,
            trainer_task.Seams(
                put=self.shell.put,
                warn=self.warn,
                is_stale=lambda round: self._done.is_set() or pr.is_stale(self.node.peer, round),
                train=self._train,
                submit_here=lambda envelope, data: self.reducing.submit(self.reducing.expect(envelope), data),
            ),
            self._background,
        )
        if start.record is not None:
            self._standing.begin(start.record.round)
            self.following.begin(start.record)

    # --- life ---------------------------------------------------------------------------------------------------

    @property
    def node(self) -> Node:
        """What the decisions know."""
        return self.shell.node

    @property
    def contacts(self) -> list[str]:
        """Who may know the leader, or leads."""
        return list(dict.fromkeys([self.node.guide.leader or self.me, *contacts_of(self.node), self.me]))

    def makers(self, round: int) -> tuple[str, ...]:
        """Who makes this round's shards, or made them, as far as this node was told."""
        return sources_of(self.node, round)

    @property
    def is_over(self) -> bool:
        """Whether the run has had its last round, as far as this node knows."""
        return self.node.guide.is_finished

    @property
    def is_ending(self) -> bool:
        """Whether this node goes after this round."""
        return self.node.is_leaving or self.is_over

    async def run(self, stop_gently: asyncio.Event) -> str:
        """Take part until the run ends or ``stop_gently`` is set and its round is over. Returns the reason.

        Raises RefusedError when a leader turns this node away, UnreachableError when nobody answers for half an hour.
        """
        self._seams.votes(self.me in self.node.council.voters)
        self._background.start(self._stop_when(stop_gently))
        self._background.start(self._look_around())
        self.shell.put(pt.Tick())
        try:
            await self._background.until(self._done)
            if self._failure is not None:
                raise self._failure
        except Exception:
            await self._withdraw()
            raise
        await self._standing.told_all()
        if self._left:
            # A leader waits for no report of who has left.
            await self._reported.wait_for(lambda: not self._reporting, LAST_REPORT_SECONDS)
            await self._say_goodbye(self._left)
        return self._reason

    async def close(self) -> None:
        """End what is still running."""
        self._done.set()  # a training thread ends at its next step
        self.post.hang_up()
        self.shell.close()
        await self._background.close()
        self.following.close()

    async def _stop_when(self, stop_gently: asyncio.Event) -> None:
        await stop_gently.wait()
        self.shell.put(pt.Stop())

    async def _look_around(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            if self.leading is not None:
                self.leading.chronicle.progressed(self.me, self.training.progress)
            if self.node.council.leads:
                self._reached_at = time.monotonic()
            elif time.monotonic() - self._reached_at > GIVE_UP_SECONDS:
                self._fail(UnreachableError("Nobody of this run has answered for half an hour; join again later."))

    def _fail(self, error: Exception) -> None:
        self._failure = self._failure or error
        self._done.set()

    def warn(self, message: str) -> None:
        """Tell people, of the run while this node leads."""
        event = events.Warned(message=message)
        (self._seams.emit if self.leading is None else self._seams.emit_run)(event)

    # --- shell.Hands ----------------------------------------------------------------------------------------------

    def on_step(self, before: Node, after: Node) -> None:
        """Take note of what a step has changed."""
        base = after.council.ledger.base
        if base != before.council.ledger.base:
            self._newest = base if base.round < before.council.ledger.base.round else self._newest  # it was set back
            self._hear(base)
            self._seams.votes(self.me in base.voters)
            if self._donor is not None:
                self._donor.delta_log.commit(base.round, bytes.fromhex(base.chain))
                if self.who.trains:  # it can always fetch the state, so any round may go
                    self._donor.delta_log.checkpointed(base.round)
        if after.plan is not None and after.plan != before.plan:
            self._hear_plan(after.plan)
        self.training.look_again(after.peer.committed, after.plan)
        self._notice_leader(before, after)
        self._show_arrivals(before, after)

    def carry_out(self, action: pt.Action) -> None:
        """Begin what was decided."""
        match action:
            case pt.Send(to, pt.Goodbye()):
                self._left = to
            case pt.Send(to, message):
                self.post.send(to, message)
            case pt.Train(plan):
                self.training.train(plan)
            case pt.Upload():
                self.training.upload(action)
            case pt.Reply():
                self.reducing.reply(action)
            case pt.Average():
                self.reducing.average(action)
            case pt.Seal():
                self.reducing.seal(action)
            case pt.Store():
                self.following.store(action)
            case pt.FetchRound():
                self.following.fetch_round(action)
            case pt.FetchState():
                self.following.fetch_state(action)
            case pt.Quit(reason):
                self._reason = reason
                self._done.set()
                self.post.hang_up()
            case pt.Notify(text):
                self.warn(text)
            case pt.Propose():
                raise AssertionError("the decisions keep it to themselves")
            case pt.Open() | pt.Commit() | pt.Explain() | pt.Drop():
                self._lead(action)

    def _lead(self, action: pt.Open | pt.Commit | pt.Explain | pt.Drop) -> None:
        if self.leading is None:
            return
        match action:
            case pt.Open():
                self.lending.open(self.leading.numbers)
                assert self.node.leading is not None, "who opens a round leads"
                places = self.node.leading.plan.places if self.node.leading.plan is not None else ()
                others = [place.node for place in places if place.node != self.me]
                plan = self.leading.open(action, self.node.council.ledger.base.chain, others)
                self.reducing.contributions.open_round(plan)
            case pt.Commit(record):
                self.lending.stands()
                self._standing.commit(record)
            case pt.Explain():
                self.leading.chronicle.explained(action)
            case pt.Drop(peer):
                self.lending.gone(peer)
                self.post.forget(peer)
                self.leading.chronicle.dropped(action)

    # --- who leads ------------------------------------------------------------------------------------------------

    def _notice_leader(self, before: Node, after: Node) -> None:
        if after.leading is not None and self.leading is None:
            self._begin_to_lead(after)
        elif after.leading is None and self.leading is not None:
            self.leading = None
            self.lending.follow()
        if (changed := self._safety.look(after, self.name)) is not None:
            self._seams.emit_run(changed)
        leader_before, leader = (node.me if node.leading is not None else node.guide.leader for node in (before, after))
        if after.guide.is_finished and not before.guide.is_finished:
            self._seams.ends()
        self._leader = leader or self._leader
        if leader != leader_before and (leader or not after.guide.is_finished):  # at the end, its last words are due
            self._seams.follow(leader if leader != self.me else "")
            if not leader and not after.has_quit:
                self._seams.emit_run(events.LeaderLost(reason="it does not answer"))
        self.book.keep(contacts_of(after))

    def _begin_to_lead(self, node: Node) -> None:
        base, before = node.council.ledger.base, dict(self._seams.peers())
        self.leading = leading.Leader(
            self.manifest,
            self.round_cache,
            base,
            {peer: joined.number for peer, joined in before.items()},
            leading.Seams(config=lambda: self.config, emit=self._seams.emit_run, clock=awake_clock),
        )
        self._safety = FailoverStatus()
        self.lending.lead(self.leading.name_of, self._seams.emit_run, awake_clock)
        if self.who.trains:
            reply = self.leading.admit(self.post.join_request())
            self._background.start(self._take_number(reply.number))
        self._standing.begin_to_lead(self.leading, base)
        self._background.start(self._miss(self.leading, before))

    async def _miss(self, leadership: leading.Leader, before: Mapping[str, events.PeerJoined]) -> None:
        """Who took part before this leader, and does not come to it, is gone."""
        await asyncio.sleep(FORGET_SECONDS)
        if self.leading is not leadership:
            return
        leadership.roster.give_up()
        for peer, joined in before.items():
            if not leadership.is_admitted(peer) and peer in self._seams.peers():
                reason = "it did not come to the new leader"
                self._seams.emit_run(events.PeerLeft(peer=peer, name=joined.name, reason=reason))

    # --- the post's desk --------------------------------------------------------------------------------------------

    def _desk(self) -> Desk:
        return Desk(
            put=self.shell.put,
            fail=self._fail,
            config=lambda: self.config,
            hear_rules=self._hear_rules,
            hear=self._hear,
            numbers=lambda: self.leading.numbers if self.leading is not None else {},
            is_admitted=lambda peer: self.leading is None or self.leading.is_admitted(peer),
            number=lambda: self.number,
            admitted=self._admitted,
            progress=self._progress,
            reached=self._reached,
        )

    def _hear(self, record: RoundRecord) -> None:
        if record.round > self._newest.round:
            self._newest = record

    def _hear_rules(self, leader: str, rules: pb.Rules) -> None:
        """The coordinator's word counts, as long as nobody has a newer one of it."""
        if leader != self.first or self.me == self.first:
            return
        config = with_rules(self.config, rules)
        if config != self.config:
            self.config = config
            policy = policy_of(config)
            self.shell.change(lambda node: replace(node, identity=replace(node.identity, policy=policy)))

    def _reached(self) -> None:
        self._reached_at = time.monotonic()

    def _progress(self) -> pb.Progress:
        self._seams.sample()
        return self.training.progress

    async def _admitted(self, client: SwarmClient, reply: pb.JoinReply) -> None:
        self._admitted_by = client
        if not self.who.trains:
            return
        self.name = reply.name
        self._background.start(self._take_number(reply.number))  # the worker may be training: the leader is polled now
        self._seams.emit(
            events.Joined(
                run=self.config.run.name,
                name=reply.name,
                number=reply.number,
                address=client.address,
                round=max(0, self.node.peer.applied),
            )
        )

    async def _take_number(self, number: int) -> None:
        self.number = number
        await self.following.on_worker(self._seams.take_number, number)

    async def _withdraw(self) -> None:
        """This node has failed: it is not to be seen until it is missed."""
        self.shell.close()
        await self._background.close()  # a poll that comes after the goodbye would have it admitted again
        if self._admitted_by is not None:
            await self._leave(self._admitted_by, "it failed")

    async def _say_goodbye(self, leader: str) -> None:
        with suppress(UnreachableError, ConfigError):  # it will be missed
            await self._leave(await self._clients.to(leader), self._reason or "it said goodbye")

    async def _leave(self, leader: SwarmClient, reason: str) -> None:
        with suppress(UnreachableError, PeerError, RefusedError):
            await leader.leave(pb.LeaveRequest(peer_id=self.me, reason=reason), GOODBYE_SECONDS)

    def left(self, peer_id: str, reason: str) -> None:
        """A peer says that it goes. Raises PeerError: nobody says that of this node itself."""
        if peer_id == self.me:
            raise PeerError("peer_id", "A node does not take its leave of itself.")
        if self.leading is not None:
            self.leading.chronicle.leaving(peer_id, reason)
            self.post.forget(peer_id)
        self.shell.put(pt.Received(peer_id, pt.Goodbye(peer_id)))

    # --- training ---------------------------------------------------------------------------------------------------

    async def _train(self, work: Callable[[Trainer], RoundWork | None]) -> RoundWork | None:
        missing: list[ConfigError] = []

        def on_its_part() -> RoundWork | None:
            try:
                self.lending.begin(self.number)
            except ConfigError as error:
                missing.append(error)
            return work(self._seams.trainer())

        done = await self.following.on_worker(on_its_part)
        for error in missing:
            self.lending.give_up()
            self.warn(f"{error} This peer stays with the part that it has.")
        return done

    # --- reducing ---------------------------------------------------------------------------------------------------

    def _hear_plan(self, plan: pt.OpenRound) -> None:
        announced = self.round_cache.plan(plan.round, plan.parent)
        if announced is None:
            return  # this node leads, and says in a moment what the round is
        self.reducing.contributions.open_round(announced)
        if self.leading is None and any(place.node == self.me for place in plan.places):
            self.membership.ask(self.node.guide.leader)

    def _parent(self, reducer: str, done: pt.ShardDone) -> str | None:
        led = self.node.leading
        if self.leading is None or led is None or led.plan is None or led.gather is None:
            return None
        if done.term != self.node.council.term:
            return None
        is_asked = done.round == led.gather.round and done.shard in led.gather.missing
        is_its = led.gather.reducers[done.shard] == reducer
        are_members = all(self.leading.has_trained(peer) for peer in done.result.included)
        return led.plan.parent if is_asked and is_its and are_members else None

    @property
    def admitted(self) -> Mapping[str, int]:
        """Who takes part now, if this node leads: whom it would admit if it closed the round."""
        if self.leading is None or self.node.leading is None:
            return {}
        callers = self.node.leading.callers
        return {peer: number for peer, number in self.leading.numbers.items() if peer in callers}

    def _numbers(self, round: int, term: int) -> Mapping[str, int]:
        return self.leading.numbers if self.leading is not None else self.round_cache.numbers(round, term)

    def _is_member(self, peer_id: str) -> bool:
        """Whether this peer takes part; where that is not known yet, the leader is asked."""
        if self.leading is not None:
            return self.leading.is_admitted(peer_id)
        if peer_id == self.me or self.membership.is_member(peer_id):
            return True
        self.membership.ask(self.node.guide.leader)
        return False

    def _restored(self, record: RoundRecord) -> None:
        self.reducing.contributions.restore(record.chain)
        self._standing.begin(record.round)

    def _settle(self, header: PublishedHeader, refreshed: Mapping[int, tuple[Basis, Basis]]) -> None:
        self.reducing.contributions.advance(header, refreshed)
        work = self.training.work
        if self.me in header.contributors and work is not None and work.plan.round == header.plan.round:
            self.lending.count(work.tokens)

    # --- reports ----------------------------------------------------------------------------------------------------

    async def report(self, report: pb.ReportRequest) -> None:
        """Tell the leader the digest and the bytes. One that differs sends this node back to the state.

        A report that is lost is not sent again: bytes told once too seldom are better than bytes told twice.
        """
        self._reporting += 1
        try:
            if self.leading is not None:
                reply = await self.leading.chronicle.report(report)
            else:
                reply = await (await self._clients.to(self._leader)).report(report, REPORT_SECONDS)
        except (UnreachableError, PeerError, RefusedError, ConfigError):
            return
        finally:
            self._reporting -= 1
            self._reported.notify()
        if reply.resync:
            self.shell.change(lambda node: replace(node, peer=replace(node.peer, needs_state=True)))
            self.warn(f"This peer's weights differ after round {report.round}; it fetches the state again.")
            self.shell.put(pt.Tick())

    # --- for people ---------------------------------------------------------------------------------------------------

    def _show_arrivals(self, before: Node, after: Node) -> None:
        if self.leading is None or after.leading is None:
            return
        known = before.leading.state.arrivals if before.leading is not None else {}
        state = after.leading.state
        for peer, seconds in state.arrivals.items():
            if peer not in known:
                self.leading.chronicle.arrived(state.round, peer, seconds)

    def _show_refused(self, header: ContributionHeader, error: PeerError) -> None:
        if self.leading is not None:
            self.leading.chronicle.refused(header, error)

    def _show_late(self, round: int, peer: str, reason: str) -> None:
        if self.leading is not None:
            self.leading.chronicle.late(round, peer, reason)
