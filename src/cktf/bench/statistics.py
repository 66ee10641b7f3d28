"""Means, spreads and paired differences over seeds."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeVar

from cktf.errors import RecipeError

Key = TypeVar("Key")

LEVEL = 0.95


class Difference(NamedTuple):
    """A mean of paired differences, and where it may lie.

    Attributes:
        mean: in points.
        low, high: ends of the confidence interval; the mean itself is all that one pair tells.
        pairs: how many there are.
    """

    mean: float
    low: float | None
    high: float | None
    pairs: int

    @property
    def verdict(self) -> str:
        """On which side of 0 the interval lies; `single` where there is none.

        >>> Difference(0.5, 0.1, 0.9, 3).verdict, Difference(0.5, -0.1, 1.1, 3).verdict
        ('ahead', 'open')
        >>> Difference(0.5, None, None, 1).verdict
        'single'
        """
        if self.low is None or self.high is None:
            return "single"
        if self.low <= 0 <= self.high:
            return "open"
        return "ahead" if self.mean > 0 else "behind"


def spread(values: Sequence[float]) -> float | None:
    """Standard deviation of a sample; None for one value."""
    return statistics.stdev(values) if len(values) > 1 else None


def paired(first: Mapping[Key, float], second: Mapping[Key, float]) -> Difference | None:
    """First less second where both have a value; None where they have none in common.

    The interval is Student's, for the mean of the differences.

    >>> paired({0: 2.0, 1: 4.0, 2: 3.0}, {0: 1.0, 1: 2.0, 2: 3.0, 3: 9.0})
    Difference(mean=1.0, low=-1.48..., high=3.48..., pairs=3)
    """
    return interval([first[key] - second[key] for key in first if key in second])


def interval(differences: Sequence[float]) -> Difference | None:
    """Their mean, and Student's interval of it; None where there are none.

    >>> interval([0.5])
    Difference(mean=0.5, low=None, high=None, pairs=1)
    """
    if not differences:
        return None
    mean, deviation = statistics.mean(differences), spread(differences)
    if deviation is None:
        return Difference(mean, None, None, 1)
    try:
        from scipy.stats import t
    except ImportError as error:
        raise RecipeError(["Intervals need scipy: pip install 'cktf[report]'."]) from error
    count = len(differences)
    half = float(t.ppf((1 + LEVEL) / 2, count - 1)) * deviation / math.sqrt(count)
    return Difference(mean, mean - half, mean + half, count)
