"""Rounds of real peers over real gRPC, all in this process, with a model that trains in no time."""

import asyncio
import statistics
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.bench.scale.costs import DIALABLE, Spread, spread
from tsr_swarm.config.load import run_config_from_mapping
from tsr_swarm.config.manifest import make_manifest
from tsr_swarm.config.run import RunConfig
from tsr_swarm.node.coordinator import CoordinateOptions, run_coordinator
from tsr_swarm.node.peer import JoinOptions, run_peer
from tsr_swarm.process.shutdown import Shutdown
from tsr_swarm.telemetry.events import (
    Event,
    PayloadReceived,
    RoundApplied,
    RoundClosed,
    RoundOpened,
    RunStarted,
)
from tsr_swarm.train.llama import parameter_shapes

UNCOUNTED, COUNTED = 3, 4  # rounds
LIMIT_SECONDS = 420.0
TEXT = "".join(f"def f{i}(x):\n    return x + {i} if x > {i % 7} else f{i // 2}(x - 1)\n\n" for i in range(600))


def config(folder: Path, peers: int) -> RunConfig:
    """The configuration of a run of ``peers`` whose steps take milliseconds."""
    text = folder / "text"
    text.mkdir(parents=True)
    for part in range(8):
        (text / f"part{part}.py").write_text(TEXT[part * 2000 :][:9000])
    return run_config_from_mapping(
        {
            "run": {"name": "scale", "rounds": UNCOUNTED + COUNTED, "min_peers": peers},
            "model": {
                "hidden_size": 16,
                "intermediate_size": 16,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "num_key_value_heads": 2,
                "max_position_embeddings": 32,
            },
            "data": {
                "source": str(text),
                "parts": peers,
                "sequence_length": 8,
                "batch_size": 1,
                "heldout_sequences": 4,
            },
            "optimizer": {"inner": "adam", "lr": 0.003},
            "periods": {"k_x": 1, "k_r": 1000, "k_r_embedding": 1000},
            "round": {"floor_seconds": 60.0, "shards": 1024},  # of whole blocks: as many as there are
            "checkpoint": {"dir": str(folder / "coordinator")},
        }
    )


@dataclass
class Recorder:
    """Records the events of the coordinator and of the peers, and when they came."""

    address: asyncio.Future[str]
    opened: dict[int, float] = field(default_factory=dict)
    arrived: dict[int, float] = field(default_factory=dict)  # the last contribution
    closed: dict[int, RoundClosed] = field(default_factory=dict)
    applied: dict[int, list[RoundApplied]] = field(default_factory=dict)  # by peer

    def record(self, event: Event) -> None:
        now = time.monotonic()
        match event:
            case RunStarted():
                self.address.set_result(event.address)
            case RoundOpened():
                self.opened[event.round] = now
            case PayloadReceived():
                self.arrived[event.round] = now
            case RoundClosed():
                self.closed[event.round] = event

    def record_peer(self, number: int, event: Event) -> None:
        if isinstance(event, RoundApplied):
            self.applied.setdefault(number, []).append(event)


@dataclass(frozen=True, kw_only=True)
class RealCost:
    """The cost of a round. Bytes are of a peer, both directions, as it counted them."""

    peers: int
    shards: int
    gap: Spread  # seconds from the last contribution to the next round
    round: Spread  # seconds from one round to the next
    payload: Mapping[str, Spread]  # by "dialable" and "others"
    control: Mapping[str, Spread]
    included: float  # share of the peers


def measure(folder: Path, peers: int) -> RealCost:
    """Run some rounds of ``peers`` and return what one costs."""
    return asyncio.run(_measure(folder, peers))


async def _measure(folder: Path, peers: int) -> RealCost:
    settings = config(folder, peers)
    recorder = Recorder(asyncio.get_running_loop().create_future())
    options = CoordinateOptions(config=settings, listen="127.0.0.1:0", use_dht=False)
    async with asyncio.timeout(LIMIT_SECONDS), asyncio.TaskGroup() as group:
        group.create_task(run_coordinator(options, recorder.record, Shutdown()))
        address = await recorder.address
        for number in range(peers):
            join = JoinOptions(
                coordinator=address,
                device="cpu",
                name=f"peer-{number}",
                use_dht=False,
                folder=folder / f"peer-{number}",
                listen="127.0.0.1:0" if number % DIALABLE == 0 else None,
            )

            def record(event: Event, number: int = number) -> None:
                recorder.record_peer(number, event)

            group.create_task(run_peer(join, record, Shutdown()))
    blocks = make_manifest("scale", settings, parameter_shapes(settings.model)).blocks
    return _cost(recorder, peers, len(blocks))


def _cost(recorder: Recorder, peers: int, shards: int) -> RealCost:
    last = UNCOUNTED + COUNTED
    rounds = range(UNCOUNTED + 1, last)  # nothing opens after the last one
    payload: dict[str, list[float]] = {"dialable": [], "others": []}
    control: dict[str, list[float]] = {"dialable": [], "others": []}
    for number, applied in recorder.applied.items():
        counts: Counter[str] = Counter()
        for event in applied:
            if event.round in rounds:
                for kinds in (event.wire_bytes["sent"], event.wire_bytes["received"]):
                    counts.update(kinds)
        group = "dialable" if number % DIALABLE == 0 else "others"
        control[group].append(counts.pop("control", 0) / len(rounds))
        payload[group].append(counts.total() / len(rounds))
    return RealCost(
        peers=peers,
        shards=shards,
        gap=spread([recorder.opened[round + 1] - recorder.arrived[round] for round in rounds]),
        round=spread([recorder.opened[round + 1] - recorder.opened[round] for round in rounds]),
        payload={name: spread(values) for name, values in payload.items()},
        control={name: spread(values) for name, values in control.items()},
        included=statistics.fmean(recorder.closed[round].included / peers for round in rounds),
    )
