"""A network's device and modes around a forward pass."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn


def to_device_of(network: nn.Module, images: Tensor) -> Tensor:
    """Move images to the network's device."""
    parameter = next(network.parameters(), None)
    return images if parameter is None else images.to(parameter.device)


@contextmanager
def preserve_modes(network: nn.Module | None) -> Iterator[None]:
    """Restore every module's train or eval mode and every `requires_grad` on exit."""
    modes = [] if network is None else [(m, m.training) for m in network.modules()]
    requires_grad = [] if network is None else [(p, p.requires_grad) for p in network.parameters()]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter, value in requires_grad:
            parameter.requires_grad_(value)


@contextmanager
def eval_mode(network: nn.Module) -> Iterator[None]:
    """Put every module in eval mode; restore its own mode on exit."""
    with preserve_modes(network):
        network.eval()
        yield
