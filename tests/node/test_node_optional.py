"""What a run can do without is a warning when it fails: training goes on."""

import os
import resource
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.swarm_rig import run_swarm, tiny_config
from tsr_swarm.config.run import RunConfig
from tsr_swarm.node.coordinator import EVENTS_FILE
from tsr_swarm.optim.consensus import Consensus
from tsr_swarm.telemetry.events import Warned
from tsr_swarm.transport.tcp_info import KernelBytes


async def test_a_record_that_cannot_be_written_is_a_warning_and_the_run_goes_on(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, run={"rounds": 1})
    record = Path(config.checkpoint.dir) / EVENTS_FILE
    record.mkdir(parents=True)
    swarm = await run_swarm(tmp_path, config, peers=1)
    assert swarm.finished().rounds == 1
    [warning] = [event.message for event in swarm.of(Warned)]
    assert warning.startswith(f"{record} cannot be used (")
    assert warning.endswith("; the run goes on without a record of it.")


async def test_a_score_that_memory_does_not_suffice_for_is_a_warning_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make_evaluate(config: RunConfig, warn: object) -> Callable[[Consensus], float]:
        def evaluate(consensus: Consensus) -> float:
            raise MemoryError

        return evaluate

    monkeypatch.setattr("tsr_swarm.node.coordinator.make_evaluate", make_evaluate)
    swarm = await run_swarm(tmp_path, tiny_config(tmp_path, run={"rounds": 1}), peers=1)
    assert (swarm.finished().rounds, swarm.finished().last_loss) == (1, None)
    assert [event.message.partition(":")[0] for event in swarm.of(Warned)] == [
        "Round 0 is not scored",
        "Round 1 is not scored",
    ]


def test_without_a_file_to_look_with_the_kernels_bytes_are_unknown() -> None:
    kernel = KernelBytes([])
    assert kernel.sample() is not None
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, limits[1]))
    try:
        assert kernel.sample() is None
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
