"""Statistics of a table: one pooled variance, contrasts of means, Student's t, Holm's correction.

Samples of a table share one residual variance: each is a few seeds, too few for a variance of its
own. Seeds are not paired, since runs of two methods with one seed were measured not to correlate.
"""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

Key = TypeVar("Key")
# A method and its accuracies on one pair. The student alone has the same sample on every pair.
Sample = tuple[str, tuple[float, ...]]

CONFIDENCE = 0.95


class Residual(NamedTuple):
    """Spread of seeds around their means.

    Attributes:
        std: standard deviation, pooled over samples.
        dof: degrees of freedom.
    """

    std: float
    dof: int


@dataclass(frozen=True)
class Difference:
    """A difference of means, in points of accuracy.

    Attributes:
        points: the estimate.
        low, high: ends of its 95 % confidence interval, not corrected; None without a variance.
        p: two-sided p-value, not corrected.
        adjusted_p: the p-value that decides: corrected by Holm's method, unless it is the primary.
        pairs: number of pairs of networks, or of seeds, that it is the mean of.
    """

    points: float
    low: float | None = None
    high: float | None = None
    p: float | None = None
    adjusted_p: float | None = None
    pairs: int = 1

    @property
    def verdict(self) -> str | None:
        """`ahead`, `behind` or `open`; None without a variance.

        >>> Difference(0.5, 0.1, 0.9, 0.02, 0.04).verdict
        'ahead'
        """
        if self.adjusted_p is None:
            return None
        if self.adjusted_p > 1 - CONFIDENCE:
            return "open"
        return "ahead" if self.points > 0 else "behind"


def sample_std(values: Sequence[float]) -> float | None:
    """Standard deviation of a sample; None for one value."""
    return statistics.stdev(values) if len(values) > 1 else None


def pool_variance(samples: Iterable[Sample]) -> Residual | None:
    """Pooled residual standard deviation; None where every sample is a single value.

    >>> pool_variance([("KD", (1.0, 3.0)), ("AT", (5.0, 7.0)), ("SP", (9.0,))])
    Residual(std=1.414..., dof=2)
    """
    values = [sample for _, sample in set(samples)]
    dof = sum(len(sample) - 1 for sample in values)
    if not dof:
        return None
    squares = (sum((x - statistics.mean(v)) ** 2 for x in v) for v in values)
    return Residual(math.sqrt(sum(squares) / dof), dof)


def contrast(weights: Mapping[Sample, float], residual: Residual | None) -> Difference:
    """Estimate a weighted sum of samples' means, with an interval from the pooled variance.

    Args:
        weights: weight of each sample's mean; they sum to 0.
        residual: pooled standard deviation; None gives the estimate alone.
    """
    points = sum(w * statistics.mean(values) for (_, values), w in weights.items())
    if residual is None:
        return Difference(points)
    error = residual.std * math.sqrt(sum(w**2 / len(v) for (_, v), w in weights.items()))
    half = t_quantile(residual.dof) * error
    # Seeds without any spread leave no doubt.
    p = t_two_sided(points / error, residual.dof) if error else float(points == 0)
    return Difference(points, points - half, points + half, p, p)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for their number. Source: Holm, Scand. J. Statist. 6 (1979), 65-70.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def t_two_sided(t: float, dof: int) -> float:
    """Probability of a larger |t| under Student's distribution.

    Source: Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.3 and 26.7.4: finite
    sums, exact for whole degrees of freedom.

    >>> round(t_two_sided(2.0, 10), 6)
    0.073388
    """
    angle = math.atan(abs(t) / math.sqrt(dof))
    sine, cosine, odd = math.sin(angle), math.cos(angle), dof % 2
    term, total = cosine if odd else 1.0, 0.0
    for power in range(odd, dof - 1, 2):
        total += term
        term *= cosine**2 * (power + 1) / (power + 2)
    inside = 2 / math.pi * (angle + sine * total) if odd else sine * total
    return max(0.0, 1 - inside)


def t_quantile(dof: int, confidence: float = CONFIDENCE) -> float:
    """Half of a two-sided confidence interval, in standard errors.

    >>> round(t_quantile(2), 4)
    4.3027
    """
    low, high = 0.0, 1.0
    while t_two_sided(high, dof) > 1 - confidence:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if t_two_sided(middle, dof) > 1 - confidence else (low, middle)
    return high


def paired_difference(first: Mapping[Key, float], second: Mapping[Key, float]) -> Difference | None:
    """Mean of first less second over common keys, with Student's interval; None without any.

    >>> paired_difference({0: 2.0, 1: 4.0, 2: 3.0}, {0: 1.0, 1: 2.0, 2: 3.0, 3: 9.0})
    Difference(points=1.0, low=-1.48..., high=3.48..., p=None, adjusted_p=None, pairs=3)
    """
    values = [first[key] - second[key] for key in first if key in second]
    if not values:
        return None
    mean, std = statistics.mean(values), sample_std(values)
    if std is None:
        return Difference(mean)
    half = t_quantile(len(values) - 1) * std / math.sqrt(len(values))
    return Difference(mean, mean - half, mean + half, pairs=len(values))
