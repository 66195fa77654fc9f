"""Settings that come from code instead of a file: the same types, or the same sentence."""

import json
from typing import Any

import numpy as np
import pytest

from tsr_swarm.config import run
from tsr_swarm.config.load import run_config_from_mapping
from tsr_swarm.config.manifest import Manifest, decode_manifest
from tsr_swarm.errors import ConfigError

NUMPY = run.RunConfig(
    run=run.RunSection(name=np.str_("numbers"), seed=np.uint16(3)),
    model=run.ModelConfig(hidden_size=np.int64(64), tie_word_embeddings=np.bool_(False)),  # type: ignore[arg-type]
    data=run.DataConfig(source=["a", "b"]),  # type: ignore[arg-type]
    optimizer=run.OptimizerConfig(aim="gradient", rank=np.int64(16), lr=np.float32(0.5), betas=np.array([0.5, 0.75])),  # type: ignore[arg-type]
    periods=run.PeriodsConfig(k_x=np.int32(10), k_u=np.int64(20), k_r=np.int64(20), k_r_embedding=np.int32(30)),
)
PLAIN = run.RunConfig(
    run=run.RunSection(name="numbers", seed=3),
    model=run.ModelConfig(hidden_size=64, tie_word_embeddings=False),
    data=run.DataConfig(source=("a", "b")),
    optimizer=run.OptimizerConfig(aim="gradient", rank=16, lr=0.5, betas=(0.5, 0.75)),
    periods=run.PeriodsConfig(k_x=10, k_u=20, k_r=20, k_r_embedding=30),
)


def types_of(config: run.RunConfig) -> dict[str, type]:
    sections = {name: getattr(config, name) for name in run.SECTIONS}
    return {
        f"{name}.{key}": type(getattr(section, key)) for name, section in sections.items() for key in section.__slots__
    }


def test_numbers_of_numpy_make_the_same_run_as_pythons() -> None:
    assert NUMPY == PLAIN
    assert types_of(NUMPY) == types_of(PLAIN)
    assert Manifest("1", NUMPY, ()).encoded == Manifest("1", PLAIN, ()).encoded
    assert decode_manifest(Manifest("1", NUMPY, ()).encoded).config == PLAIN


def test_values_from_json_and_whole_numbers_that_stand_for_floats_make_the_same_run() -> None:
    document = json.loads(json.dumps({"optimizer": {"rank": "d/4", "lr": 1}, "periods": {"k_u": 0}}))
    read, made = run_config_from_mapping(document), run.RunConfig(optimizer=run.OptimizerConfig(rank="d/4", lr=1.0))
    assert read == made
    assert Manifest("1", read, ()).encoded == Manifest("1", made, ()).encoded


NUMBER, WHOLE, SWITCH = "a number", "a whole number", "true or false"


@pytest.mark.parametrize(
    ("section", "key", "value", "kind"),
    [
        *((run.OptimizerConfig, "lr", lr, f"{NUMBER} or text") for lr in (None, True, [0.1])),
        *((run.OptimizerConfig, "eps", eps, NUMBER) for eps in ("0.1", None, True)),
        *((run.OptimizerConfig, "rank", rank, f"{WHOLE} or text") for rank in (2.5, np.float64(64), None)),
        *((run.OptimizerConfig, "betas", betas, "a list of two numbers") for betas in (0.9, [0.9])),
        (run.OptimizerConfig, "feedback", 1, SWITCH),
        *((run.RunSection, "seed", seed, WHOLE) for seed in (True, np.bool_(True), 1.0)),
        (run.RunSection, "name", 3, "text"),
        (run.DataConfig, "source", [1], "text or a list of text"),
        (run.RunConfig, "optimizer", {"rank": 3}, "a section, OptimizerConfig"),
        (run.RunConfig, "data", None, "a section, DataConfig"),
    ],
)
def test_a_value_of_another_kind_is_refused_in_one_sentence(
    section: type[Any], key: str, value: Any, kind: str
) -> None:
    plain = value.item() if isinstance(value, np.generic) else value
    with pytest.raises(ConfigError) as caught:
        section(**{key: value})
    assert str(caught.value) == f"{section.full_key(key)} = {plain!r} has the wrong type; it must be {kind}."


@pytest.mark.parametrize(
    ("section", "values", "sentence"),
    [
        (
            run.OptimizerConfig,
            {"eps": 10**400},
            "optimizer.eps is a whole number with more digits than a float can hold",
        ),
        (run.OptimizerConfig, {"lr": np.float32("nan")}, "optimizer.lr = nan is out of range; it must be above 0, at"),
        (run.PeriodsConfig, {"k_x": np.int64(0)}, "periods.k_x = 0 is out of range"),
    ],
)
def test_a_number_out_of_range_is_refused(section: type[Any], values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        section(**values)
