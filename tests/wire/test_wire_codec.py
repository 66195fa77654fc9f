import hashlib
import math
import struct
import tracemalloc
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.wire.examples import random_grid, refusal_of
from tsr_swarm.config.blocks import Block, BlockRole
from tsr_swarm.config.layout import DENSE_BITS, Part, Slot, published_slots, upload_slots
from tsr_swarm.config.round_plan import Due
from tsr_swarm.config.run import WireConfig
from tsr_swarm.errors import PeerError, RunError
from tsr_swarm.lowrank.basis import BASIS_EXPONENT
from tsr_swarm.lowrank.grid import EXPONENT_MAX, EXPONENT_MIN, MANTISSA_MAX, Grid
from tsr_swarm.wire.codec import Section, decode, encode, wire_bytes
from tsr_swarm.wire.compression import compress, decompress

PLAIN = WireConfig(core_bits=8, sketch_bits=8, published_bits=16)
Payload = tuple[tuple[Slot, ...], dict[Slot, Grid]]


@st.composite
def blocks_and_due(draw: st.DrawFn) -> tuple[tuple[Block, ...], Due]:
    blocks = []
    for index in range(draw(st.integers(1, 5))):
        rows, cols = draw(st.integers(1, 9)), draw(st.integers(1, 9))
        role = draw(st.sampled_from(BlockRole))
        rank = 0 if role is BlockRole.DENSE else draw(st.integers(1, min(rows, cols)))
        blocks.append(Block(name=f"block{index}", rows=rows, cols=cols, rank=rank, role=role))
    low_rank = [index for index, block in enumerate(blocks) if block.is_low_rank]
    some = st.frozensets(st.sampled_from(low_rank)) if low_rank else st.just(frozenset[int]())
    due = {part: draw(some) for part in ("tangent", "range", "project", "first", "second")}
    return tuple(blocks), Due(**due)


FORMATS = st.tuples(st.sampled_from((2, 3, 4, 8, 16)), st.just(1.0)) | st.tuples(
    st.sampled_from((2, 3, 4, 8)), st.sampled_from((0.02, 0.1, 0.49, 0.5, 0.9))
)  # bits and density


@st.composite
def wires(draw: st.DrawFn) -> WireConfig:
    (core_bits, core), (published_bits, published) = draw(FORMATS), draw(FORMATS)
    bits = {
        "core_bits": core_bits,
        "published_bits": published_bits,
        "sketch_bits": draw(st.sampled_from((2, 3, 4, 5, 6, 8, 16))),
    }
    return WireConfig(core_density=core, published_density=published, **bits)


@st.composite
def payloads(draw: st.DrawFn) -> Payload:
    blocks, due = draw(blocks_and_due())
    wire = draw(wires())
    slots = upload_slots(blocks, due, wire) if draw(st.booleans()) else published_slots(blocks, due, wire)
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    return slots, {slot: random_grid(slot, rng) for slot in slots}


def assert_equal(left: Grid, right: Grid) -> None:
    pairs = (left.values, right.values), (left.exponents, right.exponents), (left.mantissas, right.mantissas)
    for a, b in pairs:
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


def framed(kind: str, raw: bytes) -> tuple[Section, bytes]:
    frame = compress(raw, 3)
    return Section(kind, len(raw), len(frame), hashlib.blake2b(raw, digest_size=32).digest()), frame


CORE = Slot(0, Part.CORE, 2, 3, 8, 2)
TANGENT = Slot(1, Part.TANGENT_LEFT, 3, 2, 16, 1)
DENSE = Slot(2, Part.DENSE, 1, 4, DENSE_BITS, 0)
SLOTS = (CORE, TANGENT, DENSE)
GRIDS = {slot: random_grid(slot, np.random.default_rng(0)) for slot in SLOTS}
SECTIONS, DATA = encode(SLOTS, GRIDS, 3)

FEW = (Slot(0, Part.CORE, 2, 3, 4, 2, 2), Slot(1, Part.CORE, 3, 3, 4, 1, 3))
SPARSE = (Slot(0, Part.CORE, 6, 6, 3, 1, 1, 0.1), Slot(1, Part.CORE, 4, 4, 3, 1, 1, 0.1))
COARSE = {
    slots: (grids, *encode(slots, grids, 3))
    for slots in (FEW, SPARSE)
    for grids in ({slot: random_grid(slot, np.random.default_rng(1)) for slot in slots},)
}


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


@pytest.mark.parametrize("slots", COARSE, ids=["few", "sparse"])
@given(data=st.data())
def test_any_content_of_a_coarse_section_is_in_range_and_in_its_one_form_or_refused(
    slots: tuple[Slot, ...], data: st.DataObject
) -> None:
    _, (section,), frame = COARSE[slots]
    raw = bytearray(decompress(frame, section.raw_bytes))
    for index, byte in data.draw(st.lists(st.tuples(st.integers(0, len(raw) - 1), st.integers(0, 255)), max_size=6)):
        raw[index] = byte
    forged, forged_frame = framed("core", bytes(raw))
    try:
        decoded = decode(slots, (forged,), forged_frame)
    except PeerError:
        return
    for slot, grid in decoded.items():
        assert int(grid.values.abs().max()) <= MANTISSA_MAX * (2 ** (slot.bits - 1) - 1) < 2**15
    assert encode(slots, decoded, 3)[0][0].hash == forged.hash


@given(data=st.binary(max_size=len(DATA) - 1))
def test_random_bytes_raise_only_peer_errors(data: bytes) -> None:
    assert refusal_of(decode, SLOTS, SECTIONS, data) == "length"
    assert refusal_of(decode, SLOTS, SECTIONS, DATA[: len(data)]) == "length"
    refusal_of(decode, SLOTS, SECTIONS, data[: len(DATA)].ljust(len(DATA), b"\x00"))


@given(
    sections=st.lists(
        st.builds(
            Section,
            st.sampled_from(["core", "sketch", "dense", "basis", "", "state", "x" * 100]),
            st.integers(-1, 2**63),
            st.integers(-1, 2**63),
            st.binary(max_size=40),
        ),
        max_size=5,
    )
)
def test_random_sections_raise_only_peer_errors(sections: list[Section]) -> None:
    refusal_of(decode, SLOTS, tuple(sections), DATA)


def test_sections_must_be_the_legal_ones_in_the_legal_order() -> None:
    core, tangent, dense = SECTIONS
    for wrong in ((tangent, core, dense), (core, tangent), (*SECTIONS, dense), (core, core, dense), ()):
        assert refusal_of(decode, SLOTS, wrong, DATA) == "sections"
    assert refusal_of(decode, (), SECTIONS, DATA) == "sections"


@pytest.mark.parametrize(
    ("reason", "change"),
    [
        *(("raw_bytes", {"raw_bytes": count}) for count in (0, 1, SECTIONS[0].raw_bytes + 1, 2**63)),
        *(("wire_bytes", {"wire_bytes": count}) for count in (0, 10**6, 2**63)),
        *(("hash", {"hash": value}) for value in (bytes(32), b"")),
    ],
)
def test_a_section_of_another_size_or_hash_is_refused(reason: str, change: dict[str, Any]) -> None:
    assert refusal_of(decode, SLOTS, (replace(SECTIONS[0], **change), *SECTIONS[1:]), DATA) == reason


def test_wire_bytes_must_cut_the_frames_where_they_end() -> None:
    first, second, third = SECTIONS
    longer, shorter = first.wire_bytes + 1, second.wire_bytes - 1
    moved = (replace(first, wire_bytes=longer), replace(second, wire_bytes=shorter), third)
    assert refusal_of(decode, SLOTS, moved, DATA) == "frame"


def test_a_payload_of_nothing_is_legal() -> None:
    assert encode((), {}, 3) == ((), b"")
    assert decode((), (), b"") == {}


NOTHING = torch.empty(0, dtype=torch.int32)
ILLEGAL: list[tuple[Slot, bytes, str, Grid, str]] = [  # as it is received and refused, and as it is not sent
    *(
        (DENSE, struct.pack("<4f", 0, 1, x, 2), "not_finite", Grid(torch.tensor([[0.0, 1.0, x, 2.0]]), NOTHING), "NaN")
        for x in (math.nan, math.inf, -math.inf)
    ),
    *(
        (CORE, struct.pack("<8b", 0, x, *[1] * 6), "exponent", Grid(torch.ones(2, 3), torch.tensor([0, x])), "expo")
        for x in (-128, EXPONENT_MIN - 1, EXPONENT_MAX + 1, 127)
    ),
    (
        CORE,
        struct.pack("<8b", 0, 0, 1, -128, 0, 0, 0, 0),
        "range",  # the most negative value
        Grid(torch.full((2, 3), -128, dtype=torch.int32), torch.zeros(2, dtype=torch.int32)),
        "does not fit",
    ),
]


@pytest.mark.parametrize(("slot", "raw", "reason", "grid", "sentence"), ILLEGAL)
def test_illegal_numbers_are_refused_on_both_ends(
    slot: Slot, raw: bytes, reason: str, grid: Grid, sentence: str
) -> None:
    section, frame = framed(slot.part.kind, raw)
    assert refusal_of(decode, (slot,), (section,), frame) == reason
    with pytest.raises(RunError, match=sentence):
        encode((slot,), {slot: grid}, 3)


@pytest.mark.parametrize("slots", COARSE, ids=["few", "sparse"])
def test_a_mantissa_of_zero_is_refused(slots: tuple[Slot, ...]) -> None:
    _, (section,), frame = COARSE[slots]
    raw = bytearray(decompress(frame, section.raw_bytes))
    raw[sum(slot.exponents for slot in slots)] = 0
    forged, forged_frame = framed("core", bytes(raw))
    assert refusal_of(decode, slots, (forged,), forged_frame) == "mantissa"


@pytest.mark.parametrize(
    ("slots", "value", "mantissas", "sentence"),
    [
        (FEW, 0, [0, 0], "mantissas"),
        (SPARSE, 0, [0], "mantissas"),
        (FEW, 1, [2, 1], "between its steps"),
        (FEW, 8, [1, 1], "does not fit"),
        (SPARSE, 4, [1], "does not fit"),
    ],
)
def test_values_that_the_steps_or_bits_do_not_allow_are_not_sent(
    slots: tuple[Slot, ...], value: int, mantissas: list[int], sentence: str
) -> None:
    grids, first = COARSE[slots][0], slots[0]
    values = torch.full((first.rows, first.cols), value, dtype=torch.int32)
    wrong = Grid(values, grids[first].exponents, torch.tensor(mantissas, dtype=torch.int32))
    with pytest.raises(RunError, match=sentence):
        encode(slots, {**grids, first: wrong}, 3)


def test_a_section_is_scales_first_then_what_they_scale() -> None:
    slots = (Slot(0, Part.CORE, 1, 3, 2, 1, 1, 0.1), Slot(1, Part.CORE, 1, 2, 2, 1, 1, 0.1))
    values = ([[5, 0, 0]], [[0, -9]])
    grids = {
        slot: Grid(torch.tensor(v, dtype=torch.int32), torch.tensor([-7 - i]), torch.tensor([5 + 4 * i]))
        for i, (slot, v) in enumerate(zip(slots, values, strict=True))
    }
    (section,), frame = encode(slots, grids, 3)
    raw = decompress(frame, section.raw_bytes)
    assert raw == struct.pack("<2b2B", -7, -8, 5, 9) + bytes([1, 4, 0, 0b10]) + bytes(section.raw_bytes - 8)


def test_the_default_payloads_have_not_changed() -> None:
    blocks = (
        Block(name="a", rows=9, cols=7, rank=4, role=BlockRole.MATRIX),
        Block(name="b", rows=8, cols=6, rank=5, role=BlockRole.EMBEDDING),
        Block(name="n", rows=1, cols=5, rank=0, role=BlockRole.DENSE),
    )
    both = frozenset({0, 1})
    hasher = hashlib.blake2b(digest_size=16)
    for due in (Due(), Due(tangent=frozenset({0})), Due(range=both), Due(tangent=both, project=frozenset({1}))):
        for slots in (upload_slots(blocks, due, PLAIN), published_slots(blocks, due, PLAIN)):
            rng = np.random.default_rng(7)
            sections, _ = encode(slots, {slot: random_grid(slot, rng) for slot in slots}, 3)
            for section in sections:
                hasher.update(f"{section.kind} {section.raw_bytes}".encode() + section.hash)
    assert hasher.hexdigest() == "f55c147efbf98f1482038decf29617ce"  # as protocol 5 has them


def test_a_basis_needs_no_exponent_and_comes_back_with_its_fixed_one() -> None:
    slot = Slot(0, Part.SINGULAR_LEFT, 3, 1, 16, 0)
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
