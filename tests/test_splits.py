"""Positions held out of a labeled set, class by class."""

import itertools

import pytest
import torch

from cktf.data import sample_per_class, split_validation
from cktf.errors import DataError


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("counts", [(10, 10, 10), (100, 7, 2), (3, 50)])
def test_every_class_gives_the_same_fraction(fraction, counts):
    labels = torch.cat([torch.full((n,), c) for c, n in enumerate(counts)])
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))]
    train, held = split_validation(labels, fraction, seed=0)
    assert sorted([*train.tolist(), *held.tolist()]) == list(range(len(labels)))
    assert train.tolist() == sorted(train.tolist())
    for label, count in enumerate(counts):
        given = int((labels[held] == label).sum())
        assert abs(given - fraction * count) <= 0.5 or given in (1, count - 1)
        assert 1 <= given <= count - 1


def test_the_seed_decides_who_is_held_out():
    labels = torch.arange(200) % 4
    one, again, other = (split_validation(labels, 0.2, seed)[1].tolist() for seed in (1, 1, 2))
    assert one == again
    assert one != other
    assert len(one) == len(other) == 40


def test_nothing_is_held_out_of_nothing():
    train, held = split_validation(torch.tensor([2, 0, 1]), 0.0, seed=0)
    assert (train.tolist(), held.tolist()) == ([0, 1, 2], [])


def test_any_image_may_be_held_out():
    labels = torch.arange(40) % 2
    held = {i for seed in range(60) for i in split_validation(labels, 0.1, seed)[1].tolist()}
    assert held == set(range(40))


def test_images_of_each_class_are_drawn_by_the_seed():
    """Ascending; more images of a class are the fewer ones and others."""
    labels = torch.tensor([1, 0, 2]).repeat(20)
    drawn = [sample_per_class(labels, count, seed=0).tolist() for count in range(1, 20)]
    for fewer, more in itertools.pairwise(drawn):
        assert set(fewer) < set(more)
    assert all(positions == sorted(positions) for positions in drawn)
    assert labels[drawn[4]].bincount().tolist() == [5] * 3
    seeds = [sample_per_class(labels, 2, seed).tolist() for seed in range(60)]
    assert {position for positions in seeds for position in positions} == set(range(60))


@pytest.mark.parametrize("fraction", [-0.1, 1.0, 2.0])
def test_impossible_fractions(fraction):
    with pytest.raises(DataError, match="from 0 to below 1, given"):
        split_validation(torch.tensor([0, 0]), fraction, seed=0)


def test_a_class_of_one_cannot_be_split():
    with pytest.raises(DataError, match="class 1 has a single image"):
        split_validation(torch.tensor([0, 0, 1]), 0.3, seed=0)


def test_messages_name_classes():
    labels, names = torch.tensor([0, 0, 1]), ["cat", "dog"]
    with pytest.raises(DataError, match="class 'dog' has a single image"):
        split_validation(labels, 0.3, 0, names)
    with pytest.raises(DataError, match=r"and class 'dog' has 1\. Request fewer"):
        sample_per_class(labels, 2, 0, names)
