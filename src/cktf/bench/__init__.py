"""Comparisons of methods: matrices, their cells and tables, and the published figures."""

from typing import TYPE_CHECKING

from cktf.first_use import package_names

if TYPE_CHECKING:
    from cktf.bench.api import *

__getattr__, __dir__ = package_names("cktf.bench.api")
