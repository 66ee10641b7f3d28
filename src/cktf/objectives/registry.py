"""Methods by name, and the objective that a method string names."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from cktf.config import rename_options
from cktf.errors import MethodError, nearest
from cktf.objectives.ab import AB
from cktf.objectives.at import AT
from cktf.objectives.base import BATCH_FIELDS, BuildContext, Objective, WeightedSum
from cktf.objectives.cc import CC
from cktf.objectives.cktf import CKTF
from cktf.objectives.crd import CRD
from cktf.objectives.cross_entropy import CrossEntropy
from cktf.objectives.fitnet import FitNet
from cktf.objectives.fsp import FSP
from cktf.objectives.ft import FT
from cktf.objectives.kd import KD
from cktf.objectives.kdsvd import KDSVD
from cktf.objectives.method_string import parse
from cktf.objectives.nst import NST
from cktf.objectives.pkt import PKT
from cktf.objectives.presets import expand_preset
from cktf.objectives.rkd import RKD
from cktf.objectives.sp import SP
from cktf.objectives.vid import VID

METHODS: dict[str, type[Objective]] = {
    "ce": CrossEntropy,
    "kd": KD,
    "fitnet": FitNet,
    "at": AT,
    "sp": SP,
    "cc": CC,
    "vid": VID,
    "rkd": RKD,
    "pkt": PKT,
    "ab": AB,
    "ft": FT,
    "fsp": FSP,
    "nst": NST,
    "kdsvd": KDSVD,
    "crd": CRD,
    "cktf": CKTF,
}


def features_read(method: str) -> set[str]:
    """Names of the `Features` that a method string may read.

    >>> sorted(features_read("crd+kd"))
    ['embedding', 'logits']
    """
    required = {name for term in parse(method) for name in METHODS[term].requires}
    return required - BATCH_FIELDS | {"logits"}


def compose(
    method: str, context: BuildContext, options: Mapping[str, Mapping[str, Any]] | None = None
) -> WeightedSum:
    """Build the objective that a method string names.

    Args:
        method: names joined by `+`, or a preset: see `cktf.objectives.method_string`.
        context: example features and the training set; without labels there is no cross-entropy.
        options: of the methods in the string, by name, over those of a preset.

    Raises:
        MethodError: an unknown method or option, or a method that cannot work in this context.
    """
    labeled = context.labels is not None
    weights = parse(method, labeled=labeled)
    preset_options = expand_preset(method, labeled=labeled)[1]
    _check_options(weights, options or {})
    if labeled:
        weights = {"ce": 1.0, **weights}
    terms: dict[str, tuple[float, Objective]] = {}
    for name, weight in weights.items():
        if weight == 0:
            continue
        objective = METHODS[name]
        values = dict(preset_options.get(name, {})) | rename_options((options or {}).get(name, {}))
        if weight is None:
            weight = objective.default_weight
        elif common := sorted(objective.weight_options.keys() & values.keys()):
            raise MethodError(
                f"The weight of {name} in {method!r} sets {' and '.join(objective.weight_options)},"
                f" and the options set {' and '.join(common)}. Give one of them."
            )
        else:
            values |= objective.weight_options
        with _library_defaults():
            terms[name] = weight, objective.from_setting(context, **values)
    return WeightedSum(terms)


@contextmanager
def _library_defaults() -> Iterator[None]:
    """PyTorch's own default type and device, where the user has set others: losses are float32."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.device("cpu"):
            yield
    finally:
        torch.set_default_dtype(before)


def _check_options(terms: Mapping[str, Any], options: Mapping[str, Mapping[str, Any]]) -> None:
    for name, values in options.items():
        if name not in terms:
            raise MethodError(f"Options are given for {name!r}, which the method does not name.")
        known = METHODS[name].options()
        for option in rename_options(values):
            if option not in known:
                raise MethodError(f"{name} has no option {option!r}. {nearest(option, known)}")
