"""The settings that all baselines share, and how settings are read. Each method has a dataclass of its own."""

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import ClassVar, TypeVar

from tsr_swarm.config.blocks import parse_rank
from tsr_swarm.config.coerce import coerce_fields, require
from tsr_swarm.errors import ConfigError

S = TypeVar("S", bound="Settings")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The inner optimizer of a method, and its period."""

    method: ClassVar[str] = ""
    inner: str = "adam"  # adam | muon; muon for the matrices of layers, adam for everything else
    betas: tuple[float, float] = (0.9, 0.99)  # adam's
    eps: float = 1e-8  # adam's
    weight_decay: float = 0.0  # decoupled
    k_x: int = 20  # local steps between two exchanges of weights

    def __post_init__(self) -> None:
        coerce_fields(self, f"{self.method}.")
        self.require(self.inner in ("adam", "muon"), "inner", '"adam" or "muon"')
        self.require(all(0 <= beta < 1 for beta in self.betas), "betas", "two numbers, each from 0 to below 1")
        self.require(0 < self.eps < 1, "eps", "between 0 and 1")
        self.require(0 <= self.weight_decay <= 1, "weight_decay", "0 to 1")
        self.require(1 <= self.k_x <= 10**6, "k_x", "1 to 1000000")

    def require(self, is_legal: bool, key: str, limit: str) -> None:
        """Raise a ConfigError that names the method and the key unless ``is_legal``."""
        require(is_legal, f"{self.method}.{key}", getattr(self, key), limit)

    def require_rank(self, key: str) -> None:
        """Raise a ConfigError unless the key is a rank: a number, or a share such as "d/2"."""
        value = getattr(self, key)
        is_rank = value >= 1 if isinstance(value, int) else re.fullmatch(r"d(/[1-9]\d*)?", value) is not None
        self.require(is_rank, key, 'a number of at least 1, or a share of a matrix\' shorter side such as "d/2"')

    def require_every_step(self) -> None:
        """Raise a ConfigError unless the period is 1, the only one of this method."""
        self.require(self.k_x == 1, "k_x", "1: this method exchanges at every step")

    def require_adam(self, why: str) -> None:
        """Raise a ConfigError unless the inner optimizer is Adam."""
        self.require(self.inner == "adam", "inner", f'"adam": {why}')


def rank_of(rank: int | str, shape: tuple[int, ...]) -> int:
    """Return the rank of a matrix; d of ``"d/2"`` is the matrix' shorter side."""
    return parse_rank("rank", rank, min(shape))


def read_settings(cls: type[S], mapping: Mapping[str, object]) -> S:
    """Read settings from parsed TOML or JSON, with defaults for what is not named. Raises ConfigError."""
    known = [field.name for field in fields(cls)]
    for key in mapping:
        if key not in known:
            near = nearest(key, known)
            raise ConfigError(f"'{cls.method}.{key}' is not a known key; did you mean '{cls.method}.{near}'?")
    return cls(**mapping)  # type: ignore[arg-type]


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the known name that is most like a wrong one."""
    return difflib.get_close_matches(name, list(known), n=1, cutoff=0.0)[0]
