"""``tsr-swarm simulate``: many peers in one process, rivals beside them, by bytes and by time."""

import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from tsr_swarm.cli.options import Json, Set, UsageError
from tsr_swarm.config.units import parse_rate, parse_seconds
from tsr_swarm.errors import ConfigError
from tsr_swarm.process.machine_limits import require_process_room

METHODS = "tsr,local-adam,ddp"

T = TypeVar("T")


def simulate(
    context: typer.Context,
    run_file: Annotated[
        Path | None, typer.Argument(metavar="RUN.toml", help="Model, data and optimizer; without one, the defaults.")
    ] = None,
    methods: Annotated[
        str,
        typer.Option(
            metavar="M,M,...",
            help="tsr is ours; ddp, local-adam, diloco, des-loc, lordo, sparseloco, powersgd, tsr-adam are others'.",
        ),
    ] = METHODS,
    peers: Annotated[int, typer.Option(min=1, max=1000, metavar="N")] = 4,
    steps: Annotated[int, typer.Option(min=1, metavar="N", help="Local steps of each peer.")] = 200,
    seeds: Annotated[str | None, typer.Option(metavar="N,N,...", show_default="the run file's")] = None,
    k_x: Annotated[
        int | None,
        typer.Option("--k-x", min=1, metavar="N", help="Local steps a round.", show_default="the run file's"),
    ] = None,
    rank: Annotated[
        str | None, typer.Option(metavar="R", help="Of all methods that have one: 32, d/2.", show_default="their own")
    ] = None,
    lr: Annotated[
        str | None,
        typer.Option(
            metavar="X,X,...",
            help="Run each method at each; the best one is shown.",
            show_default="the run file's, a tenth of it for adam where ours is muon",
        ),
    ] = None,
    schedule: Annotated[str, typer.Option(metavar="S", help="cosine over the whole run, or constant.")] = "cosine",
    eval_every: Annotated[int, typer.Option(min=0, metavar="STEPS", help="0: ten times a run.")] = 0,
    up: Annotated[str, typer.Option(metavar="RATE", help="A peer's uplink.")] = "20mbit",
    down: Annotated[str, typer.Option(metavar="RATE", help="A peer's downlink.")] = "100mbit",
    rtt: Annotated[str, typer.Option(metavar="TIME", help="A round trip.")] = "50ms",
    step_seconds: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="A local step.", show_default="a 200th of one dense fp32 exchange"),
    ] = None,
    churn: Annotated[
        float, typer.Option(min=0, max=0.999, metavar="P", help="Chance that a peer misses a round.")
    ] = 0.0,
    stragglers: Annotated[
        str | None, typer.Option(metavar="SHARE:FACTOR", help="0.25:3: a quarter is three times as slow.")
    ] = None,
    heterogeneous: Annotated[
        bool, typer.Option("--heterogeneous", help="Each peer has a different kind of text.")
    ] = False,
    vocabulary: Annotated[
        int,
        typer.Option(
            min=0, metavar="N", help="Tokens of BPE text (needs tokenizers), set as model.vocab_size; 0: bytes."
        ),
    ] = 0,
    overrides: Set = None,
    method_sets: Annotated[
        list[str] | None,
        typer.Option("--method-set", metavar="METHOD.KEY=VALUE", help="A setting of one method; repeatable."),
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, max=256, metavar="J", help="Processes, a torch thread each.")] = 1,
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Results; finished runs that are there are not run again.")
    ] = Path("simulation"),
    exact: Annotated[
        bool,
        typer.Option("--exact", help="Share nothing between simulated peers; 'local' then gives the same digests."),
    ] = False,
    plots: Annotated[bool, typer.Option(help="Write PNG plots (needs matplotlib).")] = True,
    json: Json = False,
) -> None:
    """Compare methods by loss against bytes and time, in simulated swarms."""
    line = {"up": _flag(parse_rate, up), "down": _flag(parse_rate, down), "rtt": _flag(parse_seconds, rtt)}
    pace = _flag(parse_seconds, step_seconds) if step_seconds else None
    rates = _list(lr, float, "--lr", "3e-3,1e-2") if lr else ()
    numbers = _list(seeds, int, "--seeds", "0,1,2") if seeds else ()
    share, factor = _stragglers(stragglers) if stragglers else (0.0, 1.0)

    require_process_room()
    from tsr_swarm.cli.simulating import run_and_report
    from tsr_swarm.config.link import link_for
    from tsr_swarm.config.load import apply_overrides, environ_overrides, read_toml, run_config_from_mapping
    from tsr_swarm.simulate.heterogeneity import Heterogeneity
    from tsr_swarm.simulate.run_spec import StudyOptions, specs_of
    from tsr_swarm.train.llama import parameter_count

    mapping = read_toml(run_file) if run_file else {}
    changes = [*environ_overrides(os.environ), *(overrides or [])]
    changes += [f"model.vocab_size={vocabulary}"] if vocabulary else []
    config = run_config_from_mapping(apply_overrides(mapping, changes))
    away_steps = (k_x or config.periods.k_x) if churn else Heterogeneity().away_steps
    options = StudyOptions(
        config=config,
        methods=[name.strip() for name in methods.split(",")],
        lrs=rates,
        seeds=numbers,
        peers=peers,
        steps=steps,
        k_x=k_x,
        rank=rank,
        method_sets=method_sets or (),
        schedule=schedule,
        eval_every=eval_every,
        heterogeneity=Heterogeneity(
            churn=churn,
            away_steps=away_steps,
            straggler_share=share,
            straggler_factor=factor,
            heterogeneous=heterogeneous,
            vocabulary=vocabulary,
        ),
        exact=exact,
    )
    link = link_for(parameter_count(config.model), step_seconds=pace, **line)
    command = shlex.join(["tsr-swarm", *(context.obj or ["simulate"])])
    run_and_report(specs_of(options), link, out, command, jobs=jobs, plots=plots, json=json)


def _flag(parse: Callable[[str], float], text: str) -> float:
    """What a flag's text says; one that says nothing is a usage error, not a bad configuration."""
    try:
        return parse(text)
    except ConfigError as error:
        raise UsageError(str(error)) from None


def _list(text: str, kind: Callable[[str], T], flag: str, example: str) -> tuple[T, ...]:
    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"{flag} {text} is not a list of numbers; write them as in {flag} {example}.") from None


def _stragglers(text: str) -> tuple[float, float]:
    share, colon, factor = text.partition(":")
    try:
        numbers = float(share), float(factor)
    except ValueError:
        numbers = -1.0, -1.0
    if not (colon and 0 <= numbers[0] <= 1 <= numbers[1] <= 1000):
        raise UsageError(
            f"--stragglers {text} is not SHARE:FACTOR, a share of the peers from 0 to 1 and how many times as slow "
            "they are, 1 to 1000; write it as in --stragglers 0.25:3."
        )
    return numbers
