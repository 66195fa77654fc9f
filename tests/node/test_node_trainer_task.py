"""Uploads of one contribution: sent on as long as they are wanted, and given up once."""

import asyncio
from collections import deque

import pytest

from tsr_swarm.config.manifest import make_manifest
from tsr_swarm.config.run import RunConfig
from tsr_swarm.node import trainer_task as module
from tsr_swarm.node.address_book import AddressBook, ClientPool
from tsr_swarm.node.round_cache import RoundCache
from tsr_swarm.node.trainer_task import Seams, TrainerTask
from tsr_swarm.optim.periods import plan_round
from tsr_swarm.process.tasks import Background
from tsr_swarm.rounds.protocol import Event, OpenRound, ReducerSlot, Upload, UploadFailed
from tsr_swarm.telemetry.byte_counter import ByteCounter
from tsr_swarm.train.trainer import RoundWork
from tsr_swarm.transport.tcp_info import KernelBytes
from tsr_swarm.wire.v1 import swarm_pb2 as pb

ME, OTHER = "a" * 32, "b" * 32
MANIFEST = make_manifest("run", RunConfig(), {"norm.weight": (30,)})


class Rig:
    """Puts events as a shell does: each is followed by a look at what is still wanted."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.queue: deque[Event] = deque()
        self.is_stepping = False
        self.background = Background()
        self.plan = OpenRound(1, "", 1, 1, (ReducerSlot(OTHER, 1),))
        self.closed = 0
        book = AddressBook(ME)
        seams = Seams(put=self.put, warn=print, is_stale=bool, train=self.none, submit_here=self.never)
        clients = ClientPool(book, ByteCounter(), KernelBytes([]))
        self.training = TrainerTask(ME, MANIFEST, clients, RoundCache(), seams, self.background)

    def put(self, event: Event) -> None:
        self.queue.append(event)
        if self.is_stepping:
            return
        self.is_stepping = True
        while self.queue:
            self.events.append(self.queue.popleft())
            assert len(self.events) < 10, "each event brings another one about"
            self.training.look_again(self.closed, self.plan)
        self.is_stepping = False

    async def never(self, *_: object) -> pb.SubmitReply:
        await asyncio.get_running_loop().create_future()
        return pb.SubmitReply()

    async def none(self, *_: object) -> None:
        return None


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> RoundWork:
    plan = plan_round(MANIFEST.config, MANIFEST.blocks, 1, "")
    monkeypatch.setattr(module, "pack", lambda *_: ({}, b""))
    monkeypatch.setattr(module, "seal", lambda _: pb.Envelope())
    return RoundWork(plan, 1, 1, 0.0, {}, {})


@pytest.mark.parametrize("has_begun", [False, True])
async def test_a_shard_that_has_moved_is_given_up_once(has_begun: bool, work: RoundWork) -> None:
    """It was given up again with every step until its task had ended, which it could not while there was a step."""
    rig = Rig()
    rig.training.work = work
    order = Upload(1, 1, 0, ReducerSlot(ME, 1))
    rig.training.upload(order)
    if has_begun:
        await asyncio.to_thread(int)
    rig.plan = OpenRound(1, "", 1, 2, (ReducerSlot(OTHER, 1),))
    rig.put(UploadFailed(1, 7, ReducerSlot(OTHER, 1)))
    rig.put(UploadFailed(1, 7, ReducerSlot(OTHER, 1)))
    assert rig.events.count(UploadFailed(1, 0, order.place)) == 1
    await rig.background.close()


async def test_a_round_that_stands_is_not_sent_any_more(work: RoundWork) -> None:
    rig = Rig()
    rig.training.work = work
    rig.training.upload(Upload(1, 1, 0, ReducerSlot(OTHER, 1)))
    (task,) = rig.background._tasks
    rig.closed = 1
    rig.put(UploadFailed(1, 7, ReducerSlot(OTHER, 1)))
    await asyncio.gather(task, return_exceptions=True)
    assert task.cancelled()
    assert len(rig.events) == 1
