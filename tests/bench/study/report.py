"""What a stage of the study came to, as one page and two plots."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.bench.study.comparison import Row
from tests.bench.study.plots import pictures, write_plots
from tests.bench.study.stages import RunStore, Stage
from tests.bench.study.tables import ablation, equal_time, finalists, operating_points, search
from tests.bench.tables import RESULTS, header
from tsr_swarm.simulate.report import heterogeneity_text
from tsr_swarm.simulate.result import RunResult, write_text
from tsr_swarm.telemetry.text import seconds_text

HERE = Path(__file__).parent


FINALISTS = """\
Each at its best rate of the search. Loss: held-out, nats a token, of the consensus; median over the seeds, range in \
brackets. MB: wire bytes of one peer in the whole run, first download and TCP left out. Below dense fp32: how many \
times fewer bytes than averaging all weights in fp32, up and down, as often as ours exchanges. Minus: mean over the \
seeds of the differences with the same seed, their range in brackets; below zero the row's method has the lower loss. \
Controls are a rival's exchange around our inner optimizer, Muon."""
OPERATING_POINTS = """\
For each rival the best of our finalists, by median loss, that moves no more bytes in all. Ours is chosen among \
several settings by these very runs, so a lead far below the range over seeds says little; every setting of a rival is \
a point of its own."""
SEARCH = """\
Final loss at each rate tried, best in bold. It is one seed: differences below the finalists' ranges are chance."""
ABLATION = """\
From the search, one seed. Below zero: the change lowers the loss. At the variant's best rate against ours at the same \
rate, where both step the same way and ours was run at it; and the best rate of each."""


def write_report(stage: Stage, store: RunStore, folder: Path) -> Path:
    """Write the page of ``stage`` and its plots into ``folder``; return the page's path.

    Runs that are not done are shown as pending. Raises RunError where nothing can be written, or without matplotlib.
    """
    searched = [
        Row(candidate=c, runs=stage.searched(store, c), wanted=len(stage.search_specs(store, c)))
        for c in stage.candidates
    ]
    finals = [Row(candidate=c, runs=stage.finished(store, c), wanted=len(stage.seeds)) for c in stage.finalists]
    page = write_text(folder / f"{stage.name}.md", "\n".join(_page(stage, searched, finals)) + "\n")
    write_plots(finals, folder, stage.name)
    return page


def _page(stage: Stage, searched: Sequence[Row], finals: Sequence[Row]) -> Iterator[str]:
    seeds, k_x = len(stage.seeds), stage.config().periods.k_x  # to dense averaging as often as this, bytes are compared
    yield from (f"# {stage.title}", "", header(stage.command), "")
    yield from (*_setting(stage.runs, [run for row in (*searched, *finals) for run in row.runs], k_x), "")
    yield from (f"## {stage.notes_title}", "", _notes(stage.notes), "")
    yield from (f"## Finalists: {_steps(finals)}, {seeds} seeds", "", *finalists(finals, k_x), "", FINALISTS, "")
    yield from (*(f"![{text}]({name})" for name, text in _pictures(stage.name, finals)), "")
    yield from ("## Ours at each rival's operating point", "", OPERATING_POINTS, "", *operating_points(finals), "")
    yield from ("## The same time on a home line", "", *equal_time(finals), "")
    yield from (f"## The search: {_steps(searched)}, one seed", "", SEARCH, "", *search(searched, k_x))
    if any(row.is_ours and not row.candidate.is_finalist for row in searched):
        yield from ("", "## Ours, one change at a time", "", ABLATION, "", *ablation(searched))


def _setting(name: str, runs: Sequence[RunResult], k_x: int) -> Iterator[str]:
    if not runs:
        yield "No run is done yet."
        return
    spec = runs[0].spec
    model, data, optimizer = spec["model"], spec["data"], spec["optimizer"]
    dates = sorted(str(run.about.get("date", ""))[:10] for run in runs)
    seconds = sum(float(run.about.get("wall_seconds", 0)) for run in runs)
    yield (
        f"{spec['peers']} peers and an exchange every {k_x} steps, unless the method's name says otherwise; a model of "
        f"{runs[0].parameters / 1e6:.2f}M parameters (d {model['hidden_size']}, {model['num_hidden_layers']} layers, "
        f"{model['vocab_size']} tokens); {data['batch_size']} sequences of {data['sequence_length']} tokens a peer and "
        f"step from the source `{data['source']}` (`stdlib` is the Python standard library's own), and "
        f"{data['heldout_sequences']} sequences held out. All methods read the same tokens in the same order, from the "
        f"same first weights, with {optimizer['warmup_steps']} steps of warm-up, a cosine down to a tenth of the rate, "
        f"and gradients clipped at {optimizer['clip']:g}. Every finished run is a line of "
        f"[{name}]({os.path.relpath(HERE / name, RESULTS)})."
    )
    world = heterogeneity_text(spec["world"])
    if world:
        yield ""
        yield f"World: {world}."
    yield ""
    yield (
        f"{len(runs)} runs, {dates[0]} to {dates[-1]}, {seconds_text(seconds)} of one core in all; made on "
        f"{'; '.join(sorted({str(run.about.get('machine', 'an unknown machine')) for run in runs}))}."
    )
    if len({run.text for run in runs}) > 1:
        yield ""
        yield "**These runs did not all read the same text** (another corpus), so they cannot all be compared."


def _steps(rows: Sequence[Row]) -> str:
    steps = sorted({run.spec["steps"] for row in rows for run in row.runs})
    return f"{', '.join(map(str, steps))} steps" if steps else "pending"


def _pictures(study: str, finals: Sequence[Row]) -> Iterator[tuple[str, str]]:
    if any(row.runs for row in finals):
        yield from zip(pictures(study), ("Loss against wire bytes", "Loss against simulated time"), strict=True)


def _notes(name: str) -> str:
    """Written by hand; the tables around them are not."""
    path = HERE / name
    return (
        path.read_text("utf-8").strip() if path.exists() else f"Not yet written: they go to `tests/bench/study/{name}`."
    )
