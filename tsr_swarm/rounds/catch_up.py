"""How a peer that missed rounds catches up. Pure."""

from dataclasses import dataclass

from tsr_swarm.telemetry.text import bytes_text


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """Bytes of both ways. ``round_bytes``: of all missed rounds, 0 where not all are kept."""

    round_bytes: int
    state_round: int
    state_bytes: int
    rest_bytes: int  # of the rounds since that state


@dataclass(frozen=True, slots=True)
class Way:
    """What to do, and why."""

    takes_state: bool
    reason: str


def choose_way(applied: int, costs: Costs) -> Way:
    """Replay the rounds after ``applied``, or take the state and replay those after it: whichever is fewer bytes."""
    with_state = costs.state_bytes + costs.rest_bytes
    rounds, state = f"{bytes_text(costs.round_bytes)} of rounds", f"{bytes_text(with_state)} with the state"
    if not costs.round_bytes:
        return Way(True, "not all of those rounds are kept any more")
    if costs.state_round <= applied:
        return Way(False, f"{rounds}, and no newer state is served")
    if costs.round_bytes <= with_state:
        return Way(False, f"{rounds} instead of {state}")
    return Way(True, f"{state} instead of {rounds}")
