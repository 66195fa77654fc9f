"""Rounds inside ``with torch.device(...)``: tensors are made where they are needed, whatever the default is."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.steady import steady, wide

CASES: dict[str, tuple[list[str], dict[str, Any], dict[str, Any]]] = {
    "adam": (["core", "core"], {}, {}),
    "muon": (["core", "core"], {"inner": "muon"}, {}),
    "full": (["full", "core"], {"local_space": "mixed"}, {}),
    "drawn": (["core", "core"], {"aim": "seed"}, {}),
    "few bits": (["core", "core"], {}, {"core_bits": 2, "published_bits": 3}),
    "few numbers": (["core", "core"], {}, {"core_density": 0.5, "published_density": 0.5}),
}


def rounds(swarm: Any, gradient: Any, case: str, context: Any) -> dict[str, Tensor]:
    """A peer's weights and state after some rounds, one of which it missed."""
    spaces, optimizer, wire = CASES[case]
    wire = {"published_bits": 8} | wire if "core_density" in wire else wire
    optimizer = {"rank": 4, "lr": 0.01, "warmup_steps": 0} | optimizer
    peers = swarm(spaces, gradient, optimizer=steady(**optimizer), wire=wide(**wire))
    with context:
        for included in (None, [1], None):
            peers.play(included)
        saved = peers.spaces[0].state_dict()
        peers.spaces[0].load_state_dict(saved)
    return saved | peers.consensus[0].weights


@pytest.mark.parametrize("case", CASES)
def test_a_default_device_changes_nothing(swarm: Any, least_squares: Any, case: str) -> None:
    plain, inside = (
        rounds(swarm, least_squares(2, seed=1).gradient, case, context)
        for context in (nullcontext(), torch.device("meta"))
    )
    assert plain.keys() == inside.keys()
    assert all(torch.equal(plain[name], inside[name]) for name in plain)
