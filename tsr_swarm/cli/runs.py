"""``tsr-swarm runs``: which runs there are in the DHT."""

import json as json_format
import time
from collections.abc import Sequence
from typing import Any

from tsr_swarm.cli.options import Json, UsageError, Ways, check_ways
from tsr_swarm.cli.output import Mode
from tsr_swarm.cli.process import catch_up, run_process
from tsr_swarm.discovery.runs import FoundRun
from tsr_swarm.process.machine_limits import require_process_room
from tsr_swarm.process.shutdown import Shutdown, run_unless
from tsr_swarm.telemetry.text import count_text, plural, seconds_text


def runs(dht: Ways = None, json: Json = False) -> None:
    ways = check_ways(dht)
    if not ways:
        raise UsageError("No way into the DHT is named; add --dht HOST:PORT of any node of a run, or a multiaddr.")
    require_process_room()
    from tsr_swarm.node.find_run import look_up_runs

    async def print_runs() -> None:
        found, now = await look_up_runs(ways), time.time()
        lines = [json_format.dumps(run_object(run, now)) for run in found] if json else run_lines(found, now)
        for line in lines:
            print(line)
        await catch_up(is_over=True)

    async def work(stop: Shutdown) -> None:
        await run_unless(stop.graceful, print_runs())

    run_process(Mode.JSON if json else Mode.PLAIN, work)


def run_object(run: FoundRun, now: float) -> dict[str, Any]:
    return {
        "run": run.name,
        "run_id": run.run_id,
        "peers": len(run.records),
        "parameters": run.parameters,
        "round": run.round,
        "age_seconds": round(max(0.0, now - run.issued), 1),
    }


def run_lines(found: Sequence[FoundRun], now: float) -> list[str]:
    if not found:
        return ["No run is in this DHT now."]
    return [
        f"{run.name}@{run.run_id}: {plural(len(run.records), 'peer')}, {count_text(run.parameters)} parameters, "
        f"round {run.round}, heard of {seconds_text(max(0.0, now - run.issued))} ago"
        for run in found
    ]
