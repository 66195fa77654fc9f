"""A node's cache of rounds does not grow, whatever it is told, and newer terms take the place of older ones."""

from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from tests.published_rounds import History, plan_of, small_manifest
from tsr_swarm.node.round_cache import KEPT_ROSTERS, KEPT_ROUNDS, ReducedShard, RoundCache
from tsr_swarm.wire.roster import Members

REDUCER, STRANGER = "b" * 32, "c" * 32
MANIFEST = small_manifest()
ROUNDS = range(1, 12)
TERMS = range(1, 5)

told = st.tuples(st.sampled_from(["plan", "close"]), st.sampled_from(ROUNDS), st.sampled_from(TERMS))


def parent(round: int) -> str:
    return f"{round:064x}" if round > 1 else ""


@given(story=st.lists(told, max_size=40))
def test_only_the_newest_rounds_and_terms_are_kept(story: list[tuple[str, int, int]]) -> None:
    round_cache, newest, terms = RoundCache(), 0, dict[int, int]()
    for kind, round, term in story:
        if kind == "plan":
            round_cache.add_plan(plan_of(MANIFEST, round, parent(round)))
            newest = round
        elif round_cache.plan(round, parent(round)) is not None:  # anybody can name rounds that nobody announced
            terms[round] = max(term, terms.get(round, 0))
        if kind == "close":
            round_cache.add_close(round, term, Members.of({REDUCER: term}))
        terms = {round: term for round, term in terms.items() if round > newest - KEPT_ROUNDS}
    known = [round for round in ROUNDS if round_cache.plan(round, parent(round)) is not None]
    assert all(round > newest - KEPT_ROUNDS for round in known)
    assert newest in known or not newest
    for round, term in product(ROUNDS, TERMS):
        assert round_cache.numbers(round, term) == ({REDUCER: term} if terms.get(round) == term else {})


def test_members_are_found_that_include_all_peers_of_a_shard() -> None:
    """Somebody may have gone since the shard was closed first."""
    round_cache = RoundCache()
    round_cache.add_plan(plan_of(MANIFEST))
    both, one = Members.of({REDUCER: 1, STRANGER: 2}), Members.of({STRANGER: 2})
    for members in (both, one, both, one):
        round_cache.add_close(1, 3, members)
    assert round_cache.numbers(1, 3) == one.numbers
    assert round_cache.members(1, 3, {STRANGER}) == one
    assert round_cache.members(1, 3, {REDUCER}) == both
    assert round_cache.members(1, 3, {"d" * 32}) is None
    assert round_cache.members(1, 2, {STRANGER}) is None
    for number in range(1, 3 * KEPT_ROSTERS):
        round_cache.add_close(1, 3, Members.of({REDUCER: number}))
    assert round_cache.members(1, 3, {STRANGER}) is None
    round_cache.add_close(1, 4, one)
    assert round_cache.members(1, 4, {REDUCER}) is None, "that was of an older term"


def test_bytes_of_shards_go_with_their_round(history: History) -> None:
    round_cache, reduced = RoundCache(), ReducedShard(history.at(1).header.shards[0])
    round_cache.add_reduced_shard(1, 0, reduced, b"bytes")
    for round in range(1, KEPT_ROUNDS + 1):
        assert round_cache.reduced_shard(1, 0, reduced.decided) is not None
        round_cache.add_plan(plan_of(MANIFEST, round, parent(round)))
    round_cache.add_plan(plan_of(MANIFEST, KEPT_ROUNDS + 1, parent(KEPT_ROUNDS + 1)))
    assert round_cache.reduced_shard(1, 0, reduced.decided) is None
