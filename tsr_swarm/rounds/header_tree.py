"""Who has the header of a round from whom: it goes from a few nodes to many, as in a tree. Pure.

Each node finds its place in the order of hashes; with every round it is another one.
"""

import hashlib
from collections.abc import Sequence

MOST_GIVERS = 2  # that are asked for a header before whoever else may have it
BRANCHES = 4  # nodes that made shards to which one of them gives the header on


def header_givers(peer: str, chain: str, sources: Sequence[str]) -> list[str]:
    """Whom ``peer`` asks for the header of the round of this chain hash, of those who made its shards.

    They hand it on among themselves as in a tree, whose first few find nobody here and ask elsewhere; everybody else
    asks some of them. With every round others, so that each of them gives it to about as many.
    """
    nodes = set(sources)
    if peer not in nodes:
        return sorted(nodes, key=lambda node: _order(f"{chain}/{peer}/{node}"))[:MOST_GIVERS]
    tree = sorted(nodes, key=lambda node: _order(f"{chain}/{node}"))
    place = tree.index(peer)
    return [tree[place // BRANCHES - 1]] if place >= BRANCHES else []


def _order(text: str) -> bytes:
    return hashlib.blake2b(text.encode()).digest()
