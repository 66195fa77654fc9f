"""What rounds of a swarm cost, as figures."""

import itertools
import statistics
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random

from tests.bench.scale.cargo import Cargo, cargo
from tests.bench.scale.letters import Letter
from tests.bench.scale.swarm import APPLY_SECONDS, AVERAGE_SECONDS, TRAIN_SECONDS, HomeSwarm
from tests.bench.scale.tally import Traffic, by_field, by_kind, control, payload
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


@dataclass(frozen=True, kw_only=True)
class Cost:
    """A round's cost. Bytes are of one node; ``dialable`` and ``others`` are peers."""

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
    phases: tuple[float, float, float, float]  # until the last contribution is heard of, sealed, stands, next is open
    kinds: Mapping[str, float]  # control of all nodes, sent
    fields: Mapping[str, float]
    letters: Mapping[str, tuple[float, float]]  # by kind: how many a round, and the mean bytes of one
    leader_cpu: float  # seconds a round that the leader's decisions take here
    seconds: float  # that it took to simulate
    complaints: tuple[str, ...]
    traffic: Mapping[str, Traffic] = field(repr=False)  # by node, over all rounds that were counted
    groups: Mapping[str, Sequence[str]] = field(repr=False)


def members(peers: int, shards: int) -> tuple[Member, ...]:
    """A coordinator, and peers of which one in four can be dialled."""
    chance = Random(peers)
    names = [f"{chance.getrandbits(128):032x}" for _ in range(peers + 1)]
    pace = Pace(train=TRAIN_SECONDS, apply=APPLY_SECONDS)
    first = Member(name=names[0], trains=False, pace=_own(pace, peers, shards))
    others = (
        Member(
            name=name,
            is_dialable=number % DIALABLE == 0,
            pace=_own(pace, peers, shards),
            joins_at=1.0 + chance.random(),
        )
        for number, name in enumerate(names[1:])
    )
    return first, *others


def _own(pace: Pace, peers: int, shards: int) -> Pace:
    return Pace(train=pace.train, apply=pace.apply, average=AVERAGE_SECONDS * reducers(peers) / shards)


def reducers(peers: int) -> int:
    """How many there are: the coordinator can be dialled too."""
    return -(-peers // DIALABLE) + 1


def shards_for(peers: int) -> int:
    """Enough that every reducer has one."""
    return max(8, reducers(peers))


def simulate(peers: int, goods: Cargo | None = None, seed: int = 0) -> Cost:
    """Rounds ``FIRST`` to ``LAST`` of a swarm."""
    goods = goods or cargo(peers, shards_for(peers))
    started = time.perf_counter()
    swarm = HomeSwarm(members(peers, goods.shards), goods, Random(seed))
    swarm.measure(FIRST, LAST)
    return _cost(swarm, goods, time.perf_counter() - started)


def _cost(swarm: HomeSwarm, goods: Cargo, seconds: float) -> Cost:
    rounds, nodes = LAST - FIRST + 1, swarm.tally.nodes
    leader = swarm.layout.first
    names = {
        "dialable": [name for name in swarm.peers if swarm.machines[name].is_dialable],
        "others": [name for name in swarm.peers if not swarm.machines[name].is_dialable],
    }
    groups = {group: [nodes[name] for name in names[group]] for group in names}
    sent: Counter[Letter] = Counter()
    for traffic in nodes.values():
        sent.update(traffic.sent)
    costs = [swarm.rounds[round] for round in range(FIRST, LAST + 2)]
    numbers: Counter[str] = Counter()
    for letter, count in sent.items():
        numbers[letter.kind] += count
    kinds = by_kind(sent)
    middle = statistics.median
    pairs = list(itertools.pairwise(costs))
    return Cost(
        peers=len(swarm.peers),
        shards=goods.shards,
        sent={name: spread([payload(t.sent) / rounds for t in group]) for name, group in groups.items()},
        received={name: spread([payload(t.received) / rounds for t in group]) for name, group in groups.items()},
        control={name: spread([_control(t) / rounds for t in group]) for name, group in groups.items()},
        share={
            name: spread([_control(t) / (payload(t.sent) + payload(t.received)) for t in group])
            for name, group in groups.items()
        },
        included=statistics.fmean(len(cost.counted) / len(swarm.peers) for cost in costs[:-1]),
        leader_sent=control(nodes[leader].sent) / rounds,
        leader_received=control(nodes[leader].received) / rounds,
        leader_payload=(payload(nodes[leader].sent) + payload(nodes[leader].received)) / rounds,
        overhead=middle(cost.overhead(after.opened) for cost, after in pairs),
        phases=(
            middle(cost.arrived - cost.opened for cost in costs[:-1]),
            middle(cost.sealed - cost.arrived for cost in costs[:-1]),
            middle(cost.stands - cost.sealed for cost in costs[:-1]),
            middle(after.opened - cost.stands for cost, after in pairs),
        ),
        kinds={kind: count / rounds for kind, count in kinds.items()},
        fields={name: count / rounds for name, count in by_field(sent).items()},
        letters={kind: (count / rounds, kinds[kind] / count) for kind, count in numbers.items()},
        leader_cpu=swarm.leader_seconds / rounds,
        seconds=seconds,
        complaints=tuple(swarm.checker.violations),
        traffic=nodes,
        groups=names,
    )


def _control(traffic: Traffic) -> int:
    return control(traffic.sent) + control(traffic.received)
