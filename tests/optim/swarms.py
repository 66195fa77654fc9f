"""A swarm in one process without any wire: local spaces, the weighted mean, publish, and one Consensus per peer."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.steady import steady, wide
from tsr_swarm.config.blocks import Block, BlockRole, plan_blocks
from tsr_swarm.config.layout import Part, Slot, published_slots, upload_slots
from tsr_swarm.config.round_plan import Due, RoundPlan
from tsr_swarm.config.run import OptimizerConfig, PeriodsConfig, RunConfig, WireConfig
from tsr_swarm.lowrank.basis import Basis, random_basis
from tsr_swarm.lowrank.grid import Grid
from tsr_swarm.lowrank.randomized_svd import draw_test_matrix, known_range, projection, range_sketch
from tsr_swarm.optim.consensus import Consensus
from tsr_swarm.optim.core_space import CoreSpace
from tsr_swarm.optim.full_space import FullSpace
from tsr_swarm.optim.local_space import LocalSpace
from tsr_swarm.optim.periods import plan_round
from tsr_swarm.optim.publish import publish

Gradient = Callable[[int, str, Tensor], Tensor]  # of (peer, parameter's name, weight)

SHAPES: Mapping[str, tuple[int, ...]] = {"a.weight": (12, 9), "b.weight": (12, 9), "c.weight": (7, 10), "norm": (9,)}
FLOAT32 = 1e-5  # weights near 1, a few roundings each
NEVER = 3000  # a refresh period that no test reaches again after round 1
SPACES: Mapping[str, type[CoreSpace] | type[FullSpace]] = {"core": CoreSpace, "full": FullSpace}

BLOCKS = (
    Block(name="embed_tokens.weight", rows=20, cols=8, rank=4, role=BlockRole.EMBEDDING),
    Block(name="up.weight", rows=12, cols=9, rank=3, role=BlockRole.MATRIX),
    Block(name="norm.weight", rows=1, cols=9, rank=0, role=BlockRole.DENSE),
)
LOW_RANK = frozenset({0, 1})  # of BLOCKS
_SOME = st.frozensets(st.sampled_from((0, 1)))
DUES = st.builds(Due, tangent=_SOME, range=_SOME, project=_SOME)
SEEDS = st.integers(0, 2**31)
WIRES = [
    wide(core_bits=2, core_density=0.1, published_bits=3, published_density=0.2),
    wide(core_bits=3, core_density=0.5, sketch_bits=4, published_bits=8, published_density=0.5),
    wide(core_bits=4, sketch_bits=4, published_bits=4, rounding="stochastic"),
    wide(core_bits=2, sketch_bits=16, published_bits=2),
    wide(core_bits=16, sketch_bits=8, published_bits=8),
    wide(),
]


def optimizer_of(space: str = "core", **changes: Any) -> OptimizerConfig:
    """Steady steps of 0.01 from the first on, in bases of rank 4."""
    return steady(**{"rank": 4, "lr": 0.01, "warmup_steps": 0, "local_space": space, **changes})


def draw_mean(due: Due, seed: int = 0) -> dict[Slot, Tensor]:
    """A mean of normal numbers for every upload slot of BLOCKS, float64."""
    generator = torch.Generator().manual_seed(seed)
    return {
        slot: torch.randn(slot.rows, slot.cols, generator=generator, dtype=torch.float64)
        for slot in upload_slots(BLOCKS, due, wide())
    }


class Swarm:
    """Peers in step. ``round`` counts closed rounds; ``sent`` and ``applied`` are of the newest one."""

    def __init__(
        self,
        spaces: Sequence[str],
        gradient: Gradient,
        *,
        optimizer: OptimizerConfig | None = None,
        wire: WireConfig | None = None,
        tokens: Sequence[float] | None = None,
        k_x: int = 3,
        k_r: int = 6,
        k_u: int | str = 0,
        k_v: int | str = 0,
        bases: Mapping[int, Basis] | None = None,
        seed: int = 0,
        shapes: Mapping[str, tuple[int, ...]] = SHAPES,
    ) -> None:
        optimizer = optimizer or optimizer_of()
        periods = PeriodsConfig(k_x=k_x, k_r=k_r, k_r_embedding=k_r, k_u=k_u, k_v=k_v)
        self.config = RunConfig(optimizer=optimizer, periods=periods, wire=wire or wide())
        self.blocks = plan_blocks(shapes, optimizer, 8)
        self.gradient = gradient
        self.tokens = list(tokens or [1.0] * len(spaces))
        self.round = 0
        self.sent: list[dict[Slot, Grid]] = []
        generator = torch.Generator().manual_seed(seed)
        weights = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
        bases = bases or {
            i: random_basis(b.rows, b.cols, b.ranks, seed, i) for i, b in enumerate(self.blocks) if b.is_low_rank
        }
        self.consensus = [Consensus(self.blocks, weights, bases) for _ in spaces]
        self.parameters = [{name: nn.Parameter(torch.zeros(shape)) for name, shape in shapes.items()} for _ in spaces]
        self.spaces: list[LocalSpace] = [
            SPACES[space](parameters, self.blocks, optimizer)
            for space, parameters in zip(spaces, self.parameters, strict=True)
        ]
        self.begin()

    @property
    def plan(self) -> RoundPlan:
        return plan_round(self.config, self.blocks, self.round + 1, "")

    def begin(self) -> None:
        for space, consensus in zip(self.spaces, self.consensus, strict=True):
            space.begin(consensus)

    def train(self) -> None:
        """The open round's local steps."""
        for step in range(self.plan.steps):
            self.step(self.plan.lr(step))

    def step(self, lr: float) -> None:
        for peer, (space, parameters) in enumerate(zip(self.spaces, self.parameters, strict=True)):
            for name, parameter in parameters.items():
                parameter.grad = self.gradient(peer, name, parameter.detach())
            space.step(lr)

    def upload(self) -> None:
        self.sent = [
            space.upload(consensus, self.plan, self.config.wire, self._sketches(peer))
            for peer, (space, consensus) in enumerate(zip(self.spaces, self.consensus, strict=True))
        ]

    def close(self, included: Iterable[int] | None = None) -> None:
        """Average what the ``included`` peers sent (None: all), publish it, and take everybody into the next round."""
        chosen = range(len(self.spaces)) if included is None else list(included)
        plan, wire, every = self.plan, self.config.wire, frozenset(range(len(self.blocks)))
        published: dict[Slot, Grid] = {}
        if chosen:
            total = sum(self.tokens[i] for i in chosen)
            mean = {
                slot: sum(self.sent[i][slot].numbers() * self.tokens[i] for i in chosen) / total
                for slot in upload_slots(self.blocks, plan.due, wire)
            }
            slots = published_slots(self.blocks, plan.due, wire)
            published = publish(mean, slots, self.blocks, self.consensus[0].bases)
        void = frozenset() if chosen else every
        for peer, (space, consensus) in enumerate(zip(self.spaces, self.consensus, strict=True)):
            space.settle(consensus, every if peer in chosen else frozenset())
            space.take_moments(published)
            space.rotate(consensus.apply(plan, published, void))
            space.begin(consensus)
        self.round += 1

    def play(self, included: Iterable[int] | None = None) -> None:
        """One whole round."""
        self.train()
        self.upload()
        self.close(included)

    def displacement(self, peer: int, name: str) -> Tensor:
        """A peer's displacement of one block, in float64: core coordinates for a core peer's low-rank block."""
        return self.spaces[peer].state_dict()[f"displacement/{name}"].double()

    def lifted(self, peer: int, name: str) -> Tensor:
        """A peer's displacement of one block at full size, float64: U C V^T of a core, without other unsent work."""
        index = [block.name for block in self.blocks].index(name)
        kept, basis = self.displacement(peer, name), self.consensus[peer].bases.get(index)
        if basis is None or isinstance(self.spaces[peer], FullSpace):
            return kept
        return basis.left_float(torch.float64) @ kept @ basis.right_float(torch.float64).mT

    def _sketches(self, peer: int) -> dict[tuple[int, Part], Tensor]:
        consensus, due = self.consensus[peer], self.plan.due
        names = {index: self.blocks[index].name for index in sorted(due.range | due.project)}
        gradients = {index: self.gradient(peer, name, consensus.weights[name]) for index, name in names.items()}
        return gradient_sketches(self.plan, self.blocks, consensus.bases, gradients)


def gradient_sketches(
    plan: RoundPlan, blocks: Sequence[Block], bases: Mapping[int, Basis], gradients: Mapping[int, Tensor]
) -> dict[tuple[int, Part], Tensor]:
    """What a peer measures of its ``gradients`` (M, N) for ``plan``, in the ``bases`` of before the round."""
    sketches = {}
    for index in plan.due.range | plan.due.project:
        basis, width = bases[index], blocks[index].sketch_width
        if index in plan.due.range:
            test = draw_test_matrix(basis.right_float(), width=width, seed=plan.seed, block=index, round=plan.round)
            sketches[index, Part.RANGE] = range_sketch(gradients[index], test)
        if index in plan.due.project:
            sketches[index, Part.PROJECTION] = projection(gradients[index], known_range(basis, width).float())
    return sketches


def update_of(grids: Mapping[Slot, Grid], block: int, basis: Basis | None) -> Tensor:
    """What the grids of one block lift to, float64: U C V^T, U Z^T + (I - U U^T) Y V^T, or dense numbers (1, N)."""
    parts = {slot.part: grid.numbers() for slot, grid in grids.items() if slot.block == block}
    if basis is None:
        return parts[Part.DENSE]
    u, v = basis.left_float(torch.float64), basis.right_float(torch.float64)
    if Part.CORE in parts:
        return u @ parts[Part.CORE] @ v.mT
    y, z = parts[Part.TANGENT_LEFT].mT, parts[Part.TANGENT_RIGHT].mT
    return u @ z.mT + (y - u @ (u.mT @ y)) @ v.mT


def noise(seed: int) -> Gradient:
    """Gradients that do not depend on the weights: a fresh draw at each call, the same sequence for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    return lambda peer, name, weight: torch.randn(weight.shape, generator=generator)


class LeastSquares:
    """Each peer sees the distance to one target through its own data: loss_i = |X_i (W - T)|^2 / 2 per block."""

    def __init__(self, peers: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.targets = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
        self.data = [
            {name: torch.randn(24, shape[0], generator=generator) / 24**0.5 for name, shape in SHAPES.items()}
            for _ in range(peers)
        ]

    def gradient(self, peer: int, name: str, weight: Tensor) -> Tensor:
        x = self.data[peer][name]
        return x.mT @ (x @ (weight - self.targets[name]))

    def loss(self, weights: Mapping[str, Tensor]) -> float:
        """Mean over peers, summed over blocks."""
        losses = [
            float((x @ (weights[name] - self.targets[name])).square().sum()) / 2
            for data in self.data
            for name, x in data.items()
        ]
        return sum(losses) / len(self.data)
