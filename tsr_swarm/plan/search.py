"""Rank and periods that keep a link busy for at most a given share of the time, by search over the real layout.

Ranks halve from the run's own downwards. At each rank the bases are refreshed as often as the run says, or half, a
quarter, an eighth as often where that saves local steps, because a basis has the bytes of many cores.
The weights' period is then the shortest that keeps the share, never shorter than the run's own. Moments are averaged
after as many rounds as the run says; where it says "auto" they are counted as in every round, which is the most.
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from tsr_swarm.config.blocks import embedding_rank, matrix_rank, parse_rank
from tsr_swarm.config.link import Link
from tsr_swarm.config.run import RunConfig, is_share_of_sides
from tsr_swarm.plan.costs import ExchangeCost
from tsr_swarm.plan.own_costs import Shares, blocks_of, own_exchange

GOOD_STEPS = 100  # a k_x up to which sparse local training lost nothing: SparseLoCo, arXiv 2508.15706, 15 to 100
LONGEST_STEPS = 500  # the longest k_x with a published result: DiLoCo, arXiv 2311.08105
RANKS = 4
REFRESH_FACTORS = (1, 2, 4, 8)
LONGEST_CEILING = 86_400.0  # what round.ceiling_seconds allows


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One way to keep the share: the exchange, and the settings that give it."""

    rank: int | str
    embedding_rank: int | str
    k_x: int
    k_r: int
    k_r_embedding: int
    k_u: int | str
    k_v: int | str
    ceiling_seconds: float  # a round that closes later than this needs a higher limit
    exchange: ExchangeCost
    line_seconds: float
    line_share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """The best candidate of each rank, largest rank first, and the one to use: None where nothing fits."""

    share: float
    candidates: Sequence[Candidate]
    chosen: Candidate | None


def find_fit(config: RunConfig, shares: Shares, link: Link, share: float) -> Fit:
    """Choose the largest rank with a period known to be good; else the shortest period of all."""
    pairs = dict.fromkeys(
        (_halved(config, "rank", times), _halved(config, "embedding_rank", times)) for times in range(RANKS)
    )
    candidates = []
    for rank, embedding in pairs:
        ranked = replace(config, optimizer=replace(config.optimizer, rank=rank, embedding_rank=embedding))
        candidates.append(_preferred(config, list(_at_rank(ranked, shares, link, share))))
    chosen = _preferred(config, candidates)
    fits = chosen.k_x <= _limits(config)[1] and chosen.ceiling_seconds <= LONGEST_CEILING
    return Fit(share=share, candidates=candidates, chosen=chosen if fits else None)


def run_lines(candidate: Candidate) -> list[str]:
    """Return what to write into the run file. A JSON string or number is valid TOML too."""
    return [
        "[optimizer]",
        f"rank = {json.dumps(candidate.rank)}",
        f"embedding_rank = {json.dumps(candidate.embedding_rank)}",
        "[periods]",
        f"k_x = {candidate.k_x}",
        f"k_r = {candidate.k_r}",
        f"k_r_embedding = {candidate.k_r_embedding}",
        *(f"{key} = {json.dumps(value)}" for key in ("k_u", "k_v") if (value := getattr(candidate, key))),
        "[round]",
        f"ceiling_seconds = {candidate.ceiling_seconds:.1f}",
    ]


def _at_rank(config: RunConfig, shares: Shares, link: Link, share: float) -> Iterator[Candidate]:
    blocks = blocks_of(config)
    own = config.periods
    for factor in REFRESH_FACTORS:
        rounds, rounds_embedding = config.refresh_rounds * factor, config.refresh_rounds_embedding * factor
        # bytes depend on how many rounds lie between refreshes, not on how many steps a round has
        periods = replace(
            own,
            k_r=rounds * own.k_x,
            k_r_embedding=rounds_embedding * own.k_x,
            k_u=own.k_x if isinstance(own.k_u, str) else own.k_u,
            k_v=own.k_x if isinstance(own.k_v, str) else own.k_v,
        )
        exchange = own_exchange(replace(config, periods=periods), blocks, shares)
        k_x = max(own.k_x, _steps_needed(exchange.seconds(link), link.step_seconds, share))
        exchange = replace(exchange, every=k_x)
        yield Candidate(
            rank=config.optimizer.rank,
            embedding_rank=config.optimizer.embedding_rank,
            k_x=k_x,
            k_r=rounds * k_x,
            k_r_embedding=rounds_embedding * k_x,
            k_u=_stretched(own.k_u, own.k_x, k_x),
            k_v=_stretched(own.k_v, own.k_x, k_x),
            ceiling_seconds=_ceiling(config, k_x * link.step_seconds, exchange, link),
            exchange=exchange,
            line_seconds=exchange.seconds(link),
            line_share=exchange.busy_share(link),
        )


def _stretched(period: int | str, old: int, new: int) -> int | str:
    """Return a period of moments with as many rounds of ``new`` steps as it had of ``old`` ones; "auto" stays."""
    return period if isinstance(period, str) else period // old * new


def _halved(config: RunConfig, key: str, times: int) -> int | str:
    """Return a rank of the run, halved ``times`` times: a number, or a share of a block's sides."""
    optimizer, model = config.optimizer, config.model
    hidden, largest = model.hidden_size, max(model.vocab_size, model.hidden_size)
    value = matrix_rank(optimizer, hidden) if key == "rank" else embedding_rank(optimizer, hidden, largest)
    if isinstance(value, str) and is_share_of_sides(value):
        divisor = int(value.partition("/")[2] or 1)
        return f"1/{divisor << times}"
    return max(1, parse_rank(key, value, hidden) >> times)


def _preferred(config: RunConfig, candidates: Sequence[Candidate]) -> Candidate:
    """Return the first candidate with a period known to be good, else the one with the shortest."""
    good, _ = _limits(config)
    shortest = min(candidates, key=lambda candidate: candidate.k_x)
    return next((candidate for candidate in candidates if candidate.k_x <= good), shortest)


def _limits(config: RunConfig) -> tuple[int, int]:
    """Return the good and the longest k_x. The run's own is never too long."""
    return max(GOOD_STEPS, config.periods.k_x), max(LONGEST_STEPS, config.periods.k_x)


def _steps_needed(busy: float, step_seconds: float, share: float) -> int:
    """Solve busy / (busy + k_x step_seconds) <= share for k_x, rounded up to a multiple of ten."""
    needed = busy * (1 - share) / (share * step_seconds)
    return math.ceil(needed) if needed <= 10 else 10 * math.ceil(needed / 10)


def _ceiling(config: RunConfig, training: float, exchange: ExchangeCost, link: Link) -> float:
    """Return twice what training and the largest upload need, or the run's own limit if that is higher."""
    needed = training + link.line_seconds(exchange.largest_sent, 0)
    return max(config.round.ceiling_seconds, 60.0 * math.ceil(2 * needed / 60))
