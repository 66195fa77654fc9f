"""What the rounds of a rehearsed swarm cost, as figures."""

import itertools
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random

from tests.bench.scale.messages import SizedMessage, Traffic, control_bytes, payload_bytes
from tests.bench.scale.payloads import RoundPayloads, round_payloads
from tests.bench.scale.swarm import APPLY_SECONDS, AVERAGE_SECONDS, TRAIN_SECONDS, HomeSwarm
from tests.rehearsal.machine import Pace
from tests.rehearsal.swarm import Member

DIALABLE = 4  # one peer in so many
FIRST, LAST = 2, 4  # rounds that are counted: with the first, voters are chosen


@dataclass(frozen=True)
class Spread:
    """Bytes a round, over some nodes."""

    median: float
    worst: float


def spread(values: Sequence[float]) -> Spread:
    return Spread(statistics.median(values), max(values))


def amount(count: float) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(count) >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f} B"


def amounts(spread: Spread) -> str:
    """Median and worst."""
    return f"{amount(spread.median)} / {amount(spread.worst)}"


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The cost of a round. Bytes are of one node; ``dialable`` and ``others`` are peers."""

    peers: int
    shards: int
    sent: Mapping[str, Spread]  # payload, by "dialable" and "others"
    received: Mapping[str, Spread]
    control: Mapping[str, Spread]  # both directions
    share: Mapping[str, Spread]  # of control in a peer's payload
    included: float  # share of the peers whose work is in a round
    leader_sent: float  # control
    leader_received: float
    leader_payload: float  # both directions
    overhead: float  # seconds, the median round
    phases: tuple[float, float, float, float]  # until the last contribution, the seal, the commit, the next round
    kinds: Mapping[str, float]  # control that all nodes sent
    fields: Mapping[str, float]
    messages: Mapping[str, tuple[float, float]]  # by kind: how many a round, and the mean bytes of one
    leader_cpu: float  # seconds a round that the leader's decisions take here
    seconds: float  # that it took to simulate
    complaints: tuple[str, ...]
    traffic: Mapping[str, Traffic] = field(repr=False)  # by node, over all rounds that were counted
    groups: Mapping[str, Sequence[str]] = field(repr=False)


def members(peers: int, shards: int) -> tuple[Member, ...]:
    """A coordinator, and peers of which one in four can be dialled."""
    chance = Random(peers)
    names = [f"{chance.getrandbits(128):032x}" for _ in range(peers + 1)]

    def pace() -> Pace:
        return Pace(train=TRAIN_SECONDS, apply=APPLY_SECONDS, average=AVERAGE_SECONDS * reducers(peers) / shards)

    first = Member(name=names[0], trains=False, pace=pace())
    others = (
        Member(name=name, is_dialable=number % DIALABLE == 0, pace=pace(), joins_at=1.0 + chance.random())
        for number, name in enumerate(names[1:])
    )
    return first, *others


def reducers(peers: int) -> int:
    """How many nodes reduce: the coordinator can be dialled too."""
    return -(-peers // DIALABLE) + 1


def shards_for(peers: int) -> int:
    """Enough shards that every reducer has one."""
    return max(8, reducers(peers))


def simulate(peers: int, payloads: RoundPayloads | None = None, seed: int = 0) -> Cost:
    """Simulate a swarm and return the cost of its rounds ``FIRST`` to ``LAST``."""
    payloads = payloads or round_payloads(peers, shards_for(peers))
    started = time.perf_counter()
    swarm = HomeSwarm(members(peers, payloads.shards), payloads, Random(seed))
    swarm.measure(FIRST, LAST)
    return _cost(swarm, payloads.shards, time.perf_counter() - started)


def _cost(swarm: HomeSwarm, shards: int, seconds: float) -> Cost:
    rounds, nodes, leader = LAST - FIRST + 1, swarm.traffic, swarm.traffic[swarm.leading]
    names = {
        "dialable": [name for name in swarm.peers if swarm.machines[name].is_dialable],
        "others": [name for name in swarm.peers if not swarm.machines[name].is_dialable],
    }

    def of_peers(figure: Callable[[Traffic], float]) -> dict[str, Spread]:
        return {group: spread([figure(nodes[name]) for name in names[group]]) for group in names}

    costs = [swarm.rounds[round] for round in range(FIRST, LAST + 2)]
    pairs = list(itertools.pairwise(costs))
    numbers, kinds, fields = _sums([traffic.sent for traffic in nodes.values()])
    return Cost(
        peers=len(swarm.peers),
        shards=shards,
        sent=of_peers(lambda traffic: payload_bytes(traffic.sent) / rounds),
        received=of_peers(lambda traffic: payload_bytes(traffic.received) / rounds),
        control=of_peers(lambda traffic: traffic.control / rounds),
        share=of_peers(lambda traffic: traffic.control / traffic.payload),
        included=statistics.fmean(len(cost.counted) / len(swarm.peers) for cost in costs[:-1]),
        leader_sent=control_bytes(leader.sent) / rounds,
        leader_received=control_bytes(leader.received) / rounds,
        leader_payload=leader.payload / rounds,
        overhead=statistics.median(cost.overhead(after.opened) for cost, after in pairs),
        phases=(
            statistics.median(cost.arrived - cost.opened for cost in costs[:-1]),
            statistics.median(cost.sealed - cost.arrived for cost in costs[:-1]),
            statistics.median(cost.committed - cost.sealed for cost in costs[:-1]),
            statistics.median(after.opened - cost.committed for cost, after in pairs),
        ),
        kinds={kind: count / rounds for kind, count in kinds.items()},
        fields={name: count / rounds for name, count in fields.items()},
        messages={kind: (count / rounds, kinds[kind] / count) for kind, count in numbers.items()},
        leader_cpu=swarm.leader_seconds / rounds,
        seconds=seconds,
        complaints=tuple(swarm.judge.violations),
        traffic=nodes,
        groups=names,
    )


def _sums(sent: Iterable[Counter[SizedMessage]]) -> tuple[Counter[str], Counter[str], Counter[str]]:
    """Messages by kind, bytes of control by kind, and bytes of control by kind and field."""
    numbers, kinds, fields = Counter[str](), Counter[str](), Counter[str]()
    for messages in sent:
        for message, count in messages.items():
            numbers[message.kind] += count
            kinds[message.kind] += message.control * count
            for name, size in message.fields.items():
                fields[f"{message.kind}.{name}"] += size * count
    return numbers, kinds, fields
