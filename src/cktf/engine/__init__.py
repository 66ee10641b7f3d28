"""The training loop, its configuration, evaluation, and run folders."""

from typing import TYPE_CHECKING

from cktf.first_use import package_names

if TYPE_CHECKING:
    from cktf.engine.api import *

__getattr__, __dir__ = package_names("cktf.engine.api")
