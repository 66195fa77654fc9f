"""A reducer's store: its averages are the bytes that anybody would make, and it forgets what is not needed any more."""

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache, partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import published_rounds
from tests.fixtures import tiny_model
from tests.published_rounds import publish, random_grids
from tests.steady import steady, wide
from tests.wire.examples import refusal_of
from tsr_swarm.config.layout import Part, upload_slots
from tsr_swarm.config.manifest import make_manifest
from tsr_swarm.config.round_plan import RoundPlan
from tsr_swarm.config.run import PeriodsConfig, RoundConfig, RunConfig
from tsr_swarm.errors import PeerError, RunError
from tsr_swarm.exchange.contribution import pack
from tsr_swarm.exchange.reduction import Published, WeightedPayload, seal
from tsr_swarm.lowrank.grid import dense_grid
from tsr_swarm.lowrank.sketch import Captured
from tsr_swarm.node import contribution_store
from tsr_swarm.node.contribution_store import ContributionStore, ShardAverage
from tsr_swarm.optim.consensus import Consensus
from tsr_swarm.optim.outer_step import OuterState, pack_outer, rotate_outer
from tsr_swarm.train.llama import parameter_shapes
from tsr_swarm.train.trainer import RoundWork, fresh_consensus
from tsr_swarm.wire.messages import ContributionHeader, PublishedHeader, ShardResult

SHARDS = 3
NUMBERS = {letter * 32: number for number, letter in enumerate("cabd", 1)}  # not in the order of the ids
PEERS = tuple(NUMBERS)
CONFIG = RunConfig(
    model=tiny_model(hidden_size=16, intermediate_size=24),
    optimizer=steady(outer="nesterov", outer_momentum=0.5, rank=8, embedding_rank=8),
    wire=wide(published_bits=3),
    periods=PeriodsConfig(k_x=3, k_r=6, k_r_embedding=6),
    round=RoundConfig(shards=SHARDS),
)  # so few bits that much is dropped; the bases change in rounds 1 and 3
MANIFEST = make_manifest("store", CONFIG, parameter_shapes(CONFIG.model))
SHARD_BLOCKS = MANIFEST.shard_blocks
plan_of = partial(published_rounds.plan_of, MANIFEST)


@cache
def start() -> Consensus:
    """Round 0, which nobody changes."""
    return fresh_consensus(MANIFEST)


@cache
def work_of(peer: str, round: int, parent: str) -> RoundWork:
    """Seeded noise, of as many tokens as the peer's number says."""
    plan = plan_of(round, parent)
    number = NUMBERS[peer]
    generator = torch.Generator().manual_seed(100 * round + number)
    grids = random_grids(upload_slots(MANIFEST.blocks, plan.due, MANIFEST.config.wire), generator, 0.01)
    captured = {
        index: Captured(number / 8, float(index)) for index, block in enumerate(MANIFEST.blocks) if block.is_low_rank
    }
    return RoundWork(plan, plan.steps, number, float(number), grids, captured)


def opened(*peers: str) -> tuple[ContributionStore, RoundPlan]:
    """A store that holds of round 1, which is open, what these peers sent of shard 0."""
    store, plan = ContributionStore(MANIFEST, {}), plan_of(1, "")
    store.open_round(plan)
    for peer in peers:
        upload(store, peer, 0, plan)
    return store, plan


def hashes_of(done: ShardAverage) -> list[bytes]:
    return [section.hash for section in done.reduced.result.sections]


def upload(store: ContributionStore, peer: str, shard: int, plan: RoundPlan) -> None:
    header, data = pack(MANIFEST, peer, work_of(peer, plan.round, plan.parent), shard, SHARD_BLOCKS[shard])
    store.add(header, store.check(header).decode(data))


def average(store: ContributionStore, plan: RoundPlan, shard: int, peers: Sequence[str], at: Consensus) -> ShardAverage:
    done = store.job(plan.round, shard, frozenset(peers), NUMBERS).run(at.bases)
    store.keep(done)
    return done


def reduced(
    plan: RoundPlan, here: Mapping[int, Sequence[str]], at: Consensus, outer: OuterState
) -> tuple[Published, OuterState]:
    """The same round by one reducer of everything. ``here``: by shard, whose contributions arrived."""
    contributions = [
        {
            peer: WeightedPayload(NUMBERS[peer], NUMBERS[peer], work_of(peer, plan.round, plan.parent).grids)
            for peer in here.get(shard, ())
        }
        for shard in range(SHARDS)
    ]
    return publish(MANIFEST, plan, contributions, at.bases, outer)


def packed(outer: OuterState) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in pack_outer(outer, MANIFEST.blocks).items()}


def of_shards(outer: OuterState, shards: Sequence[int]) -> OuterState:
    return {block: outer[block] for shard in shards for block in SHARD_BLOCKS[shard] if block in outer}


class Network:
    """Stores that average the shards that they are given, round after round, from the same consensus."""

    def __init__(self, count: int) -> None:
        self.stores = [ContributionStore(MANIFEST, {}) for _ in range(count)]
        self.consensus = fresh_consensus(MANIFEST)
        self.round, self.chain = 0, ""

    def run(self, reducers: Sequence[int | None]) -> PublishedHeader:
        """One round in which shard i is averaged by reducers[i]; None: by nobody."""
        plan = plan_of(self.round + 1, self.chain)
        averages: list[ShardAverage | None] = []
        for store in self.stores:
            store.open_round(plan)
        for shard, reducer in enumerate(reducers):
            if reducer is None:
                averages.append(None)
                continue
            for peer in PEERS[:2]:
                upload(self.stores[reducer], peer, shard, plan)
            averages.append(average(self.stores[reducer], plan, shard, PEERS[:2], self.consensus))
        results = [ShardResult(void=True) if done is None else done.reduced.result for done in averages]
        header = seal(plan, SHARD_BLOCKS, results)
        here = {shard: PEERS[:2] for shard, done in enumerate(averages) if done is not None}
        grids = reduced(plan, here, self.consensus, self.outer())[0].grids
        refreshed = self.consensus.apply(plan, grids, Published(header, b"", grids).void)
        for store in self.stores:
            store.advance(header, refreshed)
        self.round, self.chain = plan.round, header.chain.hex()
        return header

    def outer(self) -> OuterState:
        return {block: kept for store in self.stores for block, kept in store.outer.items()}


@settings(max_examples=25)
@given(
    order=st.permutations([(peer, shard) for peer in PEERS for shard in range(SHARDS)]),
    absent=st.sets(st.tuples(st.sampled_from(PEERS), st.integers(0, SHARDS - 1)), max_size=8),
    owners=st.lists(st.integers(0, 1), min_size=SHARDS, max_size=SHARDS),
)
def test_two_stores_with_a_share_of_the_shards_publish_the_bytes_of_one_reduction(
    order: list[tuple[str, int]], absent: set[tuple[str, int]], owners: list[int]
) -> None:
    (first, plan), (second, _) = opened(), opened()
    stores, here = (first, second), {shard: list[str]() for shard in range(SHARDS)}
    for peer, shard in order:
        if (peer, shard) not in absent:
            upload(stores[owners[shard]], peer, shard, plan)
            here[shard].append(peer)

    averages = [average(stores[owners[shard]], plan, shard, here[shard], start()) for shard in range(SHARDS)]

    wanted, _ = reduced(plan, {shard: sorted(peers) for shard, peers in here.items()}, start(), {})
    assert seal(plan, SHARD_BLOCKS, [done.reduced.result for done in averages]) == wanted.header
    assert b"".join(done.frames for done in averages) == wanted.data


@given(peers=st.sets(st.sampled_from(PEERS), min_size=1))
@settings(max_examples=15)
def test_an_average_is_over_the_peers_that_are_asked_for(peers: set[str]) -> None:
    store, plan = opened(*PEERS)

    averaged = average(store, plan, 0, sorted(peers), start()).reduced

    order = sorted(peers, key=NUMBERS.__getitem__)
    assert averaged.result == reduced(plan, {0: order}, start(), {})[0].header.shards[0]
    assert averaged.result.included == tuple(sorted(peers))
    tokens = sum(NUMBERS[peer] for peer in peers)
    assert averaged.local_loss == pytest.approx(sum(NUMBERS[peer] ** 2 for peer in peers) / tokens)
    sent = [pack(MANIFEST, peer, work_of(peer, 1, ""), 0, SHARD_BLOCKS[0])[0].sections for peer in peers]
    assert averaged.raw_sent == sum(section.raw_bytes for sections in sent for section in sections)
    low_rank = [index for index in SHARD_BLOCKS[0] if MANIFEST.blocks[index].is_low_rank]
    assert sorted(averaged.captured) == low_rank
    kappa = sum(NUMBERS[peer] ** 2 / 8 for peer in peers) / tokens
    assert all(averaged.captured[index].kappa == pytest.approx(kappa) for index in low_rank)


def test_numbers_give_the_order_of_sums() -> None:
    store, _ = opened(*PEERS)
    backwards = {PEERS[0]: 3, PEERS[1]: 2, PEERS[2]: 1}
    job = store.job(1, 0, frozenset(PEERS[:3]), backwards)
    assert [held.header.peer_id for _, held in job.held] == [PEERS[2], PEERS[1], PEERS[0]]
    assert job.run(start().bases).reduced.result.included == tuple(sorted(PEERS[:3]))


def test_a_job_is_a_snapshot() -> None:
    store, plan = opened(PEERS[0])
    job = store.job(1, 0, frozenset(PEERS[:1]), NUMBERS)

    upload(store, PEERS[1], 0, plan)
    store.open_round(replace(plan, round=2, parent="ab" * 32))
    assert job.run(start().bases).reduced.result.included == (PEERS[0],)


def test_a_shard_is_void_where_work_that_was_counted_is_not_held() -> None:
    """Whether the rest is a quorum is for others to say."""
    store, plan = opened(PEERS[0])
    upload(store, PEERS[1], 1, plan)
    assert average(store, plan, 0, PEERS[:2], start()).reduced.result == ShardResult(void=True)
    upload(store, PEERS[1], 0, plan)
    assert average(store, plan, 0, PEERS[:2], start()).reduced.result.included == tuple(sorted(PEERS[:2]))
    assert store.job(1, 0, frozenset(PEERS[:2]), {PEERS[0]: 1}).run(start().bases).reduced.result.void


def test_a_step_that_is_not_finite_makes_its_shard_void_and_keeps_its_momentum() -> None:
    """Each number is a legal float32; the momentum takes them beyond."""
    network = Network(1)
    network.run([0] * SHARDS)
    store, before = network.stores[0], packed(network.outer())
    plan = plan_of(2, network.chain)
    store.open_round(plan)
    dense = next(index for index, block in enumerate(MANIFEST.blocks) if not block.is_low_rank)
    shard = next(shard for shard, blocks in enumerate(SHARD_BLOCKS) if dense in blocks)
    work = work_of(PEERS[0], 2, network.chain)
    absurd = {
        slot: dense_grid(torch.full((slot.rows, slot.cols), 3e38)) if slot.part is Part.DENSE else grid
        for slot, grid in work.grids.items()
    }
    header, data = pack(MANIFEST, PEERS[0], replace(work, grids=absurd), shard, SHARD_BLOCKS[shard])
    store.add(header, store.check(header).decode(data))

    done = average(store, plan, shard, PEERS[:1], network.consensus)
    assert done.reduced.result == ShardResult(void=True)
    assert done.frames == b""
    store.advance(seal(plan, SHARD_BLOCKS, [done.reduced.result] * SHARDS), {})
    assert packed(store.outer) == before


@pytest.mark.parametrize("reducers", [[0, 0, 0], [0, 1, 0], [2, 1, 0]])
def test_momentum_of_reducers_that_keep_their_shards_is_that_of_one_reduction(reducers: list[int]) -> None:
    network, consensus, chain = Network(3), fresh_consensus(MANIFEST), ""
    outer: OuterState = {}
    for round in range(1, 5):
        plan = plan_of(round, chain)
        wanted, after = reduced(plan, dict.fromkeys(range(SHARDS), PEERS[:2]), consensus, outer)
        outer = rotate_outer(after, consensus.apply(plan, wanted.grids, wanted.void), MANIFEST.config.optimizer)
        chain = wanted.header.chain.hex()

        assert network.run(reducers) == wanted.header
        assert packed(network.outer()) == packed(outer)
    for index, store in enumerate(network.stores):
        mine = [shard for shard, reducer in enumerate(reducers) if reducer == index]
        assert packed(store.outer) == packed(of_shards(outer, mine))


def test_momentum_of_a_shard_is_dropped_once_another_node_reduces_it() -> None:
    network = Network(2)
    network.run([0, 0, 0])
    assert of_shards(network.stores[0].outer, [1])
    network.run([0, 1, 0])

    first, second = network.stores
    assert not of_shards(first.outer, [1])
    assert of_shards(first.outer, [0])
    assert packed(second.outer) == packed(of_shards(second.outer, [1])) != {}


def test_momentum_of_a_void_shard_stays_even_where_it_was_averaged() -> None:
    """In round 4 the leader gave this reducer up: the shard is void, and its work stays with its peers."""
    network = Network(1)
    network.run([0, 0, 0])
    network.run([0, 0, 0])
    store, before = network.stores[0], network.stores[0].outer
    network.run([0, None, 0])
    after = store.outer
    assert all(after[block] is before[block] for block in of_shards(before, [1]))
    assert packed(of_shards(after, [0])) != packed(of_shards(before, [0]))

    plan = plan_of(4, network.chain)
    store.open_round(plan)
    upload(store, PEERS[0], 0, plan)
    assert not average(store, plan, 0, PEERS[:1], network.consensus).reduced.result.void
    store.advance(seal(plan, SHARD_BLOCKS, [ShardResult(void=True)] * SHARDS), {})
    assert all(store.outer[block] is after[block] for block in after)


def test_of_two_averages_of_a_shard_the_momentum_of_the_published_one_is_kept() -> None:
    """A second leader asked for it over more peers, and the proposal of the first one won."""
    store, plan = opened(PEERS[0])
    first = average(store, plan, 0, PEERS[:1], start())
    upload(store, PEERS[1], 0, plan)
    average(store, plan, 0, PEERS[:2], start())
    second = average(store, plan, 0, PEERS[:2], start())
    assert first.reduced.result != second.reduced.result
    for done in (first, second):
        assert store.frames(1, 0, hashes_of(done)) == (done.reduced.result.sections, done.frames)

    store.advance(seal(plan, SHARD_BLOCKS, [first.reduced.result, *[ShardResult(void=True)] * (SHARDS - 1)]), {})
    assert packed(store.outer) == packed(first.outer) != packed(second.outer)


def test_a_round_is_averaged_only_on_the_weights_that_it_starts_from() -> None:
    network = Network(1)
    header = network.run([0, 0, 0])
    store = network.stores[0]
    store.open_round(plan_of(2, "ab" * 32))
    with pytest.raises(RunError, match="other weights"):
        store.job(2, 0, frozenset(PEERS), NUMBERS)
    with pytest.raises(RunError, match="round 2 is the newest"):
        store.job(3, 0, frozenset(PEERS), NUMBERS)

    store.open_round(plan_of(2, header.chain.hex()))
    store.job(2, 0, frozenset(PEERS), NUMBERS)


def test_a_downloaded_state_drops_all_momentum() -> None:
    network = Network(1)
    network.run([0, 0, 0])
    store = network.stores[0]
    store.restore("ab" * 32)
    assert store.outer == {}
    store.open_round(plan_of(9, "ab" * 32))
    assert store.job(9, 0, frozenset(PEERS), NUMBERS).outer == {}


def with_average_and_contribution() -> tuple[ContributionStore, RoundPlan, ShardAverage]:
    """A store with an average of shard 0 and a contribution to shard 1, both of round 1."""
    store, plan = opened(PEERS[0])
    upload(store, PEERS[0], 1, plan)
    return store, plan, average(store, plan, 0, PEERS[:1], start())


@pytest.mark.parametrize("rate", [1.0, 1.0 + 1e-15])
def test_a_round_announced_again_keeps_what_is_held(rate: float) -> None:
    """Two leaders' cosines may differ in the last bit: what was sent counts for both."""
    store, plan, done = with_average_and_contribution()
    again = replace(plan, lr_first=plan.lr_first * rate)
    store.open_round(again)
    assert store.frames(1, 0, hashes_of(done)) is not None
    assert average(store, again, 1, PEERS[:1], start()).reduced.result.included == PEERS[:1]


@pytest.mark.parametrize("change", ["parent", "due"])
def test_a_round_announced_otherwise_drops_what_was_held(change: str) -> None:
    store, plan, done = with_average_and_contribution()
    late, data = pack(MANIFEST, PEERS[1], work_of(PEERS[1], 1, ""), 1, SHARD_BLOCKS[1])
    grids = store.check(late).decode(data)
    under_way = store.job(1, 1, frozenset(PEERS[:1]), NUMBERS)
    due = replace(plan.due, range=frozenset(), tangent=frozenset())
    other = replace(plan, parent="ab" * 32) if change == "parent" else replace(plan, due=due)
    store.open_round(other)
    store.add(late, grids)  # it was announced otherwise while its bytes came
    averaged = store.keep(under_way.run(start().bases))
    assert averaged.result.included == PEERS[:1]
    for shard, result in ((0, done.reduced.result), (1, averaged.result)):
        assert store.frames(1, shard, [section.hash for section in result.sections]) is None
    if change == "parent":
        store.restore("ab" * 32)
    for peer in PEERS[:2]:
        assert average(store, other, 1, [peer], start()).reduced.result.void
    store.advance(seal(plan, SHARD_BLOCKS, [done.reduced.result] * SHARDS), {})
    assert store.outer == {}


def test_an_older_announcement_changes_nothing() -> None:
    (store, plan), newer = opened(), plan_of(2, "ab" * 32)
    store.open_round(newer)
    upload(store, PEERS[0], 0, newer)
    store.open_round(replace(plan, steps=1))

    store.restore("ab" * 32)
    assert average(store, newer, 0, PEERS[:1], start()).reduced.result.included == PEERS[:1]


def contribution(plan: RoundPlan, shard: int = 0, **changes: object) -> ContributionHeader:
    header, _ = pack(MANIFEST, PEERS[0], work_of(PEERS[0], plan.round, plan.parent), 0, SHARD_BLOCKS[0])
    return replace(header, shard=shard, **changes)  # type: ignore[arg-type]


def test_contributions_that_do_not_belong_to_the_open_round_are_refused() -> None:
    store, parent = ContributionStore(MANIFEST, {}), "ab" * 32
    plans = [plan_of(round, parent if round > 1 else "") for round in range(1, 5)]
    with pytest.raises(PeerError, match="no round is open here"):
        store.check(contribution(plans[0]))
    store.open_round(plans[1])
    store.open_round(plans[2])
    refused = {
        "round": [contribution(plan) for plan in (plans[0], plans[1], plans[3])],
        "parent": [contribution(plans[2], parent=b"\xcd" * 32)],
        "shard": [contribution(plans[2], shard=SHARDS)],
        "manifest": [contribution(plans[2], manifest_digest=b"\xcd" * 32)],
        "steps": [contribution(plans[2], steps=plans[2].steps + 1)],
        "sections": [contribution(plans[2], sections=())],
    }
    for reason, headers in refused.items():
        assert {refusal_of(store.check, header) for header in headers} == {reason}
    store.check(contribution(plans[2]))


def test_contributions_are_forgotten_with_the_next_round_and_averages_with_the_one_after_it() -> None:
    network = Network(1)
    store, known, averages = network.stores[0], list[list[weakref.ref[torch.Tensor]]](), list[ShardAverage]()
    for round in range(1, 6):
        plan = plan_of(round, store.chain)
        store.open_round(plan)
        assert not any(tensor() is not None for tensors in known for tensor in tensors)
        header, data = pack(MANIFEST, PEERS[0], work_of(PEERS[0], round, store.chain), 0, SHARD_BLOCKS[0])
        grids = store.check(header).decode(data)
        known.append([weakref.ref(grid.values) for grid in grids.values()])
        store.add(header, grids)
        del grids
        assert all(tensor() is not None for tensor in known[-1])
        averages.append(average(store, plan, 0, PEERS[:1], network.consensus))
        for old, done in enumerate(averages, 1):
            found = store.frames(old, 0, hashes_of(done))
            assert (found is not None) == (old >= round - 1)
        store.restore(seal(plan, SHARD_BLOCKS, [done.reduced.result] * SHARDS).chain.hex())


def test_no_more_peers_contribute_than_can_take_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contribution_store, "MAX_PEERS", 2)
    store, plan = opened(*PEERS[:2])
    with pytest.raises(PeerError, match="2 peers contribute") as caught:
        upload(store, PEERS[2], 0, plan)
    assert caught.value.reason == "peer"
    upload(store, PEERS[1], 1, plan)


def test_no_more_than_two_averages_of_a_shard_are_kept() -> None:
    store, plan = opened()
    averages = []
    for count, peer in enumerate(PEERS[:3], 1):
        upload(store, peer, 0, plan)
        averages.append(average(store, plan, 0, PEERS[:count], start()))

    found = [store.frames(1, 0, hashes_of(done)) for done in averages]
    assert [frames is not None for frames in found] == [False, True, True]


def test_only_averages_that_were_computed_here_are_given() -> None:
    store, plan, done = with_average_and_contribution()
    hashes = hashes_of(done)
    assert average(store, plan, 2, PEERS[:1], start()).reduced.result.void
    assert store.frames(1, 0, hashes) == (done.reduced.result.sections, done.frames)
    others = ((1, 0, []), (1, 2, []), (1, 0, hashes[:-1]), (1, 1, hashes), (2, 0, hashes), (1, 0, [b"0" * 32]))
    for round, shard, asked in others:
        assert store.frames(round, shard, asked) is None
