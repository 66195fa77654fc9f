"""What the study came to, as one page and two plots."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from candidates import Candidate
from measure import header
from studying.clock import equal_time
from studying.finals import finalists, operating_points
from studying.plots import write_plots
from studying.rows import Row
from studying.search import ablation, search

from tsr_swarm.runtime.simulate.result import RunResult
from tsr_swarm.runtime.simulate.store import write_text
from tsr_swarm.telemetry.text import seconds_text

NOTES = Path(__file__).parent / "study_notes.md"
Done = Mapping[str, tuple[Candidate, Sequence[RunResult]]]  # by name: which of a candidate's runs there are


def write_report(searched: Done, finals: Done, folder: Path, *, seeds: int, k_x: int) -> Path:
    """Write ``study.md`` and its plots beside ``folder``, and return the page's path.

    ``seeds``: how many a finalist is to have. ``k_x``: the steps between two dense exchanges that bytes are compared to.
    Runs that are not done are shown as pending. Raises RunError where nothing can be written, or without matplotlib.
    """
    search_rows = [_row(candidate, runs, len(candidate.rates)) for candidate, runs in searched.values()]
    final_rows = [_row(candidate, runs, seeds) for candidate, runs in finals.values()]
    target = folder.parent
    page = write_text(target / "study.md", "\n".join(_page(search_rows, final_rows, seeds, k_x)) + "\n")
    write_plots(final_rows, target)
    return page


def _row(candidate: Candidate, runs: Sequence[RunResult], wanted: int) -> Row:
    return Row(candidate=candidate, runs=tuple(runs), wanted=wanted)
