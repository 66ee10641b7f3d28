"""Features from any network, without editing it.

A `Tap` hooks the modules that `FeaturePaths` names for the length of one forward pass and takes the
hooks away again, so that the network is the user's own before and after.
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
from cktf.taps.folding import as_map, input_shape, type_name
from cktf.taps.infer import infer_paths


class _Recorder:
    """The tensors of one forward pass, by path, and what went wrong with them."""

    def __init__(self) -> None:
        self.seen: dict[str, tuple[Tensor, int]] = {}
        self.twice: set[str] = set()
        self.without_gradient: set[str] = set()

    def record(self, path: str, value: Any) -> None:
        if not isinstance(value, Tensor):
            raise TapError(
                f"{path!r} gives a {type(value).__name__}, and a tap needs one tensor. Tap a "
                "module inside it, or behind it."
            )
        if path in self.seen:
            self.twice.add(path)
        if not torch.is_grad_enabled():
            self.without_gradient.add(path)
        # Inference tensors keep no version; nothing can then be said about being overwritten.
        self.seen[path] = value, -1 if value.is_inference() else value._version

    def take(self, path: str) -> Tensor:
        if path not in self.seen:
            raise TapError(
                f"{path!r} exists but did not run in this forward pass. Tap a module that every "
                "image passes through."
            )
        if path in self.twice:
            raise TapError(
                f"{path!r} runs more than once in a forward pass, so its output is ambiguous. Tap "
                "a module that runs once, for example the one that holds it."
            )
        value, version = self.seen[path]
        if version >= 0 and value._version != version:
            raise TapError(
                f"The output of {path!r} is overwritten in place by a later layer. Tap that layer "
                "(often an activation with inplace=True) instead, or set its inplace=False."
            )
        return value


class Tap:
    """Runs a network and keeps the features that were asked for.

    Args:
        model: any module from images [B, C, H, W] to logits [B, classes], compiled or not.
        paths: where its features are; by default what the model says in `feature_paths`.
        needs: names of the `Features` to keep; `logits` is always kept.
        compile: run the network through `torch.compile`. What was overwritten is then not noticed:
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
            # Hooks are for the network itself; it is compiled with them.
            model, compile = inner, True
        if paths is None:
            paths = getattr(model, "feature_paths", None)
            if paths is None:
                raise TapError(
                    f"{type_name(model)} does not say where its features are. Use "
                    "Tap.infer(model, example_images), or give paths=FeaturePaths(...)."
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
        self._modules = {path: self._find(path) for path in self._wanted()}
        self._compiled: Callable[[Tensor], tuple[Tensor, dict[str, Tensor]]] | None = None
        if compile:
            self._compiled = self._compile()

    @classmethod
    def infer(
        cls,
        model: nn.Module,
        example: Tensor,
        needs: Iterable[str] = ("embedding", "stem", "stages"),
    ) -> "Tap":
        """A tap whose paths are found by running the model once on example images.

        See `cktf.taps.infer_paths` for the rules.
        """
        return cls(model, infer_paths(getattr(model, "_orig_mod", model), example), needs)

    def _wanted(self) -> set[str]:
        paths: set[str] = set()
        for name in self.needs - {"logits"}:
            value = getattr(self.paths, name)
            for item in (value,) if isinstance(value, str) else value:
                paths.update((item,) if isinstance(item, str) else item)
        return paths

    def _find(self, path: str) -> nn.Module:
        name = path.removesuffix(":input")
        modules: dict[str, nn.Module] = dict(self.model.named_modules())
        if name not in modules or not name:
            hint = nearest(name, (n for n in modules if n))
            raise TapError(f"{type_name(self.model)} has no module {name!r}. {hint}")
        return modules[name]

    def __call__(self, images: Tensor) -> Features:
        """Run the network on images [B, C, H, W]."""
        recorder = _Recorder()
        if self._compiled is not None:
            logits, found = self._compiled(images)
            for path, value in found.items():
                recorder.record(path, value)
        else:
            with self._hooked(recorder.record):
                logits = self.model(images)
        _check_logits(self.model, logits, len(images))
        if logits.requires_grad:
            self._check_gradients(recorder.without_gradient)
        return self._assemble(logits, recorder, input_shape(self.model, images.shape))

    def extract(self, batch: Batch) -> Features:
        """Run the network on a batch's images."""
        return self(batch.images)

    @contextmanager
    def _hooked(self, record: Callable[[str, Any], None]) -> Iterator[None]:
        """Inside, every forward pass of the network records what is tapped."""
        handles = [self._hook(path, record) for path in self._modules]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, path: str, record: Callable[[str, Any], None]) -> RemovableHandle:
        """Have a module's input or output recorded in each forward pass."""
        module = self._modules[path]
        if not path.endswith(":input"):
            return module.register_forward_hook(lambda _, __, out: record(path, out))

        def before(_: nn.Module, args: tuple[Any, ...]) -> None:
            given = args[0] if args else None
            if isinstance(given, Tensor) and getattr(module, "inplace", False):
                # The module is about to overwrite it.
                given = given.clone()
            record(path, given)

        return module.register_forward_pre_hook(before)

    def _compile(self) -> Callable[[Tensor], tuple[Tensor, dict[str, Tensor]]]:
        """The network as a compiled function that gives its logits and what was recorded."""
        seen: dict[str, Tensor] = {}
        # What is compiled for one tap also runs for another of a like network, whose hooks are not
        # compared; that it looks up the paths by name sets apart those that tap elsewhere.
        paths = tuple(self._modules)

        def run(images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            logits, found = self.model(images), {path: seen[path] for path in paths}
            seen.clear()
            return logits, found

        compiled = torch.compile(run)

        def hooked(images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            # The hooks are a part of what is compiled, and have to be there when that is done anew.
            with self._hooked(seen.__setitem__):
                return compiled(images)

        return hooked

    def _check_gradients(self, without: set[str]) -> None:
        """What is to be trained gets no gradient through a feature that has none."""
        for path in without:
            if any(p.requires_grad for p in self._modules[path].parameters()):
                raise TapError(
                    f"{path!r} is to be trained and runs without a gradient within "
                    f"{type_name(self.model)}, which would learn nothing from its features. Give "
                    "torch.utils.checkpoint use_reentrant=False, tap a module around what runs "
                    "so, or freeze its weights."
                )

    def _assemble(self, logits: Tensor, recorder: _Recorder, images: torch.Size) -> Features:
        paths, needs = self.paths, self.needs

        def take(path: str) -> Tensor:
            value = recorder.take(path)
            found = as_map(value, images)
            if found is None:
                raise TapError(
                    "A map is [B, C, H, W] or [B, H, W, C], or tokens [B, T, C], of the images' "
                    f"proportions; {path!r} gives {tuple(value.shape)} for images "
                    f"{tuple(images)}. Tap another module."
                )
            return found

        embedding = recorder.take(paths.embedding) if "embedding" in needs else None
        classified = paths.embedding.endswith(":input")
        if embedding is not None and embedding.dim() == 4:
            # What a convolution classifies, place by place; elsewhere a map may be one pixel.
            single = embedding.shape[2:] == (1, 1)
            embedding = embedding.mean((2, 3)) if classified or single else embedding
        if embedding is not None and embedding.dim() != 2:
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


def _check_logits(model: nn.Module, logits: Any, batch: int) -> None:
    if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != batch:
        given = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise TapError(
            f"A classifier gives logits [B, classes]; {type_name(model)} gave {given} for "
            f"{batch} images. Wrap it in a module that returns only its logits."
        )
