"""What every peer of a run must share. One frozen dataclass a section of ``run.toml``; defaults live only here."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from tsr_swarm.errors import ConfigError


def require(condition: bool, key: str, value: object, limit: str) -> None:
    """Raise a ConfigError of one sentence unless ``condition`` holds."""
    if not condition:
        raise ConfigError(f"{key} = {value!r} is out of range; it must be {limit}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSection:
    """The run itself."""

    name: str = "my-run"
    seed: int = 0
    rounds: int = 0  # 0: until stopped
    min_peers: int = 1  # the first round waits for this many

    def __post_init__(self) -> None:
        ok = 0 < len(self.name) <= 64 and all((c.isalnum() and c.isascii()) or c in "-_" for c in self.name)
        require(ok, "run.name", self.name, "1 to 64 letters, digits, '-' or '_'")
        require(0 <= self.seed < 2**31, "run.seed", self.seed, "0 to 2147483647")
        require(0 <= self.rounds <= 10**9, "run.rounds", self.rounds, "0 (no end) to 1000000000")
        require(1 <= self.min_peers <= 10**5, "run.min_peers", self.min_peers, "1 to 100000")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """A LLaMA-style decoder; the names are those of transformers' LlamaConfig."""

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

    def __post_init__(self) -> None:
        for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "max_position_embeddings"):
            value = getattr(self, key)
            require(1 <= value <= 2**20, f"model.{key}", value, "1 to 1048576")
        require(256 <= self.vocab_size <= 2**20, "model.vocab_size", self.vocab_size, "256 (bytes) to 1048576")
        heads, kv = self.num_attention_heads, self.num_key_value_heads
        require(heads >= 1, "model.num_attention_heads", heads, "1 or more")
        even = self.hidden_size % heads == 0 and (self.hidden_size // heads) % 2 == 0
        require(
            even,
            "model.num_attention_heads",
            heads,
            f"a divisor of hidden_size {self.hidden_size}, heads even",
        )
        require(kv >= 1 and heads % kv == 0, "model.num_key_value_heads", kv, f"a divisor of {heads} heads")
        require(0 < self.rms_norm_eps < 1, "model.rms_norm_eps", self.rms_norm_eps, "between 0 and 1")
        require(self.rope_theta > 1, "model.rope_theta", self.rope_theta, "more than 1")
        require(
            0 < self.initializer_range < 1,
            "model.initializer_range",
            self.initializer_range,
            "between 0 and 1",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """What to train on. ``source`` is "stdlib" (the Python standard library's own source) or files and folders."""

    source: str | tuple[str, ...] = "stdlib"
    parts: int = 8  # shared data is split into this many; a peer trains on the one of its number
    sequence_length: int = 128
    batch_size: int = 16
    heldout_sequences: int = 48  # scored by the coordinator after every round

    def __post_init__(self) -> None:
        require(bool(self.source), "data.source", self.source, '"stdlib", a path or a list of paths')
        require(1 <= self.parts <= 10**6, "data.parts", self.parts, "1 to 1000000")
        require(2 <= self.sequence_length <= 2**17, "data.sequence_length", self.sequence_length, "2 to 131072")
        require(1 <= self.batch_size <= 2**16, "data.batch_size", self.batch_size, "1 to 65536")
        require(
            1 <= self.heldout_sequences <= 10**5,
            "data.heldout_sequences",
            self.heldout_sequences,
            "1 to 100000",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerConfig:
    """TSR-Adam and where it works."""

    local_space: str = "core"  # core | full | mixed: what a peer moves between rounds
    aim: str = "gradient"  # gradient | displacement: what the next basis is made from
    rank: int | str = "d/2"
    embedding_rank: int | str = "d/2"
    lr: float = 3e-3  # as for dense Adam; the core's steps are scaled by update_scale
    update_scale: float = 0.0  # 0: sqrt(rows * cols) / rank, so that a core step is as long as a dense one
    betas: tuple[float, float] = (0.9, 0.99)
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip: float = 1.0  # global gradient norm
    warmup_steps: int = 20
    decay_steps: int = 0  # cosine to a tenth of lr over this many steps; 0: constant
    gamma: float = 0.9  # full space: share of the residual a peer goes on with
    lift: str = "exact"  # exact | float32; float32 is a control that is known to drift apart

    def __post_init__(self) -> None:
        require(
            self.local_space in ("core", "full", "mixed"),
            "optimizer.local_space",
            self.local_space,
            '"core", "full" or "mixed"',
        )
        require(
            self.aim in ("gradient", "displacement"),
            "optimizer.aim",
            self.aim,
            '"gradient" or "displacement"',
        )
        if self.aim == "displacement" and self.local_space != "full":
            raise ConfigError(
                f'optimizer.aim = "displacement" needs optimizer.local_space = "full", not "{self.local_space}": '
                'a core never leaves its basis, so its displacement would re-aim at the same span; use "gradient".'
            )
        require(0 < self.lr <= 1, "optimizer.lr", self.lr, "above 0, at most 1")
        require(
            0 <= self.update_scale <= 1e4,
            "optimizer.update_scale",
            self.update_scale,
            "0 (automatic) to 10000",
        )
        require(
            len(self.betas) == 2 and all(0 <= b < 1 for b in self.betas),
            "optimizer.betas",
            self.betas,
            "two numbers, each from 0 to below 1",
        )
        require(0 < self.eps < 1, "optimizer.eps", self.eps, "between 0 and 1")
        require(0 <= self.weight_decay <= 1, "optimizer.weight_decay", self.weight_decay, "0 to 1")
        require(0 < self.clip <= 1e6, "optimizer.clip", self.clip, "above 0, at most 1000000")
        require(0 <= self.warmup_steps <= 10**9, "optimizer.warmup_steps", self.warmup_steps, "0 or more")
        require(0 <= self.decay_steps <= 10**12, "optimizer.decay_steps", self.decay_steps, "0 (constant) or more")
        require(0 <= self.gamma <= 1, "optimizer.gamma", self.gamma, "0 to 1")
        require(self.lift in ("exact", "float32"), "optimizer.lift", self.lift, '"exact" or "float32"')


@dataclass(frozen=True, slots=True, kw_only=True)
class PeriodsConfig:
    """Sync periods in local steps. Refresh periods are multiples of k_x and counted as round * k_x."""

    k_x: int = 20  # weights: local steps a round
    k_r: int = 200  # refresh of the bases
    k_r_embedding: int = 400  # refresh of the bases of embedding and head
    micro_batches: int = 8  # gradient sketch: the mean of this many clipped micro-batches

    def __post_init__(self) -> None:
        require(1 <= self.k_x <= 10**6, "periods.k_x", self.k_x, "1 to 1000000")
        for key in ("k_r", "k_r_embedding"):
            value = getattr(self, key)
            require(
                value > 0 and value % self.k_x == 0,
                f"periods.{key}",
                value,
                f"a multiple of k_x = {self.k_x}",
            )
        require(8 <= self.micro_batches <= 10**4, "periods.micro_batches", self.micro_batches, "8 to 10000")


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundConfig:
    """When a round closes. Between floor and ceiling the deadline follows the arrivals."""

    quorum: int = 1  # payloads needed to close a round at its deadline
    floor_seconds: float = 10.0
    ceiling_seconds: float = 600.0
    shards: int = 1  # the blocks are split into this many; each is reduced and committed on its own

    def __post_init__(self) -> None:
        require(1 <= self.quorum <= 10**5, "round.quorum", self.quorum, "1 to 100000")
        require(0 < self.floor_seconds <= 3600, "round.floor_seconds", self.floor_seconds, "above 0, at most 3600")
        ok = self.floor_seconds <= self.ceiling_seconds <= 86400
        require(ok, "round.ceiling_seconds", self.ceiling_seconds, "from round.floor_seconds to 86400")
        require(1 <= self.shards <= 1024, "round.shards", self.shards, "1 to 1024")


@dataclass(frozen=True, slots=True, kw_only=True)
class WireConfig:
    """Bits a number. What an upload's rounding drops stays in its peer's residual."""

    core_bits: int = 8
    sketch_bits: int = 8
    published_bits: int = 16
    zstd_level: int = 3

    def __post_init__(self) -> None:
        for key in ("core_bits", "sketch_bits", "published_bits"):
            value = getattr(self, key)
            require(value in (8, 16), f"wire.{key}", value, "8 or 16")
        require(1 <= self.zstd_level <= 19, "wire.zstd_level", self.zstd_level, "1 to 19")


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointConfig:
    """Where a run keeps its state. Local to a machine: not part of the manifest."""

    dir: str = "runs/my-run"
    every: int = 1  # rounds between checkpoints
    keep: int = 3

    def __post_init__(self) -> None:
        require(bool(self.dir), "checkpoint.dir", self.dir, "a folder")
        require(1 <= self.every <= 10**6, "checkpoint.every", self.every, "1 to 1000000")
        require(1 <= self.keep <= 10**4, "checkpoint.keep", self.keep, "1 to 10000")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """A whole ``run.toml``."""

    run: RunSection = field(default_factory=RunSection)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    periods: PeriodsConfig = field(default_factory=PeriodsConfig)
    round: RoundConfig = field(default_factory=RoundConfig)
    wire: WireConfig = field(default_factory=WireConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)

    def __post_init__(self) -> None:
        length, limit = self.data.sequence_length, self.model.max_position_embeddings
        require(
            length <= limit,
            "data.sequence_length",
            length,
            f"at most model.max_position_embeddings = {limit}",
        )


SECTIONS: Mapping[str, type[Any]] = {f.name: f.default_factory for f in fields(RunConfig)}  # type: ignore[misc]
