"""The features of two networks that an objective compares."""

from typing import TypeVar

from torch import Tensor

from cktf.errors import MethodError
from cktf.functional.maps import pair_stages
from cktf.taps import Features

T = TypeVar("T")

_NO_MAPS = {
    "stages": (
        "{method} compares stage maps, and the {network} has none. Use a method that reads "
        "embeddings or logits, or name the stages: feature_paths = FeaturePaths(stages=...)."
    ),
    "preacts": (
        "{method} compares maps before their activation, and none are known of the {network}. Name "
        "them: feature_paths = FeaturePaths(preacts=...), or use another method."
    ),
}


def require_not_none(value: T | None, name: str) -> T:
    """Return a feature, or raise MethodError where it is None."""
    if value is None:
        raise MethodError(f"{name} is missing. Tap both networks for what the method requires.")
    return value


def stage_maps(
    method: str, student: Features, teacher: Features | None, kind: str = "stages"
) -> tuple[list[Tensor], list[Tensor]]:
    """Pair the stages' maps of two networks; of the deeper network some are left out.

    Args:
        method: for messages.
        student: its features of a batch.
        teacher: its features of the same batch.
        kind: `stages`, or `preacts` for the maps before their activations.

    Raises:
        MethodError: a network without such maps.
    """
    teacher = require_not_none(teacher, f"{method}'s teacher")
    for network, features in (("student", student), ("teacher", teacher)):
        if not getattr(features, kind):
            raise MethodError(_NO_MAPS[kind].format(method=method, network=network))
    pairs = pair_stages(getattr(student, kind), getattr(teacher, kind))
    return [s for s, _ in pairs], [t for _, t in pairs]


def embeddings(method: str, student: Features, teacher: Features | None) -> tuple[Tensor, Tensor]:
    """The penultimate vectors of both networks; MethodError where one is missing."""
    teacher = require_not_none(teacher, f"{method}'s teacher")
    name = f"{method}'s embedding"
    return require_not_none(student.embedding, name), require_not_none(teacher.embedding, name)
