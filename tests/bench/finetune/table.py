"""The page: accuracies, what each method gains over another with intervals, bytes, rates, and what is pending. Pure."""

import json
import math
import statistics
from collections.abc import Mapping, Sequence

from tests.bench.finetune.dataset import unpack_bits
from tests.bench.finetune.jobs import SEARCH_SEED, Comparison, Run
from tests.bench.finetune.methods import Method
from tests.bench.tables import table

Runs = Mapping[str, Mapping[int, Run]]  # by method and seed, of all methods: those that are done
DIRECTIONS = ("sent", "received")
PENDING = "pending"
PARTS = (  # of the gain over dense averaging of AdamW: what is compared with what, and what the difference is
    ("ours", "dense-muon", "the exchange's part: fewer directions, few bits"),
    ("lean", "dense-muon", "the same with the settings of the preset"),
    ("dense-muon", "dense", "Muon's part"),
    ("ours", "dense", "both together"),
)
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


def report(comparison: Comparison, seeds: Sequence[int], done: Mapping[str, Run]) -> str:
    """Markdown: all methods beside dense averaging, the parts of the gain, each seed, settings, bytes by kind."""
    finals = {name: comparison.finals(name, seeds, done) for name in comparison.methods}
    runs = {name: {job.spec.seed: done[job.name] for job in jobs if job.name in done} for name, jobs in finals.items()}
    count, wanted = sum(map(len, runs.values())), len(runs) * len(seeds)
    sections = (
        [f"{count} of {wanted} runs are done."],
        _methods(comparison, runs, len(seeds)),
        _parts(runs, len(seeds)),
        _notes(comparison, runs),
        _seeds(comparison, runs, seeds),
        _settings(comparison, done),
        _bytes_by_kind(comparison, runs),
    )
    return "\n\n".join("\n".join(lines) for lines in sections)


def _methods(comparison: Comparison, runs: Runs, seeds: int) -> list[str]:
    head = [
        "method", "accuracy, % (range)", "minus dense, points (95 % interval over seeds; over sentences)",
        "MB up a peer", "MB down a peer", "dense bytes / its", "seconds a run",
    ]  # fmt: skip
    rows = []
    for name, by_seed in runs.items():
        title = comparison.methods[name].title
        if not by_seed:
            rows.append([title, PENDING, *["-"] * (len(head) - 2)])
            continue
        found = [100 * run["accuracy"] for run in by_seed.values()]
        moved = [statistics.fmean(sum(run[way].values()) for run in by_seed.values()) for way in DIRECTIONS]
        rows.append(
            [
                title,
                f"{statistics.fmean(found):.2f} ({min(found):.2f} to {max(found):.2f}){_of(len(found), seeds)}",
                "-" if name == "dense" else difference(runs, name, "dense", seeds),
                *(f"{count / 1e6:.1f}" for count in moved),
                factor(runs, name),
                f"{statistics.median(run['seconds'] for run in by_seed.values()):.0f}",
            ]
        )
    return table(head, rows)


def _of(done: int, seeds: int) -> str:
    return "" if done == seeds else f", {done} of {seeds} seeds"


def _parts(runs: Runs, seeds: int) -> list[str]:
    head = ["what the gain is made of", "difference", "points (95 % interval over seeds; over sentences)"]
    rows = [[what, f"{mine} minus {theirs}", difference(runs, mine, theirs, seeds)] for mine, theirs, what in PARTS]
    return table(head, rows)


def _common_seeds(runs: Runs, mine: str, theirs: str) -> list[int]:
    return sorted(runs[mine].keys() & runs[theirs].keys())


def difference(runs: Runs, mine: str, theirs: str, seeds: int) -> str:
    """Mean of the paired differences of two methods, in points, with both intervals, over the seeds that both have."""
    both = _common_seeds(runs, mine, theirs)
    if not both:
        return PENDING
    ours, others = ([runs[name][seed] for seed in both] for name in (mine, theirs))
    mean, half = over_seeds([100 * (a["accuracy"] - b["accuracy"]) for a, b in zip(ours, others, strict=True)])
    bits = ([unpack_bits(run["correct"], run["sentences"]) for run in side] for side in (ours, others))
    seeds_text = "one seed" if len(both) == 1 else f"{mean - half:+.2f} to {mean + half:+.2f}"
    return f"{mean:+.2f} ({seeds_text}; ± {100 * over_sentences(*bits):.2f}){_of(len(both), seeds)}"


def factor(runs: Runs, name: str, with_bases: bool = False) -> str:
    """Dense averaging's bytes, up and down, over this method's."""
    both = _common_seeds(runs, name, "dense")
    dense = sum(_total(runs["dense"][seed]) for seed in both)
    moved = sum(_total(runs[name][seed]) + with_bases * runs[name][seed]["bases"] for seed in both)
    return f"{dense / moved:.0f}" if moved else "-"


def _notes(comparison: Comparison, runs: Runs) -> list[str]:
    config, accuracies = comparison.config, [run["accuracy"] for done in runs.values() for run in done.values()]
    half = 100 * of_accuracy(statistics.fmean(accuracies), comparison.heldout) if accuracies else 0.0
    alone = f" One accuracy alone is known to ± {half:.1f} points (95 %, other sentences of the kind)." if half else ""
    return [
        f"{config.run.rounds} rounds of {config.periods.k_x} steps, {config.data.parts} peers, "
        f"{config.data.batch_size} sentences a peer and step; one machine takes as many steps on the sentences of "
        "all, and TSR-Adam as published exchanges at each of them. The exchange's part is all that sets ours apart "
        "from dense averaging of Muon: that peers step inside the cores they send, the bits, and that the embedding, "
        "which the dense average leaves to AdamW at Muon's rate, is moved by Muon in a core as well.",
        "",
        f"Accuracy on the same {comparison.heldout} held-out sentences.{alone} Methods are compared on the same "
        "sentences, batches and seeds, so their difference is known better: the interval over seeds is Student's t of "
        "the paired differences (the first weights of the head, the order of the data and who has which sentence "
        "differ); the one over sentences is that of the sentences' mean differences.",
        "",
        _first_download(runs),
        "Averaging in bf16 would halve the bytes of dense averaging and of TSR-Adam as published.",
    ]


def _first_download(runs: Runs) -> str:
    """What peers fetch once before they train, which is in no other figure."""
    found = {name: statistics.fmean(run["bases"] for run in done.values()) for name, done in runs.items() if done}
    bases = [
        f"with {name} {size / 1e6:.1f} MB of bases (with them the factor is {factor(runs, name, with_bases=True)})"
        for name, size in found.items()
        if size
    ]
    fetched = ", and ".join(["Bytes are those of training. Before it, every peer fetches the model once", *bases])
    return f"{fetched}; bases drawn from the seed are never sent."


def _seeds(comparison: Comparison, runs: Runs, seeds: Sequence[int]) -> list[str]:
    rows = []
    for seed in seeds:
        found = [by_seed.get(seed) for by_seed in runs.values()]
        rows.append([str(seed), *(PENDING if run is None else f"{100 * run['accuracy']:.2f}" for run in found)])
    return table(["seed", *(comparison.methods[name].title for name in runs)], rows)


def _settings(comparison: Comparison, done: Mapping[str, Run]) -> list[str]:
    rows = [
        [method.title, _made_of(method), _rates(comparison, name, done)] for name, method in comparison.methods.items()
    ]
    return [
        f"Settings, and accuracy by rate on {comparison.tune} sentences that are neither trained on nor held out, with "
        f"seed {SEARCH_SEED}; the best is bold. A rate alone was chosen in the same way before.",
        "",
        *table(["method", "settings", "rates"], rows),
    ]


def _made_of(method: Method) -> str:
    source = f"preset `{method.preset}`" if method.preset else f"`{method.baseline}`"
    return ", ".join([source, *(f"`{key} = {json.dumps(value)}`" for key, value in method.settings.items())])


def _rates(comparison: Comparison, name: str, done: Mapping[str, Run]) -> str:
    best, searched = comparison.best_rate(name, done), comparison.search(name, done)
    if not searched:
        return f"{best:g}"
    texts = []
    for job in searched:
        run = done.get(job.name)
        text = f"{job.spec.lr:g} {PENDING if run is None else _accuracy(run)}"
        texts.append(f"**{text}**" if job.spec.lr == best else text)
    return ", ".join(texts)


def _accuracy(run: Run) -> str:
    return "diverged" if run["accuracy"] is None else f"{100 * run['accuracy']:.1f}"


def _bytes_by_kind(comparison: Comparison, runs: Runs) -> list[str]:
    rows = []
    for name, by_seed in runs.items():
        for kind in sorted({kind for run in by_seed.values() for way in DIRECTIONS for kind in run[way]}):
            moved = [
                statistics.fmean(run[way].get(kind, 0) / run["rounds"] for run in by_seed.values())
                for way in DIRECTIONS
            ]
            if any(moved):
                rows.append([comparison.methods[name].title, kind, *(f"{count / 1e3:.1f}" for count in moved)])
    return ["kB a peer and round, mean:", "", *table(["method", "kind", "up", "down"], rows)]


def _total(run: Run) -> float:
    """Bytes of one peer, both ways."""
    return sum(sum(run[way].values()) for way in DIRECTIONS)
