"""How the tests of the wire ask why something is refused."""

from collections.abc import Callable
from typing import Any

import pytest

from tsr_swarm.errors import PeerError


def refusal_of(call: Callable[..., Any], *arguments: Any, **keywords: Any) -> str:
    """The reason of the PeerError that a call raises, with one short sentence."""
    with pytest.raises(PeerError) as refusal:
        call(*arguments, **keywords)
    assert str(refusal.value).endswith(".")
    assert len(str(refusal.value)) < 300
    return refusal.value.reason
