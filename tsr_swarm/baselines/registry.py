"""Every baseline by its name, and how one is made from settings."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from tsr_swarm.baselines.ddp import DDP, DDPSettings
from tsr_swarm.baselines.des_loc import DesLoc, DesLocSettings, LocalAdam, LocalAdamSettings
from tsr_swarm.baselines.diloco import DiLoCo, DiLoCoSettings
from tsr_swarm.baselines.lordo import LoRDO, LoRDOSettings
from tsr_swarm.baselines.method import Method
from tsr_swarm.baselines.powersgd import PowerSGDSettings, make_powersgd
from tsr_swarm.baselines.settings import Settings
from tsr_swarm.baselines.sparseloco import SparseLoCo, SparseLoCoSettings
from tsr_swarm.baselines.tsr_adam import TSRAdamMethod, TSRAdamSettings
from tsr_swarm.config.coerce import nearest, require
from tsr_swarm.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Baseline:
    """A method to compare with: the class of its settings, and what makes it."""

    settings: type[Settings]
    make: Callable[[Mapping[str, Tensor], int, Any], Method]


METHODS: Mapping[str, Baseline] = {
    "ddp": Baseline(DDPSettings, DDP),
    "local-adam": Baseline(LocalAdamSettings, LocalAdam),
    "diloco": Baseline(DiLoCoSettings, DiLoCo),
    "des-loc": Baseline(DesLocSettings, DesLoc),
    "sparseloco": Baseline(SparseLoCoSettings, SparseLoCo),
    "powersgd": Baseline(PowerSGDSettings, make_powersgd),
    "lordo": Baseline(LoRDOSettings, LoRDO),
    "tsr-adam": Baseline(TSRAdamSettings, TSRAdamMethod),
}


def make_method(name: str, weights: Mapping[str, Tensor], peers: int, settings: Mapping[str, object]) -> Method:
    """Make ``peers`` simulated peers that start from a copy of ``weights``. ``settings`` may be partial.

    Raises ConfigError for an unknown method or setting, naming the nearest one, and for a value out of range.
    """
    require(peers >= 1, "peers", peers, "1 or more")
    baseline = _baseline(name)
    return baseline.make(weights, peers, baseline.settings.read(settings))


def default_settings(name: str) -> Mapping[str, object]:
    """Return all settings of a method at their defaults. Raises ConfigError for an unknown method."""
    return asdict(_baseline(name).settings())


def _baseline(name: str) -> Baseline:
    if name not in METHODS:
        raise ConfigError(f"'{name}' is not a known method; did you mean '{nearest(name, METHODS)}'?")
    return METHODS[name]
