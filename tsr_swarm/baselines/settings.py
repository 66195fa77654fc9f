"""The settings that all baselines share. Each method has a dataclass of its own."""

import re
from dataclasses import dataclass
from typing import ClassVar

from tsr_swarm.config.blocks import parse_rank
from tsr_swarm.config.coerce import ConfigSection


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings(ConfigSection):
    """The inner optimizer of a method, and its period."""

    method: ClassVar[str] = ""
    inner: str = "adam"  # adam | muon; muon for the matrices of layers, adam for everything else
    betas: tuple[float, float] = (0.9, 0.99)  # adam's
    eps: float = 1e-8  # adam's
    weight_decay: float = 0.0  # decoupled
    k_x: int = 20  # local steps between two exchanges of weights

    @classmethod
    def full_key(cls, key: str) -> str:
        """A key as messages write it, such as ``diloco.k_x``."""
        return f"{cls.method}.{key}"

    def check(self) -> None:
        self.require(self.inner in ("adam", "muon"), "inner", '"adam" or "muon"')
        self.require(all(0 <= beta < 1 for beta in self.betas), "betas", "two numbers, each from 0 to below 1")
        self.require(0 < self.eps < 1, "eps", "between 0 and 1")
        self.require(0 <= self.weight_decay <= 1, "weight_decay", "0 to 1")
        self.require(1 <= self.k_x <= 10**6, "k_x", "1 to 1000000")

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
