"""Accuracies against their definition, image by image."""

import pytest
import torch

from cktf.batch import Batch
from cktf.engine import evaluate, standard_error

CPU = torch.device("cpu")


class Batches:
    """Images that are their own logits, in batches of four, the last of which is smaller."""

    batch_size = 4

    def __init__(self, logits, labels):
        self.logits, self.labels, self.samples = logits, labels, len(labels)

    def __len__(self):
        return -(-self.samples // self.batch_size)

    def epoch(self, number, *, device):
        for index in torch.arange(self.samples).split(self.batch_size):
            yield Batch(self.logits[index], self.labels[index], index)


@pytest.mark.parametrize("num_classes", [2, 5, 12])
def test_accuracies_by_definition(num_classes):
    torch.manual_seed(0)
    logits, labels = torch.randn(30, num_classes), torch.randint(num_classes, (30,))
    calls = []
    found = evaluate(
        lambda images: images, Batches(logits, labels), num_classes, CPU, lambda: calls.append(1)
    )
    # How many classes have a larger logit than the right one.
    ranks = (logits > logits.gather(1, labels[:, None])).sum(1).tolist()
    assert found.top1 == pytest.approx(100 * sum(rank < 1 for rank in ranks) / 30, abs=1e-4)
    assert found.top5 == pytest.approx(100 * sum(rank < 5 for rank in ranks) / 30, abs=1e-4)
    assert (found.samples, len(calls)) == (30, 8)
    assert found.standard_error == standard_error(found.top1, 30)


def test_the_standard_error_of_a_share():
    """Of 400 images, 80 % are right: the root of 0.8 * 0.2 / 400 is 0.02."""
    assert standard_error(80.0, 400) == pytest.approx(2.0)
