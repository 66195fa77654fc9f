"""How a rehearsed node fetches a round, as node/sync/downloader.py does: the header, and shards from their reducers."""

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from tests.rehearsal.disk import Published
from tsr_swarm.node.service import HEADER_SECONDS
from tsr_swarm.node.sync.rounds import SHARDS_AT_A_TIME
from tsr_swarm.rounds.catch_up import donors_of_header
from tsr_swarm.rounds.follower import RETRY_SECONDS, reducers_of
from tsr_swarm.rounds.raft_state import RoundRecord

if TYPE_CHECKING:
    from tests.bench.scale.swarm import HomeNode

Answer = Callable[[Published | None], None]


class Headers:
    """The headers that one node has, and the nodes that wait for one, as in node/round_cache.py."""

    def __init__(self, node: "HomeNode") -> None:
        self._node = node
        self._kept: dict[str, Published] = {}  # by chain hash
        self._waiting: dict[str, list[Answer]] = {}

    def keep(self, published: Published) -> None:
        """Keep a header, and send it to the nodes that wait for it."""
        self._kept[published.record.chain] = published
        for answer in self._waiting.pop(published.record.chain, []):
            answer(published)

    def give(self, record: RoundRecord, asker: str, answer: Answer) -> None:
        """Answer with a header, at once or when it is here; with None if it is not here and need not come."""
        node = self._node
        found = self._kept.get(record.chain) or node.disk.find(record.round, record.chain)
        reducers = () if node.node is None else reducers_of(node.node, record.round)
        if found is not None or node.name not in donors_of_header(asker, record.chain, reducers):
            answer(found)
            return
        self._waiting.setdefault(record.chain, []).append(answer)
        node.swarm.clock.after(HEADER_SECONDS, partial(self._give_up, record.chain, answer))

    def _give_up(self, chain: str, answer: Answer) -> None:
        if answer in self._waiting.get(chain, []):
            self._waiting[chain].remove(answer)
            answer(None)


class Download:
    """The download of a round, some shards at a time.

    reducers: by shard. donors: nodes that are asked for the header, one by one.
    """

    def __init__(
        self,
        node: "HomeNode",
        record: RoundRecord,
        reducers: Sequence[str],
        donors: Sequence[str],
        then: Callable[[Published], None],
    ) -> None:
        self._node, self._swarm, self._record = node, node.swarm, record
        self._reducers, self._donors, self._then = reducers, tuple(dict.fromkeys(donors)), then
        self._left: deque[int] = deque()
        self._under_way = 0

    def begin(self) -> None:
        self._ask(self._donors)

    def _ask(self, left: Sequence[str]) -> None:
        if not left:
            self._swarm.clock.after(RETRY_SECONDS, self.begin)
            return
        donor, me = left[0], self._node.name
        request = self._swarm.sizer.header_request(self._record.round, me)
        answer = partial(self._answered, left)
        give = partial(self._swarm.nodes[donor].headers.give, self._record, me, answer)
        self._swarm.carry(me, donor, request, give)

    def _answered(self, left: Sequence[str], published: Published | None) -> None:
        if published is None:
            self._swarm.clock.after(self._swarm.links.latency, partial(self._ask, left[1:]))
            return
        message = self._swarm.sizer.header(self._record, published.results)
        self._swarm.carry(left[0], self._node.name, message, partial(self._headed, published))

    def _headed(self, published: Published) -> None:
        self._node.headers.keep(published)
        made = self._swarm.made.get(self._node.name, ())
        shards = [shard for shard, result in enumerate(published.results) if not result.is_void]
        self._left.extend(shard for shard in shards if (self._record.round, shard) not in made)
        self._go_on(published)

    def _go_on(self, published: Published) -> None:
        while self._left and self._under_way < SHARDS_AT_A_TIME:
            self._under_way += 1
            shard = self._left.popleft()
            fetched = partial(self._fetched, published)
            self._swarm.fetch(self._node.name, self._source(shard), self._record.round, shard, fetched)
        if not self._left and not self._under_way:
            self._then(published)

    def _fetched(self, published: Published) -> None:
        self._under_way -= 1
        self._go_on(published)

    def _source(self, shard: int) -> str:
        """The shard's reducer, else a donor that has the whole round."""
        if self._reducers:
            return self._reducers[shard]
        nodes, record = self._swarm.nodes, self._record
        return next(donor for donor in self._donors if nodes[donor].disk.find(record.round, record.chain) is not None)
