"""Which node reduces which shard, and which nodes vote. Pure functions.

A shard goes to the node that ranks highest for it by rendezvous hashing (Thaler and Ravishankar, "Using name-based
mappings to increase hit rates", 1998) among those that are not yet full (Mirrokni, Thorup and Zadimoghaddam,
"Consistent hashing with bounded loads", 2018). Whoever knows the nodes finds the same answer, and nodes get about the
same.
"""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from fractions import Fraction

SLACK = Fraction(5, 4)  # a node takes up to this many times its even share, or one shard
MOST_VOTERS = 5


def assign(sizes: Sequence[int], nodes: Collection[str], kept: Mapping[int, str] | None = None) -> tuple[str, ...]:
    """Return the reducer of every shard.

    sizes: bytes of a contribution, by shard; the larger shards choose first. kept: shards that stay where they are, as
    far as their node is among ``nodes``. Raises ValueError without nodes.
    """
    if not nodes:
        raise ValueError("0 nodes can reduce; at least the leader must.")
    reducers = {shard: node for shard, node in (kept or {}).items() if node in nodes}
    loads = dict.fromkeys(nodes, 0)
    for shard, node in reducers.items():
        loads[node] += sizes[shard]
    limit = SLACK * sum(sizes) / len(nodes)
    for shard in sorted(set(range(len(sizes))) - reducers.keys(), key=lambda s: (-sizes[s], s)):
        order = sorted(nodes, key=lambda node: (_weight(shard, node), node), reverse=True)
        fits = [node for node in order if loads[node] == 0 or loads[node] + sizes[shard] <= limit]
        node = fits[0] if fits else min(order, key=lambda n: loads[n])
        reducers[shard] = node
        loads[node] += sizes[shard]
    return tuple(reducers[shard] for shard in range(len(sizes)))


def _weight(shard: int, node: str) -> bytes:
    return hashlib.blake2b(f"{shard}/{node}".encode(), digest_size=8).digest()


def next_voters(voters: Collection[str], serving: Sequence[str], first: str) -> tuple[str, ...]:
    """Return the voters that the next record names: an odd number of ``serving``, or ``voters`` if nobody serves.

    serving: nodes that can be dialled and are up to date, the longest-serving first. first: the coordinator, which is
    preferred to all others. A fourth voter would make a majority no easier to reach. Voters that serve stay voters, so
    that the set changes as seldom as possible.
    """
    if not serving:
        return tuple(sorted(voters))
    size = min(MOST_VOTERS, len(serving) - 1 + len(serving) % 2)
    order = sorted(serving, key=lambda node: (node != first, node not in voters))  # stable: by service within each
    return tuple(sorted(order[:size]))
