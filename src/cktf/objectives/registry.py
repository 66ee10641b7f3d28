"""Methods by name, and their combination through a method string.

A method string is names joined by `+`, each with an optional weight: `cktf+kd`, `crd:0.8+kd`.
Cross-entropy joins with weight 1 wherever there are labels; `ce` names it, `ce` alone is the
student without a teacher. Without a weight the published ones hold:

- `kd` alone: 0.9 beside a cross-entropy of 0.1; in a sum, or with a weight given, cross-entropy 1.
- every other method beside a cross-entropy of 1, with its published weight.
- `cktf` alone, or with `kd`: β 0.8 at the penultimate layer, θ 0.1 at the stem and each module
  (1 and 0.04 without labels); a weight given, or another method beside it, sets both: `cktf:0.8`
  is 0.8 · (L_penultimate + Σ L_k).
- without labels the temperature of `crd` and `cktf` is 0.07, unless their options say another;
  `crd` keeps its 0.8, where the paper's transfer has `crd:1`.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from cktf.errors import MethodError, nearest
from cktf.objectives import (
    ab,
    at,
    cc,
    cktf,
    crd,
    cross_entropy,
    fitnet,
    fsp,
    ft,
    kd,
    kdsvd,
    nst,
    pkt,
    rkd,
    sp,
    vid,
)
from cktf.objectives.base import BuildContext, Objective, WeightedSum

# Constructor arguments that the training set decides.
_FROM_SETTING = {"labels", "source", "sharing"}


@dataclass(frozen=True)
class Method:
    """One method that can be named.

    Attributes:
        name: its name in the literature, in lower case.
        title: what the name stands for.
        paper: where it comes from.
        weight: of its loss in the sum, as published.
        reads: names of the `Features` that it may read, and `labels` or `index`.
        objective: its class; constructor arguments with a default are the method's options.
        build: makes the objective for a setting.
    """

    name: str
    title: str
    paper: str
    weight: float
    reads: tuple[str, ...]
    objective: type[Objective]
    build: Callable[..., Objective]

    @property
    def first_stage(self) -> str:
        """Whether it has a stage before the student trains on the sum: `yes`, an option, or empty.

        >>> METHODS["ab"].first_stage, METHODS["fitnet"].first_stage, METHODS["at"].first_stage
        ('yes', 'if staged', '')
        """
        if self.objective.phases is Objective.phases:
            return ""
        return "if staged" if "staged" in self.options() else "yes"

    @property
    def accepts_unlabeled(self) -> bool:
        """Whether it works on images without labels."""
        return "labels" not in self.reads and not self.objective.only_initializes

    def options(self) -> dict[str, inspect.Parameter]:
        """The method's options with their types and defaults."""
        parameters = dict(inspect.signature(self.objective).parameters)
        if "contrast" in parameters:
            # `**contrast` is handed on to CRD.
            parameters |= inspect.signature(crd.CRD).parameters
        return {
            name: parameter
            for name, parameter in parameters.items()
            if parameter.default is not parameter.empty and name not in _FROM_SETTING
        }


# name, title, paper, weight, what it reads, class, builder
METHODS = {
    row[0]: Method(*row)
    for row in (
        ("ce", "Cross-entropy: the student alone", "", 1.0,
         ("labels",), cross_entropy.CrossEntropy, cross_entropy.build),
        ("kd", "Knowledge distillation", "arXiv 1503.02531", 1.0,
         ("logits",), kd.KD, kd.build),
        ("fitnet", "FitNet: hints for thin deep nets", "arXiv 1412.6550", 100.0,
         ("stages",), fitnet.FitNet, fitnet.build),
        ("at", "Attention transfer", "arXiv 1612.03928", 1000.0,
         ("stages",), at.AT, at.build),
        ("sp", "Similarity-preserving transfer", "arXiv 1907.09682", 3000.0,
         ("stages",), sp.SP, sp.build),
        ("cc", "Correlation congruence", "arXiv 1904.01802", 0.02,
         ("embedding",), cc.CC, cc.build),
        ("vid", "Variational information distillation", "arXiv 1904.05835", 1.0,
         ("stages",), vid.VID, vid.build),
        ("rkd", "Relational knowledge distillation", "arXiv 1904.05068", 1.0,
         ("embedding",), rkd.RKD, rkd.build),
        ("pkt", "Probabilistic knowledge transfer", "arXiv 1803.10837", 30000.0,
         ("embedding",), pkt.PKT, pkt.build),
        ("ab", "Activation boundaries", "arXiv 1811.03233", 1.0,
         ("preacts",), ab.AB, ab.build),
        ("ft", "Factor transfer", "arXiv 1802.04977", 200.0,
         ("stages",), ft.FT, ft.build),
        ("fsp", "Flow of the solution procedure", "CVPR 2017", 50.0,
         ("stem", "stages"), fsp.FSP, fsp.build),
        ("nst", "Neuron selectivity transfer", "arXiv 1707.01219", 50.0,
         ("stages",), nst.NST, nst.build),
        ("kdsvd", "Singular value decomposition transfer", "arXiv 1807.06819", 1.0,
         ("stages",), kdsvd.KDSVD, kdsvd.build),
        ("crd", "Contrastive representation distillation", "arXiv 1910.10699", 0.8,
         ("embedding", "index"), crd.CRD, crd.build),
        ("cktf", "Contrastive knowledge transfer framework", "arXiv 2303.07599", 1.0,
         ("stem", "stages", "blocks", "embedding", "index"), cktf.CKTF, cktf.build),
    )
}  # fmt: skip

# Beside these CKTF keeps the weights of the paper's Table 1, β 0.8 and θ 0.1; added to any other
# method it takes those of Table 2, 0.8 for every layer.
_KEEPS_CKTF = {"ce", "kd", "cktf"}
_CKTF_ADDED = 0.8
# Without labels, as the paper's transfer to STL-10: the first alone or beside those named above.
_CKTF_UNLABELED = {"beta": 1.0, "theta": 0.04}
_CONTRAST_UNLABELED = {"temperature": 0.07}
_KD_ALONE = {"ce": 0.1, "kd": 0.9}


def parse(method: str) -> dict[str, float | None]:
    """Names of a method string with the weights given, in order.

    Raises:
        MethodError: an unknown name, a weight that is no number of 0 or more, a name given twice.

    >>> parse("crd:0.5+kd")
    {'crd': 0.5, 'kd': None}
    """
    weights: dict[str, float | None] = {}
    for term in method.split("+"):
        name, colon, given = term.strip().partition(":")
        if name not in METHODS:
            raise MethodError(f"There is no method {name!r}. {nearest(name, METHODS)}")
        if name in weights:
            raise MethodError(f"{method!r} names {name!r} twice. Give it once, with its weight.")
        weights[name] = _weight(method, given) if colon else None
    return weights


def term_names(method: str) -> set[str]:
    """What a method string names, known or not.

    >>> sorted(term_names("cktf + at:500"))
    ['at', 'cktf']
    """
    return {term.strip().partition(":")[0] for term in method.split("+")}


def _weight(method: str, given: str) -> float:
    try:
        weight = float(given)
    except ValueError:
        weight = -1.0
    if not 0 <= weight < float("inf"):
        raise MethodError(
            f"A weight is a number of 0 or more; {method!r} gives {given!r}. Right is: cktf+kd:0.9."
        )
    return weight


def features_read(method: str) -> set[str]:
    """Names of the `Features` that a method string may read.

    >>> sorted(features_read("crd+kd"))
    ['embedding', 'logits']
    """
    read = {name for term in parse(method) for name in METHODS[term].reads}
    return read - {"labels", "index"} | {"logits"}


def compose(
    method: str, setting: BuildContext, options: Mapping[str, Mapping[str, Any]] | None = None
) -> WeightedSum:
    """The objective that a method string names.

    Args:
        method: names joined by `+`, see the module's docstring.
        setting: example features and the training set; without labels there is no cross-entropy.
        options: for any of the named methods, its options by name.

    Raises:
        MethodError: an unknown method or option, or a method that cannot work in this setting.
    """
    given = parse(method)
    chosen = {name: dict(values) for name, values in (options or {}).items()}
    _check_options(given, chosen)
    weights = _weights(given, labeled=setting.labels is not None)
    if setting.labels is None:
        for name in {"crd", "cktf"} & given.keys():
            chosen[name] = _CONTRAST_UNLABELED | chosen.get(name, {})
    if "cktf" in given:
        weights["cktf"] = _place_cktf(
            given, chosen.setdefault("cktf", {}), setting.labels is not None
        )
    return WeightedSum(
        {
            name: (weight, METHODS[name].build(setting, **chosen.get(name, {})))
            for name, weight in weights.items()
            if weight > 0
        }
    )


def _weights(given: Mapping[str, float | None], labeled: bool) -> dict[str, float]:
    if given == {"kd": None} and labeled:
        return dict(_KD_ALONE)
    start = {"ce": 1.0} if labeled else {}
    filled = {n: METHODS[n].weight if w is None else w for n, w in given.items()}
    return start | filled


def _place_cktf(given: Mapping[str, float | None], options: dict[str, Any], labeled: bool) -> float:
    """Turn CKTF's weight into β and θ, where it has one."""
    weight = given["cktf"]
    others = {name for name, of in given.items() if of != 0}
    if weight is None and not others <= _KEEPS_CKTF:
        weight = _CKTF_ADDED
    if weight is None and not labeled:
        options |= _CKTF_UNLABELED | options
    if weight is None or "beta" in options or "theta" in options:
        if given["cktf"] is not None:
            raise MethodError(
                f"CKTF's weight {weight} sets beta and theta, and an option does too. Give one."
            )
        if weight is not None:
            options |= {"beta": weight, "theta": weight} | options
        return 1.0
    options |= {"beta": 1.0, "theta": 1.0}
    return weight


def _check_options(given: Mapping[str, Any], options: Mapping[str, Mapping[str, Any]]) -> None:
    for name, values in options.items():
        if name not in given:
            raise MethodError(f"Options are given for {name!r}, which the method does not name.")
        known = METHODS[name].options()
        for option in values:
            if option not in known:
                raise MethodError(f"{name} has no option {option!r}. {nearest(option, known)}")
