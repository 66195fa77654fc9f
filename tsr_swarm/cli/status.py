"""``tsr-swarm status``: how a run is doing, once."""

import json as json_format
import time
from typing import Any

from tsr_swarm.cli.monitor import calling, read_all
from tsr_swarm.cli.options import Coordinator, Json, Plain, Wait
from tsr_swarm.cli.output import Mode, print_aside
from tsr_swarm.cli.process import catch_up, run_process
from tsr_swarm.process.machine_limits import require_process_room
from tsr_swarm.process.shutdown import Shutdown, run_unless
from tsr_swarm.telemetry.log import Watch
from tsr_swarm.telemetry.snapshot import PeerView, SwarmSnapshot
from tsr_swarm.telemetry.text import bytes_text, count_text, factor_text, loss_text, plural


def status(coordinator: Coordinator, wait: Wait = 0.0, plain: Plain = False, json: Json = False) -> None:
    require_process_room()
    from tsr_swarm.transport.client import retry_while_unreachable

    async def print_status(watch: Watch) -> None:
        snapshot = await retry_while_unreachable(lambda: read_all(watch), wait, print_aside)
        print(json_format.dumps(status_object(snapshot, time.time())) if json else "\n".join(status_lines(snapshot)))
        await catch_up(is_over=True)

    async def work(stop: Shutdown) -> None:
        async with calling(coordinator) as watch:
            await run_unless(stop.graceful, print_status(watch))

    run_process(Mode.JSON if json else Mode.PLAIN, work)


def status_object(snapshot: SwarmSnapshot, now: float) -> dict[str, Any]:
    """The status as one flat event-like object."""
    peers = [
        {
            "peer": p.peer,
            "name": p.name,
            "number": p.number,
            "state": p.state,
            "round": p.round,
            "tokens_per_second": snapshot.speed(p),
            "sent": p.up,
            "received": p.down,
        }
        for p in snapshot.table
        if p.is_alive
    ]
    plain_fields = (
        "run run_id address rounds round phase state first_loss loss local_loss wire_bytes dense_bytes digest finished"
    )
    return {
        "event": "status",
        "time": round(now, 3),
        **{name: getattr(snapshot, name) for name in plain_fields.split()},
        "peers": peers,
    }


def status_lines(s: SwarmSnapshot) -> list[str]:
    return [
        *run_lines(s),
        f"{plural(len(s.alive), 'peer')}, {count_text(s.tokens_per_second)} tokens/s",
        *[_peer_line(peer, s.lag(peer), s.speed(peer)) for peer in s.table if peer.is_alive],
    ]


def run_lines(s: SwarmSnapshot) -> list[str]:
    now = "at the end" if s.is_over else "now"
    return [
        f"{s.run}: {s.state}{_progress(s)}",
        f"held-out loss {loss_text(s.first_loss)} at first, {loss_text(s.loss)} {now}; local {loss_text(s.local_loss)}",
        f"{bytes_text(s.wire_bytes)} on the wire, {factor_text(s.dense_bytes, s.wire_bytes)} less than dense training",
    ]


def _progress(s: SwarmSnapshot) -> str:
    """How far the run is, unless its state begins with that."""
    if s.state.startswith(f"round {s.round}:"):
        return f" ({plural(s.rounds, 'round')} in all)" if s.rounds else ""
    return f" (round {s.round}{f' of {s.rounds}' if s.rounds else ''})"


def _peer_line(peer: PeerView, lag: int, speed: float) -> str:
    behind = f", {plural(lag, 'round')} behind" if lag else ""
    return (
        f"  {peer.number:>3} {peer.name:<20} {peer.state}{behind}, {count_text(speed)} tokens/s, "
        f"{bytes_text(peer.up)} up, {bytes_text(peer.down)} down"
    )
