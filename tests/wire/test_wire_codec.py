import hashlib
import math
import struct
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tsr_swarm.config.blocks import Block, Role
from tsr_swarm.config.layout import DENSE_BITS, Part, Slot, published_slots, upload_slots
from tsr_swarm.config.plan import Due
from tsr_swarm.config.run import WireConfig
from tsr_swarm.errors import PeerError, RunError
from tsr_swarm.lowrank.basis import BASIS_EXPONENT
from tsr_swarm.lowrank.grid import EXPONENT_MAX, EXPONENT_MIN, Grid
from tsr_swarm.wire.codec import Section, decode, encode, wire_bytes
from tsr_swarm.wire.compression import compress

Payload = tuple[tuple[Slot, ...], dict[Slot, Grid]]


@st.composite
def blocks_and_due(draw: st.DrawFn) -> tuple[tuple[Block, ...], Due]:
    blocks = []
    for index in range(draw(st.integers(1, 5))):
        rows, cols = draw(st.integers(1, 9)), draw(st.integers(1, 9))
        role = draw(st.sampled_from(Role))
        rank = 0 if role is Role.DENSE else draw(st.integers(1, min(rows, cols)))
        blocks.append(Block(name=f"block{index}", rows=rows, cols=cols, rank=rank, role=role))
    low_rank = [index for index, block in enumerate(blocks) if block.is_low_rank]
    some = st.frozensets(st.sampled_from(low_rank)) if low_rank else st.just(frozenset[int]())
    return tuple(blocks), Due(tangent=draw(some), aim=draw(some))


@st.composite
def payloads(draw: st.DrawFn) -> Payload:
    blocks, due = draw(blocks_and_due())
    bits = st.sampled_from((8, 16))
    wire = WireConfig(core_bits=draw(bits), sketch_bits=draw(bits), published_bits=draw(bits))
    slots = upload_slots(blocks, due, wire) if draw(st.booleans()) else published_slots(blocks, due, wire)
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    return slots, {slot: random_grid(slot, rng) for slot in slots}


def random_grid(slot: Slot, rng: np.random.Generator) -> Grid:
    shape = (slot.rows, slot.cols)
    if slot.bits == DENSE_BITS:
        values = rng.standard_normal(shape).astype(np.float32)
        return Grid(torch.from_numpy(values), torch.empty(0, dtype=torch.int32))
    limit = 2 ** (slot.bits - 1) - 1
    integers = rng.integers(-limit, limit, shape, dtype=np.int32, endpoint=True)
    exponents = rng.integers(EXPONENT_MIN, EXPONENT_MAX, slot.exponents, dtype=np.int32, endpoint=True)
    if slot.exponents == 0:
        exponents = np.array([BASIS_EXPONENT], dtype=np.int32)
    return Grid(torch.from_numpy(integers), torch.from_numpy(exponents))


def assert_equal(left: Grid, right: Grid) -> None:
    for a, b in ((left.values, right.values), (left.exponents, right.exponents)):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


def framed(kind: str, raw: bytes) -> tuple[Section, bytes]:
    frame = compress(raw, 3)
    return Section(kind, len(raw), len(frame), hashlib.blake2b(raw, digest_size=32).digest()), frame


def refusal_of(slots: tuple[Slot, ...], sections: tuple[Section, ...], data: bytes) -> str:
    with pytest.raises(PeerError) as refusal:
        decode(slots, sections, data)
    assert str(refusal.value).endswith(".")
    return refusal.value.reason


CORE = Slot(0, Part.CORE, 2, 3, 8, 2)
TANGENT = Slot(1, Part.TANGENT_LEFT, 3, 2, 16, 1)
DENSE = Slot(2, Part.DENSE, 1, 4, DENSE_BITS, 0)
SLOTS = (CORE, TANGENT, DENSE)
GRIDS = {slot: random_grid(slot, np.random.default_rng(0)) for slot in SLOTS}
SECTIONS, DATA = encode(SLOTS, GRIDS, 3)


@given(payload=payloads(), level=st.integers(1, 5))
def test_decode_inverts_encode(payload: Payload, level: int) -> None:
    slots, grids = payload
    sections, data = encode(slots, grids, level)
    assert wire_bytes(sections) == len(data)
    assert sum(section.raw_bytes for section in sections) == sum(slot.raw_bytes for slot in slots)
    decoded = decode(slots, sections, data)
    assert list(decoded) == list(slots)
    for slot in slots:
        assert_equal(decoded[slot], grids[slot])


def test_encoding_is_the_same_every_time() -> None:
    assert encode(SLOTS, GRIDS, 3) == (SECTIONS, DATA)


@settings(max_examples=300)
@given(bit=st.integers(0, 8 * len(DATA) - 1))
def test_a_flipped_bit_in_the_frames_is_refused_or_changes_nothing(bit: int) -> None:
    flipped = bytearray(DATA)
    flipped[bit // 8] ^= 1 << bit % 8
    try:
        decoded = decode(SLOTS, SECTIONS, bytes(flipped))
    except PeerError:
        return
    for slot in SLOTS:
        assert_equal(decoded[slot], GRIDS[slot])


@given(data=st.binary(max_size=400))
def test_random_bytes_raise_only_peer_errors(data: bytes) -> None:
    refusal_of(SLOTS, SECTIONS, data)
    refusal_of(SLOTS, SECTIONS, data[: len(DATA)].ljust(len(DATA), b"\x00"))


@given(
    sections=st.lists(
        st.builds(
            Section,
            st.sampled_from(["core", "tangent", "dense", "basis", "", "state", "x" * 100]),
            st.integers(-1, 2**63),
            st.integers(-1, 2**63),
            st.binary(max_size=40),
        ),
        max_size=5,
    )
)
def test_random_sections_raise_only_peer_errors(sections: list[Section]) -> None:
    refusal_of(SLOTS, tuple(sections), DATA)


@pytest.mark.parametrize("length", range(0, len(DATA), 7))
def test_truncated_payloads_are_refused(length: int) -> None:
    assert refusal_of(SLOTS, SECTIONS, DATA[:length]) == "length"


def test_sections_must_be_the_legal_ones_in_the_legal_order() -> None:
    core, tangent, dense = SECTIONS
    for wrong in ((tangent, core, dense), (core, tangent), (*SECTIONS, dense), (core, core, dense), ()):
        assert refusal_of(SLOTS, wrong, DATA) == "sections"
    assert refusal_of((), SECTIONS, DATA) == "sections"


@pytest.mark.parametrize("raw_bytes", [0, 1, SECTIONS[0].raw_bytes + 1, 2**63])
def test_raw_bytes_must_be_exactly_legal(raw_bytes: int) -> None:
    wrong = (replace(SECTIONS[0], raw_bytes=raw_bytes), *SECTIONS[1:])
    assert refusal_of(SLOTS, wrong, DATA) == "raw_bytes"


@pytest.mark.parametrize("count", [0, 10**6, 2**63])
def test_wire_bytes_are_bounded(count: int) -> None:
    wrong = (replace(SECTIONS[0], wire_bytes=count), *SECTIONS[1:])
    assert refusal_of(SLOTS, wrong, DATA) == "wire_bytes"


def test_wire_bytes_must_cut_the_frames_where_they_end() -> None:
    first, second, third = SECTIONS
    moved = (
        replace(first, wire_bytes=first.wire_bytes + 1),
        replace(second, wire_bytes=second.wire_bytes - 1),
        third,
    )
    assert refusal_of(SLOTS, moved, DATA) == "frame"


def test_the_hash_must_fit_the_content() -> None:
    wrong = (replace(SECTIONS[0], hash=bytes(32)), *SECTIONS[1:])
    assert refusal_of(SLOTS, wrong, DATA) == "hash"
    short = (replace(SECTIONS[0], hash=b""), *SECTIONS[1:])
    assert refusal_of(SLOTS, short, DATA) == "hash"


def test_a_payload_of_nothing_is_legal() -> None:
    assert encode((), {}, 3) == ((), b"")
    assert decode((), (), b"") == {}


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_floats_that_are_not_finite_are_refused_on_both_ends(number: float) -> None:
    section, frame = framed("dense", struct.pack("<4f", 0, 1, number, 2))
    assert refusal_of((DENSE,), (section,), frame) == "not_finite"
    grid = Grid(torch.tensor([[0.0, 1.0, number, 2.0]]), torch.empty(0, dtype=torch.int32))
    with pytest.raises(RunError, match=r"NaN or Inf"):
        encode((DENSE,), {DENSE: grid}, 3)


@pytest.mark.parametrize("exponent", [-128, EXPONENT_MIN - 1, EXPONENT_MAX + 1, 127])
def test_exponents_out_of_range_are_refused_on_both_ends(exponent: int) -> None:
    section, frame = framed("core", struct.pack("<2b6b", 0, exponent, *[1] * 6))
    assert refusal_of((CORE,), (section,), frame) == "exponent"
    grid = Grid(torch.ones(2, 3, dtype=torch.int32), torch.tensor([0, exponent], dtype=torch.int32))
    with pytest.raises(RunError, match="exponents"):
        encode((CORE,), {CORE: grid}, 3)


def test_the_most_negative_value_is_refused_on_both_ends() -> None:
    section, frame = framed("core", struct.pack("<2b6b", 0, 0, 1, -128, 0, 0, 0, 0))
    assert refusal_of((CORE,), (section,), frame) == "range"
    grid = Grid(torch.full((2, 3), -128, dtype=torch.int32), torch.zeros(2, dtype=torch.int32))
    with pytest.raises(RunError, match="does not fit"):
        encode((CORE,), {CORE: grid}, 3)


def test_a_basis_needs_no_exponent_and_comes_back_with_its_fixed_one() -> None:
    slot = Slot(0, Part.BASIS_LEFT, 3, 1, 12, 0)
    bare = Grid(torch.tensor([[2047], [-2047], [5]], dtype=torch.int32), torch.empty(0, dtype=torch.int32))
    sections, data = encode((slot,), {slot: bare}, 3)
    decoded = decode((slot,), sections, data)[slot]
    assert decoded.exponents.tolist() == [BASIS_EXPONENT]
    assert torch.equal(decoded.numbers(), bare.values.double() * 2.0**BASIS_EXPONENT)


@pytest.mark.parametrize("shape", [(3, 2), (6, 1), (2, 4)])
def test_a_grid_of_another_shape_is_not_sent(shape: tuple[int, int]) -> None:
    grid = Grid(torch.ones(shape, dtype=torch.int32), torch.zeros(shape[0], dtype=torch.int32))
    with pytest.raises(RunError, match="not \\(2, 3\\)"):
        encode((CORE,), {CORE: grid}, 3)


def test_a_large_section_costs_a_few_times_its_size() -> None:
    slot = Slot(0, Part.CORE, 512, 512, 16, 512)
    grid = random_grid(slot, np.random.default_rng(1))
    sections, data = encode((slot,), {slot: grid}, 3)
    tracemalloc.start()
    decode((slot,), sections, data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 12 * slot.raw_bytes
