"""cktf: contrastive knowledge transfer from a large trained classifier to a small one.

The names here are imported when they are first used, so that `import cktf` is quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from cktf import data, export, functional, models, objectives, taps, workflows
    from cktf.engine import Callback
    from cktf.workflows import Run, distill, evaluate, probe, teach, transfer

_MODULES = ("data", "export", "functional", "models", "objectives", "taps", "workflows")
_FUNCTIONS = ("Run", "distill", "evaluate", "probe", "teach", "transfer")

__all__ = [
    "Callback",
    "Run",
    "data",
    "distill",
    "evaluate",
    "export",
    "functional",
    "models",
    "objectives",
    "probe",
    "taps",
    "teach",
    "transfer",
    "workflows",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"cktf.{name}")
    if name == "Callback":
        return import_module("cktf.engine").Callback
    if name in _FUNCTIONS:
        return getattr(import_module("cktf.workflows"), name)
    raise AttributeError(f"module 'cktf' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
