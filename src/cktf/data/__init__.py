"""Data sets by name, batches with the positions of their samples, batched augmentation."""

from typing import TYPE_CHECKING

from cktf.first_use import package_names

if TYPE_CHECKING:
    from cktf.data.api import *

__getattr__, __dir__ = package_names("cktf.data.api")
