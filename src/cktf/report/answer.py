"""What the runs came to, in one sentence with its uncertainty."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cktf.bench.statistics import paired
from cktf.report.groups import Group, alone, top1_of
from cktf.workflows.analysis import Analysis, NetworkOutputs

# An interval of so many standard errors is one of 95 %.
_NORMAL = 1.96
_IMAGES = "the test images of one seed"


@dataclass(frozen=True)
class Gap:
    """How much more accurate one thing is than another.

    Attributes:
        points: of accuracy.
        half: of the 95 % interval around it; None where nothing tells.
        over: what the half is over; empty where nothing tells.
    """

    points: float
    half: float | None
    over: str

    @property
    def is_significant(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.half is not None and abs(self.points) > self.half

    @property
    def plus_minus(self) -> str:
        """The interval's half, as it follows a number."""
        return "" if self.half is None else f" ± {self.half:.2f}"

    def unlike(self, best: Group) -> str:
        """What it is over, where that is not what the accuracy beside it is over."""
        return f" (over {self.over})" if self.over not in ("", _over(best)) else ""

    @property
    def size(self) -> str:
        """Without its sign."""
        return f"{abs(self.points):.2f}{self.plus_minus}"

    @property
    def side(self) -> str:
        """Of the other, on which the one is."""
        return "behind" if self.points < 0 else "ahead of"

    def __str__(self) -> str:
        return f"{self.points:+.2f}{self.plus_minus} points"


def gap(first: Group, second: Group) -> Gap:
    """Between two groups: over seeds that both have, or else over the test images."""
    difference = paired(first.by_seed, second.by_seed)
    if difference is not None and difference.high is not None:
        return Gap(difference.mean, difference.high - difference.mean, _seeds(difference.pairs))
    if difference is not None:
        (seed,) = first.by_seed.keys() & second.by_seed.keys()
        return _of_runs(first.of_seed(seed), second.of_seed(seed))
    if len(first.runs) == len(second.runs) == 1:
        return _of_runs(first.runs[0], second.runs[0])
    return Gap(first.top1 - second.top1, None, "")


def _over(group: Group) -> str:
    """What the standard error of a group's accuracy is over."""
    return _seeds(len(group.runs)) if len(group.runs) > 1 else _IMAGES


def _seeds(count: int) -> str:
    return f"{count} seeds"


def _of_runs(first: Analysis, second: Analysis) -> Gap:
    """Between two runs, over the test images if both classified the same."""
    half = None
    a, b = first.labels, second.labels
    if a is not None and b is not None and torch.equal(a, b) and first.classes == second.classes:
        half = _over_images(first.student, second.student, a)
    points = top1_of(first) - top1_of(second)
    return Gap(points, half, "" if half is None else _IMAGES)


def _over_images(
    first: NetworkOutputs | None, second: NetworkOutputs | None, labels: Tensor
) -> float | None:
    """Half of the interval of a difference between two networks on the same images."""
    if first is None or second is None or first.logits.shape != second.logits.shape:
        return None
    right = [(seen.predicted == labels).double() for seen in (first, second)]
    return float(_NORMAL * 100 * (right[0] - right[1]).std() / math.sqrt(len(labels)))


def teacher_gap(group: Group) -> Gap | None:
    """From the teacher to the student: over seeds, or for one seed over the test images."""
    teachers = {
        run.summary["seed"]: top1
        for run in group.runs
        for top1 in [run.summary.get("teacher_probe_top1") or run.summary.get("teacher_top1")]
        if top1 is not None
    }
    difference = paired(group.by_seed, teachers)
    if difference is None:
        return None
    if difference.high is not None:
        return Gap(difference.mean, difference.high - difference.mean, _seeds(difference.pairs))
    run = group.of_seed(next(iter(teachers)))
    half = None
    # What a teacher's features are worth is not what its own logits say image by image.
    probed = run.summary.get("teacher_probe_top1") is not None
    if run.teacher_knows_classes and run.labels is not None and not probed:
        half = _over_images(run.student, run.teacher, run.labels)
    return Gap(difference.mean, half, "" if half is None else _IMAGES)


def compression(run: Analysis) -> float | None:
    """How many times fewer parameters a student has than its teacher; None where it has not."""
    ratio: float | None = run.summary.get("compression_ratio")
    return ratio if ratio and round(ratio, 1) > 1 else None


def answer(groups: Sequence[Group]) -> str:
    """The sentence."""
    best, s = groups[0], groups[0].runs[0].summary
    seeds = "one seed" if len(best.runs) == 1 else f"{len(best.runs)} seeds"
    images = f"{s['test_images']:,} test images of {best.runs[0].test_data_name}"
    text = f"{_subject(groups)} classifies {best.top1:.2f}{best.plus_minus} % of {images}"
    behind = teacher_gap(best)
    if behind is not None:
        word = "below" if behind.points < 0 else "above"
        text += f", {behind.size} points{behind.unlike(best)} {word} its teacher {s['teacher']}"
        if ratio := compression(best.runs[0]):
            text += f" with {ratio:.1f} times fewer parameters"
    return f"{text}{_compared(groups)} ({seeds})."


def _subject(groups: Sequence[Group]) -> str:
    """The student, and what taught it, unless it is a single network alone."""
    best = groups[0]
    if len(groups) == 1 and best.runs[0].recipe["kind"] == "train":
        return best.student
    return f"{best.student} {best.how}"


def _compared(groups: Sequence[Group]) -> str:
    """The best beside the next of the same student, and beside the student alone."""
    best, reference = groups[0], alone(groups)
    others = [group for group in groups[1:] if group.student == best.student]
    if not others:
        return ""
    nearest = gap(best, others[0])
    name = f"the student {others[0].how}" if others[0] is reference else others[0].name
    text = f"; {nearest.size} points{nearest.unlike(best)} {nearest.side} {name}"
    text += "" if nearest.is_significant else ", which does not tell them apart"
    if reference is not None and reference is not best and reference is not others[0]:
        gained = gap(best, reference)
        text += f", {gained.size}{gained.unlike(best)} {gained.side} the student {reference.how}"
    return text


UNCERTAINTY = (
    "± after an accuracy is one standard error: of the mean over seeds, or for one seed of the "
    "test images. A difference is over the seeds that both have, and ± after it is half of its "
    "95 % interval: over these seeds (Student's t), or for a single one over the same test images, "
    "which says nothing of other seeds. Methods stand in the order of the seeds that all have."
)
