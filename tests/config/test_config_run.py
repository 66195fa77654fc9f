"""Which settings a run may have, and the sentence that says why it may not have others."""

from dataclasses import replace
from typing import Any

import pytest

from tests.steady import OPTIMIZER
from tsr_swarm.config.load import run_config_from_mapping
from tsr_swarm.config.run import RunConfig, RunSection
from tsr_swarm.errors import ConfigError

STOCHASTIC = {"core_bits": 8, "published_bits": 16, "rounding": "stochastic"}
DRAWN_ANEW = " has no effect that lasts where bases are drawn anew every round"


def refusal(**sections: dict[str, Any]) -> str:
    """What is said of a run of these settings."""
    with pytest.raises(ConfigError) as error:
        run_config_from_mapping(sections)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("space", ["full", "mixed"])
@pytest.mark.parametrize(("key", "value"), [("k_u", 40), ("k_u", "auto"), ("k_v", 20)])
def test_only_core_peers_average_moments(space: str, key: str, value: int | str) -> None:
    optimizer = {"local_space": space, "inner": "adam", "aim": "gradient", "rank": "d/2"}
    assert refusal(optimizer=optimizer, periods={"k_r": 20, key: value}) == (
        f'periods.{key} = {value!r} needs optimizer.local_space = "core", not "{space}": '
        "a core of a moment is not the moment of a core; set it to 0."
    )


@pytest.mark.parametrize(("inner", "periods"), [("muon", {"k_u": 60}), ("adam", {"k_u": "auto", "k_v": 200})])
def test_cores_may_average_what_they_keep(inner: str, periods: dict[str, Any]) -> None:
    gradient = {"inner": inner, "aim": "gradient", "rank": "d/2"}
    run_config_from_mapping({"optimizer": gradient, "periods": {"k_r": 20} | periods})
    run_config_from_mapping({"optimizer": {"inner": inner}, "periods": {"k_r": 40} | periods})


LORDO = {"inner": "lordo", "local_space": "full", "rank": "d/2"}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"local_space": space, "aim": "gradient"},
            f'optimizer.inner = "lordo" needs optimizer.local_space = "full", not "{space}": ',
        )
        for space in ("core", "mixed")
    ]
    + [({"aim": "seed"}, 'optimizer.inner = "lordo" with optimizer.projection = "global" needs bases that follow ')],
)
def test_lordo_is_for_full_size_peers_whose_bases_follow_the_training(changes: dict[str, Any], says: str) -> None:
    assert refusal(optimizer=LORDO | changes).startswith(says)
    for legal in ({"aim": "displacement"}, {"aim": "gradient"}, {"aim": "seed", "projection": "local"}):
        run_config_from_mapping({"optimizer": LORDO | legal})


@pytest.mark.parametrize("key", ["k_u", "k_v"])
def test_lordos_moments_are_averaged_in_shared_bases_only(key: str) -> None:
    optimizer = LORDO | {"aim": "displacement"}
    assert refusal(optimizer=optimizer | {"projection": "local"}, periods={key: 40}) == (
        f'periods.{key} = 40 needs optimizer.projection = "global", not "local": moments in a basis of one peer mean '
        "nothing to others; set it to 0."
    )
    run_config_from_mapping({"optimizer": optimizer, "periods": {key: "auto"}})


ADAM_ONLY = (
    "periods.k_v = 'auto' has nothing to average with optimizer.inner = \"muon\", which keeps no second moment; set "
    "it to 0."
)
DENSITY = "wire.{0}_density = 0.1 is for up to 8 bits, but wire.{0}_bits = 16; set wire.{0}"
STOCHASTIC_REFUSED = 'wire.rounding = "stochastic" has nothing to round: '


@pytest.mark.parametrize(
    ("sections", "says"),
    [
        ({"optimizer": {"inner": "muon", "aim": "gradient", "rank": 4}, "periods": {"k_v": "auto"}}, ADAM_ONLY),
        # Averages of moments were once paid for and thrown away in the same round, without a word.
        ({"optimizer": {"outer": "nesterov"}}, "optimizer.outer = 'nesterov'" + DRAWN_ANEW),
        ({"periods": {"k_r": 20, "k_u": 40}}, "periods.k_u = 40" + DRAWN_ANEW),
        ({"periods": {"k_r": 0, "k_u": 20}}, "periods.k_u = 20" + DRAWN_ANEW),
        ({"wire": {"core_bits": 16, "core_density": 0.1}}, DENSITY.format("core")),
        ({"wire": {"published_bits": 16, "published_density": 0.1}}, DENSITY.format("published")),
        ({"wire": STOCHASTIC | {"sketch_bits": 8}}, STOCHASTIC_REFUSED),
        ({"wire": STOCHASTIC | {"core_bits": 3, "core_density": 0.1, "sketch_bits": 8}}, STOCHASTIC_REFUSED),
    ],
)
def test_settings_that_have_no_effect_together_are_refused(sections: dict[str, Any], says: str) -> None:
    assert refusal(**sections).startswith(says)


@pytest.mark.parametrize(
    ("section", "key", "values", "limit"),
    [
        ("optimizer", "omega", (-0.1, 1.1), "0 to 1"),
        ("optimizer", "mu", (0.0, 2e6), "above 0, at most 1000000"),
        ("optimizer", "projection", ("both",), '"global" or "local"'),
        ("periods", "k_u", (30, -20, "half"), 'a multiple of k_x = 20, 0 or "auto"'),
        ("periods", "k_r_embedding", (30, -20, "half"), 'a multiple of k_x = 20, 0 for every round or "auto"'),
        ("optimizer", "lr", (0.0, 2.0, "0.1"), 'above 0, at most 1, or "auto"'),
        ("round", "budget_kb", (-1, 10**9 + 1), "0 (no budget) to 1000000000"),
        ("wire", "core_bits", (5,), "2, 3, 4, 8 or 16"),
        ("wire", "published_bits", (1,), "2, 3, 4, 8 or 16"),
        ("wire", "sketch_bits", (1, 7, 12), "2, 3, 4, 5, 6, 8 or 16"),
        ("wire", "core_density", (0.0,), "above 0, at most 1"),
        ("wire", "published_density", (1.5,), "above 0, at most 1"),
        ("wire", "rounding", ("up",), '"nearest" or "stochastic"'),
    ],
)
def test_a_value_out_of_range_is_refused_with_its_limit(
    section: str, key: str, values: tuple[Any, ...], limit: str
) -> None:
    for value in values:
        said = refusal(**{section: {key: value}})
        assert said == f"{section}.{key} = {value!r} is out of range; it must be {limit}."


@pytest.mark.parametrize(
    "optimizer",
    [*({"local_space": space} for space in ("core", "full", "mixed")), {"local_space": "full", "aim": "seed"}],
)
def test_only_full_peers_whose_bases_follow_displacements_have_a_budget(optimizer: dict[str, Any]) -> None:
    space, aim = optimizer["local_space"], optimizer.get("aim", "gradient")
    assert refusal(optimizer=OPTIMIZER | optimizer, round={"budget_kb": 500}) == (
        'round.budget_kb = 500 needs optimizer.local_space = "full" and optimizer.aim = "displacement", not '
        f'"{space}" and "{aim}": only there does a block choose between a core and a sketch; set it to 0.'
    )
    run_config_from_mapping({"optimizer": OPTIMIZER | optimizer, "round": {"budget_kb": 0}})


FEW = [STOCHASTIC | few for few in ({"core_bits": 4}, {"sketch_bits": 4}, {"published_bits": 2})]


@pytest.mark.parametrize("keys", [*({"core_bits": bits, "published_bits": bits} for bits in (2, 3, 4, 8, 16)), *FEW])
def test_cores_take_few_bits_or_many_and_few_may_be_rounded_by_chance(keys: dict[str, object]) -> None:
    run_config_from_mapping({"wire": keys})


def test_a_run_is_kept_under_its_name_unless_a_folder_is_named() -> None:
    config = replace(RunConfig(), run=RunSection(name="chat"))
    assert config.folder == "runs/chat"
    assert replace(config, checkpoint=replace(config.checkpoint, dir="mine/<name>-1")).folder == "mine/chat-1"
    assert replace(config, checkpoint=replace(config.checkpoint, dir="runs/my-run")).folder == "runs/my-run"
