"""Feature maps from other layouts: tokens of transformers, and maps whose channels come last."""

import torch
from torch import Size, Tensor, nn

from cktf.models.normalized import Normalized

# Leading tokens without a place in the image: class, distillation and register tokens.
_MAX_EXTRA_TOKENS = 16


def input_shape(model: nn.Module, images: Size) -> Size:
    """The shape in which images reach the network inside a `Normalized`, which may resize them."""
    return model.resized_shape(images) if isinstance(model, Normalized) else images


def type_name(model: nn.Module) -> str:
    """The class name of the user's network, also inside a `Normalized` or TorchScript."""
    network = model.network if isinstance(model, Normalized) else model
    return str(getattr(network, "original_name", type(network).__name__))


def explain_torchscript(model: nn.Module) -> str:
    """Say why features inside of TorchScript cannot be read; empty if the network has none."""
    if not any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        return ""
    network = model.network if isinstance(model, Normalized) else model
    where = "is" if isinstance(network, torch.jit.ScriptModule) else "holds"
    return (
        f"{type_name(model)} {where} a TorchScript module, whose inner outputs cannot be read: "
        "TorchScript calls no Python hooks. Give the Python module that it was made from, or use a "
        "method that compares logits alone, such as kd."
    )


def to_feature_map(value: Tensor, images: Size) -> Tensor | None:
    """A feature as a map [B, C, H, W]; None if it is none.

    Tokens [B, T, C] are folded to a grid of the images' proportions, without the extra tokens in
    front of it. The same proportions distinguish [B, H, W, C] from [B, C, H, W].

    Args:
        value: a module's output.
        images: shape [B, C, H, W] of the images.

    >>> import torch
    >>> to_feature_map(torch.rand(2, 197, 192), torch.Size([2, 3, 224, 224])).shape
    torch.Size([2, 192, 14, 14])
    >>> to_feature_map(torch.rand(2, 6, 8, 96), torch.Size([2, 3, 96, 128])).shape
    torch.Size([2, 96, 6, 8])
    """
    if not value.dim() or len(value) != images[0]:
        return None
    if value.dim() == 4:
        if _fits(value.shape[2], value.shape[3], images):
            return value
        channels_last = _fits(value.shape[1], value.shape[2], images)
        return value.permute(0, 3, 1, 2) if channels_last else None
    if value.dim() != 3:
        return None
    count = value.shape[1]
    for places in range(count, max(0, count - _MAX_EXTRA_TOKENS - 1), -1):
        height = round((places * images[2] / images[3]) ** 0.5)
        if height and places % height == 0 and _fits(height, places // height, images):
            grid = value[:, count - places :].mT
            return grid.reshape(*grid.shape[:2], height, places // height)
    return None


def _fits(height: int, width: int, images: Size) -> bool:
    """Whether a grid has the images' proportions, up to the rounding of its sides."""
    return abs(height * images[3] - width * images[2]) < max(images[2:])
