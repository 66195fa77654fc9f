"""What "auto" comes to, and where it is made a number: in the manifest, which all peers share."""

from dataclasses import asdict, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fixtures import tiny_model
from tsr_swarm.config.auto import rate_for
from tsr_swarm.config.manifest import Manifest, decode_manifest, make_manifest
from tsr_swarm.config.run import OptimizerConfig, PeriodsConfig, RunConfig
from tsr_swarm.errors import RefusedError
from tsr_swarm.optim.periods import due_blocks
from tsr_swarm.train.llama import parameter_shapes

INNERS = st.sampled_from(("adam", "muon"))
PERIODS = st.sampled_from(("auto", 0, 1, 3))  # in k_x


def config_of(
    inner: str = "muon",
    aim: str = "seed",
    k_x: int = 20,
    lr: float | str = "auto",
    k_r: Any = "auto",
    k_r_embedding: Any = "auto",
) -> RunConfig:
    """A run whose periods are given in rounds."""
    space = "full" if aim == "displacement" else "core"
    steps = {key: v if v == "auto" else v * k_x for key, v in {"k_r": k_r, "k_r_embedding": k_r_embedding}.items()}
    optimizer = OptimizerConfig(inner=inner, aim=aim, local_space=space, lr=lr, rank=4, embedding_rank=4)
    return RunConfig(model=tiny_model(), optimizer=optimizer, periods=PeriodsConfig(k_x=k_x, **steps))


RUNS = st.builds(
    config_of,
    inner=INNERS,
    aim=st.sampled_from(("seed", "gradient", "displacement", "dct")),
    k_x=st.integers(1, 50),
    lr=st.one_of(st.just("auto"), st.floats(0, 1, exclude_min=True)),
    k_r=PERIODS,
    k_r_embedding=PERIODS,
)


def manifest_of(config: RunConfig) -> Manifest:
    return make_manifest("run", config, parameter_shapes(config.model))


@given(config=RUNS, round=st.integers(1, 30))
def test_a_manifest_holds_numbers_and_is_that_of_the_run_with_these_numbers_in_its_file(
    config: RunConfig, round: int
) -> None:
    manifest = manifest_of(config)
    shared = asdict(manifest.config)
    values = [shared["optimizer"]["lr"], shared["periods"]["k_r"], shared["periods"]["k_r_embedding"]]
    assert "auto" not in values
    written = replace(config, optimizer=manifest.config.optimizer, periods=manifest.config.periods)
    assert manifest_of(written).digest == manifest.digest
    assert decode_manifest(manifest.encoded) == manifest
    assert due_blocks(config, manifest.blocks, round) == due_blocks(manifest.config, manifest.blocks, round)


@given(config=RUNS)
def test_numbers_that_are_written_stay(config: RunConfig) -> None:
    definite = config.definite()
    assert definite.definite() == definite
    for section, key in (("optimizer", "lr"), ("periods", "k_r"), ("periods", "k_r_embedding")):
        written = getattr(getattr(config, section), key)
        assert written in ("auto", getattr(getattr(definite, section), key))


@pytest.mark.parametrize(("inner", "rate"), [("muon", 0.03), ("adam", 0.003)])
@pytest.mark.parametrize(("aim", "k_r"), [("seed", 0), ("displacement", 0), ("gradient", 100), ("dct", 100)])
def test_the_rate_follows_the_inner_optimizer_and_the_refresh_the_aim(
    inner: str, rate: float, aim: str, k_r: int
) -> None:
    definite = config_of(inner, aim).definite()
    assert (definite.optimizer.lr, definite.periods.k_r, definite.periods.k_r_embedding) == (rate, k_r, k_r)


def test_a_manifest_that_leaves_a_number_to_its_reader_is_refused() -> None:
    vague = replace(manifest_of(RunConfig()), config=RunConfig())
    with pytest.raises(RefusedError, match="not in its one legal form"):
        decode_manifest(vague.encoded)


@given(inner=INNERS, made_for=INNERS, rate=st.floats(1e-9, 1))
def test_a_rate_is_never_taken_over_from_another_kind_of_optimizer(inner: str, made_for: str, rate: float) -> None:
    moved = rate_for(inner, rate, made_for)
    assert 0 < moved <= 1
    assert (moved == rate) == (inner == made_for or rate == moved == 1)
    assert rate_for(inner, "auto", made_for) == pytest.approx(rate_for(inner))
