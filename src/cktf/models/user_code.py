"""Functions and classes of a user's Python file or module that build networks.

A file may import its neighbors, as when it is run as a script. Two files whose neighbors have the
same name, `models.py`, each get their own.
"""

import importlib
import importlib.util
import inspect
import operator
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from cktf.errors import ModelError
from cktf.models.network_spec import NetworkSpec, describe_builders
from cktf.models.own_code import remember_code
from cktf.user_paths import expand_user_path, locate_in_user_code

# Where neither the caller nor the code says how many.
DEFAULT_CLASSES = 10

# Modules that no neighbor of a user's file replaces: this library runs in the same process.
_SHARED = sys.stdlib_module_names | {"__main__", "cktf", "torch", "torchvision", "numpy"}
# The neighbors that files of a folder imported, by name, where another module has that name.
_hidden_neighbors: dict[Path, dict[str, ModuleType]] = {}


def call_user_code(spec: NetworkSpec, num_classes: int | None) -> nn.Module:
    """Call the function or class that a spec names, and return its network.

    Args:
        spec: of a Python file or module.
        num_classes: passed where the function has such a parameter; None for its own default.

    Raises:
        ModelError: the code fails, the name is missing or no function, arguments do not fit, or
            what it returns is no network.
    """
    path = expand_user_path(spec.library).resolve()
    folder = path.parent if spec.library.endswith(".py") else None
    try:
        with _importing_neighbors(folder):
            module = importlib.import_module(spec.library) if folder is None else _load_file(path)
            function = _find_builder(spec, module)
            arguments = _complete_arguments(spec, function, num_classes)
            network = function(**arguments)
    except (Exception, SystemExit) as error:  # users' code raises errors of any type
        if isinstance(error, ModelError):
            raise
        raise ModelError(f"{spec.text} could not be built: {_locate_error(error)}") from error
    if not isinstance(network, nn.Module):
        raise ModelError(
            f"{spec.text} gives a {type(network).__name__}; a network is a torch.nn.Module, which "
            "the function must return."
        )
    remember_code(spec)
    return network


@contextmanager
def _importing_neighbors(folder: Path | None) -> Iterator[None]:
    """Let imports find the modules of a folder, before others of the same name."""
    if folder is None:
        yield
        return
    others = {
        name: module
        for name, module in _modules_like_neighbors(folder)
        if not _is_inside(module, folder)
    }
    for name in others:
        del sys.modules[name]
    sys.modules.update(_hidden_neighbors.get(folder, {}))
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        with suppress(ValueError):
            sys.path.remove(str(folder))
        _hide_neighbors(folder, {name.partition(".")[0] for name in others})
        sys.modules.update(others)


def _hide_neighbors(folder: Path, names: set[str]) -> None:
    """Take neighbors out of the modules of the process where other modules have their names."""
    modules = _modules_like_neighbors(folder)
    for name in [name for name, module in modules if _is_inside(module, folder)]:
        package = name.partition(".")[0]
        if package in names or _is_installed(package, folder):
            _hidden_neighbors.setdefault(folder, {})[name] = sys.modules.pop(name)


def _modules_like_neighbors(folder: Path) -> list[tuple[str, ModuleType]]:
    """List the modules of the process that have the name of a neighbor, and their submodules."""
    packages = {name.partition(".")[0] for name in sys.modules}
    neighbors = {package for package in packages if _has_module(folder, package)}
    return [(n, module) for n, module in sys.modules.items() if n.partition(".")[0] in neighbors]


def _has_module(folder: Path, name: str) -> bool:
    """Whether a script in the folder would import its neighbor by this name."""
    if name in _SHARED:
        return False
    if (folder / f"{name}.py").is_file() or (folder / name / "__init__.py").is_file():
        return True
    # A folder without __init__.py is imported unless a package with one is found elsewhere.
    return (folder / name).is_dir() and not _is_installed(name, folder)


def _is_installed(name: str, folder: Path) -> bool:
    """Whether the process finds a module of this name without the folder."""
    paths = [path for path in sys.path if Path(path or ".").resolve() != folder]
    module = importlib.machinery.PathFinder.find_spec(name, paths)
    return module is not None and module.origin is not None


def _is_inside(module: ModuleType, folder: Path) -> bool:
    """Whether a module was imported from a folder or one below it."""
    places = [getattr(module, "__file__", None) or "", *(getattr(module, "__path__", None) or ())]
    return any(place and Path(place).resolve().is_relative_to(folder) for place in places)


def _load_file(path: Path) -> ModuleType:
    """Run a Python file as a module of a package that is its folder, for relative imports."""
    package = f"{path.parent.name}_{zlib.crc32(bytes(path.parent)):08x}".replace(".", "_")
    if package not in sys.modules:
        sys.modules[package] = ModuleType(package)
        sys.modules[package].__path__ = [str(path.parent)]
    # Its name in sys.modules is unique: dataclasses look up their module there.
    name = f"{package}.{path.stem.replace('.', '_')}"
    module_spec = importlib.util.spec_from_file_location(name, path)
    assert module_spec is not None and module_spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    return module


def _find_builder(spec: NetworkSpec, module: ModuleType) -> Callable[..., Any]:
    try:
        builder = operator.attrgetter(spec.name)(module)
    except AttributeError as error:
        raise ModelError(
            f"{spec.library} defines no {spec.name!r}. {describe_builders(spec.library)}"
        ) from error
    if isinstance(builder, nn.Module) or not callable(builder):
        raise ModelError(
            f"{spec.text} is an object of {type(builder).__name__}, and not a function or class "
            f"that builds a network. {describe_builders(spec.library)}"
        )
    return builder  # type: ignore[no-any-return]


def _complete_arguments(
    spec: NetworkSpec, function: Callable[..., Any], num_classes: int | None
) -> dict[str, Any]:
    """Add num_classes to the arguments of a spec, where the function takes it."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # a function written in C
        return spec.arguments
    arguments = dict(spec.arguments)
    parameter = signature.parameters.get("num_classes")
    if parameter is not None:
        required = parameter.default is inspect.Parameter.empty
        if num_classes is not None or required:
            arguments.setdefault("num_classes", num_classes or DEFAULT_CLASSES)
    try:
        signature.bind(**arguments)
    except TypeError as error:
        raise ModelError(
            f"{spec.text}: {error}. It is {spec.name}{signature}; arguments are given by name: "
            f"{spec.library}:{spec.name}(NAME=VALUE)."
        ) from error
    return arguments


def _locate_error(error: BaseException) -> str:
    """Describe an error of a user's code, with the last line of it that ran."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}, line {error.lineno}: {type(error).__name__}: {error.msg}."
    line = locate_in_user_code(error)
    where = f"{line}: " if line else ""
    if isinstance(error, SystemExit):
        return (
            f"{where}the code ended the program while it was loaded. Put what is to run as a "
            "script under: if __name__ == '__main__'."
        )
    text = f"{where}{type(error).__name__}: {(str(error).splitlines() or [''])[0]}."
    if isinstance(error, ModuleNotFoundError):
        text += " Install it in this environment, or put the file beside the one that imports it."
    elif "relative import" in str(error):
        text += " Name the package and give its folder in PYTHONPATH: package.module:NAME."
    return text
