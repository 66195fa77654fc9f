"""States on disk: the same bytes at every donor, assembled again from chunks in any order, and kept long enough."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import safetensors.torch
import torch

from tests.steady import steady
from tsr_swarm.config.manifest import Manifest, make_manifest
from tsr_swarm.config.run import OptimizerConfig, PeriodsConfig, RunConfig
from tsr_swarm.errors import PeerError
from tsr_swarm.lowrank.basis import random_basis
from tsr_swarm.optim.consensus import Consensus
from tsr_swarm.optim.periods import plan_round
from tsr_swarm.storage import state_file
from tsr_swarm.storage.round_log import RoundLog
from tsr_swarm.storage.state_file import StateAssembly, begun_round, read_chunks, state_length, write_state
from tsr_swarm.storage.state_store import LEASE_SECONDS, MAX_STATES, StateStore
from tsr_swarm.train.trainer import fresh_consensus
from tsr_swarm.wire.v1 import swarm_pb2 as pb


def written(
    manifest: Manifest, consensus: Consensus, folder: Path, round: int = 3
) -> tuple[pb.StateDescription, list[pb.StateChunk]]:
    """Write a state to a file; returns all of its chunks too."""
    path = folder / "state.bin"
    description = write_state(path, manifest, consensus, round, b"c" * 32)
    return description, list(read_chunks(path, description, 0, 0))


def fill(assembly: StateAssembly, *chunks: pb.StateChunk) -> StateAssembly:
    for chunk in chunks:
        assembly.check(chunk)
        assembly.take(chunk.index)
    return assembly


@cache
def large_consensus() -> tuple[Manifest, Consensus]:
    """A state of two chunks: a low-rank block and a dense one."""
    config = RunConfig(optimizer=steady(rank=2, embedding_rank=2))
    manifest = make_manifest("run", config, {"a.weight": (1100, 300), "norm.weight": (300,)})
    weights = {"a.weight": torch.arange(330_000.0).reshape(1100, 300), "norm.weight": torch.ones(300)}
    return manifest, Consensus(manifest.blocks, weights, {0: random_basis(1100, 300, 2, 0, 0)})


def test_a_state_is_assembled_from_chunks_and_a_false_chunk_is_refused(tmp_path: Path) -> None:
    manifest, consensus = large_consensus()
    description, (first, second) = written(manifest, consensus, tmp_path)
    whole = fill(StateAssembly(description, manifest, tmp_path / "whole"), second, first)
    assert whole.is_complete
    assert whole.consensus(manifest).digest() == consensus.digest()

    torn = fill(StateAssembly(description, manifest, tmp_path / "torn"), second)
    for false in (pb.StateChunk(index=0, data=second.data), pb.StateChunk(index=2, data=first.data)):
        with pytest.raises(PeerError):
            torn.check(false)
    again = StateAssembly(description, manifest, tmp_path / "torn")
    assert again.missing == {0}, "it goes on where it was, in another process too"
    assert begun_round(tmp_path / "torn") == 3
    assert fill(again, first).consensus(manifest).digest() == consensus.digest()

    description.total_bytes = 2**39
    with pytest.raises(PeerError, match="more than"):
        StateAssembly(description, manifest, tmp_path)


def test_a_state_is_what_the_safetensors_library_writes(tmp_path: Path) -> None:
    """Donors with another version of the library must give the same bytes, so the file is written by own code."""
    manifest, consensus = large_consensus()
    written(manifest, consensus, tmp_path)
    assert (tmp_path / "state.bin").read_bytes() == safetensors.torch.save(consensus.tensors())
    assert state_length(consensus.tensors()) == (tmp_path / "state.bin").stat().st_size


def test_a_newer_download_replaces_what_is_left_of_an_older_one(tmp_path: Path) -> None:
    manifest, consensus = large_consensus()
    for round in (3, 8):
        StateAssembly(written(manifest, consensus, tmp_path, round)[0], manifest, tmp_path / "parts")
    assert begun_round(tmp_path / "parts") == 8
    assert len(list((tmp_path / "parts").iterdir())) == 1


def test_bases_that_every_peer_can_draw_are_not_shipped(tmp_path: Path) -> None:
    config = RunConfig(optimizer=OptimizerConfig(rank=2), periods=PeriodsConfig(k_x=5, k_r=10))
    manifest = make_manifest("run", config, {"a.weight": (40, 30), "norm.weight": (30,)})
    weights = {"a.weight": torch.randn(40, 30), "norm.weight": torch.ones(30)}
    consensus = fresh_consensus(manifest, weights)
    for round in range(1, 6):
        plan = plan_round(manifest.config, manifest.blocks, round, "")
        consensus.apply(plan, {}, frozenset({0, 1}))
    description, chunks = written(manifest, consensus, tmp_path, 5)
    assert description.total_bytes < 4 * (40 * 30 + 30) + 500
    whole = fill(StateAssembly(description, manifest, tmp_path / "whole"), *chunks)
    assert whole.consensus(manifest).digest() == consensus.digest()


def store_in(folder: Path, clock: Callable[[], float] = lambda: 0.0) -> StateStore:
    manifest, _ = large_consensus()
    log = RoundLog(folder / "published", 10_000)
    log.open()
    store = StateStore(manifest, folder / "states", log, clock)
    store.open()
    return store


def newest(store: StateStore, round: int = 0) -> pb.StateDescription:
    description = store.describe(round)
    assert description is not None
    return description


async def test_donors_describe_the_same_state_alike_and_give_the_chunks_that_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state_file, "CHUNK_BYTES", 4096)
    stores = [store_in(tmp_path / name) for name in "ab"]
    _, consensus = large_consensus()
    about, other = [await store.keep_state(consensus, 5, b"c" * 32) for store in stores]
    assert about == other
    one, two = [list(store.chunks(pb.FetchStateRequest(round=5, first_chunk=2, chunks=3))) for store in stores]
    assert [chunk.index for chunk in one] == [2, 3, 4]
    assert one == two
    rest = stores[0].chunks(pb.FetchStateRequest(round=5, first_chunk=2))
    assert len(list(rest)) == len(about.chunk_hashes) - 2
    assert list(stores[0].chunks(pb.FetchStateRequest(round=5, first_chunk=2**32 - 1, chunks=2**32 - 1))) == []


async def test_two_states_are_kept_and_one_that_is_being_fetched_a_little_longer(tmp_path: Path) -> None:
    now = [0.0]
    store = store_in(tmp_path, lambda: now[0])
    _, consensus = large_consensus()

    def kept() -> list[int]:
        return sorted(int(path.stem.removeprefix("state-")) for path in store.folder.iterdir())

    for round in (0, 5, 10):
        await store.keep_state(consensus, round, b"")
    assert kept() == [5, 10]
    begun = store.chunks(pb.FetchStateRequest(round=5))
    first = next(begun)
    store.lease(10)
    await store.keep_state(consensus, 15, b"")
    assert kept() == [5, 10, 15]
    assert newest(store, 5).round == 5
    assert newest(store, 1).round == newest(store).round == 15
    now[0] += LEASE_SECONDS + 1
    await store.keep_state(consensus, 20, b"")
    assert kept() == [15, 20]
    store.lease(10)  # too late
    assert [chunk.index for chunk in (first, *begun)] == list(range(len(newest(store).chunk_hashes)))
    for round in range(25, 60, 5):
        store.chunks(pb.FetchStateRequest(round=round - 5))
        await store.keep_state(consensus, round, b"")
        assert len(kept()) <= MAX_STATES


async def test_a_downloaded_state_is_kept_alone_with_the_rounds_that_lead_to_it(tmp_path: Path) -> None:
    manifest, consensus = large_consensus()
    store = store_in(tmp_path)
    chains = [b"", *(bytes([round]) * 32 for round in (1, 2, 3))]
    for round in (1, 2, 3):
        plan = pb.RoundPlan(round=round, parent=chains[round - 1])
        store.round_log.store(pb.PublishedHeader(plan=plan, chain=chains[round]), b"x")
        store.round_log.commit(round, chains[round])
    await store.keep_state(consensus, 3, chains[3])
    description, _ = written(manifest, consensus, tmp_path, 2)
    description.chain = chains[2]
    await store.start_anew(tmp_path / "state.bin", description)
    assert [path.name for path in store.folder.iterdir()] == ["state-000000002.bin"]
    assert [store.round_log.get(round) is not None for round in (1, 2, 3)] == [True, True, False]
    assert store.round_log.keeps_since(0)


def test_states_of_an_earlier_process_are_removed_and_other_files_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "states"
    (folder / "notes").mkdir(parents=True)
    for name in ("notes.txt", "state-000000005.bin", "state-000000010.new", "state-000000010.part"):
        (folder / name).touch()
    store_in(tmp_path)
    assert sorted(path.name for path in folder.iterdir()) == ["notes", "notes.txt", "state-000000010.part"]
