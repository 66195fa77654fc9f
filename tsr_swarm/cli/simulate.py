"""``tsr-swarm simulate``: compare methods in simulated swarms of many peers, by bytes and by time."""

import json as json_format
import shlex
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from tsr_swarm.cli.options import Json, Set, UsageError, known_preset, preset_override, usage
from tsr_swarm.cli.output import print_aside
from tsr_swarm.config.link import Link, link_for, parse_rate, parse_seconds
from tsr_swarm.config.load import configure, read_toml
from tsr_swarm.config.presets import PRESETS
from tsr_swarm.errors import RunError
from tsr_swarm.process.machine_limits import require_process_room
from tsr_swarm.process.shutdown import INTERRUPTED
from tsr_swarm.telemetry.text import bytes_text, factor_text, loss_text, plural, seconds_text

if TYPE_CHECKING:  # torch takes long to import, and fails where there is no room for it
    from tsr_swarm.simulate.compare import Entry
    from tsr_swarm.simulate.result import RunResult
    from tsr_swarm.simulate.run_spec import RunSpec
    from tsr_swarm.simulate.runner import Progress

METHODS = "tsr,local-adam,ddp"
TABLE, RESULTS = "results.md", "results.json"
LINE_SECONDS = 10.0  # between two progress lines, unless a run is finished

Say = Callable[[dict[str, Any], str], None]  # an event, and the same as a line for people
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
            help="tsr is ours; ddp, local-adam, diloco, des-loc, lordo-paper, sparseloco, powersgd and tsr-adam-paper "
            "are others'.",
        ),
    ] = METHODS,
    presets: Annotated[
        str,
        typer.Option("--preset", metavar="NAME,NAME,...", help=f"Ours, beside the methods: {', '.join(PRESETS)}."),
    ] = "",
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
            show_default="the run file's, for adam a tenth of one for muon",
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
    if not (methods or presets):
        raise UsageError("Nothing is left to simulate; name --methods or --preset.")
    line = usage(lambda: {"up": parse_rate(up), "down": parse_rate(down), "rtt": parse_seconds(rtt)})
    pace = usage(lambda: parse_seconds(step_seconds)) if step_seconds else None
    rates = _list(lr, float, "--lr", "3e-3,1e-2") if lr else ()
    numbers = _list(seeds, int, "--seeds", "0,1,2") if seeds else ()
    share, factor = _stragglers(stragglers) if stragglers else (0.0, 1.0)

    require_process_room()
    from tsr_swarm.simulate.heterogeneity import Heterogeneity
    from tsr_swarm.simulate.run_spec import OWN, RunSpec, specs_of
    from tsr_swarm.train.llama import parameter_count

    mapping = read_toml(run_file) if run_file else {}
    changes = [*(overrides or []), *([f"model.vocab_size={vocabulary}"] if vocabulary else [])]
    config = configure(mapping, changes)
    away_steps = (k_x or config.periods.k_x) if churn else Heterogeneity().away_steps
    spec = RunSpec(
        method=OWN,
        config=config,
        peers=peers,
        steps=steps,
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
    beside = [] if k_x is None else [f"periods.k_x={k_x}"]
    specs = specs_of(
        spec,
        _names(methods),
        presets={
            name: configure(mapping, [*changes, *beside, *preset_override(known_preset(name))])
            for name in _names(presets)
        },
        lrs=rates,
        seeds=numbers,
        k_x=k_x,
        rank=rank,
        method_sets=method_sets or (),
    )
    link = link_for(parameter_count(config.model), step_seconds=pace, **line)
    command = shlex.join(["tsr-swarm", *(context.obj or ["simulate"])])
    _run_and_report(specs, link, out, command, jobs=jobs, plots=plots, json=json)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")] if text else []


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


def _run_and_report(
    specs: "Sequence[RunSpec]", link: Link, out: Path, command: str, *, jobs: int, plots: bool, json: bool
) -> None:
    """Simulate, then write results.json, results.md and the plots into ``out``. Exit code 130 when interrupted."""
    from tsr_swarm.simulate.compare import entries, untuned_text
    from tsr_swarm.simulate.report import document, markdown
    from tsr_swarm.simulate.result import ResultStore, write_json, write_text
    from tsr_swarm.simulate.runner import run_all

    def say(event: dict[str, Any], line: str) -> None:
        print(json_format.dumps(event) if json else line, flush=True)

    def warn(sentence: str) -> None:
        say({"event": "warning", "message": sentence}, f"warning: {sentence}")

    store, progress = ResultStore(out), _Progress(specs, link, say)
    try:
        results = run_all(specs, store, jobs, progress.show, warn)
    except KeyboardInterrupt:
        done = plural(sum(store.path(spec.name).exists() for spec in specs), "finished run")
        print_aside(f"Stopped with {done} in {out}; the same command goes on from there.")
        raise typer.Exit(INTERRUPTED) from None
    found = entries(results, {spec.name: spec.preset for spec in specs})
    if untuned := untuned_text(found):
        warn(f"{untuned} Give more --lr.")
    files = [
        write_json(out / RESULTS, document(results, link, command)),
        write_text(out / TABLE, markdown(found, link, command)),
        *(_plots(found, link, out) if plots else []),
    ]
    say(
        {"event": "simulation_finished", "runs": len(results), "files": [str(file) for file in files]},
        "\n".join(["", *_table(found, link), "", f"Written: {', '.join(str(file) for file in files)}"]),
    )


class _Progress:
    """Prints which runs are finished, and every LINE_SECONDS how far the current one is."""

    def __init__(self, specs: "Sequence[RunSpec]", link: Link, say: Say) -> None:
        self._steps = {spec.name: spec.steps for spec in specs}
        self._names = {spec.name: f"{spec.title} at rate {spec.lr:g}, seed {spec.seed}" for spec in specs}
        self._link, self._say = link, say
        self._said = time.monotonic()

    def show(self, news: "Progress") -> None:
        if news.finished is None and time.monotonic() - self._said < LINE_SECONDS:
            return
        self._said = time.monotonic()
        left = "" if news.seconds_left is None else f"; about {seconds_text(news.seconds_left)} left"
        about = {"name": news.name, "done": news.done, "total": news.total, "seconds_left": news.seconds_left}
        count, name = f"[{news.done}/{news.total}]", self._names[news.name]
        if news.finished is not None:
            event = {"event": "run_simulated", **about, **_outcome(news.finished, self._link)}
            self._say(event, f"{count} {name}: {_ending(news.finished)}{left}")
        else:
            event = {"event": "progress", **about, "step": news.step, "steps": self._steps[news.name]}
            self._say(event, f"{count} {name}: step {news.step} of {self._steps[news.name]}{left}")


def _outcome(result: "RunResult", link: Link) -> dict[str, Any]:
    last = result.curve[-1]
    return {
        "method": result.method,
        "lr": result.lr,
        "seed": result.seed,
        "loss": result.loss,
        "ended": result.ended,
        "sent": last.bytes_sent,
        "received": last.bytes_received,
        "seconds": last.seconds(link),
    }


def _ending(result: "RunResult") -> str:
    last = result.curve[-1]
    loss = f"loss {loss_text(result.loss)}" if not result.ended else "diverged"
    return f"{loss}, {bytes_text(last.bytes_total)} a peer"


def _plots(found: "Sequence[Entry]", link: Link, out: Path) -> list[Path]:
    from tsr_swarm.simulate.plots import write_plots

    try:
        return write_plots(found, link, out)
    except RunError as error:  # the numbers are written all the same
        print_aside(f"No plots: {error}")
        return []


def _table(found: "Sequence[Entry]", link: Link) -> list[str]:
    from tsr_swarm.simulate.report import loss_range

    width = max(len(entry.label) for entry in found) + 2
    head = f"{'method':<{width}}{'rate':>8}  {'final loss':<24}{'bytes a peer':>13}{'below ddp':>11}{'time':>13}"
    rows = [
        f"{entry.label:<{width}}{entry.lr:>8g}  {loss_range(entry):<24}{bytes_text(entry.sent + entry.received):>13}"
        f"{factor_text(int(entry.dense_bytes), int(entry.sent + entry.received)):>11}"
        f"{seconds_text(entry.seconds(link)):>13}"
        for entry in found
    ]
    return [head, *rows]
