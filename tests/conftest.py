"""Settings that hold for every test."""

import signal
from collections.abc import Iterator

import pytest
from hypothesis import settings

# How long one example takes depends on what else the machine does; pytest-timeout bounds the whole test.
settings.register_profile("no-deadline", deadline=None)
settings.load_profile("no-deadline")


@pytest.fixture(scope="session", autouse=True)
def hang_up_has_its_default_action() -> Iterator[None]:
    """Let SIGHUP end what tests start, also where the tests themselves were started to ignore it, as by nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)
