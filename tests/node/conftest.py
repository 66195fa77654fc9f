"""A run's rounds, which tests of this folder read and none changes."""

import pytest

from tests.published_rounds import History, small_history


@pytest.fixture(scope="session")
def history() -> History:
    return small_history(20)
