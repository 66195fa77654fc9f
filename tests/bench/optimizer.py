"""Compare TSRAdam with its paper's code and with AdamW: a noisy quadratic, and a small transformer on bytes.

    python -m tests.bench.optimizer                          both, three seeds; ten minutes on one core
    python -m tests.bench.optimizer --ranks 64 --steps 100

The transformer's rates are chosen at the first seed, of RATES, and the other seeds run at the best. The page goes to
examples/results/optimizer.md.
"""

import argparse
import math
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

from tests.bench.tables import RESULTS, table, write_page
from tests.optim.published import PublishedTSRAdam
from tsr_swarm.config.run import DataConfig, ModelConfig
from tsr_swarm.optim.tsr_adam import TSRAdam
from tsr_swarm.train.data import TokenStream, heldout_tokens, training_tokens
from tsr_swarm.train.evaluate import held_out_loss, heldout_batches
from tsr_swarm.train.llama import build_model, initial_weights

Make = Callable[..., Optimizer]
Rows = Iterable[Sequence[str]]
QUADRATIC_HEAD = ("rule", "refreshed every 20 steps", "every 100")
TEXT_HEAD = ("rule", "rank", "best rate", "held-out loss, nats a byte", "above AdamW")
MODEL = ModelConfig(
    vocab_size=256, hidden_size=128, intermediate_size=344, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=4, max_position_embeddings=128,
)  # fmt: skip
DATA = DataConfig(sequence_length=128, batch_size=8, heldout_sequences=64)
RATES = (1.5e-3, 3e-3, 6e-3)
EPS = 1e-6  # of the paper's runs, for all on text
REFRESH_EVERY = 50
ROWS, COLS, RANK, CONDITION, NOISE = 96, 64, 16, 100.0, 0.05
RULES: dict[str, Make] = {"the paper's code": PublishedTSRAdam, "TSRAdam": TSRAdam}
VARIANTS: dict[str, Make] = {
    "TSRAdam, no oversampling or power iteration": partial(TSRAdam, oversampling=0, power_iterations=0),
    "TSRAdam, 4-bit feedback": partial(TSRAdam, feedback_bits=4),
}


def quadratic(make: Make, seed: int, steps: int, refresh_every: int) -> float:
    """Return the last loss over the first of sum h_ij w_ij^2 / 2 in turned axes, seen through noisy gradients.

    The axes' curvatures h fall from 1 to 1 / CONDITION^2; NOISE is the noise's share of the first gradient's norm.
    """
    generator = torch.Generator().manual_seed(seed)
    left, right = (torch.linalg.qr(torch.randn(n, n, generator=generator)).Q for n in (ROWS, COLS))
    curves = [CONDITION ** -torch.linspace(0, 1, n) for n in (ROWS, COLS)]
    h = torch.outer(*curves)
    weight = nn.Parameter(left @ torch.randn(ROWS, COLS, generator=generator) @ right.mT)
    optimizer = make([weight], rank=RANK, refresh_every=refresh_every, seed=seed)

    def turned() -> Tensor:
        return left.mT @ weight.detach() @ right

    first = float((h * turned().square()).sum())
    noise = NOISE * float((h * turned()).norm()) / (ROWS * COLS) ** 0.5
    for _ in range(steps):
        weight.grad = left @ (h * turned()) @ right.mT + noise * torch.randn(ROWS, COLS, generator=generator)
        optimizer.step()
    return float((h * turned().square()).sum()) / first


class Text:
    """The bytes of the standard library's source: what is trained on, and what the loss is measured on."""

    def __init__(self) -> None:
        self._train, self._heldout = training_tokens(DATA, 0), heldout_batches(heldout_tokens(DATA), DATA)

    def loss(self, make: Make, seed: int, steps: int) -> float:
        """Return the held-out loss in nats a byte after ``steps`` steps from weights of ``seed``.

        The rate rises for the first tenth of the steps and falls with a cosine to zero.
        """
        model = build_model(MODEL, initial_weights(MODEL, seed))
        stream = TokenStream(
            tokens=self._train, seed=seed, number=1, batch_size=DATA.batch_size, sequence_length=DATA.sequence_length
        )
        optimizer = make(model.parameters(), eps=EPS)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min(10 * (step + 1) / steps, 0.5 + 0.5 * math.cos(math.pi * step / steps))
        )
        for step in range(steps):
            optimizer.zero_grad()
            model.loss(stream.batch(step)).backward()
            optimizer.step()
            schedule.step()
        return held_out_loss(model, self._heldout)


def spread(values: Sequence[float], digits: int) -> str:
    return f"{statistics.mean(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def quadratic_rows(seeds: Sequence[int], steps: int) -> Iterable[list[str]]:
    for name, make in (RULES | VARIANTS).items():
        cells = []
        for every in (20, 100):
            rated = partial(make, lr=0.3, scale=1.0)
            cells.append(spread([quadratic(rated, seed, steps, every) for seed in seeds], 4))
        yield [name, *cells]


def text_rows(seeds: Sequence[int], steps: int, ranks: Sequence[int], rates: Sequence[float]) -> Iterable[list[str]]:
    text, base = Text(), 0.0
    rules: list[tuple[str, str, Make]] = [("AdamW", "-", partial(torch.optim.AdamW, weight_decay=0.0))]
    for rank in ranks:
        rules += [
            (name, str(rank), partial(make, rank=rank, refresh_every=REFRESH_EVERY)) for name, make in RULES.items()
        ]
    for name, rank, make in rules:
        tried = {rate: text.loss(partial(make, lr=rate), seeds[0], steps) for rate in rates}
        best = min(tried, key=tried.__getitem__)
        losses = [tried[best], *(text.loss(partial(make, lr=best), seed, steps) for seed in seeds[1:])]
        base = base or statistics.mean(losses)
        edge = " (edge)" if len(rates) > 1 and best in (rates[0], rates[-1]) else ""
        print(f"{name}, rank {rank}: {losses} at {best}", flush=True)
        yield [name, rank, f"{best:g}{edge}", spread(losses, 3), f"{statistics.mean(losses) - base:+.3f}"]


def write_report(
    out: Path, command: str, seeds: Sequence[int], steps: int, rates: Sequence[float], quadratics: Rows, texts: Rows
) -> None:
    write_page(
        out / "optimizer.md",
        "TSRAdam beside its paper's code and AdamW",
        command,
        f"Seeds {', '.join(map(str, seeds))}; figures are means, and the range of single seeds. The paper's code is "
        "its rule written anew (tests/optim/published.py), at TSRAdam's scale of steps, not its own.",
        f"A quadratic of {ROWS} x {COLS} whose curvatures fall from 1 to {CONDITION**-2:g}, in gradients with "
        f"{NOISE:.0%} of the first one's norm as noise, rank {RANK}, rate 0.3, {steps} steps: the share of the first "
        "loss that is left.",
        "\n".join(table(QUADRATIC_HEAD, quadratics)),
        f"A transformer of 2 layers and width {MODEL.hidden_size} on the bytes of Python's standard library, {steps} "
        f"steps of {DATA.batch_size} x {DATA.sequence_length} bytes, a tenth of warm-up, then cosine decay, no weight "
        f"decay, eps {EPS:g}. Bases are refreshed every {REFRESH_EVERY} steps; all matrices are low rank, embedding "
        f"and head too. Rates {', '.join(f'{rate:g}' for rate in rates)}; the best of the first seed.",
        "\n".join(table(TEXT_HEAD, texts)),
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--ranks", type=int, nargs="+", default=[64, 16])
    parser.add_argument("--rates", type=float, nargs="+", default=RATES)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the table")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    seeds, steps, rates = options.seeds, options.steps, options.rates
    write_report(
        options.out,
        " ".join(["python -m tests.bench.optimizer", *(sys.argv[1:] if arguments is None else arguments)]),
        seeds,
        steps,
        rates,
        quadratic_rows(seeds, steps),
        text_rows(seeds, steps, options.ranks, rates),
    )


if __name__ == "__main__":
    main()
