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
    modules = [] if network is None else list(network.modules())
    parameters = [] if network is None else list(network.parameters())
    modes = [module.training for module in modules]
    requires_grad = [parameter.requires_grad for parameter in parameters]
    try:
        yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode
        for parameter, value in zip(parameters, requires_grad, strict=True):
            parameter.requires_grad_(value)


@contextmanager
def eval_mode(network: nn.Module) -> Iterator[None]:
    """Put every module in eval mode; restore its own mode on exit."""
    with preserve_modes(network):
        network.eval()
        yield
