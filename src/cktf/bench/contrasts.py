"""Differences of methods from their baselines, tested together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from cktf.bench.results import Column
from cktf.bench.statistics import Difference, Residual, Sample, contrast, holm, pool_variance

Key = tuple[Column, str]


@dataclass(frozen=True)
class Contrasts:
    """All differences of a table.

    Attributes:
        baselines: the method that each is compared with, for those that are.
        differences: by column and method.
        overall: mean over several columns, by method. Pairs of networks are fixed: its error is
            that of the seeds, and says nothing of other pairs.
        primary: method and difference of the primary contrast: over all pairs, or on the only one
            that has both methods; None if the table has none.
        corrected: number of differences whose p-values are corrected by Holm's method.
        residual: pooled spread of seeds; None where every cell has one seed.
    """

    baselines: Mapping[str, str]
    differences: Mapping[Key, Difference]
    overall: Mapping[str, Difference]
    primary: tuple[str, Difference] | None
    corrected: int
    residual: Residual | None


def contrast_means(
    values: Mapping[Key, Mapping[int, float]],
    columns: Sequence[Column],
    baselines: Mapping[str, str],
    primary: str | None,
) -> Contrasts:
    """Compare every method with its baseline on every pair, and over pairs.

    Args:
        values: accuracies by seed, of each column and method.
        columns: pairs of networks.
        baselines: the method that each is compared with.
        primary: method whose difference is tested without correction.
    """

    def sample(column: Column, method: str) -> Sample:
        return method, tuple(top1 for _, top1 in sorted(values[column, method].items()))

    residual = pool_variance(sample(*key) for key in values)
    # A column of None is the mean over pairs.
    found: dict[tuple[Column | None, str], Difference] = {}
    for method, baseline in baselines.items():
        both = [c for c in columns if (c, method) in values and (c, baseline) in values]
        overall: dict[Sample, float] = {}
        for column in both:
            weights = {sample(column, method): 1.0, sample(column, baseline): -1.0}
            found[column, method] = contrast(weights, residual)
            for each, weight in weights.items():
                overall[each] = overall.get(each, 0.0) + weight / len(both)
        if len(both) > 1:
            found[None, method] = replace(contrast(overall, residual), pairs=len(both))
    first = [(column, primary) for column in (None, *columns) if primary is not None]
    primary_key = next((key for key in first if key in found), None)
    tested = {key: d.p for key, d in found.items() if key != primary_key and d.p is not None}
    for key, adjusted in zip(tested, holm(list(tested.values())), strict=True):
        found[key] = replace(found[key], adjusted_p=adjusted)
    return Contrasts(
        baselines,
        {(column, m): d for (column, m), d in found.items() if column is not None},
        {m: d for (column, m), d in found.items() if column is None},
        (primary_key[1], found[primary_key]) if primary_key else None,
        len(tested),
        residual,
    )
