"""Who is away or slow, whose text is whose, and how long a line takes."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.swarm_rig import tiny_config
from tsr_swarm.config.link import Link, link_for
from tsr_swarm.errors import ConfigError
from tsr_swarm.simulate.heterogeneity import Heterogeneity, peer_texts, step_times
from tsr_swarm.train.data import training_tokens

SEEDS = st.integers(0, 2**31 - 1)


@given(seed=SEEDS, peers=st.integers(1, 20), churn=st.floats(0, 0.999), step=st.integers(0, 10**6))
def test_some_peer_is_always_active_and_the_same_seed_gives_the_same_peers(
    seed: int, peers: int, churn: float, step: int
) -> None:
    conditions = Heterogeneity(churn=churn, away_steps=7)
    active = conditions.active_peers(seed, peers, step)
    assert active
    assert set(active) <= set(range(peers))
    assert active == conditions.active_peers(seed, peers, step)
    assert active == conditions.active_peers(seed, peers, step // 7 * 7), "an absence lasts for its whole span"


def test_absences_are_as_frequent_as_was_asked_for() -> None:
    conditions = Heterogeneity(churn=0.25, away_steps=1)
    active = sum(len(conditions.active_peers(0, 8, step)) for step in range(1000))
    assert active / 8000 == pytest.approx(0.75, abs=0.02)
    assert Heterogeneity().active_peers(0, 8, 5) == tuple(range(8))


@given(seed=SEEDS, peers=st.integers(1, 20), share=st.floats(0, 1), factor=st.floats(1, 50), period=st.integers(1, 60))
def test_stragglers_do_fewer_steps_and_delay_a_round_by_one_of_their_steps_at_most(
    seed: int, peers: int, share: float, factor: float, period: int
) -> None:
    conditions = Heterogeneity(straggler_share=share, straggler_factor=factor)
    slowness, work = conditions.slowness(seed, peers), conditions.work(seed, peers, 0, period)
    assert sum(slow > 1 for slow in slowness) == (round(share * peers) if factor > 1 else 0)
    assert all(work[peer] == period for peer in work if slowness[peer] == 1)
    assert all(1 <= steps <= period for steps in work.values())
    assert step_times(work, slowness) <= max(period, factor) * (1 + 1e-9)


def test_heterogeneous_texts_are_ranges_of_all_the_training_text_by_path(tmp_path: Path) -> None:
    data = tiny_config(tmp_path).data
    alike, unlike = peer_texts(data, False), peer_texts(data, True)
    assert [text.tolist() for text in alike] == [training_tokens(data, part).tolist() for part in range(data.parts)]
    sizes = [text.numel() for text in unlike]
    assert max(sizes) - min(sizes) <= 1
    assert sum(sizes) == sum(text.numel() for text in alike)
    whole = b"".join(bytes(text.tolist()) for text in unlike)
    names = sorted(Path(str(data.source)).iterdir())
    documents = [path.read_bytes() + b"\0" for path in names]
    assert whole == b"".join(text for text in documents if text in whole)


def test_a_corpus_too_small_for_heterogeneous_texts_is_refused(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, data={"source": str(tmp_path / "text"), "parts": 10**5, "sequence_length": 16})
    with pytest.raises(ConfigError, match="lower --peers"):
        peer_texts(config.data, True)


def test_by_default_one_dense_exchange_takes_as_long_as_200_steps() -> None:
    link = link_for(58_000_000, up=20e6, down=100e6, rtt=0.05)
    dense = 4 * 58e6
    assert link.line_seconds(dense, dense) == pytest.approx(200 * link.step_seconds)
    assert link.step_seconds == pytest.approx((8 * dense / 20e6 + 8 * dense / 100e6) / 200)
    assert link_for(1, up=1e6, down=1e6, rtt=0, step_seconds=3.0).step_seconds == 3.0


@given(st.lists(st.tuples(*[st.floats(0, 1e9)] * 4), max_size=5))
def test_time_is_additive(parts: list[tuple[float, float, float, float]]) -> None:
    """So that the totals of a run give its time on any link."""
    link = Link(up=3e6, down=7e6, rtt=0.3, step_seconds=0.2)
    totals = [sum(part[index] for part in parts) for index in range(4)]
    assert link.seconds(*totals) == pytest.approx(sum(link.seconds(*part) for part in parts))


@pytest.mark.parametrize(
    ("kind", "key", "value", "name"),
    [
        *((Link, key, value, f"link.{key}") for key, value in (("up", 0.0), ("down", -1.0), ("step_seconds", 0.0))),
        (Link, "rtt", -0.1, "link.rtt"),
        (Heterogeneity, "churn", 1.0, "churn"),
        (Heterogeneity, "straggler_share", 1.5, "stragglers' share"),
        (Heterogeneity, "straggler_factor", 0.5, "stragglers' factor"),
        (Heterogeneity, "away_steps", 0, "away_steps"),
        *((Heterogeneity, "vocabulary", size, "vocabulary") for size in (-1, 1, 256, 2**20 + 1)),
    ],
)
def test_an_impossible_link_or_condition_is_refused(kind: type[Any], key: str, value: float, name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} = {value} is out of range"):
        kind(**{key: value})
