"""A key is refused exactly where runs with and without it come to the same weights from the same bytes."""

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.swarm_rig import tiny_config
from tsr_swarm.config.effects import RULES, refuse_idle
from tsr_swarm.config.load import configure
from tsr_swarm.config.presets import PRESETS
from tsr_swarm.config.run import RunConfig
from tsr_swarm.errors import ConfigError
from tsr_swarm.simulate.engine import run_one
from tsr_swarm.simulate.run_spec import RunSpec

FULL = {"local_space": "full", "feedback": False}
HELD = {"k_r": 4, "k_r_embedding": 4}
WORLDS: Mapping[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "drawn": ({"aim": "seed", "inner": "muon"}, {}),
    "aimed, outer step": ({"aim": "gradient", "outer": "nesterov", "outer_lr": 0.7}, HELD),
    "columns": ({"aim": "dct"}, {}),
    "full, drawn": (FULL | {"aim": "seed"}, {}),
    "full, columns": (FULL | {"aim": "dct"}, HELD),
    "full, displacements": (FULL | {"aim": "displacement"}, HELD),
    "full, lordo": (FULL | {"aim": "displacement", "inner": "lordo"}, HELD),
    "full, sketches every round": (FULL | {"aim": "displacement"}, {}),
    "full, aimed every round": (FULL | {"aim": "gradient"}, {"k_r": 0, "k_r_embedding": 0}),
}
VALUES: Mapping[str, Any] = {
    "optimizer.feedback": lambda value: not value,
    "optimizer.residual_bits": lambda _: 4,
    "optimizer.update_scale": lambda _: 3.0,
    "optimizer.gamma": lambda _: 0.5,
    "optimizer.oversampling": lambda _: 5,
    "optimizer.outer_momentum": lambda _: 0.5,
    "optimizer.omega": lambda _: 0.5,
    "optimizer.mu": lambda _: 3.0,
    "optimizer.projection": lambda _: "local",
    "periods.micro_batches": lambda _: 16,
    "wire.sketch_bits": lambda _: 16,
    "wire.core_bits": lambda _: 8,
    "wire.core_density": lambda _: 0.4,
    "wire.published_bits": lambda _: 4,
    "wire.published_density": lambda _: 0.4,
}
KEYS = tuple(dict.fromkeys(rule.key for rule in RULES))


def changed(config: RunConfig, path: str) -> RunConfig:
    """The run with another value of one key."""
    name, _, key = path.partition(".")
    section = getattr(config, name)
    return replace(config, **{name: replace(section, **{key: VALUES[path](getattr(section, key))})})


def is_idle(config: RunConfig, key: str) -> bool:
    return any(rule.key == key and rule.idle(config) for rule in RULES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("text")


def config_of(folder: Path, world: str) -> RunConfig:
    optimizer, periods = WORLDS[world]
    return tiny_config(
        folder,
        optimizer=optimizer,
        periods={"k_x": 2, "k_r": 0, "k_r_embedding": 0} | periods,
        wire={"core_bits": 3, "published_bits": 3},
        round={"shards": 1},
    )


@cache
def outcome(config: RunConfig) -> tuple[object, ...]:
    """The weights after each round, and the bytes that led to them."""
    result = run_one(RunSpec(method="tsr", config=config, peers=2, steps=6))
    return result.digests, result.curve[-1].sent, result.curve[-1].received


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("key", KEYS)
def test_a_key_is_idle_exactly_where_it_changes_nothing(key: str, world: str, folder: Path) -> None:
    before = config_of(folder, world)
    after = changed(before, key)
    assert (outcome(after) == outcome(before)) == is_idle(after, key)


@given(name=st.sampled_from(list(PRESETS)), key=st.sampled_from(KEYS))
def test_only_a_key_that_was_set_and_is_idle_is_refused(name: str, key: str) -> None:
    config = configure({"run": {"preset": name}}, environ={})
    after = changed(config, key)
    if not is_idle(after, key):
        refuse_idle(after)
        return
    section, _, field = key.partition(".")
    value = getattr(getattr(after, section), field)
    with pytest.raises(ConfigError) as caught:
        configure({"run": {"preset": name}, section: {field: value}}, environ={})
    assert str(caught.value).startswith(f"{key} = {value!r} has no effect beside ")
    assert str(caught.value).count(". ") == 0


def test_adams_settings_have_an_effect_also_where_matrices_step_with_muon(folder: Path) -> None:
    """Norms step with Adam in every run."""
    before = config_of(folder, "drawn")
    for change in ({"betas": (0.5, 0.9)}, {"eps": 1e-3}):
        assert outcome(replace(before, optimizer=replace(before.optimizer, **change))) != outcome(before)
