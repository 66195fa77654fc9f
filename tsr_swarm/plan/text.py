"""The tables of ``tsr-swarm plan``, of at most 100 columns. Pure."""

from collections.abc import Iterator, Mapping, Sequence

from tsr_swarm.plan.baseline_costs import PaperCount
from tsr_swarm.plan.costs import MethodCost
from tsr_swarm.plan.report import Report, bytes_per_token
from tsr_swarm.plan.search import GOOD_STEPS, LONGEST_STEPS, Candidate, Fit, run_lines
from tsr_swarm.telemetry.text import bytes_text, count_text, plural, seconds_text

# The widths of columns, that of the names first.
_NAME = 16  # of a method, where its kind or settings follow
_LINE = (17, 6, 10, 11, 14, 14, 6, 11, 11)
_KINDS = (30, *[11] * 6)
_MEMORY = (19, *[12] * 5)
_FIT = (2, 6, 10, 7, 9, 14, 10, 11, 15, 6)


def report_lines(report: Report) -> Iterator[str]:
    """Yield who trains, on what link, bytes by kind, memory, and what was counted."""
    yield from _scene_lines(report)
    yield ""
    yield _row((17, 6, 35, 20, 22), "", "every", "mean exchange of a peer", "line", "bytes a token")
    yield _row(_LINE, "", "steps", "sent", "received", "largest sent", "time", "busy", "sent", "received")
    yield from (_line_row(method, report) for method in report.methods)
    yield ""
    yield _row((33, 19, 26, 22), "by payload kind", "mean of an exchange", "before compression", "bytes a token")
    yield _row(_KINDS, "", *("sent", "received") * 3)
    yield from _kind_rows(report)
    yield ""
    yield _row(_MEMORY, "memory of a peer", "weights", "optimizer", "bases", "residual", "all")
    yield from (_memory_row(method) for method in report.methods)
    yield ""
    yield from _notes(report)
    if report.fit is not None:
        yield ""
        yield from _fit_lines(report.fit)


def _scene_lines(report: Report) -> Iterator[str]:
    scene = report.scene
    yield (
        f"{scene.model}: {count_text(report.parameters)} parameters, {plural(scene.peers, 'peer')}, "
        f"{count_text(scene.tokens)} tokens a step, {count_text(scene.peer_tokens)} of them each peer's"
    )
    yield f"Line: {_rate_text(scene.link.up)} up, {_rate_text(scene.link.down)} down"
    rule = " (6 operations a parameter and token at 10 TFLOP/s; --step-seconds)" if scene.step_seconds is None else ""
    yield f"A step of training takes {_short_seconds(report.link.step_seconds)}{rule}"


def _line_row(method: MethodCost, report: Report) -> str:
    exchange = method.exchange
    sent, received = bytes_per_token(method, report.scene)
    parts = [bytes_text(count) for count in (exchange.up, exchange.down, exchange.largest_sent)]
    line = _short_seconds(exchange.seconds(report.link)), _share_text(exchange.busy_share(report.link))
    return _row(_LINE, f"  {method.name}", exchange.every, *parts, *line, _fine_bytes(sent), _fine_bytes(received))


def _kind_rows(report: Report) -> Iterator[str]:
    for index, method in enumerate(report.methods):
        sent, received = method.exchange.sent, method.exchange.received
        raw_sent, raw_received = (report.raw_sent, report.raw_received) if index == 0 else (sent, received)
        tokens = report.scene.peer_tokens * method.exchange.every
        for kind in dict.fromkeys([*sent, *received]):
            counts = (sent, received, raw_sent, raw_received)
            amounts = [_amount(count, kind) for count in counts]
            per_token = [_amount(count, kind, tokens) for count in (sent, received)]
            yield _row(_KINDS, f"  {method.name:<{_NAME}}{kind}", *amounts, *per_token)


def _amount(counts: Mapping[str, float], kind: str, tokens: float = 0.0) -> str:
    if not counts.get(kind):
        return "-"
    return _fine_bytes(counts[kind] / tokens) if tokens else bytes_text(counts[kind])


def _memory_row(method: MethodCost) -> str:
    memory = method.memory
    parts = (memory.weights, memory.optimizer, memory.bases, memory.residual, memory.total)
    return _row(_MEMORY, f"  {method.name}", *(bytes_text(part) if part else "-" for part in parts))


def _notes(report: Report) -> Iterator[str]:
    peers, own = report.scene.peers, report.methods[0].exchange
    yield (
        f"The coordinator of tsr receives {bytes_text(peers * own.up)} and sends {bytes_text(peers * own.down)} "
        "a round;"
    )
    yield f"a peer that joins fetches {bytes_text(report.state_bytes)} once."
    yield "What compression leaves of tsr is estimated on normally distributed numbers. Not counted: frames"
    yield "and control messages, gradients and activations. Counted, with head, embedding and norms:"
    for method in report.methods:
        yield f"  {method.name:<{_NAME}}{method.settings}"
        yield f"  {'':<{_NAME}}{method.source}"


def _fit_lines(fit: Fit) -> Iterator[str]:
    yield f"to keep the line busy for at most {_share_text(fit.share)} of the time"
    yield _row(_FIT, "", "rank", "embedding", "k_x", "k_r", "k_r_embedding", "sent", "received", "line time", "busy")
    yield from (_candidate_row(candidate) for candidate in fit.candidates)
    yield ""
    if fit.chosen is None:
        yield f"Nothing fits: no rank keeps k_x at {LONGEST_STEPS} steps or less, past which no result is published,"
        yield "and a round within a day. Longer steps (more tokens a step), fewer bits (wire.core_bits,"
        yield "wire.core_density), a faster line or a smaller model would help."
        return
    if fit.chosen.k_x <= GOOD_STEPS:
        yield f"Proposed, the largest rank with a k_x of at most {GOOD_STEPS} steps; in the run file:"
    else:
        yield f"Proposed, the shortest k_x; above {GOOD_STEPS} steps expect to lose something. In the run file:"
    yield from (f"  {line}" for line in run_lines(fit.chosen))


def _candidate_row(c: Candidate) -> str:
    traffic = bytes_text(c.exchange.up), bytes_text(c.exchange.down)
    line = _short_seconds(c.line_seconds), _share_text(c.line_share)
    return _row(_FIT, "", c.rank, c.embedding_rank, c.k_x, c.k_r, c.k_r_embedding, *traffic, *line)


def paper_lines(model: str, counts: Sequence[PaperCount]) -> Iterator[str]:
    """Yield the TSR paper's figures, and the same with the head."""
    yield f"{model}, counted as arXiv 2602.08007 does: one worker, one direction, mean of a step, 4 bytes a number"
    yield ""
    widths = (17, 16, 12, 16, 12)
    yield _row(widths, "", "as published", "below ddp", "head counted", "below ddp")
    for count in counts:
        pairs = ((count.bytes_per_step, counts[0].bytes_per_step), (count.with_head, counts[0].with_head))
        cells = [cell for own, dense in pairs for cell in (f"{own / 1e9:.4f} GB", f"{dense / own:.1f}x")]
        yield _row(widths, f"  {count.method}", *cells)
    yield ""
    for count in counts:
        yield f"  {count.method:<{_NAME}}{count.settings}"
    yield "The paper leaves the head out of every method; its code sends it whole. Norms are in neither column."


def _row(widths: Sequence[int], name: str, *cells: object) -> str:
    """Put the name at the left of the first column and each cell at the right of its own."""
    first, *others = widths
    return f"{name:<{first}}" + "".join(f"{cell!s:>{width}}" for cell, width in zip(cells, others, strict=True))


def _rate_text(bits: float) -> str:
    return f"{count_text(bits / 1e6)} Mbit/s" if bits < 1e9 else f"{count_text(bits / 1e9)} Gbit/s"


def _fine_bytes(count: float) -> str:
    return f"{count:.2g} B" if 0 < count < 9.95 else bytes_text(count)


def _share_text(share: float) -> str:
    percent = 100 * share
    return f"{percent:.1f}%" if percent < 9.95 else f"{percent:.0f}%"


def _short_seconds(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms" if seconds < 0.9995 else seconds_text(seconds)
