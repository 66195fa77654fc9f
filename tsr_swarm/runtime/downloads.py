"""All that a peer downloads to catch up, and what of it it gives to others if it can be dialled."""

from collections.abc import Callable

from tsr_swarm.errors import RunError
from tsr_swarm.optim.consensus import Consensus
from tsr_swarm.runtime.donor import Donor, is_agreed
from tsr_swarm.runtime.round_download import FetchedRound, RoundDownload
from tsr_swarm.runtime.sources import Sources
from tsr_swarm.runtime.state_chunks import StateAssembly
from tsr_swarm.runtime.state_download import StateDownload
from tsr_swarm.telemetry.events import Event, Warned
from tsr_swarm.wire.messages import PublishedHeader, published_to_proto


class Downloads:
    """One peer's. ``donor``: None for a peer that only dials out."""

    def __init__(
        self,
        sources: Sources,
        states: StateDownload,
        rounds: RoundDownload,
        donor: Donor | None,
        emit: Callable[[Event], None],
    ) -> None:
        self.sources = sources
        self.has_failed = False  # the last download of a state broke off
        self.is_catching_up = False  # the way has been chosen, and there is more to fetch
        self._states, self._rounds, self._donor, self._emit = states, rounds, donor, emit
        self._fetched: dict[int, FetchedRound] = {}
        self._has_warned = False

    async def state(self, should_stop: Callable[[], bool]) -> tuple[StateAssembly, int]:
        """A recent state and how many gave of it. Raises UnreachableError for a break: call again."""
        self.has_failed = True
        state = await self._states.fetch(should_stop)
        self.has_failed = False
        self.is_catching_up = True  # the rounds since are replayed, whatever they cost
        self._fetched.clear()
        return state

    async def round(self, round: int, last: int, chain: str) -> FetchedRound:
        """A round that this peer lacks; ``last`` is the newest there is. Several are fetched from donors at once."""
        if round not in self._fetched and round < last and self.sources.donors:
            self._fetched = await self._rounds.fetch(round, last, chain)
        if (fetched := self._fetched.pop(round, None)) is not None:
            return fetched
        return await self._rounds.from_coordinator(round)

    async def keep_state(self, state: StateAssembly) -> None:
        """Give a state that is complete and in use to others."""
        if self._donor is None:
            return state.remove()
        try:
            await self._donor.start_anew(state.path, state.description)
        except RunError as error:
            self._warn(error)

    async def keep_round(self, header: PublishedHeader, data: bytes, consensus: Consensus) -> None:
        """Give a round that has been applied to others, and after some rounds the state, which is ``consensus``."""
        if self._donor is None:
            return
        try:
            await self._donor.keep_round(published_to_proto(header), data)
            if is_agreed(header.plan.round):
                await self._donor.keep_state(consensus, header.plan.round, header.chain)
        except RunError as error:
            self._warn(error)

    def _warn(self, error: RunError) -> None:
        """Once: training needs none of this."""
        if not self._has_warned:
            self._emit(Warned(message=f"{error} Training goes on."))
        self._has_warned = True
