"""Why a screen gets no news."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Trouble:
    """``text`` is a sentence without its full stop, ``short`` its beginning; ``seconds``: for how long, if known."""

    text: str
    short: str
    seconds: float | None = None
