"""The base of all sections of a recipe, and old names of options."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict

_OLD_NAMES = {"place": "bank_device"}


class Section(BaseModel):
    """A group of settings: unknown fields, NaN and infinity are refused."""

    model_config = ConfigDict(extra="forbid", validate_default=True, allow_inf_nan=False)


def rename_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Replace the old names of options by their present ones.

    >>> rename_options({"place": "host", "negatives": 4096})
    {'bank_device': 'host', 'negatives': 4096}
    """
    return {_OLD_NAMES.get(name, name): value for name, value in options.items()}
