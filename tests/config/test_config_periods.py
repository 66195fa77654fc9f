"""Which periods of moments a run may have."""

from typing import Any

import pytest

from tsr_swarm.config.load import run_config_from_mapping
from tsr_swarm.errors import ConfigError


def config(optimizer: dict[str, Any], **periods: Any) -> object:
    return run_config_from_mapping({"optimizer": optimizer, "periods": {"k_x": 20, "k_r": 20, **periods}})


@pytest.mark.parametrize("space", ["full", "mixed"])
@pytest.mark.parametrize(("key", "value"), [("k_u", 40), ("k_u", "auto"), ("k_v", 20)])
def test_only_core_peers_average_moments(space: str, key: str, value: int | str) -> None:
    optimizer = {"local_space": space, "inner": "adam", "aim": "gradient", "rank": "d/2"}
    with pytest.raises(ConfigError) as error:
        config(optimizer, **{key: value})
    assert str(error.value) == (
        f'periods.{key} = {value!r} needs optimizer.local_space = "core", not "{space}": '
        "a core of a moment is not the moment of a core; set it to 0."
    )


def test_muon_has_no_second_moment_to_average() -> None:
    with pytest.raises(ConfigError) as error:
        config({"inner": "muon"}, k_v="auto")
    assert str(error.value) == (
        "periods.k_v = 'auto' has nothing to average with optimizer.inner = \"muon\", which keeps no second moment; "
        "set it to 0."
    )


@pytest.mark.parametrize(("inner", "periods"), [("muon", {"k_u": 60}), ("adam", {"k_u": "auto", "k_v": 200})])
def test_cores_may_average_what_they_keep(inner: str, periods: dict[str, Any]) -> None:
    config({"inner": inner, "aim": "gradient", "rank": "d/2"}, **periods)
    config({"inner": inner}, k_r=40, **periods)


@pytest.mark.parametrize(
    ("optimizer", "periods", "key"),
    [
        ({"outer": "nesterov"}, {}, "optimizer.outer"),
        ({}, {"k_u": 40}, "periods.k_u"),
        ({}, {"k_r": 0, "k_u": 20}, "k_u"),
    ],
)
def test_what_a_draw_would_forget_is_refused(optimizer: dict[str, Any], periods: dict[str, Any], key: str) -> None:
    """Story: averages of moments were paid for and thrown away in the same round, without a word."""
    with pytest.raises(ConfigError, match=rf"{key} = .* no effect that lasts .* drawn anew every round"):
        config(optimizer, **periods)


@pytest.mark.parametrize("value", [30, -20, "half"])
def test_a_period_is_a_multiple_of_that_of_the_weights(value: int | str) -> None:
    with pytest.raises(ConfigError, match=r"periods\.k_u = .* a multiple of k_x = 20, 0 or \"auto\""):
        config({"inner": "adam"}, k_u=value)
