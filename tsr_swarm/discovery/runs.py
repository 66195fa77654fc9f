"""Runs as the DHT shows them: which there are, which one is meant, and whom of it to dial first.

All of it is what peers claim, each under its own signature; whoever is dialled shows the run's manifest, which counts.
"""

import asyncio
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from tsr_swarm.discovery.addresses import dialable_address
from tsr_swarm.discovery.records import RUN_NAME, PeerRecord
from tsr_swarm.errors import ConfigError, UnreachableError
from tsr_swarm.telemetry.text import count_text, plural

MAX_RUNS = 64  # that are looked at, the newest
MAX_NAMED = 5  # runs of one name that a sentence names
MAX_DIALS = 32  # addresses of one run that are tried

_PREFIX = re.compile("[A-Za-z0-9]{0,64}")


class WantedRun(NamedTuple):
    """A run by its name and the beginning of its run id, which may be empty."""

    name: str
    prefix: str = ""

    def __str__(self) -> str:
        return f"{self.name}@{self.prefix}" if self.prefix else self.name

    def matches(self, name: str, run_id: str) -> bool:
        return name == self.name and run_id.startswith(self.prefix)


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundRun:
    """One run, and the valid records of its peers, at least one."""

    name: str
    run_id: str
    records: tuple[PeerRecord, ...]

    @property
    def parameters(self) -> int:
        """What most of its peers say."""
        return Counter(record.parameters for record in self.records).most_common(1)[0][0]

    @property
    def round(self) -> int:
        """The newest round that any of its peers knows of."""
        return max(record.round for record in self.records)

    @property
    def issued(self) -> float:
        """When the newest of its records was made, Unix seconds."""
        return max(record.issued for record in self.records)


class RunDirectory(Protocol):
    """Where records are read: dht.DhtDirectory."""

    async def runs(self) -> Sequence[PeerRecord]: ...

    async def records(self, run_id: str) -> Sequence[PeerRecord]: ...


def parse_wanted_run(text: str) -> WantedRun:
    """Read ``NAME`` or ``NAME@RUNID``, of which the beginning is enough. Raises ConfigError."""
    name, _, prefix = text.partition("@")
    if not (RUN_NAME.fullmatch(name) and _PREFIX.fullmatch(prefix)):
        raise ConfigError(
            f"'{text[:80]}' is not a run; write its name, 1 to 64 ASCII letters, digits, '-' or '_', and if two have "
            "that name, '@' and the beginning of its run id, such as chat@3fa2."
        )
    return WantedRun(name, prefix)


async def find_runs(directory: RunDirectory, wanted: WantedRun | None = None) -> list[FoundRun]:
    """Give the runs that have peers now, by name; only those that ``wanted`` means, if given. Raises UnreachableError.

    Costs one look-up, and one more for each run.
    """
    listed = [
        record for record in await directory.runs() if wanted is None or wanted.matches(record.run, record.run_id)
    ]
    places = list(dict.fromkeys((record.run, record.run_id) for record in listed))[:MAX_RUNS]
    answers = await asyncio.gather(*(directory.records(run_id) for _, run_id in places))
    found = []
    for (name, run_id), answer in zip(places, answers, strict=True):
        if records := tuple(record for record in answer if record.run == name):
            found.append(FoundRun(name=name, run_id=run_id, records=records))
    return sorted(found, key=lambda run: (run.name, -len(run.records), run.run_id))


def choose_run(found: Sequence[FoundRun], wanted: WantedRun) -> FoundRun:
    """Give the one run that is meant. Raises UnreachableError where there is none, ConfigError where there are more."""
    fitting = [run for run in found if wanted.matches(run.name, run.run_id)]
    if not fitting:
        raise UnreachableError(
            f"No peer of a run '{wanted}' is in the DHT now; see 'tsr-swarm runs' for those that are."
        )
    if len(fitting) == 1:
        return fitting[0]
    length = _telling_length([run.run_id for run in fitting])
    named = [
        f"{run.name}@{run.run_id[:length]} ({count_text(run.parameters)} parameters, "
        f"{plural(len(run.records), 'peer')}, round {run.round})"
        for run in fitting[:MAX_NAMED]
    ]
    more = f" and {len(fitting) - MAX_NAMED} more" if len(fitting) > MAX_NAMED else ""
    raise ConfigError(
        f"{len(fitting)} runs are called '{wanted.name}': {', '.join(named)}{more}; "
        f"say which with --run {fitting[0].name}@{fitting[0].run_id[:length]}."
    )


def dial_order(records: Iterable[PeerRecord], seen_from: str, now: float) -> list[str]:
    """Give the addresses that can be dialled, the freshest record's first, each once.

    ``seen_from``: the host that the DHT is reached at; only there on this machine may an address be on loopback.
    """
    # A clock that is ahead, or a peer that says so, comes no earlier than one that has just spoken.
    freshest = sorted(records, key=lambda record: -min(record.issued, now))
    addresses = (dialable_address(seen_from, record.address) for record in freshest if record.address)
    return list(dict.fromkeys(filter(None, addresses)))[:MAX_DIALS]


def _telling_length(run_ids: Sequence[str]) -> int:
    """Give how many first characters tell these ids apart, four at least."""
    longest = max(map(len, run_ids))
    return next((n for n in range(4, longest) if len({run_id[:n] for run_id in run_ids}) == len(run_ids)), longest)
