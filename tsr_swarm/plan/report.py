"""Everything that ``tsr-swarm plan`` shows, and the same as a flat object for programs."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from tsr_swarm.config.layout import published_slots, upload_slots
from tsr_swarm.config.link import Link
from tsr_swarm.config.run import RunConfig
from tsr_swarm.plan.baseline_costs import PaperCount, baselines, numbers, paper_counts
from tsr_swarm.plan.costs import LowRanks, MethodCost, Scene, default_step_seconds
from tsr_swarm.plan.own_costs import blocks_of, cycle, mean_bytes, own_method, raw_bytes, state_bytes, wire_shares
from tsr_swarm.plan.search import Fit, find_fit, run_lines


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The cost of our own method and of the baselines, and what fits the link."""

    scene: Scene
    link: Link  # with the time of a step
    parameters: int
    methods: Sequence[MethodCost]  # our own first
    raw_sent: Mapping[str, float]  # our own before compression, mean of a round
    raw_received: Mapping[str, float]
    state_bytes: int
    fit: Fit | None


def make_report(config: RunConfig, ranks: LowRanks, scene: Scene, share: float | None) -> Report:
    """Compute the cost of every method, and what keeps the link busy for at most ``share`` of the time if it is given.

    Raises ConfigError where a rank does not fit a block.
    """
    blocks = blocks_of(config)
    parameters = numbers(blocks)
    step_seconds = scene.step_seconds or default_step_seconds(parameters, scene.peer_tokens)
    link = replace(scene.link, step_seconds=step_seconds)
    shares, rounds = wire_shares(config, scene.peers), cycle(config, blocks)
    fit = None if share is None else find_fit(config, shares, link, share)
    return Report(
        scene=scene,
        link=link,
        parameters=parameters,
        methods=[
            own_method(config, blocks, shares),
            *baselines(blocks, ranks, config.model.hidden_size, scene.peers),
        ],
        raw_sent=mean_bytes(raw_bytes(blocks, config.wire, rounds, upload_slots)),
        raw_received=mean_bytes(raw_bytes(blocks, config.wire, rounds, published_slots)),
        state_bytes=state_bytes(config, blocks),
        fit=fit,
    )


def make_paper_report(config: RunConfig, ranks: LowRanks) -> list[PaperCount]:
    """Count as the TSR paper does, for the configured model. Raises ConfigError."""
    return paper_counts(blocks_of(config), ranks)


def bytes_per_token(method: MethodCost, scene: Scene) -> tuple[float, float]:
    """Return bytes sent and received by one peer for each token that it trains on."""
    tokens = scene.peer_tokens * method.exchange.every
    return method.exchange.up / tokens, method.exchange.down / tokens


def report_object(report: Report) -> dict[str, Any]:
    """Return all of it, in bytes, seconds and bits a second."""
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
        "step_seconds": report.link.step_seconds,
        "methods": [_method_object(method, report) for method in report.methods],
        "raw_bytes": {"sent": report.raw_sent, "received": report.raw_received},
        "state_bytes": report.state_bytes,
        "fit": report.fit and _fit_object(report.fit),
    }


def paper_object(model: str, counts: Sequence[PaperCount]) -> dict[str, Any]:
    """Return the TSR paper's count, bytes a step."""
    return {"event": "plan", "count": "paper", "model": model, "methods": [asdict(count) for count in counts]}


def _method_object(method: MethodCost, report: Report) -> dict[str, Any]:
    sent, received = bytes_per_token(method, report.scene)
    return {
        **asdict(method),
        "bytes_per_token": {"sent": sent, "received": received},
        "line_seconds": method.exchange.seconds(report.link),
        "line_share": method.exchange.busy_share(report.link),
    }


def _fit_object(fit: Fit) -> dict[str, Any]:
    return {
        "share": fit.share,
        "candidates": [asdict(candidate) for candidate in fit.candidates],
        "run_file": fit.chosen and run_lines(fit.chosen),
    }
