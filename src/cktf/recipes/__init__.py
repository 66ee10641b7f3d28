"""Recipes: the typed description of an experiment, and what it is built from."""

from typing import TYPE_CHECKING

from cktf.first_use import package_names

if TYPE_CHECKING:
    from cktf.recipes.api import *

__getattr__, __dir__ = package_names("cktf.recipes.api")
