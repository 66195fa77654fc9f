"""Settings that come from code instead of a file: the same types, or the same sentence."""

import json
from typing import Any

import numpy as np
import pytest

from tsr_swarm.config.load import run_config_from_mapping
from tsr_swarm.config.manifest import Manifest, decode_manifest
from tsr_swarm.config.run import (
    SECTIONS,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    PeriodsConfig,
    RunConfig,
    RunSection,
)
from tsr_swarm.errors import ConfigError

NUMPY = RunConfig(
    run=RunSection(name=np.str_("numbers"), seed=np.uint16(3)),
    model=ModelConfig(hidden_size=np.int64(64), tie_word_embeddings=np.bool_(False)),  # type: ignore[arg-type]
    data=DataConfig(source=["a", "b"]),  # type: ignore[arg-type]
    optimizer=OptimizerConfig(aim="gradient", rank=np.int64(16), lr=np.float32(0.5), betas=np.array([0.5, 0.75])),  # type: ignore[arg-type]
    periods=PeriodsConfig(k_x=np.int32(10), k_u=np.int64(20), k_r=np.int64(20)),
)
PLAIN = RunConfig(
    run=RunSection(name="numbers", seed=3),
    model=ModelConfig(hidden_size=64, tie_word_embeddings=False),
    data=DataConfig(source=("a", "b")),
    optimizer=OptimizerConfig(aim="gradient", rank=16, lr=0.5, betas=(0.5, 0.75)),
    periods=PeriodsConfig(k_x=10, k_u=20, k_r=20),
)


def types_of(config: RunConfig) -> dict[str, type]:
    sections = {name: getattr(config, name) for name in SECTIONS}
    return {
        f"{name}.{key}": type(getattr(section, key)) for name, section in sections.items() for key in section.__slots__
    }


def test_numbers_of_numpy_make_the_same_run_as_pythons() -> None:
    assert NUMPY == PLAIN
    assert types_of(NUMPY) == types_of(PLAIN)
    assert Manifest("1", NUMPY, ()).encoded == Manifest("1", PLAIN, ()).encoded
    assert decode_manifest(Manifest("1", NUMPY, ()).encoded).config == PLAIN


def test_whole_numbers_that_stand_for_floats_make_the_same_manifest() -> None:
    whole = RunConfig(optimizer=OptimizerConfig(lr=1, weight_decay=0))
    assert Manifest("1", whole, ()).encoded == Manifest("1", RunConfig(optimizer=OptimizerConfig(lr=1.0)), ()).encoded


def test_values_from_json_and_from_code_make_the_same_run() -> None:
    document = json.loads(json.dumps({"optimizer": {"rank": "d/4", "lr": 1}, "periods": {"k_u": 0}}))
    assert run_config_from_mapping(document) == RunConfig(optimizer=OptimizerConfig(rank="d/4", lr=1))


REFUSED: list[tuple[type[Any], dict[str, Any], str]] = [
    (OptimizerConfig, {"lr": "0.1"}, "optimizer.lr = '0.1' has the wrong type; it must be a number."),
    (OptimizerConfig, {"lr": None}, "optimizer.lr = None has the wrong type; it must be a number."),
    (OptimizerConfig, {"lr": True}, "optimizer.lr = True has the wrong type; it must be a number."),
    (OptimizerConfig, {"lr": 10**400}, "optimizer.lr is a whole number with more digits than a float can hold; write"),
    (OptimizerConfig, {"lr": np.float32("nan")}, "optimizer.lr = nan is out of range; it must be above 0, at most 1."),
    (OptimizerConfig, {"rank": 2.5}, "optimizer.rank = 2.5 has the wrong type; it must be a whole number or text."),
    (OptimizerConfig, {"rank": np.float64(64)}, "optimizer.rank = 64.0 has the wrong type; it must be a whole number"),
    (OptimizerConfig, {"rank": None}, "optimizer.rank = None has the wrong type"),
    (OptimizerConfig, {"betas": 0.9}, "optimizer.betas = 0.9 has the wrong type; it must be a list of two numbers."),
    (
        OptimizerConfig,
        {"betas": [0.9]},
        "optimizer.betas = [0.9] has the wrong type; it must be a list of two numbers.",
    ),
    (OptimizerConfig, {"feedback": 1}, "optimizer.feedback = 1 has the wrong type; it must be true or false."),
    (RunSection, {"seed": True}, "run.seed = True has the wrong type; it must be a whole number."),
    (RunSection, {"seed": np.bool_(True)}, "run.seed = True has the wrong type; it must be a whole number."),
    (RunSection, {"seed": 1.0}, "run.seed = 1.0 has the wrong type; it must be a whole number."),
    (RunSection, {"name": 3}, "run.name = 3 has the wrong type; it must be text."),
    (PeriodsConfig, {"k_x": np.int64(0)}, "periods.k_x = 0 is out of range"),
    (DataConfig, {"source": [1]}, "data.source = [1] has the wrong type; it must be text or a list of text."),
    (
        RunConfig,
        {"optimizer": {"rank": 3}},
        "optimizer = {'rank': 3} has the wrong type; it must be a section, Optimiz",
    ),
    (RunConfig, {"data": None}, "data = None has the wrong type; it must be a section, DataConfig."),
]


@pytest.mark.parametrize(("section", "values", "sentence"), REFUSED)
def test_a_value_of_another_kind_is_refused_in_one_sentence(
    section: type[Any], values: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        section(**values)
    assert str(caught.value).startswith(sentence)
