"""Who trains on which part of the shared data, and how much of it was trained on. Pure functions.

In each epoch every part is leased once. A peer gets its home part first, which nobody with another home takes while it
is here: as many peers as parts train on the same parts for ever. Fewer peers share the other parts. A peer that finds
no part left goes on with the next epoch, but never with the one after; a peer that finds none there either, as the last
of many more peers than parts, trains on its home part without a lease, which counts for no part.

A lease passes on when its holder leaves, or has not reported it for LEASE_SECONDS. Only work that the holder has not
contributed is lost with it. Times are of any one clock, in seconds.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

MAX_PARTS = 8192  # of more parts no account is kept: every peer stays with its home part
LEASE_SECONDS = 30.0  # without a report of its holder, which calls every two seconds


@dataclass(frozen=True, slots=True, order=True)
class Lease:
    """The right to train on one part, counted from 0, in one epoch, counted from 1."""

    epoch: int
    part: int


@dataclass(frozen=True, slots=True)
class Coverage:
    """The parts that are done in the current epoch, and those of the next one, which some have begun."""

    epoch: int = 1
    done: frozenset[int] = frozenset()
    ahead: frozenset[int] = frozenset()

    def has(self, lease: Lease) -> bool:
        """Return whether this part of this epoch is done."""
        parts = self.done if lease.epoch == self.epoch else self.ahead
        return lease.epoch < self.epoch or (lease.epoch <= self.epoch + 1 and lease.part in parts)


NOTHING_DONE = Coverage()


@dataclass(frozen=True, slots=True)
class HeldLease:
    """One peer's lease, and when it ends unless the peer reports it."""

    lease: Lease
    until: float


@dataclass(frozen=True, slots=True)
class Leases:
    """All leases of a run's data, which has ``parts`` parts. A peer holds one at most."""

    parts: int
    coverage: Coverage = NOTHING_DONE
    held: Mapping[str, HeldLease] = field(default_factory=dict)  # by peer


@dataclass(frozen=True, slots=True)
class LeaseRequest:
    """Of a peer that trains on shared data. ``wish``: the lease that it reports, which may be of an earlier leader."""

    peer: str
    home: int
    wish: Lease | None = None


def grant(leases: Leases, requests: Sequence[LeaseRequest], now: float) -> Leases:
    """Grant a lease to each of ``requests`` whose peer has none, as far as there are any; the first choose first.

    ``requests`` are those of all peers that are here. A peer keeps the lease that it reports, if nobody else has it.
    """
    coverage, held = leases.coverage, dict(leases.held)
    taken = {one.lease for one in held.values()}
    homes = {request.home for request in requests}
    epochs = (coverage.epoch, coverage.epoch + 1)

    def is_free(lease: Lease) -> bool:
        is_open = lease.epoch in epochs and 0 <= lease.part < leases.parts and not coverage.has(lease)
        return is_open and lease not in taken

    def hold(peer: str, lease: Lease) -> None:
        held[peer] = HeldLease(lease, now + LEASE_SECONDS)
        taken.add(lease)

    for request in requests:
        if request.peer not in held and request.wish is not None and is_free(request.wish):
            hold(request.peer, request.wish)
    homeless = [part for part in range(leases.parts) if part not in homes]
    pools = {epoch: iter([free for part in homeless if is_free(free := Lease(epoch, part))]) for epoch in epochs}
    for request in requests:
        if request.peer in held:
            continue
        for epoch in epochs:
            home = Lease(epoch, request.home)
            lease = home if is_free(home) else next(pools[epoch], None)
            if lease is not None:
                hold(request.peer, lease)
                break
    return replace(leases, held=held)


def renew(leases: Leases, reports: Mapping[str, tuple[Lease | None, float]]) -> Leases:
    """Extend the leases that their holders report.

    reports: by peer, the lease and the time of its report. One that reports another lease does not know its own yet.
    """
    held = dict(leases.held)
    for peer, one in leases.held.items():
        lease, at = reports.get(peer, (None, 0.0))
        if lease == one.lease:
            held[peer] = HeldLease(lease, max(one.until, at + LEASE_SECONDS))
    return replace(leases, held=held)


def complete(leases: Leases, peers: Collection[str]) -> Leases:
    """Mark what these peers hold as done. When all parts of an epoch are, the next epoch becomes the current one."""
    coverage = leases.coverage
    finished = {leases.held[peer].lease for peer in peers if peer in leases.held}
    done = coverage.done | {lease.part for lease in finished if lease.epoch == coverage.epoch}
    ahead = coverage.ahead | {lease.part for lease in finished if lease.epoch == coverage.epoch + 1}
    held = {peer: one for peer, one in leases.held.items() if peer not in peers}
    return replace(leases, coverage=_current(Coverage(coverage.epoch, done, ahead), leases.parts), held=held)


def release(leases: Leases, peer: str) -> Leases:
    """End the lease of a peer that is gone."""
    return replace(leases, held={other: one for other, one in leases.held.items() if other != peer})


def expire(leases: Leases, now: float) -> Leases:
    """End the leases that were not reported for too long."""
    return replace(leases, held={peer: one for peer, one in leases.held.items() if now < one.until})


def merged(one: Coverage, other: Coverage, parts: int) -> Coverage:
    """Return what is done by either account: each of two leaders in turn may know of parts that the other does not."""
    if one.epoch > other.epoch:
        one, other = other, one
    if one.epoch == other.epoch:
        other = Coverage(one.epoch, one.done | other.done, one.ahead | other.ahead)
    elif one.epoch + 1 == other.epoch:
        other = replace(other, done=one.ahead | other.done)
    return _current(other, parts)


def _current(coverage: Coverage, parts: int) -> Coverage:
    while len(coverage.done) >= parts:
        coverage = Coverage(coverage.epoch + 1, coverage.ahead)
    return coverage
