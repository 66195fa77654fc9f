"""A coordinator: one process that serves a run's manifest and state, leads its rounds and reduces them."""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tsr_swarm import __version__
from tsr_swarm.config.run import RunConfig
from tsr_swarm.optim.consensus import Consensus
from tsr_swarm.runtime.discovery import Discovery
from tsr_swarm.runtime.donor import Donor
from tsr_swarm.runtime.leadership import VOTER, Leadership, Tools
from tsr_swarm.runtime.lifeline import StopRequest, run_unless_now
from tsr_swarm.runtime.listening import announced, dht_places, require_consent, shown_address
from tsr_swarm.runtime.run_folder import STATES, RunFolder, StartingPoint, resume_run, start_run
from tsr_swarm.runtime.service import CoordinatorService
from tsr_swarm.swarm.addresses import multiaddrs_for
from tsr_swarm.swarm.identity import load_identity
from tsr_swarm.swarm.records import Role
from tsr_swarm.telemetry import events
from tsr_swarm.telemetry.events import Event
from tsr_swarm.telemetry.ledger import ByteLedger
from tsr_swarm.telemetry.log import EventLog, read_recording, recording
from tsr_swarm.train.data import heldout_tokens
from tsr_swarm.train.evaluate import held_out_loss, heldout_batches
from tsr_swarm.train.llama import Llama
from tsr_swarm.transport.base import Caller
from tsr_swarm.transport.server import serve

EVENTS_FILE = "events.jsonl"
PROGRESS = '"peer_progress"'


@dataclass(frozen=True, slots=True, kw_only=True)
class CoordinateOptions:
    """What the command line says beyond the run's configuration."""

    config: RunConfig
    listen: str
    announce: str | None = None  # HOST or HOST:PORT under which others reach this machine
    dht_port: int = 0
    use_dht: bool = True
    insecure: bool = False
    resume: bool = False


async def run_coordinator(options: CoordinateOptions, emit: Callable[[Event], None], stop: StopRequest) -> None:
    """Lead a run until its last round, or until ``stop``. Raises SwarmError with one sentence."""
    require_consent(options.listen, options.announce, options.insecure, "join, read the model and send updates")
    await run_unless_now(_coordinate(options, emit, stop.gently), stop)


async def _coordinate(options: CoordinateOptions, sink: Callable[[Event], None], stop_gently: asyncio.Event) -> None:
    config, folder = options.config, RunFolder(Path(options.config.checkpoint.dir))
    evaluate = await asyncio.to_thread(make_evaluate, config)  # first: it finds a data source that is not there
    with folder.locked(), open_log(folder.path / EVENTS_FILE, options.resume) as log:
        has_ended = False

        def emit(event: Event) -> None:
            nonlocal has_ended
            if has_ended:
                return  # run_finished is the last line; peers may still be leaving
            has_ended = isinstance(event, events.RunFinished)
            log.append(event)
            sink(event)

        await _lead(options, folder, evaluate, log, emit, stop_gently)


@contextmanager
def open_log(path: Path, resume: bool) -> Iterator[EventLog]:
    """The run's events, also kept in ``path``: a monitor sees the rounds of before a restart, and `replay` shows all.

    Progress within a round, most of the events, is left out of the file.
    """
    with recording(path) as write:
        log = EventLog(time.time, [lambda line: None if PROGRESS in line[:40] else write(line)])
        if resume:
            log.restore(read_recording(path))
        yield log


async def _lead(
    options: CoordinateOptions,
    folder: RunFolder,
    evaluate: Callable[[Consensus], float],
    log: EventLog,
    emit: Callable[[Event], None],
    stop_gently: asyncio.Event,
) -> None:
    config = options.config
    identity = load_identity(folder.path / "identity.key")
    start = await asyncio.to_thread(_begin, options, folder, emit)
    donor = Donor(start.manifest, folder.path / STATES, start.delta_log)
    await asyncio.to_thread(donor.open)
    tools = Tools(
        journal=folder.journal,
        donor=donor,
        evaluate=evaluate,
        save=lambda applied: folder.save(start.manifest, applied, config.checkpoint.keep),
        emit=emit,
        clock=time.monotonic,
    )
    leadership = Leadership(config, start.manifest, start.consensus, start.outer, start.progress, tools)
    discovery = Discovery(identity, start.manifest.run_id, emit)
    announce_host = announced(options.announce, 0)[0] if options.announce else ""

    def initial_peers(caller: Caller) -> list[str]:
        return list(multiaddrs_for(caller.address, discovery.multiaddrs, announce_host))

    service = CoordinatorService(leadership, donor, log, initial_peers, emit)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(leadership.close)
        port = await stack.enter_async_context(serve(service, options.listen, ByteLedger()))
        address = shown_address(options.listen, options.announce, port)
        if options.use_dht:
            stack.push_async_callback(discovery.close)
            listen, announce = dht_places(options.listen, options.announce, options.dht_port)
            await discovery.start(listen=listen, announce=announce, initial_peers=())
        emit(_started(options, start, address))
        service.open()
        announcing = asyncio.create_task(discovery.keep_announcing(VOTER, address, Role.COORDINATOR))
        stack.callback(announcing.cancel)
        finished = await leadership.run(stop_gently)
        await leadership.see_peers_off()
        emit(finished)


def _begin(options: CoordinateOptions, folder: RunFolder, emit: Callable[[Event], None]) -> StartingPoint:
    if options.resume:
        return resume_run(folder, options.config, lambda message: emit(events.Warned(message=message)))
    return start_run(folder, options.config)


def _started(options: CoordinateOptions, start: StartingPoint, address: str) -> events.RunStarted:
    config = options.config
    return events.RunStarted(
        run=config.run.name,
        run_id=start.manifest.run_id,
        address=address,
        rounds=config.run.rounds,
        min_peers=config.run.min_peers,
        parameters=start.manifest.parameters,
        k_x=config.periods.k_x,
        local_space=config.optimizer.local_space,
        rank=str(config.optimizer.rank),
        voters=1,
        version=__version__,
    )


def make_evaluate(config: RunConfig) -> Callable[[Consensus], float]:
    """Held-out loss of a consensus, nats a token. Reads the data now; raises ConfigError if there is none."""
    batches = heldout_batches(heldout_tokens(config.data), config.data)
    model = Llama(config.model)

    def evaluate(consensus: Consensus) -> float:
        model.load_state_dict(dict(consensus.weights))
        return held_out_loss(model, batches)

    return evaluate
