"""Method strings: `cktf+kd`, `crd:0.8+kd`.

A method string is names joined by `+`, each with an optional weight, in any case. Cross-entropy
joins with weight 1 wherever there are labels; `ce` names it, `ce` alone is the student without a
teacher. A method's weight does not depend on the others; `cktf:0.8` is
0.8 · (L_penultimate + Σ L_k).
"""

import re

from cktf.errors import MethodError, nearest
from cktf.objectives.presets import PRESETS, expand_preset

# The names of `cktf.objectives.METHODS`, which needs PyTorch.
METHOD_NAMES = (
    "ce", "kd", "fitnet", "at", "sp", "cc", "vid", "rkd", "pkt", "ab", "ft", "fsp", "nst", "kdsvd",
    "crd", "cktf",
)  # fmt: skip


def parse(method: str, *, labeled: bool = True) -> dict[str, float | None]:
    """Split a method string, or a preset, into its terms' weights, in order.

    Args:
        method: names joined by `+`, or a preset.
        labeled: the training images have labels.

    Returns:
        The weight of each term by name; None where the string gives none.

    Raises:
        MethodError: an unknown name, a weight that is no number of 0 or more, a name given twice.

    >>> parse("crd:0.5+kd")
    {'crd': 0.5, 'kd': None}
    """
    weights: dict[str, float | None] = {}
    for term in expand_preset(method, labeled=labeled)[0].split("+"):
        name, colon, weight = term.strip().partition(":")
        if name not in METHOD_NAMES:
            raise MethodError(f"There is no method {name!r}. {_hint(name)}")
        if name in weights:
            raise MethodError(f"{method!r} names {name!r} twice. Give it once, with its weight.")
        weights[name] = _parse_weight(method, weight) if colon else None
    return weights


def term_names(method: str, *, labeled: bool = True) -> set[str]:
    """Names in a method string, known or not.

    >>> sorted(term_names("cktf + at:500"))
    ['at', 'cktf']
    """
    terms = expand_preset(method, labeled=labeled)[0].split("+")
    return {term.strip().partition(":")[0] for term in terms}


def _hint(name: str) -> str:
    """What an unknown name may mean: a method, or methods with something else between them."""
    parts = [part for part in re.split(r"[^a-z0-9:.]+", name) if part in METHOD_NAMES]
    if len(parts) > 1:
        return f"Methods are joined by +: {'+'.join(parts)}."
    return nearest(parts[0] if parts else name, {*METHOD_NAMES, *PRESETS})


def _parse_weight(method: str, text: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = -1.0
    if not 0 <= weight < float("inf"):
        raise MethodError(
            f"A weight is a number of 0 or more; {method!r} gives {text!r}. Right is: cktf+kd:0.9."
        )
    return weight
