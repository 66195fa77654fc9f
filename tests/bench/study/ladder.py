"""The ladder: the same arms at three sizes of model, each at as many tokens a parameter, and one rate an arm.

What matters is an arm's distance from data-parallel training around Muon, the ceiling of all that averages, and whether
it grows with the model, as that of TSR-Adam does in its paper (Dang et al., arXiv 2602.08007, Table 3: 0.08 nats at 60
million parameters, 0.34 at a billion).
"""

from dataclasses import dataclass
from itertools import zip_longest

from tests.bench.study.candidates import ADAM_RATES, LORDO_RATES, MUON_RATES, Candidate, baseline, preset, read_setting
from tests.bench.study.comparison import best_run
from tests.bench.study.stages import RunStore
from tests.bench.study.tuning import rates_to_try
from tsr_swarm.config.run import RunConfig
from tsr_swarm.simulate.heterogeneity import Heterogeneity
from tsr_swarm.simulate.result import RunResult
from tsr_swarm.simulate.run_spec import RunSpec
from tsr_swarm.train.llama import parameter_count

STEP_MULTIPLE = 120  # every arm's period divides it
# Between rates that do not follow the width and those of Adam's matrices under maximal update parametrisation, which
# fall as 1 / width (Yang et al., arXiv 2203.03466, Table 3): an arm has one rate for both kinds of parameters.
RATE_EXPONENT = -0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Rung:
    """A size of model, and how long and how often its arms are trained."""

    setting: str  # run file, of which only model, data and round count: all else is an arm's
    overrides: tuple[str, ...] = ()
    tokens_per_parameter: float
    seeds: tuple[int, ...]
    arms: tuple[str, ...]
    vocabulary: int = 0  # BPE tokens; 0: bytes
    # Where it was measured to be faster: one core of an AMD EPYC with AVX-512 BF16 takes 18, 48 and 123 ms in float32
    # for the gradient of four sequences at the three sizes of LADDER, and 26, 38 and 72 ms under autocast.
    autocast: bool = False

    def config(self, *overrides: str) -> RunConfig:
        return read_setting(self.setting, (*self.overrides, *overrides), is_bare=True)

    @property
    def width(self) -> int:
        return self.config().model.hidden_size

    @property
    def parameters(self) -> int:
        return parameter_count(self.config().model)

    def steps(self, peers: int) -> int:
        """Return the multiple of STEP_MULTIPLE that is nearest to the tokens of this size."""
        data = self.config().data
        step = peers * data.batch_size * data.sequence_length
        return STEP_MULTIPLE * max(1, round(self.tokens_per_parameter * self.parameters / step / STEP_MULTIPLE))


@dataclass(frozen=True, slots=True, kw_only=True)
class Ladder:
    """All arms and sizes, the smallest first: there each arm's rate is tuned, with the first seed, in full length."""

    arms: tuple[Candidate, ...]
    rungs: tuple[Rung, ...]
    reference: str  # the arm from which distances are measured
    runs: str = "ladder.jsonl"
    peers: int = 8

    def arm(self, name: str) -> Candidate:
        return next(arm for arm in self.arms if arm.name == name)

    def missing(self, store: RunStore) -> list[RunSpec]:
        """The runs to be done next: those of the search, and when no arm is best at an edge, all others.

        The first seed of every size comes before any second one: the trend tells more than the spread.
        """
        searches = [spec for arm in self.arms for spec in self.search_specs(store, arm)]
        by_arm = [self.final_specs(store, rung, name) for rung in self.rungs for name in rung.arms]
        finals = [spec for specs in zip_longest(*by_arm) for spec in specs if spec is not None]
        undone = [spec for spec in searches if store.load(spec) is None]
        return undone or [spec for spec in finals if store.load(spec) is None]

    def search_specs(self, store: RunStore, arm: Candidate) -> list[RunSpec]:
        """The runs of an arm at the smallest size, one a rate, and further ones where the best is at an edge."""
        rung = self.rungs[0]

        def spec_at(rate: float) -> RunSpec:
            return self._spec(rung, arm, rate, rung.seeds[0])

        return [spec_at(rate) for rate in rates_to_try(arm.rates, lambda rate: store.loss(spec_at(rate)))]

    def best_rate(self, store: RunStore, arm: Candidate) -> float | None:
        """The rate with the lowest loss at the smallest size; None while one of those listed is not done."""
        done = store.load_all(self.search_specs(store, arm))
        return best_run(done).lr if {run.lr for run in done} >= set(arm.rates) else None

    def rate(self, store: RunStore, rung: Rung, arm: Candidate) -> float | None:
        """The rate of an arm at a size: the tuned one times (width / smallest width) ** RATE_EXPONENT, two digits."""
        tuned = self.best_rate(store, arm)
        if tuned is None or rung is self.rungs[0]:
            return tuned
        return float(f"{tuned * (rung.width / self.rungs[0].width) ** RATE_EXPONENT:.2g}")

    def final_specs(self, store: RunStore, rung: Rung, name: str) -> list[RunSpec]:
        """One run of an arm a seed; none while its rate is not known."""
        arm = self.arm(name)
        rate = self.rate(store, rung, arm)
        return [] if rate is None else [self._spec(rung, arm, rate, seed) for seed in rung.seeds]

    def finished(self, store: RunStore, rung: Rung, name: str) -> tuple[RunResult, ...]:
        return store.load_all(self.final_specs(store, rung, name))

    def _spec(self, rung: Rung, arm: Candidate, rate: float, seed: int) -> RunSpec:
        return RunSpec(
            method=arm.method,
            config=rung.config(*arm.overrides, f"optimizer.lr={rate}", f"run.seed={seed}"),
            settings=arm.settings,
            peers=self.peers,
            steps=rung.steps(self.peers),
            heterogeneity=Heterogeneity(vocabulary=rung.vocabulary),
            autocast=rung.autocast,
        )


CEILING = "data-parallel Muon"
DILOCO = "DiLoCo-Muon, 3 bits"
SIX = ("preset lean", "preset rich", "preset tsr-adam", "preset lordo", DILOCO, CEILING)
FOUR = ("preset lean", "preset lordo", DILOCO, CEILING)
LADDER = Ladder(
    arms=(
        preset("lean", MUON_RATES),
        preset("rich", MUON_RATES),
        preset("tsr-adam", ADAM_RATES),
        preset("lordo", LORDO_RATES),
        baseline(DILOCO, "diloco", MUON_RATES, outer="average", bits=3, inner="muon"),
        baseline(CEILING, "ddp", MUON_RATES, bits=16, inner="muon"),
    ),
    rungs=(
        Rung(setting="study.toml", tokens_per_parameter=20, seeds=(0, 1, 2), arms=SIX),
        Rung(
            setting="study-full.toml", tokens_per_parameter=20, seeds=(0, 1), arms=SIX, vocabulary=1024, autocast=True
        ),
        Rung(
            setting="study-full.toml",
            overrides=("model.hidden_size=192", "model.intermediate_size=512", "model.num_hidden_layers=6"),
            tokens_per_parameter=10,
            seeds=(0,),
            arms=FOUR,
            vocabulary=1024,
            autocast=True,
        ),
    ),
    reference=CEILING,
)
