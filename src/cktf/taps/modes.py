"""A network's device, memory format and modes around a forward pass."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy


def to_device_of(network: nn.Module, images: Tensor) -> Tensor:
    """Move images to the network's device."""
    parameter = next(network.parameters(), None)
    return images if parameter is None else images.to(parameter.device)


def fit_memory_format(network: nn.Module, images: Tensor) -> None:
    """Make a network that fails on channels-last images run on contiguous ones.

    `x.view(len(x), -1)` is such a failure: the maps of channels-last images or weights are
    channels-last. The network gets a hook that makes the images contiguous before its forward
    method, and `needs_contiguous_images` then says to leave its weights contiguous.

    Args:
        network: from images to logits, on any device; its mode is restored.
        images: [B, C, H, W], a few of the images that it will be given.

    Raises:
        Exception: what the network raises for both formats.
    """
    if needs_contiguous_images(network):
        return
    images = to_device_of(network, images)
    weights = [(p, p.data) for p in network.parameters() if not is_lazy(p) and p.dim() == 4]
    with torch.no_grad(), eval_mode(network):
        try:
            for parameter, content in weights:
                parameter.data = content.contiguous(memory_format=torch.channels_last)
            network(images.contiguous(memory_format=torch.channels_last))
            return
        except Exception as error:
            failure = error
        finally:
            for parameter, content in weights:
                parameter.data = content
        try:
            network(images.contiguous())
        except Exception:
            raise failure from None
    network.register_forward_pre_hook(_make_images_contiguous)


def needs_contiguous_images(network: nn.Module) -> bool:
    """Whether `fit_memory_format` found that a network runs on contiguous images only."""
    return _make_images_contiguous in network._forward_pre_hooks.values()


def _make_images_contiguous(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return (args[0].contiguous(), *args[1:])


@contextmanager
def preserve_modes(network: nn.Module | None) -> Iterator[None]:
    """Restore every module's train or eval mode and every `requires_grad` on exit."""
    modules = [] if network is None else list(network.modules())
    # A frozen TorchScript module has no mode.
    modes = [(module, module.training) for module in modules if hasattr(module, "training")]
    requires_grad = [] if network is None else [(p, p.requires_grad) for p in network.parameters()]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter, value in requires_grad:
            if not is_lazy(parameter):
                parameter.requires_grad_(value)


def freeze(network: nn.Module) -> None:
    """Put a network in eval mode, and require no gradient of its parameters."""
    network.eval()
    # `Module.requires_grad_` refuses TorchScript modules.
    for parameter in network.parameters():
        parameter.requires_grad_(False)


@contextmanager
def eval_mode(network: nn.Module) -> Iterator[None]:
    """Put every module in eval mode; restore its own mode on exit."""
    with preserve_modes(network):
        network.eval()
        yield
