"""What the runs came to, in one sentence with its uncertainty."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from cktf.bench.statistics import paired
from cktf.report.groups import Group
from cktf.workflows.analysis import Analysis, Seen

# An interval of so many standard errors is one of 95 %.
_NORMAL = 1.96


@dataclass(frozen=True)
class Gap:
    """How much more accurate one thing is than another.

    Attributes:
        points: of accuracy.
        half: of the 95 % interval around it; None where nothing tells.
        over: what the uncertainty is over.
    """

    points: float
    half: float | None
    over: str

    @property
    def told_apart(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.half is not None and abs(self.points) > self.half

    @property
    def plus_minus(self) -> str:
        """The interval's half, as it follows a number."""
        return "" if self.half is None else f" ± {self.half:.2f}"

    def __str__(self) -> str:
        return f"{self.points:+.2f}{self.plus_minus} points"


def gap(first: Group, second: Group) -> Gap:
    """Between two groups: over seeds that both have, or else over the test images."""
    difference = paired(first.by_seed, second.by_seed)
    if difference is not None and difference.high is not None:
        over = f"{difference.pairs} seeds"
        return Gap(difference.mean, difference.high - difference.mean, over)
    a, b = first.runs[0], second.runs[0]
    half = _over_images(a.student, b.student, a)
    return Gap(first.top1 - second.top1, half, "test images" if half is not None else "nothing")


def _over_images(first: Seen | None, second: Seen | None, run: Analysis) -> float | None:
    """Half of the interval of a difference between two networks on the same images."""
    if first is None or second is None or run.labels is None:
        return None
    if first.logits.shape != second.logits.shape or len(run.labels) != len(first.logits):
        return None
    right = [(seen.predicted == run.labels).double() for seen in (first, second)]
    return float(_NORMAL * 100 * (right[0] - right[1]).std() / math.sqrt(len(right[0])))


def teacher_gap(group: Group) -> Gap | None:
    """From the teacher to the student."""
    run = group.runs[0]
    top1, probed = run.summary.get("teacher_top1"), run.summary.get("teacher_probe_top1")
    if probed is not None:
        # What the teacher's features are worth is not what its own logits say image by image.
        return Gap(group.top1 - probed, None, "nothing")
    if top1 is None:
        return None
    half = _over_images(run.student, run.teacher, run) if run.teacher_knows_classes else None
    return Gap(group.top1 - top1, half, "test images")


def compression(run: Analysis) -> float | None:
    """How many times fewer parameters a student has than its teacher; None where it has not."""
    ratio: float | None = run.summary.get("compression_ratio")
    return ratio if ratio and round(ratio, 1) > 1 else None


def answer(groups: Sequence[Group]) -> str:
    """The sentence."""
    best = groups[0]
    run, s = best.runs[0], best.runs[0].summary
    seeds = "one seed" if len(best.runs) == 1 else f"{len(best.runs)} seeds"
    images = f"{s['test_images']:,} test images of {run.tested_on}"
    how = f"{s['student']} {best.name}" if run.recipe["kind"] != "train" else s["student"]
    if best.name.startswith(s["student"]):
        how = best.name
    text = f"{how} classifies {best.top1:.2f}{best.plus_minus} % of {images}"
    behind = teacher_gap(best)
    if behind is not None:
        word = "below" if behind.points < 0 else "above"
        points = f"{abs(behind.points):.2f}{behind.plus_minus} points"
        text += f", {points} {word} its teacher {s['teacher']}"
        if ratio := compression(run):
            text += f" with {ratio:.1f} times fewer parameters"
    others = [g for g in groups[1:] if g.runs[0].tested_on == run.tested_on]
    if others:
        nearest = gap(best, others[0])
        text += f"; {nearest.points:.2f}{nearest.plus_minus} points ahead of {others[0].name}"
        text += "" if nearest.told_apart else ", which does not tell them apart"
    alone = next((g for g in others[1:] if g.runs[0].summary["method"] == "ce"), None)
    if alone is not None:
        gained = gap(best, alone)
        text += f", {gained.points:.2f}{gained.plus_minus} ahead of the student alone"
    return f"{text} ({seeds})."


UNCERTAINTY = (
    "± after an accuracy is one standard error: of the mean over seeds, or for one seed of the "
    "test images. ± after a difference is half of its 95 % interval: over seeds that both have "
    "(Student's t), or for one seed over the same test images, which says nothing of other seeds."
)
