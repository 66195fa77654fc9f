"""The results of simulated runs as a Markdown page for people and as JSON."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from tsr_swarm.baselines.registry import default_settings
from tsr_swarm.config.auto import AUTO, refresh_steps_for
from tsr_swarm.config.link import MBIT, Link
from tsr_swarm.config.run import RunConfig
from tsr_swarm.simulate.compare import Entry, untuned_text, value_text
from tsr_swarm.simulate.result import RunResult
from tsr_swarm.simulate.run_spec import OWN
from tsr_swarm.telemetry.text import factor_text, plural, seconds_text

HEAD = (
    "method", "settings", "rate", "final loss", "sent MB", "received MB", "total MB",
    "below data-parallel", "below dense", "simulated time",
)  # fmt: skip


def markdown(found: Sequence[Entry], link: Link, command: str) -> str:
    """Return the whole page: what was run, the table, and how to read it."""
    equal = equal_seconds(found, link)
    head = (*HEAD, f"loss after {seconds_text(equal)}")
    rows = [_row(entry, link, equal) for entry in found]
    lines = ["# Simulated runs", "", *_setting(found, link, command), ""]
    lines += [f"| {' | '.join(row)} |" for row in (head, ("---",) * len(head), *rows)]
    return "\n".join([*lines, "", *_reading(found), ""])


def document(results: Sequence[RunResult], link: Link, command: str) -> dict[str, Any]:
    """Return all runs as JSON, the points of each with their simulated seconds on ``link``."""
    runs = [result.to_json() for result in results]
    for result, run in zip(results, runs, strict=True):
        for point, shown in zip(result.curve, run["curve"], strict=True):
            shown["seconds"] = point.seconds(link)
    return {"command": command, "link": asdict(link), "runs": runs}


def equal_seconds(found: Sequence[Entry], link: Link) -> float:
    """Return the time at which losses are compared: when the first entry has done all its steps."""
    return min(entry.seconds(link) for entry in found)


def settings_text(spec: Mapping[str, Any]) -> str:
    """Return the period, and every setting that is not at its default."""
    if spec["method"] == OWN:
        defaults = asdict(RunConfig())
        defaults["periods"] |= dict.fromkeys(
            ("k_r", "k_r_embedding"), refresh_steps_for(spec["optimizer"]["aim"], AUTO, spec["periods"]["k_x"])
        )
        sections = ("periods", "optimizer", "wire")
        pairs = {(s, key): (value, defaults[s][key]) for s in sections for key, value in spec[s].items()}
        values = {key: pair for (_, key), pair in pairs.items() if key not in ("lr", "warmup_steps", "decay_steps")}
    else:
        plain = default_settings(spec["method"])
        values = {key: (value, plain[key]) for key, value in spec["settings"].items()}
    shown = {
        key: value
        for key, (value, default) in values.items()
        if key == "k_x" or value != (list(default) if isinstance(default, tuple) else default)
    }
    ordered = sorted(shown, key=lambda key: key != "k_x")
    return ", ".join(f"{key} {value_text(shown[key])}" for key in ordered) or "defaults"


def loss_range(entry: Entry) -> str:
    """Return the median loss, and the range where there is more than one seed."""
    low, *_, high = (*entry.losses, entry.losses[-1])
    middle = _loss(entry.loss)
    return middle if len(entry.runs) == 1 else f"{middle} ({_loss(low)} to {_loss(high)})"


def _row(entry: Entry, link: Link, equal: float) -> tuple[str, ...]:
    total = entry.sent + entry.received
    after = entry.loss_after(equal, link)
    return (
        entry.preset or entry.method,
        settings_text(entry.runs[0].spec),
        f"{entry.lr:g}" + (f" of {len(entry.rates)}" if len(entry.rates) > 1 else ""),
        loss_range(entry),
        _megabytes(entry.sent),
        _megabytes(entry.received),
        _megabytes(total),
        factor_text(entry.dense_bytes, total),
        factor_text(entry.dense_bytes / entry.period, total),
        seconds_text(entry.seconds(link)),
        "-" if after is None else _loss(after),
    )


def _setting(found: Sequence[Entry], link: Link, command: str) -> Iterator[str]:
    runs = [run for entry in found for run in entry.runs]
    first = runs[0]
    model = first.spec["model"]
    peers, steps = (sorted({run.spec[key] for run in runs}) for key in ("peers", "steps"))
    seeds = sorted({run.seed for run in runs})
    dates = sorted(str(run.about.get("date", ""))[:10] for run in runs)
    yield f"{dates[-1]}, {first.about.get('machine', 'machine unknown')}. Command: `{command}`"
    yield ""
    yield (
        f"{_list(peers)} peers, {_list(steps)} steps, {plural(len(seeds), 'seed')} ({_list(seeds)}), a model of "
        f"{first.parameters / 1e6:.2f}M parameters (d {model['hidden_size']}, {model['num_hidden_layers']} layers). "
        f"Line: {link.up / MBIT:g} Mbit/s up, {link.down / MBIT:g} down, {1e3 * link.rtt:g} ms a round trip, "
        f"{link.step_seconds:.3g} s a local step."
    )
    for text in sorted({heterogeneity_text(run.spec["world"]) for run in runs} - {""}):
        yield f"World: {text}."
    if len({run.text for run in runs}) > 1:
        yield "**These runs did not all read the same text** (another corpus, or another number of peers)."


def _reading(found: Sequence[Entry]) -> Iterator[str]:
    yield (
        "Loss: held-out, nats a token, of the consensus; median over the seeds, range in brackets. Bytes: of one peer, "
        "as on the wire, mean over peers that took part; first download and TCP left out. Below: how many times fewer "
        "bytes than fp32 data-parallel training of the same steps (an exchange every step), and than a dense fp32 "
        "exchange after each of the method's own periods. Loss after a time: between two points, linear in its "
        "logarithm."
    )
    if any(len(entry.rates) > 1 for entry in found):
        yield "Rate: the best of those tried, by final loss."
    if untuned := untuned_text(found):
        yield f"**{untuned}**"
    if any(math.isinf(entry.losses[-1]) for entry in found):
        yield "Diverged: a run whose weights stopped being numbers."


def heterogeneity_text(conditions: Mapping[str, Any]) -> str:
    """Return how the peers of a run differ, "" if they do not."""
    said = []
    if conditions["churn"]:
        said.append(f"a peer is away for {conditions['away_steps']} steps with chance {conditions['churn']:g}")
    if conditions["straggler_share"]:
        share, factor = conditions["straggler_share"], conditions["straggler_factor"]
        said.append(f"{share:.0%} of the peers are {factor:g} times as slow")
    if conditions["heterogeneous"]:
        said.append("each peer has a different kind of text")
    if conditions.get("vocabulary"):
        said.append(f"the text is in {conditions['vocabulary']} BPE tokens, learned from its training part")
    if conditions.get("autocast"):
        said.append("models multiply matrices in bfloat16 (autocast)")
    return "; ".join(said)


def _list(values: Sequence[Any]) -> str:
    return ", ".join(map(str, values))


def _loss(loss: float) -> str:
    return f"{loss:.3f}" if math.isfinite(loss) else "diverged"


def _megabytes(count: float) -> str:
    megabytes = count / 1e6
    return f"{megabytes:.0f}" if megabytes >= 99.5 else f"{megabytes:.3g}"
