"""What must hold after every step of a rehearsal, and at its end."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from tests.rehearsal.disk import Published
from tests.rehearsal.work import Units
from tsr_swarm.rounds import protocol as pt
from tsr_swarm.rounds.raft_state import HardState, RoundRecord, is_majority
from tsr_swarm.rounds.state import Node

if TYPE_CHECKING:
    from tests.rehearsal.machine import Machine
    from tests.rehearsal.swarm import Swarm


class InvariantChecker:
    """Checks every step of every node, and keeps what must not have happened."""

    def __init__(self, swarm: "Swarm") -> None:
        self.violations: list[str] = []
        self.committed: dict[int, str] = {}  # round -> chain hash
        self.committed_at: dict[int, float] = {}
        self.opened: list[tuple[float, str, int]] = []  # when, by whom, round
        self.uploaded: list[tuple[float, str, int]] = []  # when, by whom, of which round
        self.void_shards: dict[int, int] = {}
        self.results: dict[int, Published] = {}
        self._swarm = swarm
        self._records: dict[str, RoundRecord] = {}  # by chain hash
        self._accepted: dict[str, set[str]] = {}  # chain hash -> voters that ever journaled it
        self._decided_in: dict[int, int] = {}  # round -> term
        self._leaders: dict[tuple[int, tuple[str, ...]], tuple[str, int]] = {}
        self._votes: dict[tuple[str, int], str] = {}
        self._newest: dict[str, tuple[int, int]] = {}  # name -> journaled term and round
        self._counted: dict[tuple[str, int, int], int] = {}  # (peer, unit, shard) -> round
        self._admitted: dict[tuple[str, int, int], frozenset[str]] = {}  # (leader, term, round)
        self._open_since: dict[tuple[str, int, int, int], float] = {}

    def complain(self, text: str) -> None:
        if len(self.violations) < 20:
            self.violations.append(f"{self._swarm.clock.now:.3f} {text}")

    @property
    def newest(self) -> int:
        return max(self.committed, default=0)

    # --- every step ---------------------------------------------------------------------------------------------------

    def started(self, machine: "Machine") -> None:
        assert machine.node is not None, "it starts"
        self._journaled(machine, machine.node.voter.hard_state)

    def stepped(self, machine: "Machine", before: Node, after: Node) -> None:
        hard_state = after.voter.hard_state
        if machine.disk.hard_state != hard_state:
            self.complain(f"{machine.name} acts on what its journal has not: {hard_state}")
        if hard_state is not before.voter.hard_state:
            if before.voter.leads or after.voter.leads:  # it accepts and decides in one step where it is alone
                self._accepted.setdefault(hard_state.base.chain, set()).add(machine.name)
            self._journaled(machine, hard_state)
            if after.voter.leads and hard_state.tail is not None and hard_state.tail != before.voter.hard_state.tail:
                self._proposes(machine, hard_state.term, hard_state.tail)
        if after.voter.leads and not (before.voter.leads and before.voter.term == after.voter.term):
            self._leads(machine, after)
        if after.peer.applied >= 0 and after.peer.applied != before.peer.applied:
            self._commits(machine, after.peer.applied, after.peer.chain, 0)
        plan = after.leader_role.plan if after.leader_role is not None else None
        if plan is not None and (before.leader_role is None or before.leader_role.plan is None):
            self.opened.append((self._swarm.clock.now, machine.name, plan.round))

    def _journaled(self, machine: "Machine", hard_state: HardState) -> None:
        term, round = self._newest.get(machine.name, (0, 0))
        if hard_state.term < term or hard_state.base.round < round:
            self.complain(f"{machine.name} went back from term {term}, round {round} to {hard_state}")
        self._newest[machine.name] = (hard_state.term, hard_state.base.round)
        if hard_state.voted_for:
            vote = self._votes.setdefault((machine.name, hard_state.term), hard_state.voted_for)
            if vote != hard_state.voted_for:
                self.complain(f"{machine.name} voted for {vote} and {hard_state.voted_for} in term {hard_state.term}")
        if hard_state.tail is not None:
            self._records.setdefault(hard_state.tail.chain, hard_state.tail)
            self._accepted.setdefault(hard_state.tail.chain, set()).add(machine.name)
            if hard_state.tail.parent != hard_state.base.chain or hard_state.tail.round != hard_state.base.round + 1:
                self.complain(f"{machine.name} accepted {hard_state.tail} after {hard_state.base}")
            if machine.disk.find(hard_state.tail.round, hard_state.tail.chain) is None:
                self.complain(f"{machine.name} accepted round {hard_state.tail.round} without its bytes")
        self._records.setdefault(hard_state.base.chain, hard_state.base)
        self._commits(machine, hard_state.base.round, hard_state.base.chain, hard_state.term)

    def _leads(self, machine: "Machine", node: Node) -> None:
        key = (node.voter.term, node.voter.voters)
        leader = self._leaders.setdefault(key, (machine.name, machine.life))
        if leader != (machine.name, machine.life):
            self.complain(f"{machine.name} and {leader[0]} lead term {key[0]} under {key[1]}")
        if machine.name not in node.voter.voters:
            self.complain(f"{machine.name} leads and is no voter of {key[1]}")

    def _proposes(self, machine: "Machine", term: int, record: RoundRecord) -> None:
        known = self.committed.get(record.round)
        if known is not None and known != record.chain and term >= self._decided_in.get(record.round, 0):
            self.complain(
                f"{machine.name} in term {term} proposes another round {record.round} than the one that stands"
            )

    def _commits(self, machine: "Machine", round: int, chain: str, term: int) -> None:
        if round == 0:
            return
        known = self.committed.get(round)
        if known is not None:
            if known != chain:
                self.complain(f"FORK: round {round} is {known}, and {chain} at {machine.name}")
            return
        self.committed[round] = chain
        self.committed_at[round] = self._swarm.clock.now
        self._decided_in[round] = term
        self._check_majority(machine, round, chain)
        record = self._records.get(chain)
        if record is not None and self.committed.get(round - 1, record.parent) != record.parent:
            self.complain(f"FORK: round {round} does not follow round {round - 1}")
        published = machine.disk.find(round, chain)
        if published is None:
            self.complain(f"round {round} stands first at {machine.name}, which has no bytes of it")
            return
        self.results[round] = published
        self.void_shards[round] = sum(result.is_void for result in published.results)
        self._count(round, published)
        self._swarm.end_round(round)

    def _check_majority(self, machine: "Machine", round: int, chain: str) -> None:
        record = self._records.get(chain)
        before = self._records.get(record.parent) if record is not None else None
        if before is None:
            self.complain(f"round {round} stands at {machine.name} and was accepted by nobody")
        elif not is_majority(self._accepted.get(chain, set()), before.voters):
            holders = sorted(self._accepted.get(chain, set()))
            self.complain(f"round {round} stands, accepted by {holders} of {before.voters}")

    def _count(self, round: int, published: Published) -> None:
        """Check that no unit of work is in two committed rounds."""
        for shard, result in enumerate(published.results):
            if result.is_void:
                continue
            body: Mapping[str, Units] = dict(self._swarm.bodies[result.digest])
            if set(body) != result.included:
                self.complain(f"shard {shard} of round {round} is of others than it says")
            for peer, units in body.items():
                for unit in units:
                    counted = self._counted.setdefault((peer, unit, shard), round)
                    if counted != round:
                        self.complain(f"unit {unit} of {peer}, shard {shard}, is in rounds {counted} and {round}")

    def sent(self, machine: "Machine", to: str, message: pt.Message) -> None:
        if isinstance(message, pt.Close):
            key = (machine.name, message.term, message.round)
            self._admitted[key] = self._admitted.get(key, frozenset()) | message.admitted

    def sealing(self, machine: "Machine", seal: pt.Seal) -> None:
        """Check that a leader publishes the work of no peer that it has not admitted."""
        assert machine.node is not None, "it seals"
        role = machine.node.leader_role
        admitted = self._admitted.get((machine.name, machine.node.voter.term, seal.round), frozenset())
        admitted |= frozenset(role.contacts) if role is not None else frozenset()
        for result in seal.results:
            if not result.included <= admitted:
                self.complain(f"{machine.name} seals {sorted(result.included - admitted)}, whom it never admitted")

    def uploads(self, machine: "Machine", upload: pt.Upload) -> None:
        self.uploaded.append((self._swarm.clock.now, machine.name, upload.round))
        if not self._swarm.machines[upload.reducer.node].is_dialable:
            self.complain(f"{machine.name} sends a shard to {upload.reducer.node}, which cannot be dialled")

    # --- every second -------------------------------------------------------------------------------------------------

    def look(self, machine: "Machine", is_disturbed: bool, most: float) -> None:
        """Check that an open round ends in time where there is no fault."""
        node = machine.node
        if node is None or node.leader_role is None or node.leader_role.plan is None or not node.voter.leads:
            return
        now, plan = self._swarm.clock.now, node.leader_role.plan
        key = (machine.name, machine.life, node.voter.term, plan.round)
        if is_disturbed or not (node.leader_role.state.members or node.leader_role.state.arrivals):
            self._open_since[key] = now
        elif now - self._open_since.setdefault(key, now) > most:
            self._open_since[key] = float("inf")
            self.complain(f"round {plan.round} of {machine.name} is open for {most:.0f} s: {node.leader_role.state}")

    # --- at the end ---------------------------------------------------------------------------------------------------

    def check_memory(self, machine: "Machine", names: int, shards: int) -> None:
        if machine.process is None:
            return
        node = machine.process.node
        sizes = {"sent": (len(node.progress.sent), shards), "sending": (len(node.progress.sending), shards)}
        if node.leader_role is not None:
            sizes["contacts"] = (len(node.leader_role.contacts), names)
            sizes["held polls"] = (len(node.leader_role.held_polls), names)
            sizes["members"] = (len(node.leader_role.state.members), names)
            sizes["arrivals"] = (len(node.leader_role.state.arrivals), names)
        sizes["held"] = (len(node.reducer.held), names * shards)
        sizes["done"] = (len(node.reducer.done), shards)
        sizes["contributions"] = (len(machine.process.held), names * shards)
        sizes["answers"] = (len(node.voter.answered_at), names)
        for what, (size, most) in sizes.items():
            if size > most:
                self.complain(f"{machine.name} keeps {size} {what}, more than {most}")
