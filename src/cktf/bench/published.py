"""The published accuracies, as tables of the paper give them.

Source: Zhao, Chen, Zhao, ICASSP 2023, arXiv 2303.07599, table 1, whose figures of other methods on
CIFAR-100 are those of Tian, Krishnan, Isola, ICLR 2020, arXiv 1910.10699.
"""

import csv
from importlib.resources import files
from typing import NamedTuple


class PublishedAccuracy(NamedTuple):
    """One published accuracy.

    Attributes:
        dataset: as the library names it.
        pair: `teacher:student`, as published.
        method: its method string; `ce` is the student alone, `teacher` the teacher.
        top1: in per cent, of the last epoch.
    """

    dataset: str
    pair: str
    method: str
    top1: float


def published_accuracies() -> list[PublishedAccuracy]:
    """All published accuracies, in the order of the tables.

    >>> next(row for row in published_accuracies() if row.method == "cktf")
    PublishedAccuracy(dataset='cifar100', pair='wrn_40_2:wrn_16_2', method='cktf', top1=75.85)
    """
    text = files("cktf.bench").joinpath("published.csv").read_text()
    return [
        PublishedAccuracy(row["dataset"], row["pair"], row["method"], float(row["top1"]))
        for row in csv.DictReader(text.splitlines())
    ]
