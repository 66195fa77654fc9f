"""Keys that can have no effect beside others: set to anything but their default, they are refused.

Only what somebody wrote is judged, not what a run is made of: a run file that ``init`` wrote has every key, and a
default that has no effect misleads nobody.
"""

from collections.abc import Callable
from dataclasses import dataclass

from tsr_swarm.config.coerce import shown
from tsr_swarm.config.run import RunConfig
from tsr_swarm.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Rule:
    """``key`` (``section.key``) has no effect in a run for which ``idle`` holds; ``beside`` what, and why."""

    key: str
    idle: Callable[[RunConfig], bool]
    beside: str


def _only_sketches(config: RunConfig) -> bool:
    """Whether every block sends a sketch in every round, and no core ever."""
    is_every_round = config.refresh_rounds == config.refresh_rounds_embedding == 1 and not config.round.budget_kb
    # a randomized SVD changes no basis in the first round, so that cores are sent then
    return config.optimizer.local_space != "core" and config.optimizer.aim in ("displacement", "dct") and is_every_round


def _no_sketches(config: RunConfig) -> bool:
    optimizer = config.optimizer
    return optimizer.aim == "seed" or (optimizer.aim == "dct" and optimizer.local_space == "core")


def _is_full(config: RunConfig) -> bool:
    return config.optimizer.local_space == "full"


def _no_lordo(config: RunConfig) -> bool:
    return config.optimizer.inner != "lordo"


_NO_LORDO = 'an optimizer.inner other than "lordo": the step has no such term'
_FULL = 'optimizer.local_space = "full"'
_SKETCHES = "sketches of whole displacements every round: no core is sent"

# adam's betas and eps are no such keys: norms and biases step with adam in every run
RULES = (
    Rule("optimizer.feedback", _is_full, f"{_FULL}, where what rounding drops stays in the peer's own weights"),
    Rule("optimizer.residual_bits", _is_full, f"{_FULL}, where unsent work stays in the peer's own weights"),
    Rule("optimizer.update_scale", _is_full, f"{_FULL}, where no peer steps in a core"),
    Rule(
        "optimizer.gamma",
        lambda config: config.optimizer.local_space == "core",
        'optimizer.local_space = "core", where no peer has a residual of full size',
    ),
    Rule(
        "optimizer.gamma",
        lambda config: config.optimizer.aim == "seed",
        'optimizer.aim = "seed", where a residual waits whole until its directions have their turn',
    ),
    Rule(
        "optimizer.outer_momentum",
        lambda config: config.optimizer.outer == "average",
        'optimizer.outer = "average", which keeps no momentum',
    ),
    Rule(
        "optimizer.oversampling",
        lambda config: config.optimizer.aim != "gradient",
        'an optimizer.aim other than "gradient": no randomized SVD is made',
    ),
    Rule(
        "periods.micro_batches",
        lambda config: config.optimizer.aim in ("seed", "displacement"),
        'an optimizer.aim other than "gradient" and "dct": no gradient is measured for the bases',
    ),
    *(Rule(f"optimizer.{key}", _no_lordo, _NO_LORDO) for key in ("omega", "mu", "projection")),
    Rule("wire.sketch_bits", _no_sketches, "these optimizer.aim and optimizer.local_space: no sketch is sent"),
    Rule("wire.core_bits", _only_sketches, _SKETCHES),
    Rule("wire.core_density", _only_sketches, _SKETCHES),
    Rule("wire.published_density", _only_sketches, _SKETCHES),
    Rule(
        "wire.published_bits",
        lambda config: _only_sketches(config) and config.wire.published_bits <= config.wire.sketch_bits,
        f"{_SKETCHES}, and a mean sketch has at least wire.sketch_bits",
    ),
)
_DEFAULTS = RunConfig()


def idle_keys(config: RunConfig) -> frozenset[str]:
    """Return the keys, ``section.key``, that change nothing in this run."""
    return frozenset(rule.key for rule in RULES if rule.idle(config))


def refuse_idle(config: RunConfig) -> None:
    """Raise a ConfigError that names the first key which has another value than its default, and no effect."""
    for rule in RULES:
        section, _, key = rule.key.partition(".")
        value, default = (getattr(getattr(run, section), key) for run in (config, _DEFAULTS))
        if value != default and rule.idle(config):
            raise ConfigError(f"{rule.key} = {shown(value)} has no effect beside {rule.beside}; leave it out.")
