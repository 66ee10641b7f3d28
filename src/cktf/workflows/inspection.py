"""What would be compared of a network: where its features are, and what it costs."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from cktf.engine import is_out_of_memory
from cktf.errors import CktfError, DataError
from cktf.models import build_network, parse_network_spec
from cktf.models.normalized import Normalized
from cktf.taps import FeaturePaths, Features, Tap, eval_mode, infer_paths, to_device_of

_BATCH = 2
# How paths begin in a network that normalizes its images first.
_INSIDE = "network."


@dataclass(frozen=True)
class Inspection:
    """A network as it shows itself on images of a size.

    Attributes:
        paths: where its features are.
        features: of a batch of two images.
        input: shape [C, H, W] of the images that reach it.
        parameters: trainable ones.
        macs: multiplications and additions for one image.
    """

    paths: FeaturePaths
    features: Features
    input: tuple[int, ...]
    parameters: int
    macs: int


def find_feature_paths(
    network: nn.Module, example: Tensor, stages: Sequence[str] = (), embedding: str | None = None
) -> FeaturePaths:
    """Where a network's features are: what the user names, what it says itself, what is found.

    Args:
        network: from images to logits.
        example: [B, C, H, W], images that it takes.
        stages: paths that the user gives, as his network names its modules.
        embedding: likewise.
    """
    stages = tuple(stage.removeprefix(_INSIDE) for stage in stages)
    given = FeaturePaths(
        stages=stages,
        embedding=(embedding or "").removeprefix(_INSIDE),
    )
    if isinstance(network, Normalized):
        given = given.prefixed(_INSIDE.rstrip("."))
    known: FeaturePaths | None = getattr(network, "feature_paths", None)
    return known.updated(given) if known else infer_paths(network, example, given)


@contextmanager
def explain_rejected_images(images: Tensor, who: str = "network") -> Iterator[None]:
    """What is inside gives images to a network; that it cannot take them is told as that."""
    try:
        yield
    except Exception as error:
        # Whatever a network's own code raises.
        if isinstance(error, CktfError) or is_out_of_memory(error):
            raise
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"The {who} cannot take images {tuple(images.shape)}: {why}. Check channels and size, "
            "or give another network."
        ) from error


def _flops(network: nn.Module, images: Tensor) -> int:
    """Floating-point operations on images, those of attention too."""
    state = chain(network.named_parameters(), network.named_buffers())
    shapes = {name: tensor.to("meta") for name, tensor in state}
    try:
        # By shapes alone: a graph of all layers' attention may be larger than memory.
        return _counted(lambda: functional_call(network, shapes, (images.to("meta"),)))
    except Exception:
        # Its own code reads numbers, or holds some that are no buffers.
        return _counted(lambda: network(images))


def _counted(forward: Callable[[], Any]) -> int:
    counter: Any = FlopCounterMode(display=False)
    fast = torch.backends.mha.get_fastpath_enabled()
    # The counter knows products, and none of the kernels that do all of an attention at once.
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        # It follows the graph of gradients.
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), counter:
            forward()
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return int(counter.get_total_flops())


def inspect(
    network: nn.Module | str,
    images: tuple[int, int, int] = (3, 32, 32),
    *,
    stages: Sequence[str] = (),
    embedding: str | None = None,
) -> Inspection:
    """Run a network on random images and note what a transfer would read.

    Args:
        network: a module, or a line that names one.
        images: shape [C, H, W]; a network of one size resizes them.
        stages: paths of them, where those that are found are not what is meant.
        embedding: likewise.

    Raises:
        CktfError: it cannot be built, does not take such images, or its features cannot be found:
            the message says how to name them.
    """
    if isinstance(network, str):
        built = build_network(parse_network_spec(network), None)
        network = Normalized(built.network, [0.0] * images[0], [1.0] * images[0], built.size)
    example = to_device_of(network, torch.rand(_BATCH, *images))
    with eval_mode(network), explain_rejected_images(example):
        with torch.no_grad():
            paths = find_feature_paths(network, example, stages, embedding)
            wanted = ("embedding", "stem", "stages", "preacts")
            features = Tap(network, paths, {n for n in wanted if getattr(paths, n)})(example)
        flops = _flops(network, example)
    shape = network.input_shape(example.shape) if isinstance(network, Normalized) else example.shape
    return Inspection(
        paths,
        features,
        tuple(shape[1:]),
        sum(p.numel() for p in network.parameters() if p.requires_grad),
        flops // (2 * _BATCH),
    )
