"""A run's rounds, which tests of this folder read and none changes."""

import pytest
import torch

from tests.published_rounds import SHAPES, History, make_history, small_manifest
from tsr_swarm.train.trainer import fresh_consensus


@pytest.fixture(scope="session")
def history() -> History:
    manifest = small_manifest()
    torch.manual_seed(0)
    weights = {name: torch.randn(shape) for name, shape in SHAPES.items()}
    return make_history(manifest, fresh_consensus(manifest, weights), 20)
