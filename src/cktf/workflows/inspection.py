"""Inspect a network: where its features are, and what it costs."""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from cktf.engine import default_tensors, is_out_of_memory
from cktf.errors import CktfError, DataError
from cktf.models import build_network, parse_network_spec, prepare_user_network
from cktf.models.normalized import Normalized
from cktf.taps import (
    FeaturePaths,
    Features,
    Tap,
    eval_mode,
    fit_memory_format,
    infer_paths,
    to_device_of,
)
from cktf.user_paths import locate_in_user_code

_BATCH = 2
# The name of the user's network inside a `Normalized`.
_PREFIX = "network"
# Files of which no line is the user's.
# What to do about an error of a network whose message matches.
_ADVICE = (
    (
        r"positional argument|keyword argument|keyword-only argument",
        "A network is called as network(images): wrap it in a module that passes them on as its "
        "forward method takes them.",
    ),
    (
        r"Calling (eval|train)\(\)",
        "A program of torch.export stays in the mode that it was exported in: give the Python "
        "module that it was made from.",
    ),
    (
        r"[Ii]nference tensor",
        "Make its tensors, and call it, outside of torch.inference_mode(), or use torch.no_grad().",
    ),
    (
        r"view size is not compatible",
        "Its forward method takes contiguous maps: write reshape for view there, or set "
        "runtime.channels_last to false.",
    ),
    (
        r"channel|size|shape|dimension|mat1|length|pixel",
        "Check channels and size, or give another network.",
    ),
)


@dataclass(frozen=True)
class Inspection:
    """A network's features and cost for images of one size.

    Attributes:
        paths: where its features are.
        features: of a batch of two images.
        input: shape [C, H, W] of the images that reach it, after any resizing.
        parameters: trainable ones.
        macs: multiply-adds for one image.
    """

    paths: FeaturePaths
    features: Features
    input: tuple[int, ...]
    parameters: int
    macs: int


def find_feature_paths(
    network: nn.Module, example: Tensor, stages: Sequence[str] = (), embedding: str | None = None
) -> FeaturePaths:
    """Find a network's feature paths: the user's, else the network's own, else inferred ones.

    They are inferred from example images [B, C, H, W].
    """
    user_paths = FeaturePaths(
        stages=tuple(stage.removeprefix(f"{_PREFIX}.") for stage in stages),
        embedding=(embedding or "").removeprefix(f"{_PREFIX}."),
    )
    if isinstance(network, Normalized):
        user_paths = user_paths.prefixed(_PREFIX)
    own_paths: FeaturePaths | None = getattr(network, "feature_paths", None)
    if own_paths:
        return own_paths.updated(user_paths)
    return infer_paths(network, example, user_paths)


@contextmanager
def explain_rejected_images(
    network: nn.Module | None, images: Tensor, who: str = "network"
) -> Iterator[None]:
    """Report an error of the network's own code, with what to do where the cause is known."""
    try:
        yield
    except Exception as error:
        if isinstance(error, CktfError) or is_out_of_memory(error):
            raise
        lines = [line for line in str(error).splitlines() if line.strip()]
        # TorchScript puts the message after its own traceback.
        from_script = len(lines) > 1 and "TorchScript" in lines[0]
        cause = (lines or [type(error).__name__])[-1 if from_script else 0].strip()
        raise DataError(
            f"The {who} cannot take images {tuple(images.shape)}: {cause.rstrip('.')}. "
            f"{_advise(network, images, error)}"
        ) from error


def _advise(network: nn.Module | None, images: Tensor, error: Exception) -> str:
    """What to do about an error of a network that was called on images."""
    network = network or nn.Identity()
    tensors = [*network.parameters(), *network.buffers()]
    devices = sorted({str(tensor.device) for tensor in tensors})
    dtypes = {t.dtype for t in network.parameters() if t.is_floating_point()} - {images.dtype}
    if "meta" in devices:
        return (
            "Weights on the device meta have no values: build it on the CPU and load its weights."
        )
    if dtypes and re.search(r"dtype|scalar type|should be the same", str(error)):
        names = " and ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
        return (
            f"It has {names} weights, and images are {str(images.dtype).removeprefix('torch.')}: "
            "convert it, network.float(). runtime.precision decides what it computes in."
        )
    if len(devices) > 1:
        return f"Its weights are on {' and '.join(devices)}: move all to one, network.to('cpu')."
    if re.search(r"channel", str(error)) and (advice := _advise_on_channels(images)):
        return advice
    for pattern, advice in _ADVICE:
        if re.search(pattern, str(error)):
            return advice
    if line := locate_in_user_code(error):
        return f"Check {line}, which raised this {type(error).__name__}."
    return "Check channels and size, or give another network."


def _advise_on_channels(images: Tensor) -> str:
    """What to do about images [B, C, H, W] of channels that a network does not take."""
    if images.ndim == 4 and images.shape[1] > 4 and images.shape[3] in (1, 3, 4):
        return "A tensor of an image is [C, H, W], and these seem [H, W, C]: permute(2, 0, 1)."
    if images.ndim == 4 and images.shape[1] == 1:
        return "It takes color, and these images are gray: repeat them, expand(3, -1, -1)."
    return ""


def _count_flops(network: nn.Module, images: Tensor) -> int:
    """Floating-point operations for images, with those of attention."""
    state = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    shapes = {name: tensor.to("meta") for name, tensor in state.items()}
    try:
        # Shapes suffice; the graph of all layers' attention may be larger than memory.
        return _count_forward(lambda: functional_call(network, shapes, (images.to("meta"),)))
    except Exception:
        # The network reads values, or holds tensors that are no buffers.
        return _count_forward(lambda: network(images))


def _count_forward(forward: Callable[[], Any]) -> int:
    counter: Any = FlopCounterMode(display=False)
    fast = torch.backends.mha.get_fastpath_enabled()
    # The counter misses fused attention kernels.
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        # The counter needs the graph of gradients.
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), counter:
            forward()
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return int(counter.get_total_flops())


@torch.inference_mode(False)
def inspect(
    network: nn.Module | str,
    images: tuple[int, int, int] = (3, 32, 32),
    *,
    stages: Sequence[str] = (),
    embedding: str | None = None,
) -> Inspection:
    """Run a network on random images and find the features that distillation would compare.

    Args:
        network: a module, or the name of one.
        images: shape [C, H, W]; a network of a fixed size resizes them.
        stages: paths of the stages; by default they are found.
        embedding: path of the embedding; by default it is found.

    Raises:
        CktfError: it cannot be built, does not take such images, or its features cannot be found
            and have to be named.
    """
    dtype = torch.get_default_dtype()
    if isinstance(network, str):
        dtype = torch.float32
        with default_tensors():
            built = build_network(parse_network_spec(network), None)
            network = Normalized(built.network, [0.0] * images[0], [1.0] * images[0], built.size)
    network = prepare_user_network(network)
    example = to_device_of(network, torch.rand(_BATCH, *images, device="cpu", dtype=dtype))
    with explain_rejected_images(network, example), eval_mode(network):
        fit_memory_format(network, example)
        with torch.no_grad():
            paths = find_feature_paths(network, example, stages, embedding)
            names = ("embedding", "stem", "stages", "preacts")
            features = Tap(network, paths, [n for n in names if getattr(paths, n)])(example)
        flops = _count_flops(network, example)
    shape = (
        network.resized_shape(example.shape) if isinstance(network, Normalized) else example.shape
    )
    return Inspection(
        paths,
        features,
        tuple(shape[1:]),
        sum(p.numel() for p in network.parameters() if p.requires_grad),
        flops // (2 * _BATCH),
    )
