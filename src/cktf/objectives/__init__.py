"""Objectives that a student minimizes, one file per paper."""

from typing import TYPE_CHECKING

from cktf.first_use import package_names

if TYPE_CHECKING:
    from cktf.objectives.api import *

__getattr__, __dir__ = package_names("cktf.objectives.api")
