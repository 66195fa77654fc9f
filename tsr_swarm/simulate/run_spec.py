"""What one simulated run is, and which runs answer what a command line or a script asks for. Pure."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from tsr_swarm.baselines.registry import METHODS, default_settings, named_settings
from tsr_swarm.config.auto import rate_for
from tsr_swarm.config.coerce import nearest, require
from tsr_swarm.config.effects import idle_keys, refuse_idle
from tsr_swarm.config.load import apply_overrides, run_config_from_mapping
from tsr_swarm.config.run import RunConfig
from tsr_swarm.errors import ConfigError
from tsr_swarm.simulate.heterogeneity import Heterogeneity

OWN = "tsr"  # the method of this package
_NONE: Mapping[str, RunConfig] = {}
SCHEDULES = ("cosine", "constant")
POINTS = 10  # of a curve, unless something else is asked for


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSpec:
    """One method with one seed: everything that determines a result, and the name that follows from it.

    The peak rate is that of ``config.optimizer``, the seed is ``config.run.seed``.
    """

    method: str  # OWN, or a name in baselines/registry.py
    config: RunConfig  # a baseline takes its model, data, rate, warm-up, clip and seed
    settings: Mapping[str, Any] = field(default_factory=dict)  # a baseline's; its defaults for what is not named
    peers: int = 4
    steps: int = 200
    schedule: str = "cosine"  # down to a tenth of the rate over the whole run, or constant; both after the warm-up
    eval_every: int = 0  # steps; 0: ten times a run
    heterogeneity: Heterogeneity = field(default_factory=Heterogeneity)
    autocast: bool = False  # matrix products of the models in bfloat16 (torch.autocast); weights stay float32
    exact: bool = False  # own method: every peer keeps its own consensus and opens every round itself
    preset: str = ""  # what the configuration is called, for people; no result depends on it

    def __post_init__(self) -> None:
        require(1 <= self.peers <= 1000, "peers", self.peers, "1 to 1000")
        require(1 <= self.steps <= 10**7, "steps", self.steps, "1 to 10000000")
        require(self.schedule in SCHEDULES, "schedule", self.schedule, " or ".join(SCHEDULES))
        require(0 <= self.eval_every <= self.steps, "eval_every", self.eval_every, "0 (ten times a run) to steps")
        of_model, of_text = self.config.model.vocab_size, self.heterogeneity.vocabulary
        if of_text not in (0, of_model):
            raise ConfigError(
                f"model.vocab_size = {of_model} is not the vocabulary of the text, {of_text} BPE tokens; set "
                f"model.vocab_size = {of_text}, or vocabulary 0 for bytes."
            )

    @property
    def is_own(self) -> bool:
        return self.method == OWN

    @property
    def title(self) -> str:
        return self.preset or self.method

    @property
    def seed(self) -> int:
        return self.config.run.seed

    @property
    def lr(self) -> float:
        return self.config.optimizer.peak_rate

    @property
    def eval_steps(self) -> int:
        """Steps between two evaluations."""
        return self.eval_every or max(1, self.steps // POINTS)

    def fitted(self) -> RunConfig:
        """Return the configuration that is run: a part of the data for each peer, and the schedule."""
        config = self.config.definite()
        optimizer = config.optimizer
        decay_steps = max(1, self.steps - optimizer.warmup_steps) if self.schedule == "cosine" else 0
        return replace(
            config,
            data=replace(config.data, parts=self.peers),
            optimizer=replace(optimizer, decay_steps=decay_steps),
        )

    def identity(self) -> dict[str, Any]:
        """Return all that the result depends on, as JSON has it; of a baseline nothing that only our own method reads.

        Keys that change nothing are left out, and so are settings that came later where they are off: a new one or
        another default of one takes no older result its name.
        """
        fitted = self.fitted()
        config = asdict(fitted)
        for section, _, key in (path.partition(".") for path in idle_keys(fitted)):
            del config[section][key]
        conditions = asdict(self.heterogeneity)
        if not conditions["vocabulary"]:
            del conditions["vocabulary"]
        if self.autocast:
            conditions["autocast"] = True
        document: dict[str, Any] = {
            "method": self.method,
            "peers": self.peers,
            "steps": self.steps,
            "eval_steps": self.eval_steps,
            "seed": self.seed,
            "world": conditions,
            "model": config["model"],
            "data": config["data"],
        }
        if self.is_own:
            document |= {name: config[name] for name in ("optimizer", "periods", "wire")}
            document["round"] = {key: config["round"][key] for key in ("quorum", "shards")}
            if config["round"]["budget_kb"]:
                document["round"]["budget_kb"] = config["round"]["budget_kb"]
            document["exact"] = self.exact
        else:
            optimizer = config["optimizer"]
            document["optimizer"] = {key: optimizer[key] for key in ("lr", "warmup_steps", "decay_steps", "clip")}
            document["settings"] = named_settings(self.method, self.settings)
        as_json: dict[str, Any] = json.loads(json.dumps(document))
        return as_json

    @property
    def name(self) -> str:
        """The method, and a hash of everything else: equal names mean equal results."""
        text = json.dumps(self.identity(), sort_keys=True, separators=(",", ":"))
        return f"{self.method}-{hashlib.blake2b(text.encode(), digest_size=8).hexdigest()}"


def specs_of(
    spec: RunSpec,
    methods: Sequence[str],
    *,
    presets: Mapping[str, RunConfig] = _NONE,
    lrs: Sequence[float] = (),
    seeds: Sequence[int] = (),
    k_x: int | None = None,
    rank: str | None = None,
    method_sets: Sequence[str] = (),
) -> list[RunSpec]:
    """Return ``spec`` for all ``methods`` and ``presets`` at every rate with every seed, all of a seed together.

    Without ``lrs`` a method has the rate of ``spec``, or what suits another inner optimizer as well. ``k_x`` is not for
    baselines that exchange every step, ``rank`` for every method that has one, by default its own. ``method_sets``:
    METHOD.key=value, for our own method and its presets NAME.section.key=value. Raises ConfigError for an unknown
    method or setting.
    """
    sets = apply_overrides({}, method_sets)
    _require_known(methods, [OWN, *METHODS])
    _require_known(sets, [OWN, *METHODS, *presets])
    arms = [*((method, "", spec.config) for method in methods), *((OWN, name, presets[name]) for name in presets)]
    variants = [
        (
            method,
            preset,
            *_variant(method, _with_keys(config, {"periods.k_x": k_x}), rank, sets.get(preset or method, {})),
        )
        for method, preset, config in arms
    ]
    return [
        replace(
            spec,
            method=method,
            preset=preset,
            config=_with_keys(own_config, {"optimizer.lr": lr, "run.seed": seed}),
            settings=settings,
            exact=spec.exact and method == OWN,
        )
        for seed in seeds or (spec.seed,)
        for method, preset, own_config, settings in variants
        for lr in lrs or (None,)
    ]


def _require_known(methods: Iterable[str], known: Sequence[str]) -> None:
    for method in methods:
        if method not in known:
            raise ConfigError(
                f"'{method}' is not a method; did you mean '{nearest(method, known)}'? There are {', '.join(known)}."
            )


def _variant(
    method: str, config: RunConfig, rank_text: str | None, sets: Mapping[str, Any]
) -> tuple[RunConfig, dict[str, Any]]:
    """Return the configuration and the settings of a method. Flags that all methods share come before its own."""
    rank = int(rank_text) if rank_text is not None and rank_text.isdigit() else rank_text
    if method == OWN:
        own = _with_keys(config, {"optimizer.rank": rank, "optimizer.embedding_rank": rank, **sets})
        if sets:
            refuse_idle(own)
        return own, {}
    settings: dict[str, Any] = dict(default_settings(method))
    if settings.get("k_x", 1) != 1:
        settings["k_x"] = config.periods.k_x
    if rank is not None and "rank" in settings:
        settings["rank"] = rank
    settings |= sets
    # no method is run at a rate made for another optimizer
    lr = rate_for(settings.get("inner", "adam"), config.optimizer.lr, made_for=config.optimizer.inner)
    return _with_keys(config, {"optimizer.lr": lr}), settings


def _with_keys(config: RunConfig, values: Mapping[str, Any]) -> RunConfig:
    """Return ``config`` with each ``section.key`` that has a value set, checked as if it stood in a run file."""
    values = {path: value for path, value in values.items() if value is not None}
    if not values:
        return config
    mapping = asdict(config)
    for path, value in values.items():
        section, dot, key = path.partition(".")
        if not dot:
            raise ConfigError(f"'{OWN}.{path}' is not a setting of ours; write {OWN}.section.key=value.")
        mapping.setdefault(section, {})[key] = value
    return replace(run_config_from_mapping(mapping), checkpoint=config.checkpoint)
