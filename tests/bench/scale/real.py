"""Rounds of real peers over real gRPC, all in this process, with a model that trains in no time."""

import asyncio
import statistics
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from tests.bench.scale.costs import DIALABLE, amounts, spread
from tsr_swarm.config.load import run_config_from_mapping
from tsr_swarm.config.manifest import make_manifest
from tsr_swarm.config.run import RunConfig
from tsr_swarm.node.coordinator import CoordinateOptions, run_coordinator
from tsr_swarm.node.join_options import JoinOptions
from tsr_swarm.node.peer import run_peer
from tsr_swarm.process.shutdown import Shutdown
from tsr_swarm.telemetry.events import Event, PayloadReceived, RoundApplied, RoundClosed, RoundOpened, RunStarted
from tsr_swarm.train.llama import parameter_shapes

UNCOUNTED, COUNTED = 3, 4  # rounds
LIMIT_SECONDS = 420.0
TEXT = "".join(f"def f{i}(x):\n    return x + {i} if x > {i % 7} else f{i // 2}(x - 1)\n\n" for i in range(600))


def config(folder: Path, peers: int) -> RunConfig:
    """The configuration of a run of ``peers`` whose steps take milliseconds."""
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
                "source": str(folder / "text"),
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


def measure(folder: Path, peers: int) -> dict[str, str]:
    """Run some rounds of ``peers`` and return what one costs, as the cells of a table by the names of their rows.

    Median and worst round or peer. Bytes are of a peer, both directions, as it counted them.
    """
    return asyncio.run(_measure(folder, peers))


async def _measure(folder: Path, peers: int) -> dict[str, str]:
    (folder / "text").mkdir()
    for part in range(8):
        (folder / "text" / f"part{part}.py").write_text(TEXT[part * 2000 :][:9000])
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
                no_dht=True,
                dir=str(folder / f"peer-{number}"),
                listen="127.0.0.1:0" if number % DIALABLE == 0 else "",
            )

            def record(event: Event, number: int = number) -> None:
                recorder.record_peer(number, event)

            group.create_task(run_peer(join, record, Shutdown()))
    return _costs(recorder, peers)


def shard_count() -> int:
    """How many shards of whole blocks the model has."""
    settings = config(Path(), 8)
    return len(make_manifest("scale", settings, parameter_shapes(settings.model)).blocks)


def _costs(recorder: Recorder, peers: int) -> dict[str, str]:
    rounds = range(UNCOUNTED + 1, UNCOUNTED + COUNTED)  # no round opens after the last one
    payload: dict[str, list[float]] = {"who can be dialled": [], "others": []}
    control: dict[str, list[float]] = {"who can be dialled": [], "others": []}
    for number, applied in recorder.applied.items():
        counts: Counter[str] = Counter()
        for event in applied:
            if event.round in rounds:
                for kinds in (event.wire_bytes["sent"], event.wire_bytes["received"]):
                    counts.update(kinds)
        group = "who can be dialled" if number % DIALABLE == 0 else "others"
        control[group].append(counts.pop("control", 0) / len(rounds))
        payload[group].append(counts.total() / len(rounds))
    gap = spread([recorder.opened[round + 1] - recorder.arrived[round] for round in rounds])
    length = spread([recorder.opened[round + 1] - recorder.opened[round] for round in rounds])
    included = statistics.fmean(recorder.closed[round].included / peers for round in rounds)
    return {
        "seconds from the last contribution to the next round": f"**{gap.median:.2f}** / {gap.worst:.2f}",
        "seconds a round": f"{length.median:.1f} / {length.worst:.1f}",
        "work that was counted": f"{100 * included:.0f} %",
        **{f"payload both ways, {group}": amounts(spread(values)) for group, values in payload.items()},
        **{f"control both ways, {group}": amounts(spread(values)) for group, values in control.items()},
    }
