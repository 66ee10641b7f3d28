"""Find where an unknown network keeps its features.

The calls of all modules are recorded in order, on example images. The *trunk* is the chain of
modules that the network is built from: containers are opened, also one around all blocks of a
network of one resolution; a block counts as a whole, and maps inside it are no features. A map that
is larger than the inputs and outputs of a module around it is attention between places. Then:

- *stages*: the trunk's last map at each resolution of more than one pixel, if no larger one
  follows. Pooling, padding and dropout end no stage. Where there is one resolution only, as in
  vision transformers, the blocks at quarter depths.
- *blocks*: the trunk's maps of a stage's shape up to it.
- *preacts*: the input of the activation module that gives a stage's map; the map itself where no
  activation gives it, as in linear bottlenecks; none where an activation function hides it.
- *stem*: the first convolution's output, followed through the normalization and activation modules
  right behind it.
- *embedding*: the input of the classifier, the last `nn.Linear` or convolution that gives as many
  numbers as there are logits; a map where a convolution classifies every place.

Tokens and maps whose channels come last are maps too (`cktf.taps.folding`). An output that a later
layer overwrites is never chosen.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import (
    activation,
    batchnorm,
    dropout,
    instancenorm,
    normalization,
    padding,
    pooling,
)

from cktf.errors import ModelError, TapError
from cktf.models.feature_paths import FeaturePaths
from cktf.taps.folding import explain_torchscript, input_shape, to_feature_map, type_name
from cktf.taps.modes import eval_mode, to_device_of

_AFTER_CONVOLUTION = (activation, batchnorm, instancenorm, normalization)
_NO_STAGE = (pooling, dropout, padding)
# A block has at most two resolutions inside; a module with more is a container of blocks.
_MAX_BLOCK_RESOLUTIONS = 2
# Stages of a network of one resolution.
_QUARTERS = 4


@dataclass(eq=False)
class _Call:
    """One module's call in a forward pass; `map` is its output as [B, C, H, W], if it is one."""

    path: str
    module: nn.Module
    input: Tensor | None
    output: Tensor
    version: int
    map: Tensor | None

    def is_from(self, modules: tuple[Any, ...]) -> bool:
        return type(self.module).__module__ in {module.__name__ for module in modules}

    @property
    def size(self) -> tuple[int, int]:
        assert self.map is not None
        height, width = self.map.shape[-2:]
        return height, width

    @property
    def intact(self) -> bool:
        return self.output._version == self.version

    @property
    def parent(self) -> str:
        return self.path.rpartition(".")[0]


def _record_calls(model: nn.Module, example: Tensor) -> tuple[list[_Call], Any, list[str]]:
    """The calls of modules that ran once, in order, the model's output, and who ran repeatedly."""
    calls: list[_Call] = []
    # The largest height and width of maps that go into a module or come out of it, by path.
    largest: dict[str, tuple[int, int]] = {}
    example, images = to_device_of(model, example), input_shape(model, example.shape)

    def record(path: str, module: nn.Module, args: Any, output: Any) -> None:
        value = args[0] if args and isinstance(args[0], Tensor) else None
        output_map = to_feature_map(output, images) if isinstance(output, Tensor) else None
        # A module that takes the images themselves may enlarge them.
        if value is not None and value.shape[:2] != images[:2]:
            input_map = to_feature_map(value, images)
            if input_map is not None:
                ends = [input_map, input_map if output_map is None else output_map]
                largest[path] = max(m.shape[-2] for m in ends), max(m.shape[-1] for m in ends)
        if isinstance(output, Tensor):
            calls.append(_Call(path, module, value, output, output._version, output_map))

    handles = [
        module.register_forward_hook(partial(record, path))
        for path, module in model.named_modules()
        if path and not isinstance(module, torch.jit.ScriptModule)
    ]
    try:
        with torch.no_grad(), eval_mode(model):
            logits = model(example)
    finally:
        for handle in handles:
            handle.remove()
    for call in calls:
        outer = call.parent
        while call.map is not None and outer:
            if outer in largest and not _fits(call.size, largest[outer]):
                call.map = None
            outer = outer.rpartition(".")[0]
    counts = Counter(call.path for call in calls)
    repeated = [path for path, count in counts.items() if count > 1]
    return [call for call in calls if counts[call.path] == 1], logits, repeated


def infer_paths(
    model: nn.Module, example: Tensor, known: FeaturePaths | None = None
) -> FeaturePaths:
    """Find the paths of the features of any image classifier.

    Args:
        model: from images to logits; its mode and weights stay as they are.
        example: [B, C, H, W], a few images of the size that it is used on.
        known: paths that are known already.

    Raises:
        TapError: no classifier ran, or no map of more than one pixel was found.
    """
    calls, logits, repeated = _record_calls(model, example)
    known = known or FeaturePaths()
    name = type_name(model)
    classifier = _find_classifier(calls, logits)
    if classifier is None and not known.embedding:
        raise TapError(
            explain_torchscript(model)
            or f"{name} runs no layer that gives as many numbers as there are logits, so its "
            "embedding cannot be found. Name it: --student-embedding or "
            "--teacher-embedding path.of.classifier:input, or feature_paths = "
            "FeaturePaths(embedding=...) in the network."
        )
    body = calls[: calls.index(classifier)] if classifier else calls
    stem = _find_stem(body)
    trunk = _find_trunk(model, body, stem)
    if not trunk and stem and stem.map is not None:
        trunk = [stem]
    stages = _find_stages(trunk)
    if not (stages or known.stages):
        raise TapError(
            explain_torchscript(model)
            or _explain_overwritten(name, calls, repeated)
            or f"{name} has no feature map of more than one pixel. Give larger images, or name "
            "its stages: --student-taps or --teacher-taps path,path,..., or feature_paths = "
            "FeaturePaths(stages=(...)) in the network."
        )
    inferred = FeaturePaths(
        stem=stem.path if stem else (*(s.path for s in stages), *known.stages)[0],
        stages=tuple(_outermost(stage, calls).path for stage in stages),
        blocks=tuple(_block_paths(stage, trunk) for stage in stages),
        preacts=_preact_paths(stages, calls),
        embedding=f"{classifier.path}:input" if classifier else "",
    )
    return inferred.updated(known)


def _explain_overwritten(name: str, calls: list[_Call], repeated: list[str]) -> str:
    """Say which layers change the maps that could be features; empty if none does."""
    maps = [call for call in calls if call.map is not None and min(call.size) > 1]
    overwritten = [call.path for call in maps if not call.intact]
    if not overwritten:
        return ""
    again = f", and {', '.join(repeated)} runs more than once" if repeated else ""
    return (
        f"{name} has no feature map that stays as it is: the outputs of {', '.join(overwritten)} "
        f"are overwritten in place by a later layer{again}. Build its activations with "
        "inplace=False, or one for each layer."
    )


def find_classifier(model: nn.Module, example: Tensor) -> str:
    """The path of the layer that gives a network's logits; the arguments are as in `infer_paths`.

    Raises:
        ModelError: no linear layer or convolution gives them.
    """
    calls, logits, _ = _record_calls(model, example)
    classifier = _find_classifier(calls, logits)
    if classifier is None:
        raise ModelError(
            explain_torchscript(model)
            or f"{type_name(model)} runs no linear layer or convolution that gives its logits, so "
            "its classifier cannot be replaced. Build it with as many classes as the data has."
        )
    return classifier.path


def _find_classifier(calls: list[_Call], logits: Any) -> _Call | None:
    """The last layer that gives as many numbers as there are logits; else the last linear one."""
    if isinstance(logits, Tensor):
        layers = [call for call in calls if isinstance(call.module, nn.Linear | nn.Conv2d)]
        fitting = [call for call in layers if call.output.flatten(1).shape == logits.shape]
        # A last convolution that classifies every place, whose output is averaged later.
        fitting = fitting or [c for c in layers[-1:] if c.output.shape[:2] == logits.shape]
        if fitting:
            return fitting[-1]
    linear = [c for c in calls if isinstance(c.module, nn.Linear) and c.output.dim() == 2]
    return linear[-1] if linear else None


def _find_stem(calls: list[_Call]) -> _Call | None:
    first = next((i for i, call in enumerate(calls) if isinstance(call.module, nn.Conv2d)), None)
    if first is None:
        return None
    stem = calls[first]
    for call in calls[first + 1 :]:
        if not call.is_from(_AFTER_CONVOLUTION) or call.output.shape != stem.output.shape:
            break
        stem = call
    return stem if stem.intact else None


def _find_trunk(model: nn.Module, calls: list[_Call], stem: _Call | None) -> list[_Call]:
    """The maps of the chain of blocks after the stem, in the order in which they ran."""
    paths = set(_trunk_paths(model, "", calls))
    trunk = [
        call
        for call in calls[calls.index(stem) + 1 if stem else 0 :]
        if call.path in paths
        and call.map is not None
        and min(call.size) > 1
        and call.intact
        and not call.is_from(_NO_STAGE)
        and not isinstance(call.module, nn.Linear)
    ]
    blocks = [call for call in trunk if list(call.module.children())]
    if len({call.size for call in trunk}) != 1 or len(blocks) != 1:
        return trunk
    # One block is the whole trunk: open it if it holds a chain of blocks.
    chain = _longest_chain(blocks[0], calls)
    at = trunk.index(blocks[0])
    return [*trunk[:at], *chain, *trunk[at + 1 :]] if len(chain) > 1 else trunk


def _trunk_paths(module: nn.Module, path: str, calls: list[_Call]) -> Iterator[str]:
    """Paths of the blocks, and of the layers beside them, that a network is built from."""
    inner_calls = [call for call in calls if not path or call.path.startswith(f"{path}.")]
    # Maps of one pixel come from squeeze-and-excitation inside a block, padding from a block too.
    maps = [call for call in inner_calls if call.map is not None and not call.is_from(_NO_STAGE)]
    sizes = {call.size for call in maps if min(call.size) > 1}
    gives_map = any(call.path == path and call.map is not None for call in calls)
    is_block = gives_map and len(sizes) <= _MAX_BLOCK_RESOLUTIONS
    children = list(module.named_children())
    if not children or (path and is_block and not isinstance(module, nn.Sequential)):
        yield path
        return
    for name, child in children:
        yield from _trunk_paths(child, f"{path}.{name}".lstrip("."), calls)


def _longest_chain(block: _Call, calls: list[_Call]) -> list[_Call]:
    """The longest chain of modules of one type and shape, each fed by the one before it."""
    assert block.map is not None
    chains: list[list[_Call]] = []
    for call in calls:
        is_inside = call.path.startswith(f"{block.path}.") and bool(list(call.module.children()))
        has_shape = call.map is not None and call.map.shape == block.map.shape
        if is_inside and has_shape and call.intact:
            for chain in chains:
                if call.input is chain[-1].output and type(call.module) is type(chain[-1].module):
                    chain.append(call)
                    break
            else:
                chains.append([call])
    return max(chains, key=len, default=[])


def _find_stages(trunk: list[_Call]) -> list[_Call]:
    # The last map of each size, if no larger one follows.
    stages = [
        call
        for i, call in enumerate(trunk)
        if all(_fits(later.size, call.size) and later.size != call.size for later in trunk[i + 1 :])
    ]
    if len(stages) != 1:
        return stages
    # One resolution: the blocks at quarter depths.
    assert stages[0].map is not None
    shape = stages[0].map.shape
    blocks = [
        call
        for call in trunk
        if call.map is not None and call.map.shape == shape and list(call.module.children())
    ]
    count = min(_QUARTERS, len(blocks))
    if count < 2:
        return stages
    return [blocks[round(len(blocks) * k / count) - 1] for k in range(1, count + 1)]


def _fits(smaller: tuple[int, int], larger: tuple[int, int]) -> bool:
    return smaller[0] <= larger[0] and smaller[1] <= larger[1]


def _outermost(call: _Call, calls: list[_Call]) -> _Call:
    """The outermost module that gives this very output: its name says most."""
    aliases = [c for c in calls if c.output is call.output and call.path.startswith(c.path)]
    return min([call, *aliases], key=lambda c: len(c.path))


def _block_paths(stage: _Call, trunk: list[_Call]) -> tuple[str, ...]:
    """The trunk's modules beside a stage's last block, up to it, with maps of the same shape."""
    if not stage.parent:
        return (stage.path,)
    return tuple(
        call.path
        for call in trunk[: trunk.index(stage) + 1]
        if call.parent == stage.parent and call.output.shape == stage.output.shape
    )


def _preact_paths(stages: list[_Call], calls: list[_Call]) -> tuple[str, ...]:
    paths = []
    for stage in stages:
        activations = [c for c in calls if c.output is stage.output and c.is_from((activation,))]
        if not activations and float(stage.output.min()) >= 0:
            # An activation function, whose input cannot be tapped.
            return ()
        path = _outermost(stage, calls).path
        paths.append(f"{activations[-1].path}:input" if activations else path)
    return tuple(paths)
