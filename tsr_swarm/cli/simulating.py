"""Runs a simulation for the command line: progress as it goes, files and a short table at the end."""

import json as json_format
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from tsr_swarm.cli.output import print_aside
from tsr_swarm.errors import RunError
from tsr_swarm.process.shutdown import INTERRUPTED
from tsr_swarm.telemetry.text import bytes_text, factor_text, loss_text, plural, seconds_text

if TYPE_CHECKING:
    from tsr_swarm.config.link import Link
    from tsr_swarm.simulate.compare import Entry
    from tsr_swarm.simulate.result import RunResult
    from tsr_swarm.simulate.run_spec import RunSpec
    from tsr_swarm.simulate.runner import Progress

TABLE, RESULTS = "results.md", "results.json"
LINE_SECONDS = 10.0  # between two progress lines, unless a run is finished

Say = Callable[[dict[str, Any], str], None]  # an event, and the same as a line for people


def run_and_report(
    specs: "Sequence[RunSpec]", link: "Link", out: Path, command: str, *, jobs: int, plots: bool, json: bool
) -> None:
    """Simulate, then write results.json, results.md and the plots into ``out``. Exit code 130 when interrupted."""
    from tsr_swarm.simulate.compare import entries
    from tsr_swarm.simulate.report import document, markdown
    from tsr_swarm.simulate.result import ResultStore, write_json, write_text
    from tsr_swarm.simulate.runner import run_all

    say = _say_json if json else _say_line
    store, progress = ResultStore(out), _Progress(specs, link, say)
    try:
        results = run_all(specs, store, jobs, progress.hear, lambda sentence: _warn(say, sentence))
    except KeyboardInterrupt:
        done = plural(sum(store.path(spec.name).exists() for spec in specs), "finished run")
        print_aside(f"Stopped with {done} in {out}; the same command goes on from there.")
        raise typer.Exit(INTERRUPTED) from None
    found = entries(results)
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
    """Says what has been finished, and now and then how far the rest is."""

    def __init__(self, specs: "Sequence[RunSpec]", link: "Link", say: Say) -> None:
        self._steps = {spec.name: spec.steps for spec in specs}
        self._names = {spec.name: f"{spec.method} at rate {spec.lr:g}, seed {spec.seed}" for spec in specs}
        self._link, self._say = link, say
        self._said = time.monotonic()

    def hear(self, news: "Progress") -> None:
        if news.finished is None and time.monotonic() - self._said < LINE_SECONDS:
            return
        self._said = time.monotonic()
        left = "" if news.seconds_left is None else f"; about {seconds_text(news.seconds_left)} left"
        about = {"name": news.name, "done": news.done, "total": news.total, "seconds_left": news.seconds_left}
        place, name = f"[{news.done}/{news.total}]", self._names[news.name]
        if news.finished is not None:
            event = {"event": "run_simulated", **about, **_outcome(news.finished, self._link)}
            self._say(event, f"{place} {name}: {_ending(news.finished)}{left}")
        else:
            event = {"event": "progress", **about, "step": news.step, "steps": self._steps[news.name]}
            self._say(event, f"{place} {name}: step {news.step} of {self._steps[news.name]}{left}")


def _outcome(result: "RunResult", link: "Link") -> dict[str, Any]:
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


def _plots(found: "Sequence[Entry]", link: "Link", out: Path) -> list[Path]:
    from tsr_swarm.simulate.plots import write_plots

    try:
        return write_plots(found, link, out)
    except RunError as error:  # the numbers are written all the same
        print_aside(f"No plots: {error}")
        return []


def _table(found: "Sequence[Entry]", link: "Link") -> list[str]:
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


def _warn(say: Say, sentence: str) -> None:
    say({"event": "warning", "message": sentence}, f"warning: {sentence}")


def _say_json(event: dict[str, Any], line: str) -> None:
    print(json_format.dumps(event), flush=True)


def _say_line(event: dict[str, Any], line: str) -> None:
    print(line, flush=True)
