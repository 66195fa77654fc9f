"""Everything that ``tsr-swarm plan`` shows, computed; as a flat object for programs."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tsr_swarm.config.blocks import Block, plan_blocks
from tsr_swarm.config.layout import published_slots, upload_slots
from tsr_swarm.config.run import RunConfig
from tsr_swarm.plan.baseline_costs import PaperCount, numbers, paper_counts, rivals
from tsr_swarm.plan.costs import Link, MethodCost, default_step_seconds, line_seconds, line_share
from tsr_swarm.plan.own_costs import our_method, raw_bytes, state_bytes, wire_shares
from tsr_swarm.plan.presets import LowRanks
from tsr_swarm.plan.search import Fit, Goal, find_fit, run_lines
from tsr_swarm.train.llama import parameter_shapes


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """``tokens`` are of one step of all peers together; ``step_seconds`` None leaves it to the default rule."""

    model: str
    peers: int
    link: Link
    tokens: int
    step_seconds: float | None = None

    @property
    def peer_tokens(self) -> float:
        """Of one step of one peer."""
        return self.tokens / self.peers


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Ours first, then the rivals. ``raw_sent`` and ``raw_received`` are ours before compression, mean of a round."""

    scene: Scene
    parameters: int
    step_seconds: float
    methods: Sequence[MethodCost]
    raw_sent: Mapping[str, float]
    raw_received: Mapping[str, float]
    state_bytes: int
    fit: Fit | None


def make_report(config: RunConfig, ranks: LowRanks, scene: Scene, share: float | None) -> Report:
    """Bytes and memory of every method, and what fits the line for at most ``share`` of the time if that is given.

    The model is not allocated. Raises ConfigError where a rank does not fit a block.
    """
    blocks = _blocks(config)
    parameters = numbers(blocks)
    step_seconds = scene.step_seconds or default_step_seconds(parameters, scene.peer_tokens)
    shares = wire_shares(config, scene.peers)
    fit = None
    if share is not None:
        goal = Goal(link=scene.link, step_seconds=step_seconds, share=share)
        fit = find_fit(config, parameter_shapes(config.model), shares, goal)
    return Report(
        scene=scene,
        parameters=parameters,
        step_seconds=step_seconds,
        methods=[
            our_method(config, blocks, shares),
            *rivals(blocks, ranks, config.model.hidden_size, scene.peers),
        ],
        raw_sent=raw_bytes(config, blocks, upload_slots).mean,
        raw_received=raw_bytes(config, blocks, published_slots).mean,
        state_bytes=state_bytes(config, blocks),
        fit=fit,
    )


def make_paper_report(config: RunConfig, ranks: LowRanks) -> list[PaperCount]:
    """The TSR paper's own count for the configured model. Raises ConfigError."""
    return paper_counts(_blocks(config), ranks)


def bytes_per_token(method: MethodCost, scene: Scene) -> tuple[float, float]:
    """Sent and received by one peer for each token that it trains on."""
    tokens = scene.peer_tokens * method.exchange.every
    return method.exchange.up / tokens, method.exchange.down / tokens


def report_object(report: Report) -> dict[str, Any]:
    """All of it, in bytes, seconds and bits a second."""
    scene = report.scene
    return {
        "event": "plan",
        "count": "all",
        "model": scene.model,
        "parameters": report.parameters,
        "peers": scene.peers,
        "up": scene.link.up,
        "down": scene.link.down,
        "tokens_per_step": scene.tokens,
        "step_seconds": report.step_seconds,
        "methods": [_method_object(method, report) for method in report.methods],
        "raw_bytes": {"sent": report.raw_sent, "received": report.raw_received},
        "state_bytes": report.state_bytes,
        "fit": report.fit and _fit_object(report.fit),
    }


def paper_object(model: str, counts: Sequence[PaperCount]) -> dict[str, Any]:
    """The TSR paper's count, bytes a step."""
    return {"event": "plan", "count": "paper", "model": model, "methods": [asdict(count) for count in counts]}


def _method_object(method: MethodCost, report: Report) -> dict[str, Any]:
    sent, received = bytes_per_token(method, report.scene)
    return {
        **asdict(method),
        "bytes_per_token": {"sent": sent, "received": received},
        "line_seconds": line_seconds(report.scene.link, method.exchange),
        "line_share": line_share(report.scene.link, method.exchange, report.step_seconds),
    }


def _fit_object(fit: Fit) -> dict[str, Any]:
    return {
        "share": fit.share,
        "candidates": [asdict(candidate) for candidate in fit.candidates],
        "run_file": fit.chosen and run_lines(fit.chosen),
    }


def _blocks(config: RunConfig) -> tuple[Block, ...]:
    return plan_blocks(parameter_shapes(config.model), config.optimizer, config.model.hidden_size)
