"""Features from any network, without editing it.

A `Tap` hooks the modules that `FeaturePaths` names for one forward pass and removes the hooks after
it, so that the network itself is unchanged.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from cktf.batch import Batch
from cktf.errors import TapError, nearest
from cktf.models.feature_paths import FeaturePaths
from cktf.taps.features import FEATURES, Features
from cktf.taps.folding import explain_torchscript, input_shape, to_feature_map, type_name
from cktf.taps.infer import infer_paths


class _Recorder:
    """The tapped tensors of one forward pass by path, with the version of each."""

    def __init__(self) -> None:
        self.tensors: dict[str, tuple[Tensor, int]] = {}
        self.repeated: set[str] = set()
        self.without_gradient: set[str] = set()

    def record(self, path: str, value: Any) -> None:
        if not isinstance(value, Tensor):
            raise TapError(
                f"A tap needs one tensor; {path!r} gives a {type(value).__name__}. Tap a module "
                "inside it, or after it."
            )
        if path in self.tensors:
            self.repeated.add(path)
        if not torch.is_grad_enabled():
            self.without_gradient.add(path)
        # Inference tensors have no version, so that overwriting them goes unnoticed.
        self.tensors[path] = value, -1 if value.is_inference() else value._version

    def take(self, path: str) -> Tensor:
        if path not in self.tensors:
            raise TapError(
                f"{path!r} exists but did not run in this forward pass. Tap a module that every "
                "image passes through."
            )
        if path in self.repeated:
            raise TapError(
                f"{path!r} runs more than once in a forward pass, so its output is ambiguous. Tap "
                "a module that runs once, for example the one that holds it."
            )
        value, version = self.tensors[path]
        if version >= 0 and value._version != version:
            raise TapError(
                f"The output of {path!r} is overwritten in place by a later layer. Tap that layer "
                "(often an activation with inplace=True) instead, or set its inplace=False."
            )
        return value


class Tap:
    """Runs a network and returns the features that are needed.

    Args:
        model: any module from images [B, C, H, W] to logits [B, classes], compiled or not.
        paths: where its features are; by default the model's attribute `feature_paths`.
        needs: names of the `Features` to return; `logits` always is.
        compile: run the network through `torch.compile`. Overwritten outputs are then not noticed:
            try the tap without it first.

    Raises:
        TapError: a path that does not exist, or a feature that is needed and has no path; when
            called: a module that did not run, ran twice, gave no tensor, ran without a gradient
            though it is trained, or whose output was overwritten.

    >>> import torch
    >>> from cktf.models import create
    >>> features = Tap(create("resnet8", 10), needs=["stages"])(torch.rand(2, 3, 32, 32))
    >>> [tuple(m.shape) for m in features.stages]
    [(2, 16, 32, 32), (2, 32, 16, 16), (2, 64, 8, 8)]
    """

    def __init__(
        self,
        model: nn.Module,
        paths: FeaturePaths | None = None,
        needs: Iterable[str] = ("embedding", "stem", "stages"),
        *,
        compile: bool = False,
    ) -> None:
        inner = getattr(model, "_orig_mod", None)
        if inner is not None:
            # The network itself is hooked, and compiled with its hooks.
            model, compile = inner, True
        if paths is None:
            paths = getattr(model, "feature_paths", None)
            if paths is None:
                raise TapError(
                    f"{type_name(model)} does not say where its features are. Use "
                    "Tap.infer(model, example_images), or pass paths=FeaturePaths(...)."
                )
        self.model = model
        self.paths = paths
        self.needs = frozenset(needs) | {"logits"}
        unknown = sorted(self.needs - set(FEATURES))
        if unknown:
            raise TapError(f"There is no feature {unknown[0]!r}. {nearest(unknown[0], FEATURES)}")
        for name in sorted(self.needs - {"logits"}):
            if not getattr(paths, name):
                raise TapError(
                    f"{type_name(model)} has no path for its {name}. Give one in "
                    f"FeaturePaths({name}=...), or use a method that does not need it."
                )
        values = [getattr(paths, name) for name in self.needs - {"logits"}]
        while any(isinstance(value, tuple) for value in values):
            values = [item for v in values for item in (v if isinstance(v, tuple) else (v,))]
        self._modules = {path: self._find_module(path) for path in set(values)}
        self._compiled = self._compile() if compile else None

    @classmethod
    def infer(
        cls,
        model: nn.Module,
        example: Tensor,
        needs: Iterable[str] = ("embedding", "stem", "stages"),
    ) -> "Tap":
        """Build a tap, running the model once on example images to find the paths.

        `cktf.taps.infer` explains the rules.
        """
        return cls(model, infer_paths(getattr(model, "_orig_mod", model), example), needs)

    def _find_module(self, path: str) -> nn.Module:
        name = path.removesuffix(":input")
        modules: dict[str, nn.Module] = dict(self.model.named_modules())
        if isinstance(modules.get(name), torch.jit.ScriptModule):
            raise TapError(f"{name!r} cannot be tapped. {explain_torchscript(self.model)}")
        if name not in modules or not name:
            hint = nearest(name, (n for n in modules if n))
            raise TapError(f"{type_name(self.model)} has no module {name!r}. {hint}")
        return modules[name]

    def __call__(self, images: Tensor) -> Features:
        """Run the network on images [B, C, H, W]."""
        recorder = _Recorder()
        logits: Any
        if self._compiled is not None:
            logits, tensors = self._compiled(images)
            for path, value in tensors.items():
                recorder.record(path, value)
        else:
            with self._hooked(recorder.record):
                logits = self.model(images)
        if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(images):
            output = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            part = "['logits']" if isinstance(logits, dict) else ""
            part = "[0]" if isinstance(logits, tuple | list) else part
            part = ".logits" if hasattr(logits, "logits") else part
            raise TapError(
                f"A classifier gives logits [B, classes]; {type_name(self.model)} gave {output} "
                f"for {len(images)} images. Wrap it in a module that returns only its logits"
                + (f", such as network(images){part}." if part else ".")
            )
        for path in recorder.without_gradient if logits.requires_grad else ():
            if any(p.requires_grad for p in self._modules[path].parameters()):
                raise TapError(
                    f"{path!r} has trainable weights but runs without a gradient in "
                    f"{type_name(self.model)}, so it would learn nothing from its features. Call "
                    "torch.utils.checkpoint with use_reentrant=False, tap a module around the "
                    "checkpoint, or freeze its weights."
                )
        return self._assemble(logits, recorder, input_shape(self.model, images.shape))

    def extract(self, batch: Batch) -> Features:
        """Run the network on a batch's images."""
        return self(batch.images)

    @contextmanager
    def _hooked(self, record: Callable[[str, Any], None]) -> Iterator[None]:
        """Record the tapped tensors of every forward pass inside the block."""
        handles = [self._hook(path, record) for path in self._modules]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, path: str, record: Callable[[str, Any], None]) -> RemovableHandle:
        """Record a module's input or output in each forward pass."""
        module = self._modules[path]
        if not path.endswith(":input"):
            return module.register_forward_hook(lambda _, __, out: record(path, out))

        def record_input(_: nn.Module, args: tuple[Any, ...]) -> None:
            value = args[0] if args else None
            if isinstance(value, Tensor) and getattr(module, "inplace", False):
                # The module is about to overwrite it.
                value = value.clone()
            record(path, value)

        return module.register_forward_pre_hook(record_input)

    def _compile(self) -> Callable[[Tensor], tuple[Tensor, dict[str, Tensor]]]:
        """A compiled function from images to the network's logits and tapped tensors."""
        recorded: dict[str, Tensor] = {}
        # PyTorch reuses code that it compiled for another tap of the same class of network, and
        # does not compare hooks. Looking up the paths by name tells such taps apart.
        paths = tuple(self._modules)

        def run(images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            logits, tensors = self.model(images), {path: recorded[path] for path in paths}
            recorded.clear()
            return logits, tensors

        compiled = torch.compile(run)

        # PyTorch 2.11 compiles no call of the dictionary's own method.
        def record(path: str, value: Any) -> None:
            recorded[path] = value

        def hooked(images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            # The hooks are compiled too, and must be in place whenever PyTorch recompiles.
            with self._hooked(record):
                return compiled(images)

        return hooked

    def _assemble(self, logits: Tensor, recorder: _Recorder, images: torch.Size) -> Features:
        paths, needs = self.paths, self.needs

        def take(path: str) -> Tensor:
            value = recorder.take(path)
            feature_map = to_feature_map(value, images)
            if feature_map is None:
                raise TapError(
                    "A map is [B, C, H, W] or [B, H, W, C], or tokens [B, T, C], of the images' "
                    f"proportions; {path!r} gives {tuple(value.shape)} for images "
                    f"{tuple(images)}. Tap another module."
                )
            return feature_map

        embedding = recorder.take(paths.embedding) if "embedding" in needs else None
        # The input of a convolution that classifies every place, or a map of one pixel.
        is_input = paths.embedding.endswith(":input")
        if embedding is not None:
            if embedding.dim() == 4 and (is_input or embedding.shape[2:] == (1, 1)):
                embedding = embedding.mean((2, 3))
            if embedding.dim() != 2:
                raise TapError(
                    f"The embedding is one vector per image, [B, D]; {paths.embedding!r} gives "
                    f"{tuple(embedding.shape)}. Tap the input of the last linear layer."
                )
        return Features(
            logits=logits,
            embedding=embedding,
            stem=take(paths.stem) if "stem" in needs else None,
            stages=tuple(map(take, paths.stages)) if "stages" in needs else (),
            blocks=tuple(tuple(map(take, s)) for s in paths.blocks) if "blocks" in needs else (),
            preacts=tuple(map(take, paths.preacts)) if "preacts" in needs else (),
            pool_globally=paths.pool_globally,
        )
