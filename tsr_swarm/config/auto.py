"""What "auto" stands for where a setting follows from others: learning rate, ranks and the refresh of the bases."""

AUTO = "auto"
ALL = "1/1"  # a rank: all directions of both sides
FREE_SHAPES = ("seed", "dct")  # aims of which no side's basis is made from the other's

WIDE = 1024  # beyond this width cores of half the directions would cost more bytes a token than the text has
SMALL_VOCABULARY = 4096  # beyond, what is sent of embedding and head at these ranks would outweigh all matrices

_RATES = {"adam": 3e-3, "muon": 3e-2, "lordo": 6e-3}
_ROUNDS = {"seed": 1, "displacement": 1, "gradient": 5, "dct": 5}


def rate_for(inner: str, rate: float | str = AUTO, made_for: str = "adam") -> float:
    """Return the peak learning rate of the inner optimizer ``inner``; one of another name counts as adam.

    For "auto" it is 0.03 for muon, 0.006 for lordo and 0.003 for adam, in the middle of the rates that were best for
    each. A number that was chosen for the inner optimizer ``made_for`` is scaled by the ratio of the two, to 1 at most.
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


def rank_for(aim: str, hidden: int) -> str:
    """Return the rank of matrices in a model of width ``hidden``.

    Drawn and chosen bases cost nothing or little, so all bytes are the cores': half of the directions, or a third in a
    wide model. A sketch weighs as much as a core of four times its rank or more.
    """
    if aim in FREE_SHAPES:
        return "d/2" if hidden <= WIDE else "d/3"
    return "d/4" if aim == "gradient" else "d/8"


def embedding_rank_for(aim: str, hidden: int, vocabulary: int, rank: int | str) -> str:
    """Return the rank of embedding and head, where that of matrices is ``rank``: in a large vocabulary no more."""
    is_small = vocabulary <= SMALL_VOCABULARY
    if aim in FREE_SHAPES:
        return (ALL if rank == ALL else "1/2") if is_small else rank_for(aim, hidden)
    if not is_small:
        return "d/16"  # one sketch of 32,000 tokens then weighs less than all else of a round
    return "d/2" if aim == "gradient" else "d/4"
