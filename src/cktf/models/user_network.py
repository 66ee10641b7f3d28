"""A user's own module, made ready for a run."""

import copy

import torch
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.parameter import is_lazy

from cktf.errors import ModelError


def prepare_user_network(network: nn.Module) -> nn.Module:
    """Make a module that a user brings fit for taps and training.

    Returns:
        The network inside `torch.compile` and data parallelism. Its parameters and buffers that
        were made in inference mode are replaced by copies, which can be trained.
    """
    while True:
        inner = getattr(network, "_orig_mod", None)
        if isinstance(network, DataParallel | DistributedDataParallel):
            inner = network.module
        if inner is None:
            break
        network = inner
    _replace_inference_tensors(network)
    return network


def copy_network(network: nn.Module) -> nn.Module:
    """Copy a network with its weights.

    Raises:
        ModelError: a module that cannot be copied.
    """
    try:
        return copy.deepcopy(network)
    except Exception as error:  # modules define how they are copied
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"copy.deepcopy fails on {type(network).__name__}: {reason} Leave out what keeps a "
            "graph of gradients, such as torch.nn.utils.weight_norm, which "
            "torch.nn.utils.parametrizations.weight_norm replaces."
        ) from error


@torch.inference_mode(False)
def _replace_inference_tensors(network: nn.Module) -> None:
    """Replace tensors made in inference mode by copies; a shared parameter is still shared."""
    copies: dict[int, nn.Parameter] = {}
    for module in network.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and not is_lazy(parameter) and parameter.is_inference():
                copy = nn.Parameter(parameter.detach().clone(), parameter.requires_grad)
                module._parameters[name] = copies.setdefault(id(parameter), copy)
        for name, buffer in module._buffers.items():
            if buffer is not None and not is_lazy(buffer) and buffer.is_inference():
                module._buffers[name] = buffer.clone()
