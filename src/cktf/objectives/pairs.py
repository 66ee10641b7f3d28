"""Which features of two networks an objective compares."""

from torch import Tensor

from cktf.errors import MethodError
from cktf.functional.maps import pair_stages
from cktf.objectives.base import present
from cktf.taps import Features


def stage_maps(
    method: str, student: Features, teacher: Features | None, kind: str = "stages"
) -> tuple[list[Tensor], list[Tensor]]:
    """The stages' maps of both networks, side by side; of the deeper network a choice.

    Args:
        method: for messages.
        student: its features of a batch.
        teacher: its features of the same batch.
        kind: `stages`, or `preacts` for the same places before their activations.

    Raises:
        MethodError: a network without such maps.
    """
    teacher = present(teacher, f"{method}'s teacher")
    maps: dict[str, tuple[Tensor, ...]] = {
        "student": getattr(student, kind),
        "teacher": getattr(teacher, kind),
    }
    for whose, given in maps.items():
        if not given:
            raise MethodError(_MISSING[kind].format(method=method, whose=whose))
    pairs = pair_stages(maps["student"], maps["teacher"])
    return [s for s, _ in pairs], [t for _, t in pairs]


def embeddings(method: str, student: Features, teacher: Features | None) -> tuple[Tensor, Tensor]:
    """The penultimate vectors of both networks."""
    teacher = present(teacher, f"{method}'s teacher")
    what = f"{method}'s embedding"
    return present(student.embedding, what), present(teacher.embedding, what)


_MISSING = {
    "stages": (
        "{method} compares stage maps, and the {whose} has none. Use a method that reads "
        "embeddings or logits, or name the stages: feature_paths = FeaturePaths(stages=...)."
    ),
    "preacts": (
        "{method} compares maps before their activation, and none are known of the {whose}. Name "
        "them: feature_paths = FeaturePaths(preacts=...), or use another method."
    ),
}
