"""Headers of rounds that are on their way, given as soon as they are here, and to whom."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.node_context import make_donor
from tests.published_rounds import History
from tsr_swarm.errors import RefusedError
from tsr_swarm.node import service
from tsr_swarm.node.round_cache import KEPT_HEADERS, Headers
from tsr_swarm.rounds.catch_up import BRANCHES, donors_of_header
from tsr_swarm.rounds.protocol import OpenRound, ReducerSlot
from tsr_swarm.transport.base import Caller
from tsr_swarm.wire.v1 import swarm_pb2 as pb

CALLER = Caller("127.0.0.1")
REDUCERS = ME, OTHER_REDUCER = "1" * 32, "2" * 32
PEER = "3" * 32


class Donor:
    """A node that gives, and has been told who reduces the shards of round 1."""

    def __init__(
        self, folder: Path, history: History, reducers: Sequence[str] = REDUCERS, headers: Headers | None = None
    ) -> None:
        headers = headers or Headers()
        self._service, store = make_donor(ME, history.manifest, folder, headers)
        self.history, self.log, self.headers = history, store.round_log, headers
        plan = OpenRound(1, "", 1, 1, tuple(ReducerSlot(reducer, 1) for reducer in reducers))
        self._service.context.driver.change(lambda node: replace(node, plan=plan))

    async def give(self, peer: str, header_only: bool = True, has_chain: bool = True) -> Any:
        """Round 1 to ``peer``: its header and its bytes."""
        chain = self.history.at(1).header.chain if has_chain else b""
        request = pb.FetchPublishedRequest(peer_id=peer, round=1, chain=chain, header_only=header_only)
        return await self._service.fetch_published(request, CALLER)


async def test_a_header_is_given_as_soon_as_it_is_here_before_any_shard_is(tmp_path: Path, history: History) -> None:
    donor = Donor(tmp_path, history)
    asked = asyncio.create_task(donor.give(PEER))
    another = asyncio.create_task(donor.give(PEER))
    await asyncio.sleep(0)
    donor.headers.keep(history.message(2))
    donor.headers.keep(history.message(1))
    for answer in await asyncio.gather(asked, another, donor.give(OTHER_REDUCER)):
        assert answer == (history.message(1), b"")


async def test_reducers_wait_for_the_header_at_the_nodes_that_the_header_tree_names(
    tmp_path: Path, history: History
) -> None:
    reducers = [ME, *(f"{number:032x}" for number in range(BRANCHES * 3))]
    donor = Donor(tmp_path, history, reducers)
    chain = history.at(1).header.chain.hex()
    below = [reducer for reducer in reducers if ME in donors_of_header(reducer, chain, reducers)]
    for reducer in reducers:
        asked = asyncio.create_task(donor.give(reducer))
        if reducer in below:
            continue
        with pytest.raises(RefusedError, match="Round 1 is not kept here"):
            await asked
    waiting = [donor.give(reducer) for reducer in below]
    donor.headers.keep(history.message(1))
    assert await asyncio.gather(*waiting) == [(history.message(1), b"")] * len(below)


async def test_a_round_that_came_whole_while_its_header_was_awaited_is_given(
    tmp_path: Path, history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "HEADER_SECONDS", 0.01)

    class Waits(Headers):
        async def get(self, round: int, chain: bytes, seconds: float = 0.0) -> pb.PublishedHeader | None:
            found = await super().get(round, chain, seconds)
            if seconds:
                donor.log.store(history.message(1), history.at(1).data)
            return found

    donor = Donor(tmp_path, history, headers=Waits())
    assert await donor.give(PEER) == (history.message(1), b"")


@pytest.mark.parametrize(
    "what", ["not in time", "reduces shards too", "this node reduces none", "all of it", "no hash"]
)
async def test_a_missing_round_is_refused_at_once_unless_its_header_is_awaited(
    tmp_path: Path, history: History, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.setattr(service, "HEADER_SECONDS", 0.01 if what == "not in time" else 1e6)
    donor = Donor(tmp_path, history, [OTHER_REDUCER] if what == "this node reduces none" else REDUCERS)
    peer = OTHER_REDUCER if what == "reduces shards too" else PEER
    with pytest.raises(RefusedError, match="Round 1 is not kept here"):
        await donor.give(peer, header_only=what != "all of it", has_chain=what != "no hash")


async def test_a_request_for_a_whole_round_is_not_answered_with_its_header(tmp_path: Path, history: History) -> None:
    donor = Donor(tmp_path, history)
    donor.headers.keep(history.message(1))
    with pytest.raises(RefusedError):
        await donor.give(PEER, header_only=False)
    donor.log.store(history.message(1), history.at(1).data)
    assert await donor.give(PEER, header_only=False) == (history.message(1), history.at(1).data)


async def test_a_request_for_a_header_reads_no_more_of_a_round_on_disk(tmp_path: Path, history: History) -> None:
    donor = Donor(tmp_path, history)
    donor.log.store(history.message(1), history.at(1).data)
    (file,) = donor.log.folder.iterdir()
    with file.open("r+b") as opened:
        opened.truncate(file.stat().st_size - len(history.at(1).data))
    assert await donor.give(PEER) == (history.message(1), b"")


@pytest.mark.parametrize("again", [[], [1]])
async def test_only_the_headers_that_were_kept_last_stay_each_of_its_own_round(
    history: History, again: list[int]
) -> None:
    headers = Headers()
    for round in (*range(1, KEPT_HEADERS + 1), *again, *range(KEPT_HEADERS + 1, KEPT_HEADERS + 3)):
        headers.keep(history.message(round))
    chains = {round: history.at(round).header.chain for round in range(1, KEPT_HEADERS + 3)}
    found = [round for round, chain in chains.items() if await headers.get(round, chain) is not None]
    assert found == [*again, *range(3 + len(again), KEPT_HEADERS + 3)]
    assert await headers.get(KEPT_HEADERS + 1, chains[KEPT_HEADERS + 2]) is None
