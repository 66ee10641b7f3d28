"""Networks from anywhere, named by one line of text.

| spec | network |
|---|---|
| `resnet8x4` | a network of this library |
| `timm:NAME`, `torchvision:NAME` | a network of timm or torchvision |
| `path/to/file.py:function`, `package.module:Class` | a user's own |

Arguments may follow, `timm:resnet18(pretrained=True)`, and the size to which images are resized,
`timm:vit_tiny_patch16_224@96`.
"""

import ast
import importlib.util
import re
import symtable
import sys
import tokenize
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from cktf.errors import ModelError, install_command, nearest
from cktf.models.zoo import check_network_name, list_networks
from cktf.user_paths import expand_user_path

# A path of a Python file may hold the characters that begin arguments or a size.
_SPEC = re.compile(
    r"(?P<location>.+?\.py:[\w.]+|[^()@]+?)(?P<arguments>\(.*\))?(?:@(?P<size>\d+))?"
)
# A function that timm or torchvision lists; other decorators may stand in between.
_REGISTERED = re.compile(r"^@register_model\b.*\n(?:(?!def |class ).*\n)*?def (\w+)", re.M)
_LIBRARIES = ("timm", "torchvision")
_FORMS = (
    "Give a network of cktf models, timm:NAME, torchvision:NAME, path/to/file.py:function or "
    "package.module:Class; arguments may follow in brackets."
)


@dataclass(frozen=True)
class NetworkSpec:
    """A parsed spec.

    Attributes:
        text: the spec as the user wrote it.
        library: `timm`, `torchvision`, a Python file or module, or empty for this library.
        name: of the network there.
        arguments: keyword arguments for its constructor; `pretrained` of torchvision is True or
            the name of its weights, however it was written.
        size: height and width to which images are resized; None: not resized.
    """

    text: str
    library: str
    name: str
    arguments: dict[str, Any]
    size: int | None

    @property
    def is_user_code(self) -> bool:
        """Whether building the network runs code of the user's."""
        return self.library not in ("", *_LIBRARIES)


def parse_network_spec(text: str) -> NetworkSpec:
    """Parse a spec and check that the network exists, without building it or running user code.

    Raises:
        ModelError: text of no such form, or a network, module or file that does not exist.

    >>> parse_network_spec("timm:resnet18(pretrained=True)@96")
    NetworkSpec(text='timm:resnet18(pretrained=True)@96', library='timm', name='resnet18', ...)
    """
    library, name = _split_location(text)
    if is_python_file(text):
        path = expand_user_path(library or name)
        if not path.is_file():
            raise ModelError(f"{text}: there is no file {path}.")
        raise ModelError(
            f"{path} is a Python file: say which function or class in it builds the network, "
            f"{path}:NAME. {describe_builders(str(path))}"
        )
    match = _SPEC.fullmatch(text.strip())
    if match is None or not name or library == ":":
        raise ModelError(f"{text!r} names no network. {_FORMS}")
    size = None if match["size"] is None else int(match["size"])
    arguments = _parse_arguments(text, match["arguments"])
    if library == "torchvision" and (weights := arguments.pop("weights", None)):
        # ResNet18_Weights.IMAGENET1K_V1 is IMAGENET1K_V1 of resnet18.
        arguments["pretrained"] = weights is True or str(weights).rpartition(".")[2]
    spec = NetworkSpec(text, library, name, arguments, size)
    if not library:
        check_network_name(name)
    elif library in _LIBRARIES:
        _check_library_name(library, name.partition(".")[0])
        _check_pretrained(spec)
    elif library.endswith(".py"):
        _check_file(spec)
    else:
        _check_module(spec)
    return spec


def is_python_file(text: str) -> bool:
    """Whether a spec is the path of a Python file, without the function that builds a network."""
    library, name = _split_location(text)
    return name.endswith(".py") if not library else library.endswith(".py") and not name


def is_library_network(text: str) -> bool:
    """Whether a spec has the form of a network of this library, timm or torchvision."""
    library, name = _split_location(text)
    return library in _LIBRARIES or (not library and name in list_networks())


def runs_user_code(text: str) -> bool:
    """Whether a spec names a Python file or module, which building the network would run."""
    return _split_location(text)[0] not in ("", *_LIBRARIES)


def resolve_network_spec(text: str) -> str:
    """Make the path of a Python file in a spec absolute, so that it is valid in any directory."""
    file = _split_location(text)[0]
    if not file.endswith(".py"):
        return text
    return text.replace(file, str(expand_user_path(file).absolute()), 1)


def _split_location(text: str) -> tuple[str, str]:
    """The library, file or module (":" where it is missing before a colon), and the name."""
    match = _SPEC.fullmatch(text.strip())
    library, colon, name = (match["location"] if match else text).rpartition(":")
    return library.strip() or colon, name.strip()


def _parse_arguments(text: str, arguments: str | None) -> dict[str, Any]:
    """Keyword arguments with literal values; nothing is evaluated, and a name is a string."""
    if not arguments:
        return {}
    try:
        call = ast.parse(f"f{arguments}", mode="eval").body
        # Positional arguments and **mappings are refused.
        assert isinstance(call, ast.Call) and not call.args and all(k.arg for k in call.keywords)
        return {str(k.arg): _parse_value(k.value) for k in call.keywords}
    except (SyntaxError, ValueError, AssertionError) as error:
        raise ModelError(
            f"{text!r}: arguments are given by name, with plain values: (depth=3, pretrained=True)."
        ) from error


def _parse_value(node: ast.expr) -> Any:
    """The value of a literal, and of a name without quotes: `DEFAULT`, or `true` as in YAML."""
    if isinstance(node, ast.Name | ast.Attribute):
        name = ast.unparse(node)
        return {"true": True, "false": False, "none": None, "null": None}.get(name.lower(), name)
    return ast.literal_eval(node)


def _check_pretrained(spec: NetworkSpec) -> None:
    """Check that weights of torchvision exist, and that those of timm are asked for in its way."""
    pretrained = spec.arguments.get("pretrained")
    if spec.library == "torchvision" and isinstance(pretrained, str):
        from torchvision import models

        known = list(models.get_model_weights(spec.name).__members__)
        if pretrained not in known:
            raise ModelError(
                f"{spec.text}: torchvision has no weights {pretrained!r} for {spec.name}. Give "
                f"weights='NAME' with one of: {', '.join(known)}."
            )
    elif spec.library == "timm" and ("weights" in spec.arguments or isinstance(pretrained, str)):
        raise ModelError(
            f"{spec.text}: weights of timm are part of the name of a network, and asked for with "
            f"pretrained=True: timm:{spec.name}(pretrained=True), or timm:{spec.name}.TAG("
            "pretrained=True)."
        )


def _check_library_name(library: str, name: str) -> None:
    known = _registered_names(library)
    if name not in known and library in sys.modules:
        # Networks that the user has registered.
        module = import_module(f"{library}.models")
        known |= set(module.list_models(**({} if library == "timm" else {"module": module})))
    if name not in known:
        raise ModelError(f"{library} has no network {name!r}. {nearest(name, known)}")


@cache
def _registered_names(library: str) -> set[str]:
    """Names of a library's networks, read from its files: to import it takes seconds.

    Raises:
        ModelError: the library is not installed.
    """
    found = importlib.util.find_spec(library)
    if found is None or found.origin is None:
        raise ModelError(
            f"{library}, which has this network, is not installed: {install_command('timm')}."
        )
    files = (Path(found.origin).parent / "models").glob("*.py")
    sources = (path.read_text(encoding="utf-8", errors="replace") for path in files)
    return {name for source in sources for name in _REGISTERED.findall(source)}


def _check_file(spec: NetworkSpec) -> None:
    path = expand_user_path(spec.library)
    if not path.is_file():
        raise ModelError(f"{spec.text}: there is no file {path}.")
    source = _read_source(path)
    # Names that the file defines or imports, found without running it.
    symbols = symtable.symtable(source, str(path), "exec").get_symbols()
    names = [s.get_name() for s in symbols if s.is_assigned() or s.is_imported()]
    if spec.name.partition(".")[0] not in names and not re.search(r"import\s+\*", source):
        similar = get_close_matches(spec.name, names, n=1, cutoff=0.5)
        hint = f" Did you mean {similar[0]!r}?" if similar else ""
        raise ModelError(f"{path} defines no {spec.name!r}.{hint} {describe_builders(str(path))}")


def _read_source(path: Path) -> str:
    """Read a Python file.

    Raises:
        ModelError: it is not Python, or cannot be read.
    """
    try:
        with tokenize.open(path) as file:
            source = file.read()
        ast.parse(source, str(path))
    except (SyntaxError, ValueError) as error:
        raise ModelError(f"{path} is not a Python file: {error}.") from error
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error.strerror or error}).") from error
    return source


def describe_builders(file: str) -> str:
    """List the functions and classes of a Python file that may build networks, without running it.

    A class counts where it has a base class, such as nn.Module.
    """
    path = expand_user_path(file)
    if not path.is_file():
        return ""
    found = [
        node.name
        for node in ast.parse(_read_source(path)).body
        if isinstance(node, ast.FunctionDef) or (isinstance(node, ast.ClassDef) and node.bases)
    ]
    public = [name for name in found if not name.startswith("_")]
    return (
        f"It has {', '.join(public)}." if public else "It has no function and no nn.Module class."
    )


def _check_module(spec: NetworkSpec) -> None:
    try:
        # Looking up a submodule would import its package, which runs code.
        found = importlib.util.find_spec(spec.library.partition(".")[0])
    except (ImportError, ValueError):
        found = None
    if found is None:
        file = Path(spec.library.strip(":").removesuffix(".py").replace(".", "/") + ".py")
        hint = f"Did you mean {file}:{spec.name}? " if file.is_file() else ""
        raise ModelError(f"There is no Python module {spec.library!r}. {hint}{_FORMS}")
