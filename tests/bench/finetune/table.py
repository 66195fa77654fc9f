"""The runs as tables: accuracy, its difference to dense averaging with intervals, and bytes. Pure."""

import json
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from tests.bench.finetune.interval import of_accuracy, over_seeds, over_sentences
from tests.bench.finetune.sentences import unpack_bits

Run = Mapping[str, Any]  # one run's JSON document
Runs = Mapping[str, Mapping[int, Run]]  # by method and seed
WAYS = ("sent", "received")
TITLES = {
    "ours": "ours: cores",
    "dense": "dense averaging of local AdamW, fp32",
    "single": "one machine, AdamW, all peers' batches as one",
}


def report(runs: Runs) -> str:
    """Markdown: all methods beside dense averaging, then each seed, then bytes by kind."""
    return "\n".join([*methods(runs), "", *notes(runs), "", *seeds(runs), "", *bytes_by_kind(runs)])


def methods(runs: Runs) -> list[str]:
    lines = [
        "| method | accuracy, % (range) | minus dense, points (95 % interval over seeds; over sentences) "
        "| MB up a peer | MB down a peer | dense bytes / its | seconds a run |",
        "|" + "---|" * 7,
    ]
    for method, by_seed in runs.items():
        found = [100 * run["accuracy"] for run in by_seed.values()]
        up, down = (statistics.fmean(sum(run[way].values()) for run in by_seed.values()) for way in WAYS)
        seconds = statistics.median(run["seconds"] for run in by_seed.values())
        lines.append(
            f"| {TITLES[method]} | {statistics.fmean(found):.2f} ({min(found):.2f} to {max(found):.2f}) "
            f"| {difference(runs, method)} | {up / 1e6:.1f} | {down / 1e6:.1f} | {factor(runs, method)} "
            f"| {seconds:.0f} |"
        )
    return lines


def difference(runs: Runs, method: str) -> str:
    """Mean of the paired differences to dense averaging, in points, with both intervals."""
    both = sorted(runs[method].keys() & runs.get("dense", {}).keys())
    if method == "dense" or not both:
        return "-"
    mine, theirs = ([runs[name][seed] for seed in both] for name in (method, "dense"))
    points = [100 * (a["accuracy"] - b["accuracy"]) for a, b in zip(mine, theirs, strict=True)]
    mean, half = over_seeds(points)
    bits = ([unpack_bits(run["correct"], run["sentences"]) for run in side] for side in (mine, theirs))
    seeds_text = "one seed" if len(both) == 1 else f"{mean - half:+.2f} to {mean + half:+.2f}"
    return f"{mean:+.2f} ({seeds_text}; ± {100 * over_sentences(*bits):.2f})"


def factor(runs: Runs, method: str) -> str:
    """Dense averaging's bytes, up and down, over this method's."""
    both = sorted(runs[method].keys() & runs.get("dense", {}).keys())
    moved, dense = (sum(total(runs[name][seed]) for seed in both) for name in (method, "dense"))
    return f"{dense / moved:.0f}" if moved else "-"


def notes(runs: Runs) -> list[str]:
    some = next(iter(next(iter(runs.values())).values()))
    rates = [f"{name} {next(iter(by_seed.values()))['lr']:g}" for name, by_seed in runs.items()]
    accuracies = [run["accuracy"] for by_seed in runs.values() for run in by_seed.values()]
    half = 100 * of_accuracy(statistics.fmean(accuracies), some["sentences"])
    return [
        f"{some['rounds']} rounds of {some['k_x']} steps, {some['peers']} peers, {some['batch_size']} sentences a peer "
        "and step; one machine takes as many steps on the sentences of all. "
        f"Rates: {', '.join(rates)}; chosen on a seed that is not among these."
        + (f" Ours: {', '.join(settings(runs['ours']))}." if "ours" in runs else ""),
        "",
        f"Accuracy on the same {some['sentences']} held-out sentences. One accuracy alone is known to ± {half:.1f} "
        "points (95 %, other sentences of the kind). Methods are compared on the same sentences, batches and seeds, so "
        "their difference is known better: the interval over seeds is Student's t of the paired differences (the first "
        "weights of the head, the order of the data and who has which sentence differ); the one over sentences is that "
        "of the sentences' mean differences.",
        "",
        *([start(runs)] if "ours" in runs else []),
        "Averaging in bf16 would halve dense averaging's bytes, and the factor.",
    ]


def start(runs: Runs) -> str:
    """What peers fetch once before they train, which is in no other figure."""
    bases = statistics.fmean(run["bases"] for run in runs["ours"].values())
    text = "Bytes are those of training. Before it, every peer fetches the model once"
    if not bases:
        return f"{text}; bases are drawn from the seed and never sent."
    text = f"{text}, and with ours {bases / 1e6:.1f} MB of bases"
    both = sorted(runs["ours"].keys() & runs.get("dense", {}).keys())
    if not both:
        return text + "."
    moved = sum(total(runs["ours"][seed]) + runs["ours"][seed]["bases"] for seed in both)
    return f"{text}: with them the factor is {sum(total(runs['dense'][seed]) for seed in both) / moved:.0f}."


def settings(by_seed: Mapping[int, Run]) -> list[str]:
    """What sets our exchange, as the run file has it."""
    plan = next(iter(by_seed.values()))["plan"]
    keys = {
        "optimizer": ("aim", "inner", "rank", "embedding_rank"),
        "periods": ("k_r", "k_r_embedding"),
        "wire": ("core_bits", "core_density", "sketch_bits", "published_bits", "published_density"),
    }
    return [f"`{key} = {json.dumps(plan[name][key])}`" for name, chosen in keys.items() for key in chosen]


def seeds(runs: Runs) -> list[str]:
    lines = ["| seed | " + " | ".join(TITLES[method] for method in runs) + " |", "|---" * (len(runs) + 1) + "|"]
    for seed in sorted({seed for by_seed in runs.values() for seed in by_seed}):
        cells = (
            f"{100 * by_seed[seed]['accuracy']:.2f}" if seed in by_seed else "pending" for by_seed in runs.values()
        )
        lines.append(f"| {seed} | " + " | ".join(cells) + " |")
    return lines


def bytes_by_kind(runs: Runs) -> list[str]:
    lines = ["kB a peer and round, mean:", "", "| method | kind | up | down |", "|---|---|---|---|"]
    for method, by_seed in runs.items():
        kinds = sorted({kind for run in by_seed.values() for way in WAYS for kind in run[way]})
        for kind in kinds:
            up, down = (statistics.fmean(r[way].get(kind, 0) / r["rounds"] for r in by_seed.values()) for way in WAYS)
            if up or down:
                lines.append(f"| {TITLES[method]} | {kind} | {up / 1e3:.1f} | {down / 1e3:.1f} |")
    return lines


def total(run: Run) -> float:
    """Bytes of one peer, both ways."""
    return sum(sum(run[way].values()) for way in WAYS)


def collect(documents: Sequence[Run], order: Sequence[str]) -> Runs:
    """By method, in ``order``, and seed; methods without a run are left out."""
    runs = {name: {run["seed"]: run for run in documents if run["method"] == name} for name in order}
    return {name: dict(sorted(by_seed.items())) for name, by_seed in runs.items() if by_seed}
