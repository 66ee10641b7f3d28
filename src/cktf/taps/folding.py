"""Maps out of what networks call their features: tokens, and maps whose channels come last."""

from torch import Size, Tensor, nn

from cktf.models.normalized import Normalized

# Tokens that stand for no place: of the class, of distillation, and registers.
_MOST_EXTRA = 16


def input_shape(model: nn.Module, images: Size) -> Size:
    """The shape of images inside a model, which may resize them."""
    return model.input_shape(images) if isinstance(model, Normalized) else images


def type_name(model: nn.Module) -> str:
    """What a user knows a network as: the class of what he gave."""
    return type(model.network if isinstance(model, Normalized) else model).__name__


def as_map(value: Tensor, images: Size) -> Tensor | None:
    """A feature as [B, C, H, W]; None if it is no map.

    Tokens [B, T, C] are folded to a grid of the images' proportions, without the extra tokens in
    front of it; [B, H, W, C] is told from [B, C, H, W] by the same proportions.

    Args:
        value: what a module gave.
        images: shape [B, C, H, W] of the images.

    >>> import torch
    >>> as_map(torch.rand(2, 197, 192), torch.Size([2, 3, 224, 224])).shape
    torch.Size([2, 192, 14, 14])
    >>> as_map(torch.rand(2, 6, 8, 96), torch.Size([2, 3, 96, 128])).shape
    torch.Size([2, 96, 6, 8])
    """
    if not value.dim() or len(value) != images[0]:
        return None
    if value.dim() == 4:
        if _fits(value.shape[2], value.shape[3], images):
            return value
        last = _fits(value.shape[1], value.shape[2], images)
        return value.permute(0, 3, 1, 2) if last else None
    if value.dim() == 3:
        return _folded(value, images)
    return None


def _folded(tokens: Tensor, images: Size) -> Tensor | None:
    count = tokens.shape[1]
    for places in range(count, max(0, count - _MOST_EXTRA - 1), -1):
        height = round((places * images[2] / images[3]) ** 0.5)
        if height and places % height == 0 and _fits(height, places // height, images):
            grid = tokens[:, count - places :].mT
            return grid.reshape(*grid.shape[:2], height, places // height)
    return None


def _fits(height: int, width: int, images: Size) -> bool:
    """Whether a grid has the images' proportions, up to the rounding of its sides."""
    return abs(height * images[3] - width * images[2]) < max(images[2:])
