"""What one simulated run is: everything that determines its result, and the name that follows from it."""

import difflib
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from tsr_swarm.baselines.registry import METHODS, default_settings
from tsr_swarm.config.load import apply_overrides, run_config_from_mapping
from tsr_swarm.config.run import RunConfig, require
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


USUAL_RATES = {"adam": 3e-3, "muon": 3e-2}  # by inner optimizer: a rival is not to be run at a rate made for another


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyOptions:
    """Every method at every rate with every seed."""

    config: RunConfig
    methods: Sequence[str]
    lrs: Sequence[float] = ()  # none: the configuration's, or what suits another inner optimizer as well
    seeds: Sequence[int] = ()  # none: the configuration's
    peers: int = 4
    steps: int = 200
    k_x: int | None = None  # None: the configuration's; rivals that exchange every step keep to that
    rank: str | None = None  # None: the configuration's for ours, each rival's own default
    method_sets: Sequence[str] = ()  # METHOD.key=value; for ours tsr.section.key=value
    schedule: str = "cosine"
    eval_every: int = 0
    world: Heterogeneity = field(default_factory=Heterogeneity)
    exact: bool = False


def specs_of(options: StudyOptions) -> list[RunSpec]:
    """The runs, all methods of a seed together. Raises ConfigError for an unknown method or setting."""
    refuse_unknown(options.methods)
    sets = apply_overrides({}, options.method_sets)
    refuse_unknown(sets)
    config = _with_keys(options.config, _common(options))
    variants = [_variant(method, config, options, sets.get(method, {})) for method in options.methods]
    lrs = options.lrs or (None,)
    return [
        RunSpec(
            method=method,
            config=_with_keys(own, _only({"optimizer.lr": lr, "run.seed": seed})),
            settings=settings,
            peers=options.peers,
            steps=options.steps,
            schedule=options.schedule,
            eval_every=options.eval_every,
            world=options.world,
            exact=options.exact and method == OURS,
        )
        for seed in options.seeds or (config.run.seed,)
        for method, own, settings in variants
        for lr in lrs
    ]


def refuse_unknown(methods: Iterable[str]) -> None:
    """Raises ConfigError for the first name that is no method."""
    known = [OURS, *METHODS]
    for method in methods:
        if method not in known:
            near = difflib.get_close_matches(method, known, n=1, cutoff=0.0)[0]
            raise ConfigError(f"'{method}' is not a method; did you mean '{near}'? There are {', '.join(known)}.")


def _variant(
    method: str, config: RunConfig, options: StudyOptions, own: Mapping[str, Any]
) -> tuple[str, RunConfig, dict[str, Any]]:
    if method == OURS:
        rank = {"optimizer.rank": options.rank, "optimizer.embedding_rank": options.rank}
        return method, _with_keys(config, {**_only(rank), **own}), {}
    defaults = default_settings(method)
    settings = {**defaults, **_asked(defaults, config, options), **own}
    usual, inner = USUAL_RATES.get(config.optimizer.inner, 1.0), settings.get("inner", "adam")
    lr = config.optimizer.lr * USUAL_RATES.get(inner, usual) / usual
    return method, _with_keys(config, {"optimizer.lr": min(1.0, lr)}), settings


def _asked(defaults: Mapping[str, Any], config: RunConfig, options: StudyOptions) -> dict[str, Any]:
    """What the shared flags say to a rival that has such a setting. One that syncs every step goes on doing so."""
    asked = {}
    if defaults.get("k_x", 1) != 1:
        asked["k_x"] = config.periods.k_x
    if options.rank is not None and "rank" in defaults:
        asked["rank"] = _number_or_text(options.rank)
    return asked


def _common(options: StudyOptions) -> dict[str, Any]:
    return _only({"periods.k_x": options.k_x})


def _only(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _number_or_text(value) for key, value in values.items() if value is not None}


def _number_or_text(value: Any) -> Any:
    return int(value) if isinstance(value, str) and value.isdigit() else value


def _with_keys(config: RunConfig, values: Mapping[str, Any]) -> RunConfig:
    """``config`` with each ``section.key`` set, checked as if it stood in a run file."""
    if not values:
        return config
    mapping = asdict(config)
    for path, value in values.items():
        section, dot, key = path.partition(".")
        if not dot:
            raise ConfigError(f"'{OURS}.{path}' is not a setting of ours; write {OURS}.section.key=value.")
        mapping.setdefault(section, {})[key] = value
    return replace(run_config_from_mapping(mapping), checkpoint=config.checkpoint)
