"""A preset stands between the defaults and the file, and leaves no trace in what peers share."""

import copy
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsr_swarm.config.load import configure
from tsr_swarm.config.manifest import make_manifest
from tsr_swarm.config.presets import PRESETS, preset_keys
from tsr_swarm.config.run import RunConfig
from tsr_swarm.errors import ConfigError
from tsr_swarm.plan.costs import MODEL_SIZES
from tsr_swarm.plan.own_costs import blocks_of, own_exchange, wire_shares
from tsr_swarm.train.llama import parameter_shapes

NAMES = st.sampled_from(list(PRESETS))
OF_CORES = st.sampled_from([name for name in PRESETS if name not in ("lordo", "sketch")])
K_X = st.integers(1, 60)
# Any of them may stand in a file beside any preset.
FREE = {"optimizer.weight_decay": st.floats(0, 1), "optimizer.rank": st.sampled_from(("d/4", 8)), "data.parts": K_X}
FILES = st.fixed_dictionaries({}, optional=FREE)


def sections(keys: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """``section.key`` to value, as a file has it."""
    nested: dict[str, dict[str, Any]] = {}
    for path, value in keys.items():
        section, _, key = path.partition(".")
        nested.setdefault(section, {})[key] = value
    return nested


def value_of(config: RunConfig, path: str) -> Any:
    section, _, key = path.partition(".")
    return getattr(getattr(config, section), key)


def digest_of(config: RunConfig) -> str:
    return make_manifest("run", config, parameter_shapes(config.model)).digest


@given(name=NAMES, k_x=K_X, file=FILES)
def test_a_run_under_a_preset_is_the_run_with_its_keys_written_out(name: str, k_x: int, file: dict[str, Any]) -> None:
    named = {**file, "run.preset": name, "periods.k_x": k_x}
    written = {**preset_keys(name, k_x), **file, "periods.k_x": k_x}
    configs = [configure(sections(keys), environ={}) for keys in (named, written)]
    assert configs[0] == configs[1]
    assert digest_of(configs[0]) == digest_of(configs[1])


@given(name=OF_CORES, bits=st.permutations((2, 4, 8, 16)), said=st.tuples(*[st.booleans()] * 3))
def test_flags_come_before_the_environment_the_file_the_preset_and_the_defaults(
    name: str, bits: list[int], said: tuple[bool, bool, bool]
) -> None:
    in_file, in_environ, in_flags = said
    file = {"run": {"preset": name}, **({"wire": {"core_bits": bits[0]}} if in_file else {})}
    before = copy.deepcopy(file)
    environ = {"TSR_SWARM_WIRE__CORE_BITS": str(bits[1])} if in_environ else {}
    config = configure(file, [f"wire.core_bits={bits[2]}"] if in_flags else [], environ)
    of_preset = preset_keys(name, 20).get("wire.core_bits", RunConfig().wire.core_bits)
    told = [bits[2]] * in_flags + [bits[1]] * in_environ + [bits[0]] * in_file + [of_preset]
    assert config.wire.core_bits == told[0]
    assert file == before


@given(name=NAMES, chosen=NAMES, by_environ=st.booleans())
def test_a_preset_of_the_moment_may_not_contradict_the_file(name: str, chosen: str, by_environ: bool) -> None:
    """Whose keys are those of another preset, ``name``, written out."""
    keys, wanted = preset_keys(name, 20), preset_keys(chosen, 20)
    differing = [key for key in keys.keys() & wanted.keys() if keys[key] != wanted[key]]
    environ = {"TSR_SWARM_RUN__PRESET": chosen} if by_environ else {}
    overrides = [] if by_environ else [f'run.preset="{chosen}"']
    content = sections(keys)
    if not differing:
        config = configure(content, overrides, environ)
        assert all(value_of(config, key) == value for key, value in {**wanted, **keys}.items())
        return
    with pytest.raises(ConfigError) as caught:
        configure(content, overrides, environ)
    said = str(caught.value)
    assert "\n" not in said
    assert any(f"sets {key} = {wanted[key]!r}, but the run file says {keys[key]!r}" in said for key in differing)


@given(name=NAMES)
def test_the_preset_of_a_file_gives_way_to_one_of_the_moment(name: str) -> None:
    for other in PRESETS:
        config = configure({"run": {"preset": other}}, [f"run.preset={name}"], environ={})
        assert config == configure({"run": {"preset": name}}, environ={})


def test_lean_is_what_a_run_is_by_default() -> None:
    assert configure({"run": {"preset": "lean"}}, environ={}) == RunConfig()


def test_presets_differ_and_each_says_in_a_sentence_what_it_is() -> None:
    configs = [asdict(configure({"run": {"preset": name}}, environ={})) for name in PRESETS]
    assert all(a != b for n, a in enumerate(configs) for b in configs[:n])
    assert all(preset.about.endswith(".") and preset.about.count(". ") == 0 for preset in PRESETS.values())


def test_the_readme_has_a_row_for_each_preset() -> None:
    text = (Path(__file__).parents[2] / "README.md").read_text()
    table = text.partition("| preset |")[2].partition("\n\n")[0]
    assert re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE) == list(PRESETS)
    told = re.findall(r"\| ([0-9.]+), ([0-9.]+) \|", table)
    assert told == [tuple(f"{way:.1f}" for way in megabytes_at_60m(name)) for name in PRESETS]


def megabytes_at_60m(preset: str) -> tuple[float, float]:
    """Sent and received by one of eight peers in a round."""
    config = configure({"run": {"preset": preset}, "model": asdict(MODEL_SIZES["60M"].model)}, environ={})
    exchange = own_exchange(config, blocks_of(config), wire_shares(config, peers=8))
    return exchange.up / 1e6, exchange.down / 1e6


@pytest.mark.parametrize("name", ["fat", "", 3, ["lean"], True])
def test_an_unknown_preset_is_refused_with_the_list(name: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        configure({"run": {"preset": name}}, environ={})
    assert str(caught.value) == f"{name!r} is not a preset; there are {', '.join(PRESETS)}."


@pytest.mark.parametrize("content", [{"run": {"preset": "lean"}, "wire": 3}, {"run": 3}, {"periods": [], "run": {}}])
def test_what_is_no_section_is_still_refused_as_that(content: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="must be a section of keys"):
        configure(content, environ={})
