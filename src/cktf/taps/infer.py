"""Find where a network that we have never seen keeps its features.

The network is run once on example images, and every module's output is noted in order. Its *trunk*
is the chain of modules that it is put together from: what a container holds is looked at one by
one, a block is taken as a whole, so that what it widens inside is nobody's feature. What is larger
than all that a module around it is given and gives is no map, but attention of places to places.
Where one module holds all blocks of a network of one resolution, its chain of blocks is the trunk.
Then:

- *stages*: the trunk's last map at each resolution of more than one pixel, as long as no larger one
  follows. Pooling, padding and dropout end no stage. Where there is one resolution only, as in
  vision transformers, the blocks at quarter depths.
- *blocks*: the trunk's maps of a stage's shape up to it.
- *preacts*: the input of the activation module that gives a stage's map; the map itself where no
  activation gives it, as in linear bottlenecks; none of a network where that cannot be told.
- *stem*: the first convolution's output, followed through the normalization and activation modules
  right behind it.
- *embedding*: the input of the classifier, the last `nn.Linear` or convolution that gives as many
  numbers as there are logits; a map where a convolution classifies every place.

Tokens and maps whose channels come last are maps too (`cktf.taps.folding`). An output that a later
layer overwrites is never chosen.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
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
from cktf.taps.folding import as_map, input_shape, type_name

_AFTER_CONVOLUTION = (activation, batchnorm, instancenorm, normalization)
_NO_STAGE = (pooling, dropout, padding)
# A block has at most two resolutions inside; what has more is put together from blocks.
_OF_A_BLOCK = 2
_QUARTERS = 4


@dataclass(eq=False)
class _Event:
    path: str
    module: nn.Module
    output: Tensor
    version: int
    given: Tensor | None
    map: Tensor | None

    def is_of(self, groups: tuple[Any, ...]) -> bool:
        return type(self.module).__module__ in {group.__name__ for group in groups}

    @property
    def size(self) -> tuple[int, int]:
        assert self.map is not None
        height, width = self.map.shape[-2:]
        return height, width

    @property
    def intact(self) -> bool:
        return self.output._version == self.version


def _run(model: nn.Module, example: Tensor) -> tuple[list[_Event], Any]:
    events: list[_Event] = []
    largest: dict[str, tuple[int, int]] = {}
    handles = []
    example, images = to_device_of(model, example), input_shape(model, example.shape)
    try:
        for path, module in model.named_modules():
            if path:
                handles.append(module.register_forward_hook(_note(events, largest, path, images)))
        with torch.no_grad(), eval_mode(model):
            logits = model(example)
    finally:
        for handle in handles:
            handle.remove()
    for event in events:
        around = (largest[outer] for outer in _around(event.path) if outer in largest)
        if event.map is not None and not all(_fits(event.size, size) for size in around):
            event.map = None
    return events, logits


def _around(path: str) -> Iterator[str]:
    """The paths of the modules around one, from the inside."""
    while "." in path:
        path = path.rpartition(".")[0]
        yield path


def _run_once(model: nn.Module, example: Tensor) -> tuple[list[_Event], Any]:
    """What ran, but for modules that ran more than once."""
    events, logits = _run(model, example)
    counts = Counter(event.path for event in events)
    return [e for e in events if counts[e.path] == 1], logits


def to_device_of(network: nn.Module, images: Tensor) -> Tensor:
    """The images on the network's device."""
    parameter = next(network.parameters(), None)
    return images if parameter is None else images.to(parameter.device)


@contextmanager
def preserve_modes(network: nn.Module | None) -> Iterator[None]:
    """After it, a network's modes, and which of its parameters are trained, are as they were."""
    modules = [] if network is None else list(network.modules())
    modes = [module.training for module in modules]
    parameters = [] if network is None else list(network.parameters())
    trained = [parameter.requires_grad for parameter in parameters]
    try:
        yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode
        for parameter, trains in zip(parameters, trained, strict=True):
            parameter.requires_grad_(trains)


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Every module in eval mode inside, and in its own mode again after."""
    with preserve_modes(model):
        model.eval()
        yield


def _note(
    events: list[_Event], largest: dict[str, tuple[int, int]], path: str, images: torch.Size
) -> Any:
    """A hook that notes what a module gives, and how large maps may be inside it."""

    def hook(module: nn.Module, args: Any, output: Any) -> None:
        given = args[0] if args and isinstance(args[0], Tensor) else None
        found = as_map(output, images) if isinstance(output, Tensor) else None
        # What is given images may enlarge them.
        if given is not None and given.shape[:2] != images[:2]:
            taken = as_map(given, images)
            if taken is not None:
                ends = [taken, taken if found is None else found]
                largest[path] = max(m.shape[-2] for m in ends), max(m.shape[-1] for m in ends)
        if isinstance(output, Tensor):
            events.append(_Event(path, module, output, output._version, given, found))

    return hook


def infer_paths(
    model: nn.Module, example: Tensor, given: FeaturePaths | None = None
) -> FeaturePaths:
    """Paths of the features of any image classifier.

    Args:
        model: from images to logits; its mode and weights are left as they are.
        example: [B, C, H, W], a few images of the size that it will see.
        given: paths that are known, which are not looked for.

    Raises:
        TapError: no classifier ran, or no map of more than one pixel was found.
    """
    once, logits = _run_once(model, example)
    given = given or FeaturePaths()
    name = type_name(model)
    classifier = _classifier(once, logits)
    if classifier is None and not given.embedding:
        raise TapError(
            f"{name} runs no layer that gives as many numbers as there are logits, so its "
            "embedding cannot be found. Say where it is: --student-embedding or "
            "--teacher-embedding path.of.classifier:input, or feature_paths = "
            "FeaturePaths(embedding=...) in the network."
        )
    body = once[: once.index(classifier)] if classifier else once
    stem = _stem(body)
    trunk = _trunk(model, body, stem)
    stages = _stages(trunk or [e for e in body if e is stem and e.map is not None])
    if not (stages or given.stages):
        raise TapError(
            f"{name} has no feature map of more than one pixel. Give larger images, or say where "
            "its stages are: --student-taps or --teacher-taps path,path,..., or feature_paths = "
            "FeaturePaths(stages=(...)) in the network."
        )
    found = FeaturePaths(
        stem=stem.path if stem else (*(s.path for s in stages), *given.stages)[0],
        stages=tuple(_outermost(e, once).path for e in stages),
        blocks=tuple(_blocks(e, trunk) for e in stages),
        preacts=_preacts(stages, once),
        embedding=f"{classifier.path}:input" if classifier else "",
    )
    return found.updated(given)


def find_classifier(model: nn.Module, example: Tensor) -> str:
    """The path of the layer that gives a network's logits.

    Args:
        model: from images to logits; its mode and weights are left as they are.
        example: [B, C, H, W], a few images of the size that it will see.

    Raises:
        ModelError: no linear layer or convolution gives them.
    """
    found = _classifier(*_run_once(model, example))
    if found is None:
        raise ModelError(
            f"{type_name(model)} runs no linear layer or convolution that gives its logits, so "
            "that it cannot be given another. Build it with as many classes as the data has."
        )
    return found.path


def _classifier(events: list[_Event], logits: Any) -> _Event | None:
    """The last layer that gives as many numbers as there are logits; else the last linear one."""
    linear = [e for e in events if isinstance(e.module, nn.Linear) and e.output.dim() == 2]
    if isinstance(logits, Tensor):
        layers = [e for e in events if isinstance(e.module, nn.Linear | nn.Conv2d)]
        # One that classifies every place is averaged later.
        everywhere = [e for e in layers[-1:] if e.output.shape[:2] == logits.shape]
        giving = [e for e in layers if e.output.flatten(1).shape == logits.shape] or everywhere
        if giving:
            return giving[-1]
    return linear[-1] if linear else None


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


def _trunk(model: nn.Module, events: list[_Event], stem: _Event | None) -> list[_Event]:
    """The maps of the chain of blocks, in the order in which they ran."""
    taken = {path for path, _ in _units(model, "", events)}
    after = events.index(stem) if stem else -1
    trunk = [
        e
        for e in events[after + 1 :]
        if e.path in taken
        and e.map is not None
        and min(e.size) > 1
        and e.intact
        and not e.is_of(_NO_STAGE)
        and not isinstance(e.module, nn.Linear)
    ]
    return _opened(trunk, events)


def _units(module: nn.Module, path: str, events: list[_Event]) -> Iterator[tuple[str, nn.Module]]:
    """What a network is put together from: blocks, and layers beside them."""
    inside = [e for e in events if not path or e.path.startswith(f"{path}.")]
    # Single pixels are of squeeze-and-excitation, which a block may have; padding is a block's own.
    maps = [e for e in inside if e.map is not None and not e.is_of(_NO_STAGE)]
    sizes = {e.size for e in maps if min(e.size) > 1}
    ran = any(e.path == path and e.map is not None for e in events)
    if path and ran and not isinstance(module, nn.Sequential) and len(sizes) <= _OF_A_BLOCK:
        yield path, module
        return
    children = list(module.named_children())
    if not children:
        yield path, module
    for name, child in children:
        yield from _units(child, f"{path}.{name}".lstrip("."), events)


def _opened(trunk: list[_Event], events: list[_Event]) -> list[_Event]:
    """A trunk of one resolution and one block, with the chain of blocks inside it in its stead."""
    blocks = [e for e in trunk if list(e.module.children())]
    if len({e.size for e in trunk}) != 1 or len(blocks) != 1:
        return trunk
    runs: list[list[_Event]] = []
    for event in events:
        if event.path.startswith(f"{blocks[0].path}.") and _is_alike(event, blocks[0]):
            before = (run for run in runs if event.given is run[-1].output)
            run = next((r for r in before if type(r[-1].module) is type(event.module)), None)
            if run is None:
                runs.append([event])
            else:
                run.append(event)
    chain = max(runs, key=len, default=[])
    at = trunk.index(blocks[0])
    return [*trunk[:at], *chain, *trunk[at + 1 :]] if len(chain) > 1 else trunk


def _is_alike(event: _Event, other: _Event) -> bool:
    """Whether a module is put together from others and gives a map of another's shape."""
    if event.map is None or other.map is None or not event.intact:
        return False
    return event.map.shape == other.map.shape and bool(list(event.module.children()))


def _stages(trunk: list[_Event]) -> list[_Event]:
    last: dict[tuple[int, int], _Event] = {}
    for event in trunk:
        last.pop(event.size, None)
        last[event.size] = event
    ordered = list(last.values())
    stages = [
        e for i, e in enumerate(ordered) if all(_fits(later.size, e.size) for later in ordered[i:])
    ]
    return _quarters(stages[0], trunk) if len(stages) == 1 else stages


def _quarters(stage: _Event, trunk: list[_Event]) -> list[_Event]:
    """Of a network of one resolution, the blocks at quarter depths."""
    shape = stage.map.shape if stage.map is not None else None
    blocks = [
        e for e in trunk if e.map is not None and e.map.shape == shape and list(e.module.children())
    ]
    count = min(_QUARTERS, len(blocks))
    if count < 2:
        return [stage]
    return [blocks[round(len(blocks) * k / count) - 1] for k in range(1, count + 1)]


def _fits(smaller: tuple[int, int], larger: tuple[int, int]) -> bool:
    return smaller[0] <= larger[0] and smaller[1] <= larger[1]


def _outermost(event: _Event, events: list[_Event]) -> _Event:
    """The largest module that gives this very output: its name says most."""
    same = [e for e in events if e.output is event.output and event.path.startswith(e.path)]
    return min([event, *same], key=lambda e: len(e.path))


def _blocks(stage: _Event, trunk: list[_Event]) -> tuple[str, ...]:
    """What stands beside a stage's last block in its container, with maps of the same shape."""
    parent = stage.path.rpartition(".")[0]
    found = []
    for event in trunk:
        if event.path.rpartition(".")[0] == parent and event.output.shape == stage.output.shape:
            found.append(event.path)
        if event is stage:
            break
    return tuple(found) if parent else (stage.path,)


def _preacts(stages: list[_Event], events: list[_Event]) -> tuple[str, ...]:
    found = []
    for stage in stages:
        given = [e for e in events if e.output is stage.output and e.is_of((activation,))]
        if not given and float(stage.output.min()) >= 0:
            # Activated by a function, which leaves no place to tap.
            return ()
        outer = _outermost(stage, events)
        found.append(f"{given[-1].path}:input" if given else outer.path)
    return tuple(found)
