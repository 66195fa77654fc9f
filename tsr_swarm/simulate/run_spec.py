"""What one simulated run is: everything that determines its result, and the name that follows from it."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from tsr_swarm.baselines.registry import default_settings
from tsr_swarm.config.coerce import require
from tsr_swarm.config.run import RunConfig
from tsr_swarm.errors import ConfigError
from tsr_swarm.simulate.heterogeneity import Heterogeneity

OURS = "tsr"
SCHEDULES = ("cosine", "constant")
POINTS = 10  # of a curve, unless something else is asked for


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSpec:
    """One method with one seed. The rate is ``config.optimizer.lr``, the seed is ``config.run.seed``."""

    method: str  # "tsr" is ours, the others are in tsr_swarm/rivals
    config: RunConfig  # a rival takes its model, data, rate, warm-up, clip and seed
    settings: Mapping[str, Any] = field(default_factory=dict)  # a rival's; its defaults for what is not named
    peers: int = 4
    steps: int = 200
    schedule: str = "cosine"  # down to a tenth of the rate over the whole run, or constant; both after the warm-up
    eval_every: int = 0  # steps; 0: ten times a run
    world: Heterogeneity = field(default_factory=Heterogeneity)
    exact: bool = False  # ours: every peer keeps its own consensus and opens every round itself

    def __post_init__(self) -> None:
        require(1 <= self.peers <= 1000, "peers", self.peers, "1 to 1000")
        require(1 <= self.steps <= 10**7, "steps", self.steps, "1 to 10000000")
        require(self.schedule in SCHEDULES, "schedule", self.schedule, " or ".join(SCHEDULES))
        require(0 <= self.eval_every <= self.steps, "eval_every", self.eval_every, "0 (ten times a run) to steps")
        of_model, of_text = self.config.model.vocab_size, self.world.vocabulary
        if of_text not in (0, of_model):
            raise ConfigError(
                f"model.vocab_size = {of_model} is not the vocabulary of the text, {of_text} BPE tokens; set "
                f"model.vocab_size = {of_text}, or vocabulary 0 for bytes."
            )

    @property
    def is_ours(self) -> bool:
        return self.method == OURS

    @property
    def seed(self) -> int:
        return self.config.run.seed

    @property
    def lr(self) -> float:
        return self.config.optimizer.lr

    @property
    def eval_steps(self) -> int:
        """Steps between two evaluations."""
        return self.eval_every or max(1, self.steps // POINTS)

    def fitted(self) -> RunConfig:
        """The configuration that is run: a part of the data for each peer, and the schedule."""
        optimizer = self.config.optimizer
        decay_steps = max(1, self.steps - optimizer.warmup_steps) if self.schedule == "cosine" else 0
        return replace(
            self.config,
            data=replace(self.config.data, parts=self.peers),
            optimizer=replace(optimizer, decay_steps=decay_steps),
        )

    def identity(self) -> dict[str, Any]:
        """All that the result depends on, as JSON has it. A rival's does not name what only ours reads."""
        config = asdict(self.fitted())
        shared: dict[str, Any] = {
            "method": self.method,
            "peers": self.peers,
            "steps": self.steps,
            "eval_steps": self.eval_steps,
            "seed": self.seed,
            "world": _world(self.world),
            "model": config["model"],
            "data": config["data"],
        }
        if self.is_ours:
            sections = {name: config[name] for name in ("optimizer", "periods", "wire")}
            round = {key: config["round"][key] for key in ("quorum", "shards")}
            if config["round"]["budget_kb"]:  # runs without one keep the names they had before there was any
                round["budget_kb"] = config["round"]["budget_kb"]
            return _as_json({**shared, **sections, "round": round, "exact": self.exact})
        optimizer = {key: config["optimizer"][key] for key in ("lr", "warmup_steps", "decay_steps", "clip")}
        return _as_json(
            {**shared, "optimizer": optimizer, "settings": {**default_settings(self.method), **self.settings}}
        )

    @property
    def name(self) -> str:
        """The method, and a hash of everything else: equal names mean equal results."""
        text = json.dumps(self.identity(), sort_keys=True, separators=(",", ":"))
        return f"{self.method}-{hashlib.blake2b(text.encode(), digest_size=8).hexdigest()}"


def _world(world: Heterogeneity) -> dict[str, Any]:
    """Runs on bytes keep the names they had before there was any other text."""
    return {key: value for key, value in asdict(world).items() if key != "vocabulary" or value}


def _as_json(document: dict[str, Any]) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(json.dumps(document))
    return loaded
