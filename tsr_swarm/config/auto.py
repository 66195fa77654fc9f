"""What "auto" stands for where a setting follows from others: the learning rate and the refresh of the bases."""

AUTO = "auto"

_RATES = {"adam": 3e-3, "muon": 3e-2}
_ROUNDS = {"seed": 1, "displacement": 1, "gradient": 5, "dct": 5}


def rate_for(inner: str, rate: float | str = AUTO, made_for: str = "adam") -> float:
    """Return the peak learning rate of the inner optimizer ``inner``; one of another name counts as adam.

    For "auto" it is 0.03 for muon and 0.003 for adam, the middle of the rates that the study tries for each. A number
    that was chosen for the inner optimizer ``made_for`` is scaled by the ratio of the two, to 1 at most.
    """
    usual = _RATES.get(inner, _RATES["adam"])
    return usual if isinstance(rate, str) else min(1.0, rate * (usual / _RATES[made_for]))


def refresh_steps_for(aim: str, period: int | str, k_x: int) -> int:
    """Return the steps between two refreshes of the bases, 0 for every round: ``period``, or for "auto" by the aim.

    Drawn bases cost no byte and the sketch of a displacement is the round's work itself, so both change every round.
    What is made from a gradient asks for ``micro_batches`` more gradients and, as sketches, more bytes than the cores:
    five rounds share that.
    """
    if not isinstance(period, str):
        return period
    rounds = _ROUNDS[aim]
    return rounds * k_x if rounds > 1 else 0
