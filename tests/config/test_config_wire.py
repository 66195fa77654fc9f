"""Which bits and densities a run may ask for, and what is said of the others."""

import pytest

from tsr_swarm.config.run import WireConfig
from tsr_swarm.errors import ConfigError


def test_the_defaults_drop_nothing() -> None:
    wire = WireConfig()
    assert (wire.core_density, wire.published_density, wire.rounding) == (1.0, 1.0, "nearest")


@pytest.mark.parametrize("bits", [2, 3, 4, 8, 16])
def test_cores_take_few_bits_or_many(bits: int) -> None:
    wire = WireConfig(core_bits=bits, published_bits=bits)
    assert (wire.core_bits, wire.published_bits) == (bits, bits)


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"core_bits": 5}, r"wire.core_bits = 5 is out of range; it must be 2, 3, 4, 8 or 16."),
        ({"published_bits": 1}, r"wire.published_bits = 1 is out of range; it must be 2, 3, 4, 8 or 16."),
        ({"sketch_bits": 3}, r"wire.sketch_bits = 3 is out of range; it must be 4, 8 or 16."),
        ({"core_density": 0.0}, r"wire.core_density = 0.0 is out of range; it must be above 0, at most 1."),
        ({"published_density": 1.5}, r"wire.published_density = 1.5 is out of range; it must be above 0, at most 1."),
        (
            {"core_bits": 16, "core_density": 0.1},
            r"wire.core_density = 0.1 is for up to 8 bits, .* wire.core_bits = 16;",
        ),
        (
            {"published_density": 0.1, "published_bits": 16},
            r"wire.published_density = 0.1 .* wire.published_bits = 16; set wire.published_bits",
        ),
        ({"rounding": "up"}, r"wire.rounding = 'up' is out of range; it must be \"nearest\" or \"stochastic\"."),
        (
            {"rounding": "stochastic", "core_bits": 8, "published_bits": 16},
            r"wire.rounding = \"stochastic\" has nothing to round: .* lower wire.core_bits",
        ),
        ({"rounding": "stochastic", "core_bits": 3, "core_density": 0.1, "published_bits": 8}, "has nothing to round"),
    ],
)
def test_what_makes_no_sense_is_told_in_one_sentence(keys: dict[str, object], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence) as refusal:
        WireConfig(**keys)  # type: ignore[arg-type]
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("keys", [{"core_bits": 4}, {"sketch_bits": 4}, {"published_bits": 2}])
def test_stochastic_rounding_is_for_few_bits_of_full_density(keys: dict[str, int]) -> None:
    many = {"core_bits": 8, "published_bits": 16, "rounding": "stochastic"}
    assert WireConfig(**many | keys).rounding == "stochastic"  # type: ignore[arg-type]
