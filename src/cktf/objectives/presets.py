"""Presets: names that stand for a whole method string, as published, and for its options."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_ADDED_TO = "paper/cktf+"


@dataclass(frozen=True)
class Preset:
    """A published combination.

    Attributes:
        method: the method string that it stands for.
        title: its description.
        options: of the string's methods, by name.
        needs_labels: without labels the name stands for itself.
    """

    method: str
    title: str
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    needs_labels: bool = False


PRESETS = {
    "kd": Preset("ce:0.1+kd:0.9", "KD alone, with labels", needs_labels=True),
    f"{_ADDED_TO}METHOD": Preset("cktf:0.8+METHOD", "CKTF added to a method (Table 2)"),
    "paper/transfer": Preset(
        "cktf",
        "CKTF on images without labels (Figure 2)",
        {"cktf": {"beta": 1.0, "theta": 0.04, "temperature": 0.07}},
    ),
}


def expand_preset(
    method: str, *, labeled: bool = True
) -> tuple[str, Mapping[str, Mapping[str, Any]]]:
    """Replace a preset by the method string and options that it stands for.

    Args:
        method: a preset's name, or a method string, which stays as it is but for its case.
        labeled: the training images have labels.

    >>> expand_preset("kd")
    ('ce:0.1+kd:0.9', {})
    >>> expand_preset("paper/cktf+at")
    ('cktf:0.8+at', {})
    >>> expand_preset("cktf+kd")
    ('cktf+kd', {})
    """
    method = method.lower()
    name = method.strip()
    if name.startswith(_ADDED_TO):
        added_to, options = expand_preset(name.removeprefix(_ADDED_TO), labeled=labeled)
        return f"cktf:0.8+{added_to}", options
    preset = PRESETS.get(name)
    if preset is None or (preset.needs_labels and not labeled):
        return method, {}
    return preset.method, preset.options
