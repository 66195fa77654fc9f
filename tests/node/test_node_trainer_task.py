"""Uploads of one contribution: sent on as long as they are wanted, and given up once."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator

import pytest

from tests.node_context import RecordingDriver, open_node
from tests.published_rounds import plan_of, small_manifest
from tsr_swarm.node import trainer_task as module
from tsr_swarm.node.trainer_task import TrainerTask
from tsr_swarm.rounds.protocol import Event, OpenRound, ReducerSlot, Upload, UploadFailed
from tsr_swarm.rounds.state import Node
from tsr_swarm.train.trainer import RoundWork
from tsr_swarm.wire.v1 import swarm_pb2 as pb

ME, OTHER = "a" * 32, "b" * 32
MANIFEST = small_manifest(shards=1)
PLAN = OpenRound(1, "", 1, 1, (ReducerSlot(OTHER, 1),))


class LookingDriver(RecordingDriver):
    """Puts events as a driver does: each is followed by a look at what is still to be sent."""

    trainer_task: TrainerTask

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        self.queue: deque[Event] = deque()
        self.is_stepping = False
        self.plan, self.closed = PLAN, 0

    def put(self, event: Event) -> None:
        self.queue.append(event)
        if self.is_stepping:
            return
        self.is_stepping = True
        while self.queue:
            super().put(self.queue.popleft())
            assert len(self.events) < 10, "each event brings another one about"
            self.trainer_task.cancel_uploads(self.closed, self.plan)
        self.is_stepping = False


class HangingReducer:
    def __init__(self) -> None:
        self.is_asked, self.was_cancelled = asyncio.Event(), asyncio.Event()

    def expect(self, envelope: pb.Envelope) -> None:
        self.is_asked.set()

    async def submit(self, contribution: None, data: bytes) -> pb.SubmitReply:
        try:
            return await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            self.was_cancelled.set()
            raise


@pytest.fixture
async def trainer_task(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[TrainerTask]:
    monkeypatch.setattr(module, "pack", lambda *_: ({}, b""))
    monkeypatch.setattr(module, "seal", lambda _: pb.Envelope())
    async with open_node(ME, MANIFEST) as node:
        context, task = node.context, node.trainer_task
        context.driver = LookingDriver(context.driver.node)
        task.reducer = HangingReducer()  # type: ignore[assignment]
        task.work = RoundWork(plan_of(MANIFEST), 1, 1, 0.0, {}, {})
        context.driver.trainer_task = task
        yield task


@pytest.mark.parametrize("has_begun", [False, True])
async def test_a_shard_that_has_moved_is_given_up_once(has_begun: bool, trainer_task: TrainerTask) -> None:
    """It was given up again with every step until its task had ended, which it could not while there was a step."""
    driver, order = trainer_task.context.driver, Upload(1, 1, 0, ReducerSlot(ME, 1))
    trainer_task.upload(order)
    if has_begun:
        await trainer_task.reducer.is_asked.wait()
    driver.plan = OpenRound(1, "", 1, 2, (ReducerSlot(OTHER, 1),))
    for _ in range(2):
        driver.put(UploadFailed(1, 7, ReducerSlot(OTHER, 1)))
    assert driver.events.count(UploadFailed(1, 0, order.reducer)) == 1


async def test_a_round_that_stands_is_not_sent_any_more(trainer_task: TrainerTask) -> None:
    driver, order = trainer_task.context.driver, Upload(1, 1, 0, ReducerSlot(ME, 1))
    trainer_task.upload(order)
    await trainer_task.reducer.is_asked.wait()
    driver.closed = 1
    driver.put(UploadFailed(1, 7, ReducerSlot(OTHER, 1)))
    await trainer_task.reducer.was_cancelled.wait()
    assert len(driver.events) == 1, "nobody is told that it failed"
