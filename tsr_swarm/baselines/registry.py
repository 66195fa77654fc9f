"""The settings of every baseline by its name, and how a method is made from them."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from torch import Tensor

from tsr_swarm.baselines.des_loc import DesLoc, DesLocSettings, LocalAdam, LocalAdamSettings
from tsr_swarm.baselines.diloco import DiLoCo, DiLoCoSettings
from tsr_swarm.baselines.lordo import LoRDO, LoRDOSettings
from tsr_swarm.baselines.method import Method, Settings
from tsr_swarm.baselines.powersgd import DDP, DDPSettings, PowerSGDSettings, make_powersgd
from tsr_swarm.baselines.sparseloco import SparseLoCo, SparseLoCoSettings
from tsr_swarm.baselines.tsr_adam import TSRAdamMethod, TSRAdamSettings
from tsr_swarm.config.coerce import nearest, require
from tsr_swarm.errors import ConfigError

Make = Callable[[Mapping[str, Tensor], int, Any], Method]  # of first weights, how many peers, and settings

_MADE_FROM: Mapping[type[Settings], Make] = {
    DDPSettings: DDP,
    LocalAdamSettings: LocalAdam,
    DiLoCoSettings: DiLoCo,
    DesLocSettings: DesLoc,
    SparseLoCoSettings: SparseLoCo,
    PowerSGDSettings: make_powersgd,
    LoRDOSettings: LoRDO,
    TSRAdamSettings: TSRAdamMethod,
}
METHODS: Mapping[str, type[Settings]] = {settings.method: settings for settings in _MADE_FROM}


def make_method(name: str, weights: Mapping[str, Tensor], peers: int, settings: Mapping[str, object]) -> Method:
    """Make ``peers`` simulated peers that start from a copy of ``weights``. ``settings`` may be partial.

    Raises ConfigError for an unknown method or setting, naming the nearest one, and for a value out of range.
    """
    require(peers >= 1, "peers", peers, "1 or more")
    chosen = _settings_of(name).read(settings)
    return _MADE_FROM[type(chosen)](weights, peers, chosen)


def default_settings(name: str) -> Mapping[str, object]:
    """Return all settings of a method at their defaults. Raises ConfigError for an unknown method."""
    return asdict(_settings_of(name)())


def named_settings(name: str, settings: Mapping[str, object]) -> Mapping[str, object]:
    """Return all settings of a method with ``settings``, but those that were added later and are at their defaults."""
    defaults = default_settings(name)
    whole = {**defaults, **settings}
    return {key: value for key, value in whole.items() if key not in METHODS[name].later or value != defaults[key]}


def _settings_of(name: str) -> type[Settings]:
    if name not in METHODS:
        raise ConfigError(f"'{name}' is not a known method; did you mean '{nearest(name, METHODS)}'?")
    return METHODS[name]
