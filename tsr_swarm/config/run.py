"""The settings of a run: one frozen dataclass for each section of ``run.toml``. Defaults live only here."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import ClassVar

from tsr_swarm.config.auto import AUTO, FREE_SHAPES, rate_for, refresh_steps_for
from tsr_swarm.config.coerce import ConfigSection, require
from tsr_swarm.errors import ConfigError


def is_utf8(text: str) -> bool:
    """Whether ``text`` can be a path in a file of UTF-8: no NUL, and no byte that was not UTF-8 where it came from."""
    try:
        return b"\0" not in text.encode()
    except UnicodeEncodeError:
        return False


def is_share_of_sides(rank: int | str) -> bool:
    """Whether a rank is written as a share of each side, such as ``"1/2"``."""
    return isinstance(rank, str) and rank[:1] == "1"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSection(ConfigSection):
    """The run itself."""

    section: ClassVar[str] = "run"
    name: str = "my-run"
    seed: int = 0
    rounds: int = 0  # 0: until stopped
    min_peers: int = 1  # the first round waits for this many

    def check(self) -> None:
        ok = 0 < len(self.name) <= 64 and all((c.isalnum() and c.isascii()) or c in "-_" for c in self.name)
        self.require(ok, "name", "1 to 64 ASCII letters, digits, '-' or '_'")
        self.require(0 <= self.seed < 2**31, "seed", "0 to 2147483647")
        self.require(0 <= self.rounds <= 10**9, "rounds", "0 (no end) to 1000000000")
        self.require(1 <= self.min_peers <= 10**5, "min_peers", "1 to 100000")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig(ConfigSection):
    """A LLaMA-style decoder; the names are those of transformers' LlamaConfig."""

    section: ClassVar[str] = "model"
    vocab_size: int = 256
    hidden_size: int = 128
    intermediate_size: int = 344
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    num_key_value_heads: int = 4
    max_position_embeddings: int = 256
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    tie_word_embeddings: bool = True
    initializer_range: float = 0.02

    def check(self) -> None:
        for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "max_position_embeddings"):
            self.require(1 <= getattr(self, key) <= 2**20, key, "1 to 1048576")
        self.require(256 <= self.vocab_size <= 2**20, "vocab_size", "256 (bytes) to 1048576")
        heads, kv = self.num_attention_heads, self.num_key_value_heads
        self.require(heads >= 1, "num_attention_heads", "1 or more")
        even = self.hidden_size % heads == 0 and (self.hidden_size // heads) % 2 == 0
        self.require(even, "num_attention_heads", f"a divisor of hidden_size {self.hidden_size}, heads even")
        self.require(kv >= 1 and heads % kv == 0, "num_key_value_heads", f"a divisor of {heads} heads")
        self.require(0 < self.rms_norm_eps < 1, "rms_norm_eps", "between 0 and 1")
        self.require(1 < self.rope_theta <= 1e12, "rope_theta", "above 1, at most 1e12")
        self.require(0 < self.initializer_range < 1, "initializer_range", "between 0 and 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig(ConfigSection):
    """What to train on. ``source`` is "stdlib" (the Python standard library's own source) or files and folders."""

    section: ClassVar[str] = "data"
    source: str | tuple[str, ...] = "stdlib"
    parts: int = 8  # shared data is split into this many; a peer begins with the one of its number
    sequence_length: int = 128
    batch_size: int = 16
    heldout_sequences: int = 48  # scored by the coordinator after every round

    def check(self) -> None:
        paths = (self.source,) if isinstance(self.source, str) else self.source
        ok = all(paths) and len(paths) > 0 and all(map(is_utf8, paths))
        self.require(ok, "source", '"stdlib", a path or a list of paths, in UTF-8')
        self.require(1 <= self.parts <= 10**6, "parts", "1 to 1000000")
        self.require(2 <= self.sequence_length <= 2**17, "sequence_length", "2 to 131072")
        self.require(1 <= self.batch_size <= 2**16, "batch_size", "1 to 65536")
        self.require(1 <= self.heldout_sequences <= 10**5, "heldout_sequences", "1 to 100000")


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerConfig(ConfigSection):
    """How a peer steps, and in which bases."""

    section: ClassVar[str] = "optimizer"
    local_space: str = "core"  # core | full | mixed: what a peer moves between rounds
    aim: str = "seed"  # seed | gradient | displacement | dct: what the next basis is made from
    oversampling: int = 8  # of gradient: columns of a range sketch beyond the rank
    rank: int | str = "auto"  # a number, "d/2" of the width, "1/2" of a side; auto: d/2, gradient d/4, displacement d/8
    embedding_rank: int | str = "auto"  # likewise, by the vocabulary too
    lr: float | str = "auto"  # auto: 0.03 with muon, 0.003 adam, 0.006 lordo; a core's steps: times update_scale
    update_scale: float = 0.0  # 0: such that a core step is as long as a dense one
    inner: str = "muon"  # muon | adam | lordo: how matrices step; in a full space embedding and head take adam's steps
    omega: float = 0.95  # lordo's: weight of the low-rank term; 1: none of the full-rank one
    mu: float = 1.0  # lordo's: divides the full-rank term
    projection: str = "global"  # lordo's: global | local: from the block's basis, or a peer's own gradient each round
    betas: tuple[float, float] = (0.9, 0.99)  # adam's
    eps: float = 1e-8  # adam's
    weight_decay: float = 0.0
    clip: float = 1.0  # global gradient norm
    warmup_steps: int = 20
    decay_steps: int = 0  # cosine to a tenth of lr over this many steps; 0: constant
    gamma: float = 0.9  # full space: share of the residual a peer goes on with
    outer: str = "average"  # average | nesterov | adam: the reducer's step; for all but average every peer is core
    outer_lr: float = 1.0  # of nesterov, and of adam in units of the averages' own size
    outer_momentum: float = 0.9  # of nesterov and adam
    feedback: bool = False  # what an upload's rounding drops stays with its peer and goes out later
    residual_bits: int = 8  # 8 or 4 a number of unsent work that the next basis does not hold, and waits; 0: it is lost
    lift: str = "exact"  # exact | float32; float32 is a control that is known to drift apart

    def check(self) -> None:
        self.require(self.local_space in ("core", "full", "mixed"), "local_space", '"core", "full" or "mixed"')
        aims = ("gradient", "displacement", "seed", "dct")
        self.require(self.aim in aims, "aim", '"gradient", "displacement", "seed" or "dct"')
        if self.aim == "displacement" and self.local_space != "full":
            raise ConfigError(
                f'optimizer.aim = "displacement" needs optimizer.local_space = "full", not "{self.local_space}": '
                'a core never leaves its basis, so its displacement would re-aim at the same span; use "gradient".'
            )
        shares = [rank for rank in (self.rank, self.embedding_rank) if is_share_of_sides(rank)]
        if shares and not self.has_free_shapes:
            raise ConfigError(
                f'A rank that is a share of each side, "{shares[0]}", needs optimizer.aim = "seed" or "dct", not '
                f'"{self.aim}": a sketch of one side has as many columns as the other side has directions; '
                'write "d/2" or a number.'
            )
        self.require(0 <= self.oversampling <= 4096, "oversampling", "0 to 4096")
        self.require(self.inner in ("adam", "muon", "lordo"), "inner", '"adam", "muon" or "lordo"')
        self._check_lordo()
        is_rate = self.lr == AUTO if isinstance(self.lr, str) else 0 < self.lr <= 1
        self.require(is_rate, "lr", 'above 0, at most 1, or "auto"')
        self.require(0 <= self.update_scale <= 1e4, "update_scale", "0 (automatic) to 10000")
        self.require(all(0 <= beta < 1 for beta in self.betas), "betas", "two numbers, each from 0 to below 1")
        self.require(0 < self.eps < 1, "eps", "between 0 and 1")
        self.require(0 <= self.weight_decay <= 1, "weight_decay", "0 to 1")
        self.require(0 < self.clip <= 1e6, "clip", "above 0, at most 1000000")
        self.require(0 <= self.warmup_steps <= 10**9, "warmup_steps", "0 or more")
        self.require(0 <= self.decay_steps <= 10**12, "decay_steps", "0 (constant) or more")
        self.require(0 <= self.gamma <= 1, "gamma", "0 to 1")
        self.require(self.outer in ("average", "nesterov", "adam"), "outer", '"average", "nesterov" or "adam"')
        self.require(0 < self.outer_lr <= 100, "outer_lr", "above 0, at most 100")
        self.require(0 <= self.outer_momentum < 1, "outer_momentum", "0 to below 1")
        if self.outer != "average" and self.local_space != "core":
            raise ConfigError(
                f'optimizer.outer = "{self.outer}" needs optimizer.local_space = "core", not "{self.local_space}": '
                'the tangent sketches of other peers are not cores; use "average".'
            )
        if self.outer == "average" and self.outer_lr != 1:
            raise ConfigError(
                f'optimizer.outer_lr = {self.outer_lr} has no effect with optimizer.outer = "average"; for a plain '
                'step of that rate set optimizer.outer to "nesterov" and optimizer.outer_momentum to 0.'
            )
        self.require(self.residual_bits in (0, 4, 8), "residual_bits", "8, 4, or 0 for none")
        self.require(self.lift in ("exact", "float32"), "lift", '"exact" or "float32"')

    def _check_lordo(self) -> None:
        self.require(0 <= self.omega <= 1, "omega", "0 to 1")
        self.require(0 < self.mu <= 1e6, "mu", "above 0, at most 1000000")
        self.require(self.projection in ("global", "local"), "projection", '"global" or "local"')
        if self.inner == "lordo" and self.local_space != "full":
            raise ConfigError(
                f'optimizer.inner = "lordo" needs optimizer.local_space = "full", not "{self.local_space}": its '
                'full-rank term leaves every core; use "adam" or "muon".'
            )
        if self.inner == "lordo" and self.projection == "global" and self.aim == "seed":
            raise ConfigError(
                'optimizer.inner = "lordo" with optimizer.projection = "global" needs bases that follow the training, '
                'and those of optimizer.aim = "seed" are drawn: its moments would mean nothing in the next ones; set '
                'optimizer.aim to "displacement" or "gradient", or optimizer.projection to "local".'
            )

    @property
    def peak_rate(self) -> float:
        """``lr`` with "auto" made definite."""
        return self.lr if isinstance(self.lr, float) else rate_for(self.inner)

    @property
    def has_free_shapes(self) -> bool:
        """Whether a core may have more rows than columns, because no side's basis is made from the other's."""
        return self.aim in FREE_SHAPES


@dataclass(frozen=True, slots=True, kw_only=True)
class PeriodsConfig(ConfigSection):
    """Sync periods in local steps, multiples of k_x and counted as round * k_x.

    A block's bases are refreshed once in each period of theirs, and either of its moments averaged once in each of its
    own; blocks have that in turn, so that a round has about as many bytes as any other.
    """

    section: ClassVar[str] = "periods"
    k_x: int = 20  # weights: local steps a round
    k_u: int | str = 0  # first moments of low rank: averaged every k_u steps, blocks in turn; 0: never, auto: half-life
    k_v: int | str = 0  # second moments, likewise
    k_r: int | str = "auto"  # refresh of all bases; 0: every round; auto: that, or 5 k_x where a gradient is measured
    k_r_embedding: int | str = "auto"  # refresh of the bases of embedding and head, likewise
    micro_batches: int = 8  # gradient of a pass of a refresh: the mean of so many clipped ones

    def check(self) -> None:
        self.require(1 <= self.k_x <= 10**6, "k_x", "1 to 1000000")
        for key in ("k_r", "k_r_embedding", "k_u", "k_v"):
            value = getattr(self, key)
            is_period = isinstance(value, int) and value >= 0 and value % self.k_x == 0
            never = "" if key in ("k_u", "k_v") else " for every round"
            self.require(is_period or value == AUTO, key, f'a multiple of k_x = {self.k_x}, 0{never} or "auto"')
        self.require(8 <= self.micro_batches <= 10**4, "micro_batches", "8 to 10000")


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundConfig(ConfigSection):
    """When a round closes, and what it may cost. Between floor and ceiling the deadline follows the arrivals."""

    section: ClassVar[str] = "round"
    quorum: int = 1  # payloads needed to close a round at its deadline
    floor_seconds: float = 10.0
    ceiling_seconds: float = 600.0
    shards: int = 8  # the blocks are split into this many at most, each reduced on its own; best one a dialable node
    budget_kb: int = 0  # full space: an upload's kB before compression, for sketches where cores miss most; 0: by k_r

    def check(self) -> None:
        self.require(1 <= self.quorum <= 10**5, "quorum", "1 to 100000")
        self.require(0 < self.floor_seconds <= 3600, "floor_seconds", "above 0, at most 3600")
        ok = self.floor_seconds <= self.ceiling_seconds <= 86400
        self.require(ok, "ceiling_seconds", "from round.floor_seconds to 86400")
        self.require(1 <= self.shards <= 1024, "shards", "1 to 1024")
        self.require(0 <= self.budget_kb <= 10**9, "budget_kb", "0 (no budget) to 1000000000")


@dataclass(frozen=True, slots=True, kw_only=True)
class WireConfig(ConfigSection):
    """Bits a number, and how many numbers. A core peer forgets what rounding drops, unless optimizer.feedback."""

    section: ClassVar[str] = "wire"
    core_bits: int = 3  # 2, 3, 4, 8 or 16
    core_density: float = 1.0  # share of a core's numbers that is sent, the largest ones; 1: all of them
    sketch_bits: int = 5  # 2, 3, 4, 5, 6, 8 or 16
    published_bits: int = 3  # 2, 3, 4, 8 or 16, of the mean core; a mean sketch has at least sketch_bits
    published_density: float = 1.0  # share of the mean core's numbers that is published; 1: all of them
    rounding: str = "nearest"  # nearest | stochastic: unbiased, for up to 6 bits where the density is 1
    zstd_level: int = 3  # of payloads of more than 4 bits; those of fewer have a setting of their own

    def check(self) -> None:
        self.require(self.sketch_bits in (2, 3, 4, 5, 6, 8, 16), "sketch_bits", "2, 3, 4, 5, 6, 8 or 16")
        has_few_linear_bits = self.sketch_bits <= 6
        for kind in ("core", "published"):
            bits, density = getattr(self, f"{kind}_bits"), getattr(self, f"{kind}_density")
            self.require(bits in (2, 3, 4, 8, 16), f"{kind}_bits", "2, 3, 4, 8 or 16")
            self.require(0 < density <= 1, f"{kind}_density", "above 0, at most 1")
            if density < 1 and bits > 8:
                raise ConfigError(
                    f"wire.{kind}_density = {density} is for up to 8 bits, but wire.{kind}_bits = {bits}; "
                    f"set wire.{kind}_bits to 2, 3, 4 or 8, or wire.{kind}_density to 1."
                )
            has_few_linear_bits |= bits <= 4 and density == 1
        self.require(self.rounding in ("nearest", "stochastic"), "rounding", '"nearest" or "stochastic"')
        if self.rounding == "stochastic" and not has_few_linear_bits:
            raise ConfigError(
                'wire.rounding = "stochastic" has nothing to round: it is for 2 to 6 bits where the density is 1; '
                'lower wire.core_bits, wire.sketch_bits or wire.published_bits, or set wire.rounding to "nearest".'
            )
        self.require(1 <= self.zstd_level <= 19, "zstd_level", "1 to 19")


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointConfig(ConfigSection):
    """Where a run keeps its state. Local to a machine: not part of the manifest."""

    section: ClassVar[str] = "checkpoint"
    dir: str = "runs/<name>"  # <name>: that of the run
    every: int = 1  # rounds between checkpoints
    keep: int = 3

    def check(self) -> None:
        self.require(bool(self.dir) and is_utf8(self.dir), "dir", "a folder whose name is UTF-8")
        self.require(1 <= self.every <= 10**6, "every", "1 to 1000000")
        self.require(1 <= self.keep <= 10**4, "keep", "1 to 10000")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig(ConfigSection):
    """A whole ``run.toml``."""

    run: RunSection = field(default_factory=RunSection)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    periods: PeriodsConfig = field(default_factory=PeriodsConfig)
    round: RoundConfig = field(default_factory=RoundConfig)
    wire: WireConfig = field(default_factory=WireConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)

    @property
    def folder(self) -> str:
        """Where this run keeps its state."""
        return self.checkpoint.dir.replace("<name>", self.run.name)

    @property
    def refresh_rounds(self) -> int:
        """Rounds between two refreshes of a matrix."""
        return self._refresh_steps(self.periods.k_r) // self.periods.k_x or 1

    @property
    def refresh_rounds_embedding(self) -> int:
        """Rounds between two refreshes of embedding and head."""
        return self._refresh_steps(self.periods.k_r_embedding) // self.periods.k_x or 1

    def _refresh_steps(self, period: int | str) -> int:
        return refresh_steps_for(self.optimizer.aim, period, self.periods.k_x)

    def definite(self) -> "RunConfig":
        """The same run with the number that "auto" stands for in rate and refresh periods, as all peers share it."""
        matrices, embedding = self._refresh_steps(self.periods.k_r), self._refresh_steps(self.periods.k_r_embedding)
        return replace(
            self,
            optimizer=replace(self.optimizer, lr=self.optimizer.peak_rate),
            periods=replace(self.periods, k_r=matrices, k_r_embedding=embedding),
        )

    def check(self) -> None:
        length, limit = self.data.sequence_length, self.model.max_position_embeddings
        require(length <= limit, "data.sequence_length", length, f"at most model.max_position_embeddings = {limit}")
        self._check_moment_periods()
        self._check_new_draws()
        self._check_budget()

    def _check_new_draws(self) -> None:
        """Refuse what is kept in a core from round to round where bases are drawn anew and have nothing in common."""
        if self.optimizer.aim != "seed" or self.refresh_rounds > 1:
            return
        kept = {
            "optimizer.outer": (self.optimizer.outer, "average"),
            "periods.k_u": (self.periods.k_u, 0),
            "periods.k_v": (self.periods.k_v, 0),
        }
        for key, (value, nothing) in kept.items():
            if value != nothing:
                raise ConfigError(
                    f"{key} = {value!r} has no effect that lasts where bases are drawn anew every round; set "
                    f'periods.k_r to several k_x, or optimizer.aim to "gradient", or {key} to {nothing!r}.'
                )

    def _check_budget(self) -> None:
        space, aim = self.optimizer.local_space, self.optimizer.aim
        if self.round.budget_kb and (space, aim) != ("full", "displacement"):
            raise ConfigError(
                f'round.budget_kb = {self.round.budget_kb} needs optimizer.local_space = "full" and optimizer.aim = '
                f'"displacement", not "{space}" and "{aim}": only there does a block choose between a core and a '
                "sketch; set it to 0."
            )

    def _check_moment_periods(self) -> None:
        space = self.optimizer.local_space
        for key in ("k_u", "k_v"):
            value = getattr(self.periods, key)
            if value != 0 and self.optimizer.inner == "lordo":
                if self.optimizer.projection != "global":
                    raise ConfigError(
                        f'periods.{key} = {value!r} needs optimizer.projection = "global", not '
                        f'"{self.optimizer.projection}": moments in a basis of one peer mean nothing to others; '
                        "set it to 0."
                    )
            elif value != 0 and space != "core":
                raise ConfigError(
                    f'periods.{key} = {value!r} needs optimizer.local_space = "core", not "{space}": '
                    "a core of a moment is not the moment of a core; set it to 0."
                )
        if self.periods.k_v != 0 and self.optimizer.inner == "muon":
            raise ConfigError(
                f'periods.k_v = {self.periods.k_v!r} has nothing to average with optimizer.inner = "muon", which keeps '
                "no second moment; set it to 0."
            )


SECTIONS: Mapping[str, type[ConfigSection]] = {f.name: f.default_factory for f in fields(RunConfig)}  # type: ignore[misc]
