"""Who is away or slow, whose text is whose, and how long a line takes."""

from pathlib import Path

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
def test_somebody_is_always_there_and_the_same_seed_gives_the_same_people(
    seed: int, peers: int, churn: float, step: int
) -> None:
    world = Heterogeneity(churn=churn, away_steps=7)
    here = world.present(seed, peers, step)
    assert here
    assert set(here) <= set(range(peers))
    assert here == world.present(seed, peers, step)
    assert here == world.present(seed, peers, step // 7 * 7), "an absence lasts for its whole span"


def test_absences_are_as_frequent_as_was_asked_for() -> None:
    world = Heterogeneity(churn=0.25, away_steps=1)
    there = sum(len(world.present(0, 8, step)) for step in range(1000))
    assert there / 8000 == pytest.approx(0.75, abs=0.02)
    assert Heterogeneity().present(0, 8, 5) == tuple(range(8))


@given(seed=SEEDS, peers=st.integers(1, 20), share=st.floats(0, 1), factor=st.floats(1, 50), period=st.integers(1, 60))
def test_stragglers_do_fewer_steps_and_are_never_waited_for_longer_than_one_of_theirs(
    seed: int, peers: int, share: float, factor: float, period: int
) -> None:
    world = Heterogeneity(straggler_share=share, straggler_factor=factor)
    slowness, work = world.slowness(seed, peers), world.work(seed, peers, 0, period)
    assert sum(slow > 1 for slow in slowness) == (round(share * peers) if factor > 1 else 0)
    assert all(work[peer] == period for peer in work if slowness[peer] == 1)
    assert all(1 <= steps <= period for steps in work.values())
    assert step_times(work, slowness) <= max(period, factor) * (1 + 1e-9)


def test_a_kind_of_text_each_is_all_the_training_text_in_the_order_of_its_paths(tmp_path: Path) -> None:
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


def test_a_corpus_too_small_for_a_kind_each_is_one_sentence(tmp_path: Path) -> None:
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
    totals = [sum(part[place] for part in parts) for place in range(4)]
    assert link.seconds(*totals) == pytest.approx(sum(link.seconds(*part) for part in parts))


@pytest.mark.parametrize("values", [{"up": 0.0}, {"down": -1.0}, {"rtt": -0.1}, {"step_seconds": 0.0}])
def test_a_line_that_cannot_be_is_refused(values: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="out of range"):
        Link(**values)


@pytest.mark.parametrize(
    "values", [{"churn": 1.0}, {"straggler_share": 1.5}, {"straggler_factor": 0.5}, {"away_steps": 0}]
)
def test_a_world_that_cannot_be_is_refused(values: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="out of range"):
        Heterogeneity(**values)  # type: ignore[arg-type]
