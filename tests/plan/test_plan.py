"""What ``plan`` predicts is what is sent and kept, what the papers say, and what keeps a line free."""

import math
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.optim.swarms import gradient_sketches
from tests.published_rounds import make_history
from tests.steady import OPTIMIZER, WIRE
from tsr_swarm.config.blocks import Block, plan_blocks
from tsr_swarm.config.layout import MOMENT_BITS, published_slots, upload_slots
from tsr_swarm.config.link import Link
from tsr_swarm.config.load import configure, run_config_from_mapping
from tsr_swarm.config.manifest import make_manifest
from tsr_swarm.config.run import OptimizerConfig, RunConfig, WireConfig
from tsr_swarm.lowrank.packed import Packed
from tsr_swarm.optim import turns
from tsr_swarm.optim.periods import own_moment_periods, plan_round
from tsr_swarm.optim.publish import publish
from tsr_swarm.plan import own_costs
from tsr_swarm.plan.baseline_costs import baselines, is_head, paper_counts
from tsr_swarm.plan.costs import MODEL_SIZES, MethodCost, Scene, default_step_seconds, low_ranks
from tsr_swarm.plan.own_costs import blocks_of, cycle, mean_bytes, own_exchange, raw_bytes, wire_shares
from tsr_swarm.plan.report import make_report
from tsr_swarm.plan.search import GOOD_STEPS, LONGEST_STEPS, Fit, find_fit, run_lines
from tsr_swarm.train.llama import build_model, parameter_shapes
from tsr_swarm.train.trainer import fresh_consensus, make_space
from tsr_swarm.wire.codec import encode

TINY: dict[str, dict[str, Any]] = {
    "model": {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 16,
        "tie_word_embeddings": False,
    },
    "data": {"sequence_length": 16},
    "optimizer": OPTIMIZER | {"rank": 4, "embedding_rank": 2},
    "periods": {"k_x": 5, "k_r": 10, "k_r_embedding": 15},
    "wire": WIRE,
}
DEFAULTS: dict[str, dict[str, Any]] = {
    "optimizer": asdict(OptimizerConfig()),
    "periods": {"k_r": 0, "k_r_embedding": 0},
    "wire": asdict(WireConfig()),
}
RUNS: list[dict[str, dict[str, Any]]] = [
    DEFAULTS,
    {},
    {"optimizer": {"local_space": "full"}},
    {"optimizer": {"local_space": "mixed"}},
    {"optimizer": {"local_space": "full", "aim": "displacement"}},
    {"optimizer": {"aim": "seed", "rank": "1/4", "embedding_rank": "1/8"}},
    {"wire": {"core_bits": 16, "sketch_bits": 16, "published_bits": 8}},
    {"periods": {"k_u": 5, "k_v": 15}, "optimizer": {"inner": "adam"}},
    {"periods": {"k_u": 5, "k_v": 15}, "optimizer": {"inner": "lordo", "local_space": "full"}},
]
HOME = Link(up=20e6, down=100e6)


def tiny(**changes: dict[str, Any]) -> RunConfig:
    names = {*TINY, *changes}
    return run_config_from_mapping({name: TINY.get(name, {}) | changes.get(name, {}) for name in names})


def model_size_blocks(name: str) -> tuple[Block, ...]:
    model = MODEL_SIZES[name].model
    return plan_blocks(parameter_shapes(model), OptimizerConfig(rank=1, embedding_rank=1), model.hidden_size)


@pytest.mark.parametrize("changes", RUNS)
def test_own_bytes_are_those_that_a_peer_encodes(changes: dict[str, dict[str, Any]]) -> None:
    config = tiny(**changes)
    manifest = make_manifest("0" * 32, config, parameter_shapes(config.model))
    blocks, consensus = manifest.blocks, fresh_consensus(manifest)
    model = build_model(config.model, consensus.weights)
    kind = "core" if config.optimizer.local_space == "core" else "full"
    space = make_space(kind, model, manifest)
    space.begin(consensus)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    space.step(0.01)
    window = 6  # rounds: refreshes are every 2 and every 3
    sent, received = Counter[str](), Counter[str]()
    for number in range(window + 1, 2 * window + 1):
        plan = plan_round(config, blocks, number, "")
        ones = {index: torch.ones(blocks[index].rows, blocks[index].cols) for index in consensus.bases}
        sketches = gradient_sketches(plan, blocks, consensus.bases, ones)
        grids = space.upload(consensus, plan, config.wire, sketches)
        slots = published_slots(blocks, plan.due, config.wire)
        mean = publish({slot: grid.numbers() for slot, grid in grids.items()}, slots, blocks, consensus.bases)
        for counts, payload in ((sent, grids), (received, mean)):
            for section in encode(tuple(payload), payload, 3)[0]:
                counts[section.kind] += section.raw_bytes
    for counts, slots_of in ((sent, upload_slots), (received, published_slots)):
        predicted = mean_bytes(raw_bytes(blocks, config.wire, cycle(config, blocks), slots_of))
        assert predicted == pytest.approx({kind: count / window for kind, count in counts.items()})


@pytest.mark.parametrize(
    ("space", "inner"), [*product(("core", "full"), ("adam", "muon")), ("full", "lordo")], ids="-".join
)
@pytest.mark.parametrize("residual_bits", [0, 4, 8])
def test_own_memory_is_what_a_peer_keeps(space: str, inner: str, residual_bits: int) -> None:
    config = tiny(optimizer={"local_space": space, "inner": inner, "residual_bits": residual_bits})
    manifest = make_manifest("0" * 32, config, parameter_shapes(config.model))
    consensus = fresh_consensus(manifest)
    kept = make_space(space, build_model(config.model, consensus.weights), manifest).state_dict()
    predicted = own_costs.own_memory(config, manifest.blocks)
    low_rank = [torch.zeros(b.rows, b.cols) for b in manifest.blocks if b.is_low_rank]
    unsent = [Packed.of(block, residual_bits or 4) for block in low_rank]
    packed = sum(kept.codes.nbytes + kept.scales.nbytes for kept in unsent) if space == "core" and residual_bits else 0

    def size(tensors: Mapping[str, torch.Tensor], *heads: str) -> int:
        return sum(t.numel() * t.element_size() for name, t in tensors.items() if name.startswith(heads))

    assert predicted.optimizer == size(kept, "first/", "second/")
    unsent = size(kept, "displacement/", "error/")
    assert predicted.residual == unsent + packed
    assert predicted.weights == 2 * size(consensus.tensors(), "weight/")
    pending = max(size(state.tensors(), "range/") for state in make_history(manifest, consensus, 2 * 6).states)
    assert pending
    shared = size(consensus.tensors(), "left/", "right/")
    factors = shared * (3 if space == "core" else 1)  # int16, and float32
    assert predicted.bases == factors + size(kept, "projection/") + pending
    assert own_costs.state_bytes(config, manifest.blocks) == size(consensus.tensors(), "")


def test_a_mean_is_less_than_the_largest_and_refreshes_are_in_both() -> None:
    config = tiny()
    shares = wire_shares(config, peers=3)
    exchange = own_exchange(config, blocks_of(config), shares)
    assert exchange.every == 5
    assert 0 < exchange.sent["gradient"] < exchange.up < exchange.largest_sent
    assert 0 < exchange.received["basis"] < exchange.down < exchange.largest_received


@pytest.mark.parametrize("rounds", [6, 8, 10])
def test_refreshes_in_turn_keep_the_largest_round_near_the_mean(rounds: int) -> None:
    """The shapes of the 60M preset, ranks d/4 and d/8. Beyond, one range sketch of the embedding outweighs the mean."""
    config = run_config_from_mapping(
        {
            "optimizer": {"aim": "gradient", "inner": "adam", "rank": "d/4", "embedding_rank": "d/8"},
            "periods": {"k_x": 20, "k_r": 20 * rounds, "k_r_embedding": 20 * rounds},
        }
    )
    config = replace(config, model=MODEL_SIZES["60M"].model)
    exchange = own_exchange(config, blocks_of(config), wire_shares(config, peers=8))
    assert exchange.largest_sent <= 1.5 * exchange.up
    assert exchange.largest_received <= 1.5 * exchange.down


@pytest.mark.parametrize("preset", ["tsr-adam", "tsr-adam-dct"])
def test_moments_and_refreshes_in_turn_keep_the_largest_round_near_the_mean(preset: str) -> None:
    """Of every round that is planned, over a whole cycle; in the mean as many bytes as if all blocks came at once."""
    config = configure({"run": {"preset": preset}}, environ={})
    config = replace(config, model=MODEL_SIZES["60M"].model).definite()
    blocks, shares = blocks_of(config), wire_shares(config, peers=8)
    exchange = own_exchange(config, blocks, shares)
    assert exchange.largest_sent <= 1.5 * exchange.up
    assert exchange.largest_received <= 1.5 * exchange.down
    moments = sum(MOMENT_BITS // 8 * block.core_size + block.ranks[0] for block in blocks if block.is_low_rank)
    periods = own_moment_periods(config)
    mean = sum(moments * config.periods.k_x / period for period in periods) * shares.sent["moment"]
    assert exchange.sent["moment"] == pytest.approx(mean)


def test_refresh_periods_without_a_common_multiple_still_end() -> None:
    config = tiny(periods={"k_x": 1, "k_r": 10_007, "k_r_embedding": 10_009})
    blocks = blocks_of(config)
    mean = mean_bytes(raw_bytes(blocks, config.wire, cycle(config, blocks), upload_slots))
    often = tiny(periods={"k_x": 1, "k_r": 1, "k_r_embedding": 1})
    once = mean_bytes(raw_bytes(blocks, often.wire, cycle(often, blocks), upload_slots))
    assert mean["gradient"] == pytest.approx(once["gradient"] / turns.MOST_ROUNDS)


def test_compression_is_measured_on_the_real_codec_and_does_not_change() -> None:
    config = tiny(wire={"core_bits": 8, "core_density": 1.0, "published_bits": 16, "published_density": 1.0})
    shares = wire_shares(config, peers=3)
    assert shares == wire_shares(config, peers=3)
    assert set(shares.sent) == {"core", "gradient", "dense"}
    assert set(shares.received) == {"core", "gradient", "basis", "dense"}
    assert all(0.3 < share < 1.01 for share in [*shares.sent.values(), *shares.received.values()])
    sparse = replace(config, wire=replace(config.wire, core_bits=2, core_density=0.1))
    assert wire_shares(sparse, peers=3).sent["core"] < 0.2


# the TSR paper's table 3, and the same with the head; AdamW, GaLore, TSR-Adam


@pytest.mark.parametrize(
    ("name", "published", "tsr_adam", "with_head"),
    [
        ("60M", (0.167, 0.0912, 0.0200), "0.0200", (0.232, 0.1567, 0.0855)),
        ("130M", (0.438, 0.2127, 0.0589), "0.0589", (0.536, 0.311, 0.1572)),
        ("350M", (1.34, 0.438, 0.115), "0.1152", (1.47, 0.569, 0.2463)),
        ("1B", (5.09, 1.488, 0.2135), "0.2135", (5.36, 1.750, 0.4757)),
    ],
)
def test_the_papers_own_figures_are_met_tsr_adams_to_the_last_printed_digit(
    name: str, published: Sequence[float], tsr_adam: str, with_head: Sequence[float]
) -> None:
    counts = paper_counts(model_size_blocks(name), MODEL_SIZES[name].ranks)
    assert [count.method for count in counts] == ["ddp", "galore", "tsr-adam-paper"]
    assert [count.bytes_per_step / 1e9 for count in counts] == pytest.approx(published, rel=4e-3)
    assert [count.with_head / 1e9 for count in counts] == pytest.approx(with_head, rel=4e-3)
    assert f"{counts[2].bytes_per_step / 1e9:.4f}" == tsr_adam


# slow references: every step or exchange on its own, matrix by matrix, from the papers' algorithms

MATRICES = {"a.weight": (12, 30), "b.weight": (12, 12)}
SHAPES = {"embed_tokens.weight": (50, 12), **MATRICES, "n": (12,), "lm_head.weight": (50, 12)}
BLOCKS = plan_blocks(SHAPES, OptimizerConfig(rank=3, embedding_rank=3), 12)
RANKS = low_ranks(12)  # 6, 1 and 3


def method(name: str, peers: int = 4) -> MethodCost:
    return next(m for m in baselines(BLOCKS, RANKS, 12, peers) if m.name == name)


def all_numbers() -> int:
    return sum(math.prod(shape) for shape in SHAPES.values())


def tsr_step(t: int) -> float:
    total = 12.0 + 50 * 12  # norm and head
    for (m, n), r, k in (((50, 12), 1, 2), ((12, 30), 6, 100), ((12, 12), 6, 100)):
        total += r * r
        if t % k == 0:
            total += m * (r + 5) + n * (r + 5)  # Qbar and Bbar
    return 4 * total


def galore_step(t: int) -> float:
    refresh = t % 200 == 0
    return 4 * ((360 + 144) if refresh else (3 * 30 + 3 * 12)) + 4 * (50 * 12 * 2 + 12)


def des_loc_step(t: int) -> float:
    return 4 * all_numbers() * ((t % 32 == 0) + (t % 96 == 0) + (t % 192 == 0))


def lordo_step(t: int) -> float:
    moment = 50 * 12 * 2 + 12 + 3 * 30 + 3 * 12
    return 4 * (all_numbers() * (t % 32 == 0) + moment * ((t % 96 == 0) + (t % 192 == 0)))


@pytest.mark.parametrize(
    ("name", "step", "period"),
    [
        ("ddp", lambda t: 4 * all_numbers(), 1),
        ("ddp bf16", lambda t: 2 * all_numbers(), 1),
        ("galore", galore_step, 200),
        ("tsr-adam-paper", tsr_step, 100),
        ("des-loc", des_loc_step, 192),
        ("lordo-paper", lordo_step, 192),
        ("diloco", lambda t: 4 * all_numbers() * (t % 500 == 0), 500),
        ("diloco bf16", lambda t: 2 * all_numbers() * (t % 500 == 0), 500),
    ],
)
def test_a_baselines_formula_is_the_sum_over_its_steps(name: str, step: Any, period: int) -> None:
    exchange = method(name).exchange
    steps = [step(t) for t in range(1, period + 1)]
    assert exchange.up / exchange.every == pytest.approx(sum(steps) / period)
    assert exchange.received == exchange.sent
    assert exchange.largest_sent >= max(steps) - 1e-9
    if name != "galore":  # what it refreshes with is the whole gradient, which takes the core's place
        assert exchange.largest_sent == pytest.approx(max(steps))


def sparse_reference(size: int) -> int:
    bits = scales = 0
    for start in range(0, size, 4096):
        length = min(4096, size - start)
        kept = -(-length * 64 // 4096)
        bits += math.ceil(math.log2(math.comb(length, kept))) + 2 * kept
        scales += 2 * 4
    return -(-bits // 8) + scales


@given(st.lists(st.integers(1, 20_000), min_size=1, max_size=4), st.integers(1, 9))
def test_sparse_payloads_are_received_from_every_other_peer(sizes: list[int], peers: int) -> None:
    blocks = plan_blocks({f"v{i}": (size,) for i, size in enumerate(sizes)}, OptimizerConfig(), 8)
    [sparse] = [m for m in baselines(blocks, RANKS, 8, peers) if m.name == "sparseloco"]
    assert sparse.exchange.up == sum(sparse_reference(size) for size in sizes)
    assert sparse.exchange.down == (peers - 1) * sparse.exchange.up


def test_memory_of_baselines_in_units_of_the_weights() -> None:
    size = 4 * all_numbers()
    memory = {m.name: m.memory for m in baselines(BLOCKS, RANKS, 12, 4)}
    assert memory["ddp"].total == memory["des-loc"].total == 3 * size
    assert memory["diloco"].total == memory["sparseloco"].total == 5 * size
    assert memory["galore"].bases == 4 * 3 * (12 + 12)
    assert memory["tsr-adam-paper"].bases == 4 * (6 * (12 + 30) + 6 * (12 + 12) + 50 + 12)
    assert memory["tsr-adam-paper"].optimizer == 4 * 2 * (36 + 36 + 1 + 600 + 12)
    assert memory["lordo-paper"].residual == 4 * (360 + 144)
    assert all(memory[name].total < memory["ddp"].total for name in ("galore", "tsr-adam-paper"))


def test_a_step_takes_six_operations_a_parameter_and_token() -> None:
    assert default_step_seconds(10**9, 1000) == pytest.approx(0.6)


def fitted(rate: float, step_seconds: float, share: float = 0.2, **changes: dict[str, Any]) -> Fit:
    config = tiny(**changes)
    link = Link(up=rate, down=100e6, step_seconds=step_seconds)
    return find_fit(config, SHARES, link, share)


SHARES = wire_shares(tiny(), peers=4)


@settings(max_examples=25)
@given(st.floats(4, 8), st.floats(-4, 2), st.floats(0.02, 0.9))
def test_every_candidate_keeps_the_share_by_its_real_layout(log_rate: float, log_step: float, share: float) -> None:
    step, own = 10**log_step, tiny().periods.k_x
    link = Link(up=10**log_rate, down=100e6, step_seconds=step)
    fit = fitted(10**log_rate, step, share)
    for candidate in fit.candidates:
        assert candidate.line_share <= share + 1e-9
        assert candidate.k_x >= own
        if candidate.k_x > max(10, own):
            shorter = replace(candidate.exchange, every=candidate.k_x - 10)
            assert shorter.busy_share(link) > share - 1e-9
    if fit.chosen is None:
        assert min(candidate.k_x for candidate in fit.candidates) > LONGEST_STEPS or step * LONGEST_STEPS > 86_400 / 2
        return
    # the proposed lines, read back as a run file, give the exchange that was promised
    proposed = tiny(**tomllib.loads("\n".join(run_lines(fit.chosen))))
    again = own_exchange(proposed, blocks_of(proposed), SHARES)
    assert again == fit.chosen.exchange
    assert proposed.round.ceiling_seconds >= proposed.periods.k_x * step


def test_a_fast_line_keeps_the_runs_own_settings() -> None:
    chosen = fitted(1e9, step_seconds=1.0).chosen
    assert (chosen.rank, chosen.embedding_rank) == (4, 2)
    assert (chosen.k_x, chosen.k_r, chosen.k_r_embedding) == (5, 10, 15)
    assert chosen.ceiling_seconds == RunConfig().round.ceiling_seconds


def test_a_slow_line_takes_rarer_refreshes_and_longer_rounds_before_smaller_ranks() -> None:
    rates = [10**6.0 / 2**n for n in range(14)]
    chosen = [fitted(rate, step_seconds=0.02).chosen for rate in rates]
    fitting = [c for c in chosen if c is not None]
    assert len({c.rank for c in fitting}) > 1
    assert [c.rank for c in fitting] == sorted((c.rank for c in fitting), reverse=True)
    largest = [c for c in fitting if c.rank == 4]
    assert max(c.k_x for c in largest) > 5
    assert max(c.k_r // c.k_x for c in largest) > 2
    assert all(c.k_x <= GOOD_STEPS for c in largest)
    assert chosen[-1] is None


def test_ranks_that_are_shares_of_the_sides_halve_as_shares() -> None:
    optimizer = {"aim": "seed", "rank": "1/2", "embedding_rank": "1/4"}
    fit = fitted(1e6, step_seconds=0.1, optimizer=optimizer)
    halved = [("1/2", "1/4"), ("1/4", "1/8"), ("1/8", "1/16"), ("1/16", "1/32")]
    assert [(c.rank, c.embedding_rank) for c in fit.candidates] == halved
    assert run_lines(fit.chosen)[1] == 'rank = "1/2"'


@pytest.mark.parametrize("rate", [1e9, 1e5, 2e4])
def test_periods_of_moments_keep_their_rounds_or_find_their_own(rate: float) -> None:
    config = tiny(periods={"k_u": 15, "k_v": "auto"})
    shares, link = wire_shares(config, peers=4), Link(up=rate, down=1e8, step_seconds=0.1)
    chosen = find_fit(config, shares, link, 0.2).chosen
    assert (chosen.k_u, chosen.k_v) == (3 * chosen.k_x, "auto")
    proposed = tiny(**tomllib.loads("\n".join(run_lines(chosen))))
    assert (proposed.periods.k_u, proposed.periods.k_v) == (chosen.k_u, "auto")
    real = own_exchange(proposed, blocks_of(proposed), shares)
    assert real.sent["core"] == chosen.exchange.sent["core"]
    assert chosen.exchange.sent["moment"] / 4 <= real.sent["moment"] <= chosen.exchange.sent["moment"]


def test_nothing_fits_a_line_that_is_far_too_slow_nor_a_round_that_would_outlast_its_highest_ceiling() -> None:
    assert fitted(100.0, step_seconds=0.01).chosen is None
    assert fitted(1e9, step_seconds=20_000.0).chosen is None


def test_a_run_that_chose_a_long_period_keeps_it() -> None:
    periods = {"k_x": 700, "k_r": 1400, "k_r_embedding": 1400}
    chosen = fitted(1e9, step_seconds=0.01, periods=periods).chosen
    assert (chosen.rank, chosen.k_x) == (4, 700)


@pytest.mark.parametrize("name", MODEL_SIZES)
def test_every_model_size_is_planned_without_allocating_it(name: str) -> None:
    size = MODEL_SIZES[name]
    config = replace(RunConfig(), model=size.model, optimizer=OptimizerConfig(rank="d/8", embedding_rank="d/32"))
    scene = Scene(model=name, peers=8, link=HOME, tokens=size.tokens_per_step)
    report = make_report(config, size.ranks, scene, share=None)
    names = [m.name for m in report.methods]
    assert names[0] == "tsr"
    assert {"ddp", "galore", "tsr-adam-paper", "des-loc", "lordo-paper", "diloco", "sparseloco"} <= set(names)
    assert report.parameters == {"60M": 58_073_600, "130M": 134_105_856, "350M": 367_969_280, "1B": 1_339_082_752}[name]
    assert sum(is_head(block) for block in blocks_of(config)) == 1
    own, dense = report.methods[0].exchange, report.methods[1].exchange
    assert own.up / own.every < dense.up / 100
