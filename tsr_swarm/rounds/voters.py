"""Who should decide from the next round on. Pure."""

from collections.abc import Collection, Sequence

MOST = 5


def next_voters(voters: Collection[str], serving: Sequence[str], first: str) -> tuple[str, ...]:
    """The voters that the next record names.

    ``serving``: nodes that can be dialled and are up to date, the longest-serving first. ``first`` is kept before all
    others: the coordinator. An odd number, since a fourth voter makes a majority no easier to reach; those that are
    there stay, so that voters change as seldom as can be. With nobody serving, they stay too.
    """
    if not serving:
        return tuple(sorted(voters))
    size = min(MOST, len(serving) - 1 + len(serving) % 2)
    order = sorted(serving, key=lambda node: (node != first, node not in voters))  # stable: by service within each
    return tuple(sorted(order[:size]))
