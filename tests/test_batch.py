"""Batches and their copies on other devices."""

import warnings

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

from cktf.batch import Batch, tensor_to_device

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


class Copies(TorchFunctionMode):
    """Records which copies to a device do not wait."""

    def __init__(self):
        super().__init__()
        self.asynchronous = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is Tensor.to:
            self.asynchronous.append(kwargs.get("non_blocking", False))
        return function(*args, **kwargs)


@pytest.mark.parametrize(
    ("source", "target", "is_asynchronous"), [(CPU, CUDA, True), (CUDA, CPU, False)]
)
def test_only_copies_to_a_gpu_do_not_wait(source, target, is_asynchronous, monkeypatch):
    """A copy from a GPU that has not ended holds other numbers."""
    pinned = []
    monkeypatch.setattr(Tensor, "pin_memory", lambda self: pinned.append(1) or self)
    with warnings.catch_warnings(), FakeTensorMode():
        warnings.filterwarnings("ignore", message=".*CUDA is not available.*")
        tensor = torch.empty(4, device=source)
        with Copies() as copies:
            copy = tensor_to_device(tensor, target)
    assert copy.device.type == target.type
    assert copies.asynchronous == [is_asynchronous]
    assert len(pinned) == is_asynchronous


def test_a_copied_batch_holds_its_index_on_the_cpu(device):
    index = torch.tensor([3, 1])
    batch = Batch(torch.rand(2, 3, 4, 4), None, index, view=2, source=(1, 5)).to(device)
    assert batch.images.device.type == batch.index.device.type == device.type
    assert batch.to(device).host_index is batch.host_index is index
    assert (batch.labels, batch.view, batch.source) == (None, 2, (1, 5))
