"""Named choices of settings to begin a run from: what each is, for whom, and the keys it sets.

A preset stands between the defaults and a run file: ``run.preset = "lean"`` is replaced by the preset's keys before
anything reads the run, so that no manifest knows of it. A new one is an entry in PRESETS.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tsr_swarm.config.auto import ALL, AUTO
from tsr_swarm.config.coerce import shown
from tsr_swarm.config.run import PeriodsConfig
from tsr_swarm.errors import ConfigError

KEY = "preset"  # of the section [run]
_Sections = Mapping[str, Any]  # a run file, parsed


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """``about``: what it is and for whom. ``rounds``: keys whose value is so many times periods.k_x."""

    about: str
    keys: Mapping[str, Any]
    rounds: Mapping[str, int] = field(default_factory=dict)


_THREE_BITS = {"wire.core_bits": 3, "wire.published_bits": 3}
# Averages of moments hardly change the loss, and three and six rounds as in DES-LOC would double the bytes.
_MOMENTS = {"periods.k_u": 24, "periods.k_v": 48}
_CORE_ADAM = {"optimizer.local_space": "core", "optimizer.inner": "adam"}
_DRAWN_MUON = {"optimizer.local_space": "core", "optimizer.aim": "seed", "optimizer.inner": "muon", **_THREE_BITS}
_DISPLACED = {"optimizer.local_space": "full", "optimizer.aim": "displacement", "optimizer.rank": AUTO}

PRESETS: Mapping[str, Preset] = {
    "lean": Preset(
        about="Muon in half of each matrix's directions, drawn anew every round, 3 bits a number: for slow uplinks.",
        keys={**_DRAWN_MUON, "optimizer.rank": AUTO},
    ),
    "rich": Preset(
        about="The same in all directions of every matrix: for those who can send more and want the lowest loss.",
        keys={**_DRAWN_MUON, "optimizer.rank": ALL},
    ),
    "tsr-adam": Preset(
        about="TSR-Adam with rare exchanges: Adam in cores whose bases come from a randomized SVD of the mean "
        "gradient, block by block in turn, each kind of moment averaged at a period of its own: for small memory.",
        keys={**_CORE_ADAM, **_THREE_BITS, "optimizer.aim": "gradient", "optimizer.rank": AUTO, "wire.sketch_bits": 5},
        rounds={**_MOMENTS, "periods.k_r": 16, "periods.k_r_embedding": 16},
    ),
    "tsr-adam-dct": Preset(
        about="The same in the columns of a cosine transform that hold most of the gradient: for those who would "
        "rather send a number a column than a sketch.",
        keys={**_CORE_ADAM, **_THREE_BITS, "optimizer.aim": "dct", "optimizer.rank": "d/4"},
        rounds=_MOMENTS,
    ),
    "lordo": Preset(
        about="LoRDO: Adam with moments of low rank and a full-rank share moves whole matrices, and a sketch of what "
        "moved, a randomized SVD carried on from round to round, is all that is sent: the papers' method at its best.",
        keys={**_DISPLACED, "optimizer.inner": "lordo", "wire.sketch_bits": 3},
    ),
    "sketch": Preset(
        about="The same around plain Adam, in more directions: for peers with memory for moments of full size.",
        keys={**_DISPLACED, "optimizer.inner": "adam", "optimizer.rank": "d/4", "wire.sketch_bits": 4},
    ),
}


def require_preset(name: object) -> str:
    """Return ``name``. Raises ConfigError with the list of presets for any other."""
    if not isinstance(name, str) or name not in PRESETS:
        raise ConfigError(f"{shown(name)} is not a preset; there are {', '.join(PRESETS)}.")
    return name


def preset_keys(name: str, k_x: int) -> dict[str, Any]:
    """Return the keys that a preset sets, ``section.key`` to value, in rounds of ``k_x`` steps. Raises ConfigError."""
    preset = PRESETS[require_preset(name)]
    return {**preset.keys, **{key: rounds * k_x for key, rounds in preset.rounds.items()}}


def expand_preset(file: _Sections, given: _Sections) -> dict[str, Any]:
    """Return ``given``, a run file under environment and flags, over the keys of the preset that it names, if any.

    What is given comes before the preset. But a preset that was chosen beside the ``file``, which does not name it, may
    not contradict it: that raises ConfigError, and so does an unknown preset.
    """
    name = _section(given, "run").get(KEY)
    if name is None:
        return dict(given)
    k_x = _section(given, "periods").get("k_x")
    keys = preset_keys(name, k_x if isinstance(k_x, int) else PeriodsConfig().k_x)
    if _section(file, "run").get(KEY) != name:
        _refuse_contradiction(name, keys, file)
    result = {section: dict(values) if isinstance(values, Mapping) else values for section, values in given.items()}
    del result["run"][KEY]
    for path, value in keys.items():
        section, _, key = path.partition(".")
        values = result.setdefault(section, {})
        if isinstance(values, dict):  # else it is refused by whoever reads it
            values.setdefault(key, value)
    return result


def _refuse_contradiction(name: str, keys: Mapping[str, Any], file: _Sections) -> None:
    for path, value in keys.items():
        section, _, key = path.partition(".")
        written = _section(file, section).get(key, value)
        if written != value:
            raise ConfigError(
                f"The preset '{name}' sets {path} = {shown(value)}, but the run file says {shown(written)}; remove "
                f'the key from the file, or write run.preset = "{name}" into it, where its own keys come first.'
            )


def _section(sections: _Sections, name: str) -> Mapping[str, Any]:
    values = sections.get(name)
    return values if isinstance(values, Mapping) else {}
