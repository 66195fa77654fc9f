"""What the study compares: our own method in its variants, and its baselines, each at the rates it is tuned over."""

import json
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tsr_swarm.config.load import apply_overrides, run_config_from_mapping
from tsr_swarm.config.presets import preset_keys
from tsr_swarm.config.run import PeriodsConfig, RunConfig

K_X = PeriodsConfig().k_x
ADAM_RATES = (1.5e-3, 3e-3, 6e-3)
LORDO_RATES = (3e-3, 6e-3, 1e-2)
MUON_RATES = (1e-2, 3e-2, 6e-2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One method with one choice of settings: ``overrides`` are keys of the run file, ``settings`` a baseline's."""

    name: str
    rates: tuple[float, ...]
    method: str = "tsr"
    overrides: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    is_finalist: bool = False  # goes on to the long runs, at its best rate
    is_preset: bool = False  # of the run file only model, data and round count


def ours(name: str, *overrides: str, rates: tuple[float, ...] = (3e-2,), final: bool = False) -> Candidate:
    return Candidate(name=name, overrides=overrides, rates=rates, is_finalist=final)


def preset(name: str, rates: tuple[float, ...], final: bool = False) -> Candidate:
    """Ours as a preset sets it."""
    overrides = tuple(f"{key}={json.dumps(value)}" for key, value in preset_keys(name, K_X).items())
    return Candidate(name=f"preset {name}", overrides=overrides, rates=rates, is_finalist=final, is_preset=True)


def read_setting(setting: str, overrides: Iterable[str], is_bare: bool) -> RunConfig:
    """Read a run file of this folder. ``is_bare``: only what it says of what is trained and on what, not how."""
    file = tomllib.loads((Path(__file__).parent / setting).read_text("utf-8"))
    if is_bare:
        file = {section: file[section] for section in ("run", "model", "data", "round")}
    return run_config_from_mapping(apply_overrides(file, overrides))


def baseline(
    name: str, method: str, rates: tuple[float, ...] = ADAM_RATES, final: bool = False, **settings: Any
) -> Candidate:
    return Candidate(name=name, method=method, rates=rates, settings=settings, is_finalist=final)


def ranks(matrices: str, embedding: str) -> tuple[str, str]:
    quoted = [text if text.isdigit() and text != "1" else f'"{text}"' for text in (matrices, embedding)]
    return f"optimizer.rank={quoted[0]}", f"optimizer.embedding_rank={quoted[1]}"


ADAM = ('optimizer.inner="adam"',)
AIMED = ('optimizer.aim="gradient"', *ranks("d/2", "d/2"), "periods.k_r=100", "periods.k_r_embedding=100")
WIDE = ("wire.core_bits=8", "wire.published_bits=16", "optimizer.feedback=true")
HELD = ("periods.k_r=100", "periods.k_r_embedding=100")
NESTEROV = ('optimizer.outer="nesterov"', "optimizer.outer_lr=0.7", "optimizer.outer_momentum=0.5")
PAPER_PERIODS = {"k_u": "3x", "k_v": "6x"}  # of DES-LOC's main runs
OURS = "ours"
DENSE, DENSE_MUON = "dense averaging, AdamW", "dense averaging, Muon"

CORE = (
    ours(OURS, rates=(*MUON_RATES, 1e-1), final=True),
    preset("lordo", (1e-2,), final=True),  # twice that is as good in 160 steps, and worse in 600
    preset("tsr-adam", (*ADAM_RATES, 1e-2), final=True),
    preset("sketch", ADAM_RATES),
    preset("tsr-adam-dct", ADAM_RATES),
    baseline(DENSE, "diloco", outer="average", final=True),
    baseline(DENSE_MUON, "diloco", MUON_RATES, outer="average", inner="muon", final=True),
    ours("ours, rank d/4", *ranks("d/4", "1/4"), rates=(3e-2, 6e-2), final=True),
    ours("ours, all directions", *ranks("1", "1"), rates=(3e-2, 6e-2), final=True),
    # the bytes of DiLoCo every 40 and 75 steps, by fewer directions or by rarer exchanges
    ours("ours, rank 0.7 d", *ranks("45", "1/2"), rates=(3e-2, 6e-2), final=True),
    *(
        ours(
            f"ours, all directions, every {k_x}", *ranks("1", "1"), f"periods.k_x={k_x}", rates=(1e-2, 3e-2), final=True
        )
        for k_x in (40, 75)
    ),
    baseline("SparseLoCo 1/64", "sparseloco"),
    baseline("SparseLoCo 1/64, mean of senders", "sparseloco", average="senders", final=True),
    baseline("SparseLoCo 1/64, Muon", "sparseloco", (3e-3, *MUON_RATES), inner="muon", average="senders", final=True),
    baseline("DiLoCo (Nesterov)", "diloco", final=True),
    baseline("DiLoCo int8", "diloco", outer="average", bits=8, final=True),
    baseline("DiLoCo int4", "diloco", outer="average", bits=4, final=True),
    baseline("DiLoCo int4, Muon", "diloco", MUON_RATES, outer="average", bits=4, inner="muon", final=True),
    baseline("PowerSGD rank 4, every step", "powersgd", rank=4, final=True),
    baseline("PowerSGD rank 8, every 20th step", "powersgd", rank=8, k_x=20, final=True),
    baseline("data-parallel AdamW", "ddp", final=True),
    ours("ours, 2 bits", "wire.core_bits=2", "wire.published_bits=2"),
    ours("ours, 4 bits", "wire.core_bits=4", "wire.published_bits=4"),
    ours("ours, rank 3/4 d", *ranks("48", "1/2")),
    ours("ours, rank a half of each side", *ranks("1/2", "1/2")),
    ours("ours, embedding d/2", *ranks("d/2", "d/2")),
    ours("ours, embedding 1/4", *ranks("d/2", "1/4")),
    ours("ours, embedding 1", *ranks("d/2", "1")),
    ours("ours, rounding fed back", "optimizer.feedback=true"),
    ours("ours, dead zone 30 %", "wire.core_density=0.3", "wire.published_density=0.3"),
    ours("ours, refresh every 2nd round", "periods.k_r=40", "periods.k_r_embedding=40"),
    ours("ours, columns by energy (DCT)", 'optimizer.aim="dct"'),
    ours("ours, aimed by gradients every 5th round", *AIMED),
    ours("core-local Adam, aimed by gradients every 5th round", *AIMED, *ADAM, *WIDE, rates=(3e-3, 1e-2)),
    ours("ours, Adam in the core", *ADAM, rates=(3e-3, 1e-2)),
    ours("ours, refresh every 5th round", *HELD),
    ours("ours, refresh every 5th round, Nesterov outer step", *HELD, *NESTEROV),
    ours("ours, K_x = 10", "periods.k_x=10"),
    ours("ours, K_x = 40", "periods.k_x=40"),
    baseline("SparseLoCo 1/16, mean of senders", "sparseloco", density=1 / 16, average="senders", final=True),
    baseline("SparseLoCo 1/256, mean of senders", "sparseloco", density=1 / 256, average="senders"),
    baseline("LoRDO rank d/4", "lordo-paper"),
    baseline("DES-LOC", "des-loc"),
    baseline("Local Adam", "local-adam"),
    baseline("TSR-Adam, every step", "tsr-adam-paper", (3e-3, 1e-2), rank="d/2", embedding_rank="d/4"),
    baseline("data-parallel Muon, bf16", "ddp", MUON_RATES, inner="muon", bits=16, final=True),
    baseline("DiLoCo int3, Muon", "diloco", MUON_RATES, outer="average", bits=3, inner="muon", final=True),
    baseline("DiLoCo int2, Muon", "diloco", MUON_RATES, outer="average", bits=2, inner="muon", final=True),
    *(
        baseline(
            f"DiLoCo int3, Muon, every {k_x}",
            "diloco",
            MUON_RATES,
            outer="average",
            bits=3,
            inner="muon",
            k_x=k_x,
            final=True,
        )
        for k_x in (40, 75)  # 600 steps are no multiple of 80
    ),
    baseline("DiLoCo int3", "diloco", outer="average", bits=3),
    baseline("DiLoCo int2", "diloco", outer="average", bits=2),
    baseline("DES-LOC 3x 6x, bf16", "des-loc", bits=16, **PAPER_PERIODS, final=True),
    baseline("DES-LOC 3x 6x, int3", "des-loc", bits=3, **PAPER_PERIODS),
    baseline("Local Adam, bf16", "local-adam", bits=16),
    baseline("Local Adam, int3", "local-adam", bits=3),
    baseline("LoRDO rank d/4 3x 6x, bf16", "lordo-paper", bits=16, **PAPER_PERIODS, final=True),
    baseline("LoRDO rank d/4 3x 6x, omega 0.5, bf16", "lordo-paper", bits=16, omega=0.5, **PAPER_PERIODS),
    baseline("LoRDO rank d/4 3x 6x, omega 0.99, bf16", "lordo-paper", bits=16, omega=0.99, **PAPER_PERIODS),
    baseline("LoRDO rank d/4 3x 6x, int3", "lordo-paper", bits=3, **PAPER_PERIODS),
)

# The second stage: all go on to the long runs, those that say most first. Rates: one below and one above the best of
# the first stage, twice as high; for ours one more above them.
_FULL = (
    ours(OURS, rates=(2e-2, 4e-2, 8e-2)),
    baseline(DENSE, "diloco", (2e-3, 4e-3), outer="average"),
    baseline("DiLoCo int4", "diloco", (2e-3, 4e-3), outer="average", bits=4),
    baseline("SparseLoCo 1/64, mean of senders", "sparseloco", (2e-3, 4e-3), average="senders"),
    ours("ours, rank d/4", *ranks("d/4", "1/4"), rates=(2e-2, 4e-2)),
    ours("ours, all directions", *ranks("1", "1"), rates=(2e-2, 4e-2)),
    baseline("DiLoCo int4, Muon", "diloco", (2e-2, 4e-2), outer="average", bits=4, inner="muon"),
    baseline(DENSE_MUON, "diloco", (2e-2, 4e-2), outer="average", inner="muon"),
    baseline("data-parallel AdamW", "ddp", (4e-3, 8e-3)),
    baseline("DES-LOC", "des-loc", (2e-3, 4e-3)),
    baseline("LoRDO rank d/4", "lordo-paper", (4e-3, 8e-3)),
    baseline("SparseLoCo 1/16, mean of senders", "sparseloco", (1e-3, 2e-3), density=1 / 16, average="senders"),
    baseline("SparseLoCo 1/64, Muon", "sparseloco", (2e-3, 4e-3), inner="muon", average="senders"),
    baseline("DiLoCo int8", "diloco", (2e-3, 4e-3), outer="average", bits=8),
    baseline("PowerSGD rank 4, every step", "powersgd", (2e-3, 4e-3), rank=4),
    baseline("PowerSGD rank 8, every 20th step", "powersgd", (2e-3, 4e-3), rank=8, k_x=20),
    baseline("Local Adam", "local-adam", (2e-3, 4e-3)),
    baseline("TSR-Adam, every step", "tsr-adam-paper", (8e-3, 1.6e-2), rank="d/2", embedding_rank="d/4"),
)
FULL = tuple(replace(candidate, is_finalist=True) for candidate in _FULL)
