"""What the rounds of a rehearsed swarm cost, as figures."""

import itertools
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from random import Random

from tests.bench.scale.messages import SizedMessage, Traffic, control_bytes, payload_bytes
from tests.bench.scale.payloads import RoundPayloads, round_payloads
from tests.bench.scale.swarm import APPLY_SECONDS, AVERAGE_SECONDS, TRAIN_SECONDS, HomeSwarm, RoundCost
from tests.rehearsal.machine import Pace
from tests.rehearsal.swarm import Member

DIALABLE = 4  # one peer in so many
FIRST, LAST = 2, 4  # rounds that are counted: with the first, voters are chosen
ROUNDS = LAST - FIRST + 1


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


def percents(spread: Spread) -> str:
    """Median and worst."""
    return f"**{100 * spread.median:.2f}** / {100 * spread.worst:.1f}"


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What rounds cost. ``cells``: a column of the table, by the names of its rows. Counts are of one round."""

    peers: int
    cells: Mapping[str, str]
    messages: Mapping[str, tuple[float, float]]  # how many, and the mean bytes of control of one, by kind
    fields: Mapping[str, float]  # bytes of control that all nodes sent, by kind and field
    included: float  # share of the peers whose work is in a round
    overhead: float  # seconds, the median round
    complaints: tuple[str, ...]
    traffic: Mapping[str, Traffic]  # by node, over all rounds that were counted
    groups: Mapping[str, Sequence[str]]  # peers by "who can be dialled" and "others"


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
    swarm = HomeSwarm(members(peers, payloads.shards), payloads, Random(seed))
    swarm.measure(FIRST, LAST)
    costs = [swarm.rounds[round] for round in range(FIRST, LAST + 2)]
    included = statistics.fmean(len(cost.counted) / peers for cost in costs[:-1])
    overhead = statistics.median(cost.overhead(after.opened) for cost, after in itertools.pairwise(costs))
    groups: dict[str, list[str]] = {"who can be dialled": [], "others": []}
    for name in swarm.peers:
        groups["who can be dialled" if swarm.machines[name].is_dialable else "others"].append(name)
    numbers, control, fields = _sums([traffic.sent for traffic in swarm.traffic.values()])
    return Cost(
        peers=peers,
        cells={
            "shards": str(payloads.shards),
            **_traffic_cells(swarm, groups),
            "overhead of a round, s": f"**{overhead:.2f}**",
            **_phase_cells(costs[:-1]),
            "the leader's decisions, s of a core a round": f"{swarm.leader_seconds / ROUNDS:.2f}",
            "work that was counted": f"{100 * included:.0f} %",
            "what must not happen": str(len(swarm.judge.violations)),
        },
        messages={kind: (count / ROUNDS, control[kind] / count) for kind, count in numbers.items()},
        fields={name: count / ROUNDS for name, count in fields.items()},
        included=included,
        overhead=overhead,
        complaints=tuple(swarm.judge.violations),
        traffic=swarm.traffic,
        groups=groups,
    )


def _traffic_cells(swarm: HomeSwarm, groups: Mapping[str, Sequence[str]]) -> dict[str, str]:
    cells = {}
    figures: dict[str, Callable[[Traffic], float]] = {
        "payload sent": lambda traffic: payload_bytes(traffic.sent) / ROUNDS,
        "payload received": lambda traffic: payload_bytes(traffic.received) / ROUNDS,
        "control": lambda traffic: traffic.control / ROUNDS,
        "control in % of payload": lambda traffic: traffic.control / traffic.payload,
    }
    for title, figure in figures.items():
        for group, names in groups.items():
            text = percents if "%" in title else amounts
            cells[f"{title}, {group}"] = text(spread([figure(swarm.traffic[name]) for name in names]))
    leader = swarm.traffic[swarm.leading]
    cells["control that the leader sends"] = amount(control_bytes(leader.sent) / ROUNDS)
    cells["control that the leader receives"] = amount(control_bytes(leader.received) / ROUNDS)
    cells["payload of the leader, both ways"] = amount(leader.payload / ROUNDS)
    return cells


def _phase_cells(costs: Sequence[RoundCost]) -> dict[str, str]:
    """Seconds of the phases of the median round."""
    median = statistics.median
    return {
        "until the last contribution, s": f"{median(cost.arrived - cost.opened for cost in costs):.1f}",
        "from there until all is averaged, s": f"{median(cost.sealed - cost.arrived for cost in costs):.2f}",
        "from there until it is committed, s": f"{median(cost.committed - cost.sealed for cost in costs):.2f}",
    }


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
