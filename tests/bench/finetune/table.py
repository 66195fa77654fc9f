"""The runs as tables: accuracy, its difference to dense averaging with intervals, and bytes. Pure."""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from tests.bench.finetune.dataset import unpack_bits
from tests.bench.tables import table

Run = Mapping[str, Any]  # one run's JSON document
Runs = Mapping[str, Mapping[int, Run]]  # by method and seed
DIRECTIONS = ("sent", "received")
TITLES = {
    "ours": "ours: cores",
    "dense": "dense averaging of local AdamW, fp32",
    "single": "one machine, AdamW, all peers' batches as one",
}
# 97.5 % quantile of Student's t with 1, 2, ... degrees of freedom
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
_NORMAL = 1.960
MAX_SEEDS = len(_T) + 1

# --- intervals --------------------------------------------------------------------------------------------------------


def over_seeds(differences: Sequence[float]) -> tuple[float, float]:
    """Mean, and half the width of its 95 % interval (Student's t); infinite for a single one."""
    count = len(differences)
    if not 1 <= count <= MAX_SEEDS:
        raise ValueError(f"{count} seeds; an interval is made of 1 to {MAX_SEEDS}.")
    if count == 1:
        return differences[0], math.inf
    return statistics.fmean(differences), _T[count - 2] * statistics.stdev(differences) / math.sqrt(count)


def over_sentences(ours: Sequence[Sequence[bool]], theirs: Sequence[Sequence[bool]]) -> float:
    """Half the width of the 95 % interval that the choice of held-out sentences gives the mean difference.

    ``ours`` and ``theirs``: by seed, whether each sentence was classified correctly. A sentence's difference is its
    mean over the seeds; the models are taken as they are.
    """
    pairs = zip(zip(*ours, strict=True), zip(*theirs, strict=True), strict=True)
    differences = [statistics.fmean(mine) - statistics.fmean(other) for mine, other in pairs]
    return _NORMAL * statistics.stdev(differences) / math.sqrt(len(differences))


def of_accuracy(accuracy: float, sentences: int) -> float:
    """The same for one accuracy alone (normal approximation of the binomial)."""
    return _NORMAL * math.sqrt(accuracy * (1 - accuracy) / sentences)


# --- the page ---------------------------------------------------------------------------------------------------------


def collect(documents: Sequence[Run], order: Sequence[str]) -> Runs:
    """Arrange runs by method, in ``order``, and seed; methods without a run are left out."""
    runs = {name: {run["seed"]: run for run in documents if run["method"] == name} for name in order}
    return {name: dict(sorted(by_seed.items())) for name, by_seed in runs.items() if by_seed}


def report(runs: Runs) -> str:
    """Markdown: all methods beside dense averaging, then each seed, then bytes by kind."""
    return "\n".join([*_methods(runs), "", *_notes(runs), "", *_seeds(runs), "", *_bytes_by_kind(runs)])


def _methods(runs: Runs) -> list[str]:
    head = [
        "method", "accuracy, % (range)", "minus dense, points (95 % interval over seeds; over sentences)",
        "MB up a peer", "MB down a peer", "dense bytes / its", "seconds a run",
    ]  # fmt: skip
    rows = []
    for method, by_seed in runs.items():
        found = [100 * run["accuracy"] for run in by_seed.values()]
        moved = [statistics.fmean(sum(run[way].values()) for run in by_seed.values()) for way in DIRECTIONS]
        rows.append(
            [
                TITLES[method],
                f"{statistics.fmean(found):.2f} ({min(found):.2f} to {max(found):.2f})",
                _difference(runs, method),
                *(f"{count / 1e6:.1f}" for count in moved),
                factor(runs, method),
                f"{statistics.median(run['seconds'] for run in by_seed.values()):.0f}",
            ]
        )
    return table(head, rows)


def _common_seeds(runs: Runs, method: str) -> list[int]:
    """Seeds with a run of ``method`` and one of dense averaging."""
    return sorted(runs[method].keys() & runs.get("dense", {}).keys())


def _difference(runs: Runs, method: str) -> str:
    """Mean of the paired differences to dense averaging, in points, with both intervals."""
    both = _common_seeds(runs, method)
    if method == "dense" or not both:
        return "-"
    mine, theirs = ([runs[name][seed] for seed in both] for name in (method, "dense"))
    mean, half = over_seeds([100 * (a["accuracy"] - b["accuracy"]) for a, b in zip(mine, theirs, strict=True)])
    bits = ([unpack_bits(run["correct"], run["sentences"]) for run in side] for side in (mine, theirs))
    seeds_text = "one seed" if len(both) == 1 else f"{mean - half:+.2f} to {mean + half:+.2f}"
    return f"{mean:+.2f} ({seeds_text}; ± {100 * over_sentences(*bits):.2f})"


def factor(runs: Runs, method: str) -> str:
    """Dense averaging's bytes, up and down, over this method's."""
    both = _common_seeds(runs, method)
    moved, dense = (sum(_total(runs[name][seed]) for seed in both) for name in (method, "dense"))
    return f"{dense / moved:.0f}" if moved else "-"


def _notes(runs: Runs) -> list[str]:
    some = next(iter(next(iter(runs.values())).values()))
    rates = [f"{name} {next(iter(by_seed.values()))['lr']:g}" for name, by_seed in runs.items()]
    accuracies = [run["accuracy"] for by_seed in runs.values() for run in by_seed.values()]
    half = 100 * of_accuracy(statistics.fmean(accuracies), some["sentences"])
    return [
        f"{some['rounds']} rounds of {some['k_x']} steps, {some['peers']} peers, {some['batch_size']} sentences a peer "
        "and step; one machine takes as many steps on the sentences of all. "
        f"Rates: {', '.join(rates)}; chosen on a seed that is not among these."
        + (f" Ours: {', '.join(_settings(runs['ours']))}." if "ours" in runs else ""),
        "",
        f"Accuracy on the same {some['sentences']} held-out sentences. One accuracy alone is known to ± {half:.1f} "
        "points (95 %, other sentences of the kind). Methods are compared on the same sentences, batches and seeds, so "
        "their difference is known better: the interval over seeds is Student's t of the paired differences (the first "
        "weights of the head, the order of the data and who has which sentence differ); the one over sentences is that "
        "of the sentences' mean differences.",
        "",
        *([_first_download(runs)] if "ours" in runs else []),
        "Averaging in bf16 would halve dense averaging's bytes, and the factor.",
    ]


def _first_download(runs: Runs) -> str:
    """What peers fetch once before they train, which is in no other figure."""
    bases = statistics.fmean(run["bases"] for run in runs["ours"].values())
    text = "Bytes are those of training. Before it, every peer fetches the model once"
    if not bases:
        return f"{text}; bases are drawn from the seed and never sent."
    text = f"{text}, and with ours {bases / 1e6:.1f} MB of bases"
    both = _common_seeds(runs, "ours")
    if not both:
        return text + "."
    moved = sum(_total(runs["ours"][seed]) + runs["ours"][seed]["bases"] for seed in both)
    return f"{text}: with them the factor is {sum(_total(runs['dense'][seed]) for seed in both) / moved:.0f}."


def _settings(by_seed: Mapping[int, Run]) -> list[str]:
    """The keys of the run file that set our exchange."""
    spec = next(iter(by_seed.values()))["plan"]
    keys = {
        "optimizer": ("aim", "inner", "rank", "embedding_rank"),
        "periods": ("k_r", "k_r_embedding"),
        "wire": ("core_bits", "core_density", "sketch_bits", "published_bits", "published_density"),
    }
    named = [(name, key) for name, chosen in keys.items() for key in chosen if key in spec[name]]
    return [f"`{key} = {json.dumps(spec[name][key])}`" for name, key in named]


def _seeds(runs: Runs) -> list[str]:
    rows = []
    for seed in sorted({seed for by_seed in runs.values() for seed in by_seed}):
        found = [by_seed.get(seed) for by_seed in runs.values()]
        rows.append([str(seed), *("pending" if run is None else f"{100 * run['accuracy']:.2f}" for run in found)])
    return table(["seed", *(TITLES[method] for method in runs)], rows)


def _bytes_by_kind(runs: Runs) -> list[str]:
    rows = []
    for method, by_seed in runs.items():
        for kind in sorted({kind for run in by_seed.values() for way in DIRECTIONS for kind in run[way]}):
            moved = [
                statistics.fmean(run[way].get(kind, 0) / run["rounds"] for run in by_seed.values())
                for way in DIRECTIONS
            ]
            if any(moved):
                rows.append([TITLES[method], kind, *(f"{count / 1e3:.1f}" for count in moved)])
    return ["kB a peer and round, mean:", "", *table(["method", "kind", "up", "down"], rows)]


def _total(run: Run) -> float:
    """Bytes of one peer, both ways."""
    return sum(sum(run[way].values()) for way in DIRECTIONS)
