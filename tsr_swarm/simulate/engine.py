"""One simulated run: a method with one seed, from its first weights to its curve."""

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime

import torch
from torch import Tensor

from tsr_swarm import __version__
from tsr_swarm.config.run import RunConfig
from tsr_swarm.errors import ConfigError, RunError
from tsr_swarm.process.machine_limits import memory_errors, memory_room, require_memory
from tsr_swarm.simulate.bpe import in_tokens
from tsr_swarm.simulate.heterogeneity import peer_texts, step_times
from tsr_swarm.simulate.result import ExchangeResult, Point, RunResult, this_machine
from tsr_swarm.simulate.run_spec import RunSpec
from tsr_swarm.simulate.swarms import BaselineSwarm, OwnSwarm, decoder_task, manifest_of, period_of
from tsr_swarm.train.corpus import Warn, ignore
from tsr_swarm.train.data import TokenStream, heldout_tokens
from tsr_swarm.train.evaluate import held_out_loss, heldout_batches
from tsr_swarm.train.llama import Llama, parameter_count

OnStep = Callable[[int], None]
Evaluate = Callable[[Mapping[str, Tensor]], float]


@memory_errors()
def run_one(spec: RunSpec, on_step: OnStep = lambda step: None, warn: Warn = ignore) -> RunResult:
    """Simulate ``spec`` to its end, in one torch thread.

    ``on_step`` gets the number of steps done, once a period, ``warn`` sentences about text that could not be read.
    Raises ConfigError when it cannot be run. Weights that stop being numbers end a run early, which is a result.
    """
    started = time.perf_counter()
    check(spec)
    with _one_thread():
        config = spec.fitted()
        heldout, texts = _texts(spec, config, warn)
        streams = _streams(config, texts)
        task = decoder_task(config, spec.autocast)
        if spec.is_own:
            swarm: OwnSwarm | BaselineSwarm = OwnSwarm(config, streams, spec.exact, task)
        else:
            swarm = BaselineSwarm(spec, config, streams, task)
        run = SimulatedRun(spec, swarm, _evaluator(config, heldout))
        ended = run.run(on_step)
    return RunResult(
        name=spec.name,
        spec=spec.identity(),
        parameters=sum(weight.numel() for weight in swarm.weights.values()),
        period=swarm.period,
        text=_text_hash([heldout, *(stream.tokens for stream in streams)]),
        curve=tuple(run.curve),
        digests=tuple(run.digests),
        ended=ended,
        about={
            "wall_seconds": round(time.perf_counter() - started, 3),
            "version": __version__,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": this_machine(),
        },
    )


def check(spec: RunSpec) -> None:
    """Refuse what could not be run, before anything is trained. Raises ConfigError."""
    models = 3 + (spec.peers if spec.is_own else 0)  # consensus, averages, the model that is scored; and each peer's
    require_memory(4 * models * parameter_count(spec.config.model), memory_room())
    if spec.is_own:
        manifest_of(spec.fitted())
        period = spec.config.periods.k_x
    else:
        period = period_of(spec)
    if spec.steps % period:
        raise ConfigError(
            f"steps = {spec.steps} is not a multiple of the {period} steps between two exchanges of '{spec.method}'; "
            f"use {max(1, spec.steps // period) * period} steps."
        )


class SimulatedRun:
    """Drives a swarm through all steps of a run and keeps its curve and its digests."""

    def __init__(self, spec: RunSpec, swarm: OwnSwarm | BaselineSwarm, evaluate: Evaluate) -> None:
        self._spec, self._swarm, self._evaluate = spec, swarm, evaluate
        self._slowness = spec.heterogeneity.slowness(spec.seed, spec.peers)
        self._sent: dict[str, float] = {}
        self._received: dict[str, float] = {}
        self._tokens, self._round_trips, self._step_times = 0, 0, 0.0
        self._losses: list[float] = []
        self.curve: list[Point] = []
        self.digests: list[str] = []

    def run(self, on_step: OnStep) -> str:
        """Run to the last step. Returns why it ended before, "" if it did not."""
        spec, swarm = self._spec, self._swarm
        self._mark(0)
        for first in range(0, spec.steps, swarm.period):
            work = spec.heterogeneity.work(spec.seed, spec.peers, first, swarm.period)
            try:
                exchange = swarm.advance(first, work)
            except RunError as error:  # numbers that are not finite cannot be sent
                return str(error)
            self._count(exchange, work)
            step = first + swarm.period
            if is_due(step, swarm.period, spec.eval_steps, spec.steps):
                self._mark(step)
                if self.curve[-1].loss is None:
                    return f"The held-out loss after {step} steps is not a number."
            on_step(step)
        return ""

    def _count(self, exchange: ExchangeResult, work: Mapping[int, int]) -> None:
        self._sent = _sum(self._sent, exchange.traffic.sent)
        self._received = _sum(self._received, exchange.traffic.received)
        self._tokens += exchange.tokens
        self._round_trips += exchange.traffic.round_trips
        self._step_times += step_times(work, self._slowness) + exchange.extra_steps
        self._losses.extend(exchange.losses)
        if exchange.digest:
            self.digests.append(exchange.digest)

    def _mark(self, step: int) -> None:
        loss = self._evaluate(self._swarm.weights)
        losses, self._losses = self._losses, []
        self.curve.append(
            Point(
                step=step,
                tokens=self._tokens,
                loss=loss if math.isfinite(loss) else None,
                local_loss=sum(losses) / len(losses) if losses else None,
                sent=self._sent,
                received=self._received,
                round_trips=self._round_trips,
                step_times=self._step_times,
            )
        )


def is_due(step: int, period: int, every: int, last: int) -> bool:
    """Return whether to evaluate after ``step``, the end of a period.

    Every ``every`` steps, at the end, and at 1, 2, 4, ... periods: bytes and time are looked at on a logarithmic axis.
    """
    rounds = step // period
    return step // every > (step - period) // every or step + period > last or rounds & (rounds - 1) == 0


def _sum(totals: Mapping[str, float], more: Mapping[str, float]) -> dict[str, float]:
    return {kind: totals.get(kind, 0.0) + more.get(kind, 0.0) for kind in sorted({*totals, *more})}


def _texts(spec: RunSpec, config: RunConfig, warn: Warn) -> tuple[Tensor, list[Tensor]]:
    """Return the held-out text and each peer's, as bytes or as BPE tokens."""
    data, vocabulary = config.data, spec.heterogeneity.vocabulary
    heldout, training = heldout_tokens(data, warn), peer_texts(data, spec.heterogeneity.heterogeneous, warn)
    return in_tokens(heldout, training, vocabulary, data.sequence_length + 1) if vocabulary else (heldout, training)


def _streams(config: RunConfig, texts: Sequence[Tensor]) -> list[TokenStream]:
    """Return each peer's data; peers are numbered from 1, as real ones are."""
    data = config.data
    return [
        TokenStream(
            tokens=text,
            seed=config.run.seed,
            number=number,
            batch_size=data.batch_size,
            sequence_length=data.sequence_length,
        )
        for number, text in enumerate(texts, start=1)
    ]


def _evaluator(config: RunConfig, heldout: Tensor) -> Evaluate:
    batches, model = heldout_batches(heldout, config.data), Llama(config.model)

    def evaluate(weights: Mapping[str, Tensor]) -> float:
        model.load_state_dict(dict(weights))
        return held_out_loss(model, batches)

    return evaluate


def _text_hash(texts: Sequence[Tensor]) -> str:
    hasher = hashlib.blake2b(digest_size=16)
    for text in texts:
        hasher.update(text.numel().to_bytes(8, "little") + text.contiguous().numpy().data)
    return hasher.hexdigest()


@contextmanager
def _one_thread() -> Iterator[None]:
    """Use one torch thread, so that sums have the same order on every machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
