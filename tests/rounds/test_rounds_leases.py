"""Leases of parts of the data: each part is trained on once an epoch, whoever joins, leaves, or falls silent."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tsr_swarm.rounds import leases as ls
from tsr_swarm.rounds.leases import LEASE_SECONDS, Coverage, Lease, LeaseRequest, Leases

NAMES = [f"peer-{number}" for number in range(1, 7)]


def request(number: int, parts: int, wish: Lease | None = None) -> LeaseRequest:
    return LeaseRequest(f"peer-{number}", (number - 1) % parts, wish)


class Swarm(RuleBasedStateMachine):
    """Peers come, go, fall silent and finish parts, in any order; leaders follow each other."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = 4
        self.now = 0.0
        self.here: set[int] = set()
        self.leases = Leases(self.parts)
        self.finished: list[Lease] = []
        self.reached = (1, 0)

    @rule(parts=st.integers(1, 9))
    @precondition(lambda self: not self.leases.held and not self.finished)
    def begin(self, parts: int) -> None:
        self.parts, self.leases = parts, Leases(parts)

    @rule(number=st.integers(1, 6))
    def come(self, number: int) -> None:
        self.here.add(number)

    @rule(number=st.integers(1, 6))
    def leave(self, number: int) -> None:
        self.here.discard(number)
        self.leases = ls.release(self.leases, f"peer-{number}")

    @rule()
    def open(self) -> None:
        before = dict(self.leases.held)
        self.leases = ls.grant(self.leases, [request(number, self.parts) for number in sorted(self.here)], self.now)
        assert before.items() <= self.leases.held.items(), "no peer loses its lease by it"

    @rule(data=st.data())
    @precondition(lambda self: bool(self.leases.held))
    def finish(self, data: st.DataObject) -> None:
        peers = data.draw(st.sets(st.sampled_from(sorted(self.leases.held)), min_size=1))
        self.finished += [self.leases.held[peer].lease for peer in sorted(peers)]
        self.leases = ls.complete(self.leases, peers)
        assert not peers & self.leases.held.keys()

    @rule(seconds=st.floats(0, LEASE_SECONDS), data=st.data())
    def wait(self, seconds: float, data: st.DataObject) -> None:
        """Some report their leases meanwhile; the leases of the others end."""
        reporting = data.draw(st.sets(st.sampled_from(NAMES)))
        self.now += seconds
        held = self.leases.held
        self.leases = ls.renew(self.leases, {peer: (held[peer].lease, self.now) for peer in reporting if peer in held})
        self.leases = ls.expire(self.leases, self.now)
        assert all(peer in self.leases.held for peer in reporting if peer in held)

    @rule(data=st.data())
    def change_leader(self, data: st.DataObject) -> None:
        """The next leader knows what is done; peers that come to it report what they hold."""
        before = self.leases
        self.leases = Leases(self.parts, before.coverage)
        self.here = data.draw(st.sets(st.sampled_from(sorted(self.here)))) if self.here else set()
        came = [
            request(number, self.parts, held.lease if (held := before.held.get(f"peer-{number}")) else None)
            for number in sorted(self.here)
        ]
        self.leases = ls.grant(self.leases, came, self.now)
        kept = {one.peer: before.held[one.peer].lease for one in came if one.peer in before.held}
        assert kept == {peer: self.leases.held[peer].lease for peer in kept}

    @invariant()
    def no_two_peers_have_the_same_lease_and_none_has_one_that_is_done(self) -> None:
        held = [one.lease for one in self.leases.held.values()]
        assert len(held) == len(set(held))
        assert not any(self.leases.coverage.has(lease) for lease in held)
        epoch = self.leases.coverage.epoch
        assert all(lease.epoch in (epoch, epoch + 1) and 0 <= lease.part < self.parts for lease in held)

    @invariant()
    def each_part_is_done_once_an_epoch_and_coverage_never_falls(self) -> None:
        assert len(self.finished) == len(set(self.finished))
        coverage = self.leases.coverage
        assert len(coverage.done) < self.parts
        assert (coverage.epoch, len(coverage.done)) >= self.reached
        self.reached = coverage.epoch, len(coverage.done)
        assert coverage.done == {lease.part for lease in self.finished if lease.epoch == coverage.epoch}
        assert coverage.ahead == {lease.part for lease in self.finished if lease.epoch == coverage.epoch + 1}
        assert len({lease for lease in self.finished if lease.epoch < coverage.epoch}) == self.parts * (
            coverage.epoch - 1
        ), "an epoch is over when all of it is done"


TestSwarm = Swarm.TestCase
TestSwarm.settings = settings(max_examples=60, stateful_step_count=40)


@given(parts=st.integers(1, 12) | st.none(), peers=st.integers(1, 8), data=st.data())
def test_all_parts_are_covered_in_every_epoch_whoever_finishes_first(
    parts: int | None, peers: int, data: st.DataObject
) -> None:
    """No order leaves a part unread, or lets a peer run far ahead. ``parts`` None: one each, for ever."""
    leases = Leases(parts or peers)
    everybody = [request(number, leases.parts) for number in range(1, peers + 1)]
    for _ in range(leases.parts * 6):
        leases = ls.grant(leases, everybody, 0.0)
        assert leases.held, "somebody always has something to do"
        if parts is None:
            assert all(leases.held[one.peer].lease.part == one.home for one in everybody if one.peer in leases.held)
        some = data.draw(st.sets(st.sampled_from(sorted(leases.held))))
        oldest = min(leases.held, key=lambda peer: leases.held[peer].lease)
        leases = ls.complete(leases, some if parts is None else some | {oldest})
    assert parts is None or leases.coverage.epoch >= 4


def test_two_peers_share_out_four_parts() -> None:
    leases, both = Leases(4), [request(1, 4), request(2, 4)]
    for first in (0, 2):
        leases = ls.grant(ls.complete(leases, {"peer-1", "peer-2"}), both, 0.0)
        assert [leases.held[one.peer].lease for one in both] == [Lease(1, first), Lease(1, first + 1)]
    leases = ls.grant(ls.complete(leases, {"peer-2"}), both, 0.0)
    assert leases.held["peer-2"].lease == Lease(2, 1), "nothing is left of the first epoch"
    leases = ls.complete(leases, {"peer-1"})
    assert leases.coverage == Coverage(2)


def test_the_part_of_a_peer_that_left_passes_on_and_it_gets_another_when_it_returns() -> None:
    leases = ls.grant(Leases(3), [request(1, 3), request(2, 3)], 0.0)
    leases = ls.complete(ls.release(leases, "peer-2"), {"peer-1"})
    leases = ls.grant(leases, [request(1, 3)], 1.0)
    assert leases.held["peer-1"].lease == Lease(1, 1)
    leases = ls.grant(leases, [request(1, 3), request(2, 3, wish=Lease(1, 1))], 2.0)
    assert leases.held["peer-2"].lease == Lease(1, 2)


def test_a_peer_that_reports_another_lease_loses_its_own() -> None:
    leases = ls.grant(Leases(2), [request(1, 2)], 0.0)
    leases = ls.renew(leases, {"peer-1": (Lease(1, 1), 20.0)})
    assert ls.expire(leases, LEASE_SECONDS - 0.1).held
    assert not ls.expire(leases, LEASE_SECONDS).held


def test_more_peers_than_parts_train_in_two_epochs_and_the_last_wait_until_a_part_is_free() -> None:
    five = [request(number, 2) for number in range(1, 6)]
    leases = ls.grant(Leases(2), five, 0.0)
    expected = {"peer-1": Lease(1, 0), "peer-2": Lease(1, 1), "peer-3": Lease(2, 0), "peer-4": Lease(2, 1)}
    assert {peer: held.lease for peer, held in leases.held.items()} == expected
    leases = ls.grant(ls.release(leases, "peer-1"), five[1:], 0.0)
    assert leases.held["peer-5"].lease == Lease(1, 0)


@pytest.mark.parametrize("wish", [Lease(3, 0), Lease(0, 0), Lease(1, 9), Lease(1, -1), Lease(1, 2)])
def test_a_report_of_a_lease_that_cannot_be_given_is_ignored(wish: Lease) -> None:
    leases = Leases(4, Coverage(1, frozenset({2})))
    assert ls.grant(leases, [request(1, 4, wish)], 0.0).held["peer-1"].lease == Lease(1, 0)


some_parts = st.frozensets(st.integers(0, 3), max_size=3)
coverages = st.builds(Coverage, st.integers(1, 4), some_parts, some_parts)


@given(one=coverages, other=coverages)
def test_two_accounts_make_one_that_has_all_of_both(one: Coverage, other: Coverage) -> None:
    both = ls.merged(one, other, 4)
    assert both == ls.merged(other, one, 4)
    assert both == ls.merged(both, one, 4)
    leases = [Lease(epoch, part) for epoch in range(1, 8) for part in range(4)]
    assert {lease for lease in leases if one.has(lease) or other.has(lease)} <= {
        lease for lease in leases if both.has(lease)
    }
