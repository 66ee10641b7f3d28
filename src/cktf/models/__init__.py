"""Networks by name, weights files, and the feature paths of networks."""

from typing import TYPE_CHECKING

from cktf.first_use import package_names

if TYPE_CHECKING:
    from cktf.models.api import *

__getattr__, __dir__ = package_names("cktf.models.api")
