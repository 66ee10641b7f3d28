"""Networks from anywhere, by one line.

| line | what it is |
|---|---|
| `resnet8x4` | a network of this library |
| `timm:NAME`, `torchvision:NAME` | one of those libraries |
| `path/to/file.py:function`, `package.module:Class` | a user's own |

Behind each may stand arguments, `timm:resnet18(pretrained=True)`, and the size of its images,
`timm:vit_tiny_patch16_224@96`. A user's own is called with `num_classes` where it takes that, and
says in a `Normalized` around the network which mean, std and size it expects.
"""

import ast
import importlib
import importlib.util
import inspect
import re
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import torch
from torch import nn

from cktf.errors import ModelError, nearest
from cktf.models.normalized import Normalized
from cktf.models.torchvision_pretrained import implied, take_classifier
from cktf.models.zoo import check_network_name, create, list_networks
from cktf.user_paths import expand_user_path

# A path may hold what else begins arguments or a size.
_LINE = re.compile(r"(?P<where>.+?\.py:[\w.]+|[^()@]+?)(?P<arguments>\(.*\))?(?:@(?P<size>\d+))?")
_LIBRARIES = ("timm", "torchvision")
# Arguments by which timm opens files, pickles among them, without asking what is in them.
_OPEN_FILES = {"checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay"}
# Of a network that has no number of its own, where nobody says how many.
_CLASSES = 10
# Classes up to which every network is known to be of its usual size.
_MANY = 100_000


@dataclass(frozen=True)
class NetworkSpec:
    """Where a network comes from.

    Attributes:
        line: as the user gave it.
        library: `timm`, `torchvision`, a Python file or module, or empty for this library.
        name: of the network there.
        arguments: what it is built with, by name.
        size: height and width of its images; None: as they come.
    """

    line: str
    library: str
    name: str
    arguments: dict[str, Any]
    size: int | None

    @property
    def is_own_code(self) -> bool:
        """Whether it runs code of the user's."""
        return self.library not in ("", *_LIBRARIES)


@dataclass(frozen=True)
class BuiltNetwork:
    """A network as it comes from its source.

    Attributes:
        network: from normalized images to logits.
        mean, std: per channel, of what it was trained on; None where it is not, or nobody says.
        size: height and width of its images; None: as they come.
    """

    network: nn.Module
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    size: int | None = None


def parse_network_spec(line: str) -> NetworkSpec:
    """What a line names, checked as far as that needs no building.

    Raises:
        ModelError: a line of no such form, or a network, module or file that is not there.

    >>> parse_network_spec("timm:resnet18(pretrained=True)@96")
    NetworkSpec(line='timm:resnet18(pretrained=True)@96', library='timm', name='resnet18', ...)
    """
    match = _LINE.fullmatch(line.strip())
    if match is None:
        raise ModelError(f"{line!r} names no network. {_FORMS}")
    library, colon, name = match["where"].rpartition(":")
    size = None if match["size"] is None else int(match["size"])
    source = NetworkSpec(line, library, name.strip(), _arguments(line, match["arguments"]), size)
    if colon and not library:
        raise ModelError(f"{line!r} names no network. {_FORMS}")
    if not library:
        check_network_name(source.name)
    elif library in _LIBRARIES:
        _check_listed(source)
    else:
        _check_own(source)
    return source


def is_library_network(line: str) -> bool:
    """Whether a line has the form of a network of this library, timm or torchvision."""
    match = _LINE.fullmatch(line.strip())
    library, _, name = (match["where"] if match else line).rpartition(":")
    return library in _LIBRARIES or (not library and name.strip() in list_networks())


def runs_user_code(line: str) -> bool:
    """Whether a line names a Python file or module, which building the network would run."""
    match = _LINE.fullmatch(line.strip())
    library, colon, _ = (match["where"] if match else line).rpartition(":")
    return bool(colon) and library not in _LIBRARIES


def resolve_network_spec(line: str) -> str:
    """A line with the absolute path of its Python file, so that it means the same anywhere."""
    match = _LINE.fullmatch(line.strip())
    file = match["where"].rpartition(":")[0] if match else ""
    return (
        line.replace(file, str(expand_user_path(file).absolute()), 1)
        if file.endswith(".py")
        else line
    )


def build_network(source: NetworkSpec, num_classes: int | None) -> BuiltNetwork:
    """The network, with fresh weights unless its arguments ask for others.

    Args:
        source: where it comes from.
        num_classes: of its logits; None leaves as many as its source gives.

    Raises:
        ModelError: its source fails, or the weights that it asks for are not on this machine.
    """
    arguments = dict(source.arguments)
    if num_classes is not None and not source.is_own_code:
        arguments.setdefault("num_classes", num_classes)
    _check_memory(source, arguments)
    try:
        if not source.library:
            network = create(source.name, **({"num_classes": _CLASSES} | arguments))
            return BuiltNetwork(network, size=source.size)
        if source.library == "timm":
            return _timm(source, arguments)
        if source.library == "torchvision":
            return _torchvision(source, arguments)
        return _own(source, arguments, num_classes)
    except ModelError:
        raise
    except Exception as error:
        # Whatever a foreign library or file raises is told as what it is: its failure.
        reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        raise ModelError(
            f"{source.line} could not be built ({reason}). Weights have to be on this machine, and "
            "its arguments have to be those that it takes."
        ) from error


def _check_memory(source: NetworkSpec, arguments: dict[str, Any]) -> None:
    """Raise where arguments ask for a network that memory does not hold, before it is taken."""
    usual = arguments.keys() <= {"num_classes", "pretrained"}
    if source.is_own_code or (usual and arguments.get("num_classes", 0) in range(_MANY)):
        return
    bare = replace(source, arguments={})
    try:
        with torch.device("meta"):
            if source.library:
                made = {"timm": _timm, "torchvision": _torchvision}[source.library]
                network = made(bare, dict(arguments) | {"pretrained": False}).network
            else:
                network = create(source.name, **({"num_classes": _CLASSES} | arguments))
    except Exception:
        # Whatever is wrong with it is told by building it.
        return
    needed = sum(t.numel() * t.element_size() for t in network.parameters())
    free = psutil.virtual_memory().available
    if needed > free:
        raise ModelError(
            f"{source.line} has weights of {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB of "
            "memory are free. Build a smaller one."
        )


def _timm(source: NetworkSpec, arguments: dict[str, Any]) -> BuiltNetwork:
    import timm

    if asked := sorted(_OPEN_FILES & arguments.keys()):
        raise ModelError(
            f"{source.line}: {', '.join(asked)} would have timm open a file, which could run code. "
            "Give weights with --teacher-weights FILE."
        )
    known = timm.get_pretrained_cfg(source.name, allow_unregistered=True)
    if source.size is not None and known is not None and known.fixed_input_size:
        # BuiltNetwork for one size of images, and can be told which.
        arguments.setdefault("img_size", source.size)
    if not arguments.get("num_classes", None if known is None else known.num_classes):
        # Some come without a classifier.
        arguments["num_classes"] = _CLASSES
    network = timm.create_model(source.name, **arguments)
    described: dict[str, Any] = network.pretrained_cfg  # type: ignore[assignment]
    pretrained = bool(arguments.get("pretrained"))
    fixed = pretrained or described.get("fixed_input_size")
    size = source.size or arguments.get("img_size")
    size = size or (described["input_size"][-1] if fixed else None)
    if not pretrained:
        return BuiltNetwork(network, size=size)
    return BuiltNetwork(network, described["mean"], described["std"], size)


def drop_pretrained(source: NetworkSpec) -> NetworkSpec:
    """A network as its pretrained form is built, but with weights of its own.

    That of torchvision differs in more than weights: in the size of its images, in what it does to
    them first, and in heads beside its classifier.
    """
    arguments = dict(source.arguments)
    if arguments.pop("pretrained", False) and source.library == "torchvision":
        arguments = implied(source.name) | arguments
    return replace(source, arguments=arguments)


def _torchvision(source: NetworkSpec, arguments: dict[str, Any]) -> BuiltNetwork:
    from torchvision import models

    pretrained = arguments.pop("pretrained", False)
    classes = arguments.pop("num_classes", None) if pretrained else None
    if source.size and source.name.startswith("vit") and not pretrained:
        arguments.setdefault("image_size", source.size)
    network = models.get_model(
        source.name, **arguments, **({"weights": "DEFAULT"} if pretrained else {})
    )
    if classes is not None:
        like = implied(source.name) | arguments
        take_classifier(network, models.get_model(source.name, num_classes=classes, **like))
    if not pretrained:
        vision = source.name.startswith(("vit", "swin", "maxvit"))
        size = arguments.get("image_size", 224 if vision else None)
        return BuiltNetwork(network, size=source.size or size)
    seen = models.get_model_weights(source.name).DEFAULT.transforms()
    size = source.size or arguments.get("image_size", seen.crop_size[0])
    return BuiltNetwork(network, tuple(seen.mean), tuple(seen.std), size)


def _own(source: NetworkSpec, arguments: dict[str, Any], num_classes: int | None) -> BuiltNetwork:
    with _beside(source):
        function = getattr(_module(source), source.name)
        if num_classes is not None and "num_classes" in inspect.signature(function).parameters:
            arguments.setdefault("num_classes", num_classes)
        network = function(**arguments)
    if not isinstance(network, nn.Module):
        raise ModelError(
            f"{source.line} gives a {type(network).__name__}; a network is a torch.nn.Module."
        )
    if isinstance(network, Normalized):
        mean, std = (tuple(t.flatten().tolist()) for t in (network.mean, network.std))
        return BuiltNetwork(network.network, mean, std, source.size or network.size)
    return BuiltNetwork(network, size=source.size)


_FORMS = (
    "Give a network of cktf models, timm:NAME, torchvision:NAME, path/to/file.py:function or "
    "package.module:Class; arguments may follow in brackets."
)


def _arguments(line: str, text: str | None) -> dict[str, Any]:
    """Arguments by name, of plain values only: nothing is evaluated."""
    if not text:
        return {}
    try:
        call = ast.parse(f"f{text}", mode="eval").body
        # By name: **arguments are no plain values.
        assert isinstance(call, ast.Call) and not call.args and all(k.arg for k in call.keywords)
        return {str(k.arg): ast.literal_eval(k.value) for k in call.keywords}
    except (SyntaxError, ValueError, AssertionError) as error:
        raise ModelError(
            f"{line!r}: arguments are given by name, with plain values: (depth=3, pretrained=True)."
        ) from error


def _check_listed(source: NetworkSpec) -> None:
    known = _listed(source.library)
    bare = source.name.partition(".")[0]
    if bare not in known:
        raise ModelError(f"{source.library} has no network {bare!r}. {nearest(bare, known)}")


def _listed(library: str) -> list[str]:
    if library == "torchvision":
        from torchvision import models

        return list(models.list_models(module=models))
    try:
        import timm
    except ImportError as error:
        raise ModelError(
            "timm is not installed: pip install 'cktf[timm]' brings its networks."
        ) from error
    return list(timm.list_models())


def _check_own(source: NetworkSpec) -> None:
    if source.library.endswith(".py"):
        path = expand_user_path(source.library)
        if not path.is_file():
            raise ModelError(f"{source.line}: there is no file {path}.")
        defined = _defined_in(path)
        if source.name not in defined:
            raise ModelError(f"{path} defines no {source.name!r}. {nearest(source.name, defined)}")
        return
    try:
        # Looking further into a package would run it.
        found = importlib.util.find_spec(source.library.partition(".")[0])
    except (ImportError, ValueError):
        found = None
    if found is None:
        raise ModelError(f"There is no Python module {source.library!r}. {_FORMS}")


def _defined_in(path: Path) -> list[str]:
    """Names that a file defines at its top, without running it."""
    try:
        tree = ast.parse(path.read_text())
    except (SyntaxError, UnicodeDecodeError) as error:
        raise ModelError(f"{path} is no Python file: {error}.") from error
    kinds = (ast.FunctionDef, ast.ClassDef)
    own = [node.name for node in tree.body if isinstance(node, kinds)]
    assigned = [
        target.id
        for node in tree.body
        if isinstance(node, ast.Assign | ast.AnnAssign)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Name)
    ]
    imported = [
        alias.asname or alias.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    ]
    return own + assigned + imported


def _module(source: NetworkSpec) -> ModuleType:
    if not source.library.endswith(".py"):
        return importlib.import_module(source.library)
    path = expand_user_path(source.library).resolve()
    # A name that no other module has: dataclasses, for one, look their module up by it.
    name = f"{path.stem}_{zlib.crc32(bytes(path)):08x}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextmanager
def _beside(source: NetworkSpec) -> Iterator[None]:
    """What is inside imports what lies beside a file, as if the file were run by itself."""
    if not source.library.endswith(".py"):
        yield
        return
    folder = str(expand_user_path(source.library).resolve().parent)
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        with suppress(ValueError):
            sys.path.remove(folder)
