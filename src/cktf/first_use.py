"""Imports at first use: a mistake in a name is told without waiting for PyTorch."""

from collections.abc import Callable
from importlib import import_module
from pkgutil import resolve_name
from typing import Any


def package_names(module: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return `__getattr__` and `__dir__` of a package that offers the names of `module`.

    The module is imported when one of its names is first asked for, and not by an import of
    another module of the package.
    """

    def get(name: str) -> Any:
        return getattr(import_module(module), name)

    return get, lambda: sorted(import_module(module).__all__)


def call_later(path: str) -> Callable[..., Any]:
    """Return a function that imports `module:name` when it is called, and calls that.

    >>> call_later("math:sqrt")(9)
    3.0
    """
    return lambda *args, **kwargs: resolve_name(path)(*args, **kwargs)
