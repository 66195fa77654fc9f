"""``tsr-swarm plan``: what a run would cost on a home line, beside other methods, before it is started."""

import json as json_format
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Annotated, Any

import typer

from tsr_swarm.cli.options import Json, RunFile, Set, UsageError, usage
from tsr_swarm.config.link import Link, parse_rate
from tsr_swarm.config.load import configure, read_toml
from tsr_swarm.plan.costs import MODEL_SIZES, ModelSize, Scene, low_ranks

PEERS, UP, DOWN, SHARE = 8, "20mbit", "100mbit", 0.2


def plan(
    run_file: RunFile = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help=f"{', '.join(MODEL_SIZES)} of the TSR paper, in place of the file's [model]."
        ),
    ] = None,
    peers: Annotated[int, typer.Option(min=1, max=100_000, metavar="N")] = PEERS,
    up: Annotated[str, typer.Option(metavar="RATE", help="A peer's uplink, such as 2.5mbit or 1gbit.")] = UP,
    down: Annotated[str, typer.Option(metavar="RATE", help="A peer's downlink.")] = DOWN,
    tokens_per_step: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="T",
            help="Tokens of one step of all peers together.",
            show_default="the paper's with --model, else peers x batch_size x sequence_length",
        ),
    ] = None,
    step_seconds: Annotated[
        float | None,
        typer.Option(
            metavar="S",
            help="How long a peer takes for a step.",
            show_default="6 operations a parameter and token at 10 TFLOP/s",
        ),
    ] = None,
    tokens_per_second: Annotated[
        float | None, typer.Option(metavar="T", help="Of one peer; in place of --step-seconds.")
    ] = None,
    fit: Annotated[
        str | None, typer.Option(metavar="RATE", help="Propose rank and periods for an uplink of RATE.")
    ] = None,
    share: Annotated[
        float, typer.Option(metavar="SHARE", help="For --fit: the share of the time that the line may be busy.")
    ] = SHARE,
    count: Annotated[
        str, typer.Option(metavar="all|paper", help="paper: count bytes as the TSR paper does, and with the head.")
    ] = "all",
    overrides: Set = None,
    json: Json = False,
) -> None:
    _check(count, fit, share, step_seconds, tokens_per_second)
    size = _model_size(model)
    mapping = read_toml(run_file) if run_file else {}
    config = configure({**mapping, "model": asdict(size.model)} if size else mapping, overrides or ())
    name = config.run.name if model is None else model.upper()
    ranks = size.ranks if size else low_ranks(config.model.hidden_size)
    link = Link(up=_rate("--fit", fit) if fit else _rate("--up", up), down=_rate("--down", down))
    tokens = tokens_per_step or (
        size.tokens_per_step if size else peers * config.data.batch_size * config.data.sequence_length
    )
    if tokens_per_second is not None:
        step_seconds = tokens / peers / tokens_per_second
    scene = Scene(model=name, peers=peers, link=link, tokens=tokens, step_seconds=step_seconds)
    from tsr_swarm.plan.report import make_paper_report, make_report, paper_object, report_object
    from tsr_swarm.plan.text import paper_lines, report_lines

    if count == "paper":
        counts = make_paper_report(config, ranks)
        _print(paper_object(name, counts) if json else paper_lines(name, counts))
    else:
        report = make_report(config, ranks, scene, share if fit else None)
        _print(report_object(report) if json else report_lines(report))


def _check(
    count: str, fit: str | None, share: float, step_seconds: float | None, tokens_per_second: float | None
) -> None:
    if count not in ("all", "paper"):
        raise UsageError(f"--count {count} is not known; it is all or paper.")
    if count == "paper" and fit:
        raise UsageError("--fit and --count paper exclude each other: a line carries all bytes; leave one out.")
    if not 0 < share < 1:
        raise UsageError(f"--share {share:g} is out of range; it is above 0 and below 1, such as {SHARE}.")
    if step_seconds is not None and tokens_per_second is not None:
        raise UsageError("--step-seconds and --tokens-per-second exclude each other; give one of them.")
    for name, value in (("--step-seconds", step_seconds), ("--tokens-per-second", tokens_per_second)):
        if value is not None and not 1e-9 <= value <= 1e12:
            raise UsageError(f"{name} {value:g} is out of range; it is a number above 0.")


def _model_size(model: str | None) -> ModelSize | None:
    if model is None:
        return None
    if model.upper() not in MODEL_SIZES:
        raise UsageError(
            f"--model {model} is not known; it is one of {', '.join(MODEL_SIZES)}, or a run file's [model]."
        )
    return MODEL_SIZES[model.upper()]


def _rate(option: str, text: str) -> float:
    return usage(lambda: parse_rate(text), option)


def _print(shown: Mapping[str, Any] | Iterable[str]) -> None:
    print(json_format.dumps(shown) if isinstance(shown, Mapping) else "\n".join(shown))
