"""What the spread of a few runs says about their mean. Pure."""

import math
import statistics
from collections.abc import Sequence

# 97.5 % quantile of Student's t with 1, 2, ... degrees of freedom
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
_NORMAL = 1.960
MAX_SEEDS = len(_T) + 1


def over_seeds(differences: Sequence[float]) -> tuple[float, float]:
    """Mean, and half the width of its 95 % interval (Student's t); infinite for a single one."""
    count = len(differences)
    if not 1 <= count <= MAX_SEEDS:
        raise ValueError(f"{count} seeds; an interval is made of 1 to {MAX_SEEDS}.")
    if count == 1:
        return differences[0], math.inf
    return statistics.fmean(differences), _T[count - 2] * statistics.stdev(differences) / math.sqrt(count)


def over_sentences(ours: Sequence[Sequence[bool]], theirs: Sequence[Sequence[bool]]) -> float:
    """Half the width of the 95 % interval that the choice of held-out sentences gives the mean difference.

    ``ours`` and ``theirs``: by seed, whether each sentence was classified rightly. A sentence's difference is its mean
    over the seeds; the models are taken as they are.
    """
    pairs = zip(zip(*ours, strict=True), zip(*theirs, strict=True), strict=True)
    differences = [statistics.fmean(mine) - statistics.fmean(other) for mine, other in pairs]
    return _NORMAL * statistics.stdev(differences) / math.sqrt(len(differences))


def of_accuracy(accuracy: float, sentences: int) -> float:
    """The same for one accuracy alone (normal approximation of the binomial)."""
    return _NORMAL * math.sqrt(accuracy * (1 - accuracy) / sentences)
