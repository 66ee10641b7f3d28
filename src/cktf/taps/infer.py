"""Find where a network that we have never seen keeps its features.

The network is run once on example images, and every module's output is noted in order. Then:

- *stages*: the last map at each resolution, for resolutions of more than one pixel, as long as no
  larger map follows it (so squeeze-and-excitation vectors and the maps of a decoder are passed by).
  Pooling layers and dropout end no stage.
- *blocks*: the children of a stage that is an `nn.Sequential`, or the stage itself.
- *stem*: the first convolution's output, followed through the normalisation and activation modules
  right behind it.
- *preacts*: the input of the activation module that gives a stage's map; the map itself where no
  activation gives it, as in linear bottlenecks; none of a network where that cannot be told.
- *embedding*: the input of the last `nn.Linear`.

An output that a later layer overwrites is never chosen.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import activation, batchnorm, dropout, instancenorm, normalization, pooling

from cktf.errors import TapError
from cktf.models.paths import FeaturePaths

_AFTER_CONVOLUTION = (activation, batchnorm, instancenorm, normalization)


@dataclass
class _Event:
    path: str
    module: nn.Module
    output: Tensor
    version: int

    def is_of(self, groups: tuple[Any, ...]) -> bool:
        return type(self.module).__module__ in {group.__name__ for group in groups}

    @property
    def size(self) -> tuple[int, int]:
        height, width = self.output.shape[-2:]
        return height, width

    @property
    def intact(self) -> bool:
        return self.output._version == self.version


def _run(model: nn.Module, example: Tensor) -> list[_Event]:
    events: list[_Event] = []
    handles = []
    try:
        for path, module in model.named_modules():
            if path:
                handles.append(module.register_forward_hook(_note(events, path)))
        with torch.no_grad(), evaluating(model):
            model(example)
    finally:
        for handle in handles:
            handle.remove()
    return events


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Every module in eval mode inside, and in its own mode again after."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _note(events: list[_Event], path: str) -> Any:
    def hook(module: nn.Module, args: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            events.append(_Event(path, module, output, output._version))

    return hook


def infer_paths(model: nn.Module, example: Tensor) -> FeaturePaths:
    """Paths of the features of any convolutional classifier.

    Args:
        model: from images to logits; its mode and weights are left as they are.
        example: [B, C, H, W], a few images of the size that it will see.

    Raises:
        TapError: no `nn.Linear` ran, or no map of more than one pixel was found.
    """
    events = _run(model, example)
    counts: dict[str, int] = {}
    for event in events:
        counts[event.path] = counts.get(event.path, 0) + 1
    once = [e for e in events if counts[e.path] == 1]
    name = type(model).__name__
    linear = [e for e in once if isinstance(e.module, nn.Linear) and e.output.dim() == 2]
    if not linear:
        raise TapError(
            f"{name} runs no nn.Linear that gives [B, classes], so its embedding cannot be found. "
            "Say where it is: feature_paths = FeaturePaths(embedding='path.of.classifier:input')."
        )
    maps = [e for e in once if e.output.dim() == 4 and len(e.output) == len(example) and e.intact]
    stem = _stem(once)
    stages = _stages(maps, stem)
    if not stages:
        raise TapError(
            f"{name} has no feature map of more than one pixel. Say where its stages are: "
            "feature_paths = FeaturePaths(stages=('path', ...), ...)."
        )
    return FeaturePaths(
        stem=stem.path if stem else stages[0].path,
        stages=tuple(e.path for e in stages),
        blocks=tuple(_blocks(e, maps) for e in stages),
        preacts=_preacts(stages, once),
        embedding=f"{linear[-1].path}:input",
    )


def _preacts(stages: list[_Event], events: list[_Event]) -> tuple[str, ...]:
    found = []
    for stage in stages:
        given = [e for e in events if e.output is stage.output and e.is_of((activation,))]
        if not given and float(stage.output.min()) >= 0:
            # Activated by a function, which leaves no place to tap.
            return ()
        found.append(f"{given[-1].path}:input" if given else stage.path)
    return tuple(found)


def _stem(events: list[_Event]) -> _Event | None:
    first = next((i for i, e in enumerate(events) if isinstance(e.module, nn.Conv2d)), None)
    if first is None:
        return None
    stem = events[first]
    for event in events[first + 1 :]:
        if not event.is_of(_AFTER_CONVOLUTION) or event.output.shape != stem.output.shape:
            break
        stem = event
    return stem if stem.intact else None


def _stages(maps: list[_Event], stem: _Event | None) -> list[_Event]:
    last: dict[tuple[int, int], _Event] = {}
    # A container that ends with a pooling gives the pooling's own tensor.
    pooled = {id(e.output) for e in maps if e.is_of((pooling,))}
    for event in maps:
        if min(event.size) > 1 and id(event.output) not in pooled and not event.is_of((dropout,)):
            last.pop(event.size, None)
            last[event.size] = event
    ordered = list(last.values())
    stages = [
        e
        for i, e in enumerate(ordered)
        if all(_fits(later.size, e.size) for later in ordered[i:])
        # The stem, or a container that ends with it, is no stage.
        and (stem is None or e.output is not stem.output)
    ]
    return stages or ordered


def _fits(smaller: tuple[int, int], larger: tuple[int, int]) -> bool:
    return smaller[0] <= larger[0] and smaller[1] <= larger[1]


def _blocks(stage: _Event, maps: list[_Event]) -> tuple[str, ...]:
    if not isinstance(stage.module, nn.Sequential):
        return (stage.path,)
    children = {f"{stage.path}.{name}" for name, _ in stage.module.named_children()}
    found = [e.path for e in maps if e.path in children and e.output.shape == stage.output.shape]
    return tuple(found) or (stage.path,)
