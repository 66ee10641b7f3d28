"""The result of the runs in one sentence, with its uncertainty."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cktf.bench.statistics import paired_difference
from cktf.report.run_groups import RunGroup, find_baseline, kept_top1
from cktf.workflows.analysis import Analysis, NetworkOutputs

# The 97.5 % quantile of the normal distribution.
_NORMAL_QUANTILE = 1.96
_ONE_SEED = "the test images of one seed"

UNCERTAINTY = (
    "± after an accuracy is one standard error: of the mean over seeds, or for one seed over the "
    "test images. ± after a difference is half of its 95 % interval: over the seeds that both "
    "methods have (Student's t), or for one seed over the test images, which says nothing about "
    "other seeds. Methods are ranked on the seeds that all of them have."
)


@dataclass(frozen=True)
class AccuracyGap:
    """A difference between two accuracies.

    Attributes:
        points: percentage points.
        half_width: half of the 95 % interval; None if it is unknown.
        basis: what the interval is over, seeds or test images; empty if it is unknown.
    """

    points: float
    half_width: float | None
    basis: str

    @property
    def is_significant(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.half_width is not None and abs(self.points) > self.half_width

    @property
    def is_open(self) -> bool:
        """Whether the interval is known and has 0 in it."""
        return self.half_width is not None and not self.is_significant

    @property
    def signed_points(self) -> str:
        """The difference without its interval, which is wide for a few seeds."""
        return f"{self.points:+.2f} points".replace("-", "−")

    @property
    def plus_minus(self) -> str:
        """The half-width, as it follows a number."""
        return "" if self.half_width is None else f" ± {self.half_width:.2f}"

    @property
    def magnitude(self) -> str:
        """The difference without its sign."""
        return f"{abs(self.points):.2f}{self.plus_minus}"

    @property
    def direction(self) -> str:
        """`behind` or `ahead of`."""
        return "behind" if self.points < 0 else "ahead of"

    def basis_note(self, group: RunGroup) -> str:
        """The basis in brackets, if it is not that of the group's accuracy."""
        seeds = len(group.runs)
        is_same = self.basis in ("", f"{seeds} seeds" if seeds > 1 else _ONE_SEED)
        return "" if is_same else f" (over {self.basis})"

    def __str__(self) -> str:
        return f"{self.points:+.2f}{self.plus_minus} points"


def compare_groups(first: RunGroup, second: RunGroup) -> AccuracyGap:
    """First minus second: over the seeds that both have, else over the test images."""
    difference = paired_difference(first.top1_by_seed, second.top1_by_seed)
    if difference is not None and difference.high is not None:
        half_width = difference.high - difference.points
        return AccuracyGap(difference.points, half_width, f"{difference.pairs} seeds")
    if difference is not None:
        (seed,) = first.top1_by_seed.keys() & second.top1_by_seed.keys()
        a, b = first.find_run(seed), second.find_run(seed)
    elif len(first.runs) == len(second.runs) == 1:
        a, b = first.runs[0], second.runs[0]
    else:
        return AccuracyGap(first.top1 - second.top1, None, "")
    same_images = a.labels is not None and b.labels is not None and torch.equal(a.labels, b.labels)
    other = b.student if same_images and a.classes == b.classes else None
    return _difference_over_images(kept_top1(a) - kept_top1(b), a.student, other, a.labels)


def compare_to_teacher(group: RunGroup) -> AccuracyGap | None:
    """Student minus teacher: over seeds, or for one seed over the test images."""
    teachers = {
        run.summary["seed"]: top1
        for run in group.runs
        for top1 in [run.summary.get("teacher_probe_top1") or run.summary.get("teacher_top1")]
        if top1 is not None
    }
    difference = paired_difference(group.top1_by_seed, teachers)
    if difference is None:
        return None
    if difference.high is not None:
        half_width = difference.high - difference.points
        return AccuracyGap(difference.points, half_width, f"{difference.pairs} seeds")
    run = group.find_run(next(iter(teachers)))
    # A probe's accuracy is not that of the teacher's own logits.
    is_probe = run.summary.get("teacher_probe_top1") is not None
    teacher = run.teacher if run.teacher_knows_classes and not is_probe else None
    return _difference_over_images(difference.points, run.student, teacher, run.labels)


def _difference_over_images(
    points: float, a: NetworkOutputs | None, b: NetworkOutputs | None, labels: Tensor | None
) -> AccuracyGap:
    """A difference with its 95 % interval over the images, if there are outputs for them."""
    if a is None or b is None or labels is None or a.logits.shape != b.logits.shape:
        return AccuracyGap(points, None, "")
    correct = [(outputs.predicted == labels).double() for outputs in (a, b)]
    error = (correct[0] - correct[1]).std() / math.sqrt(len(labels))
    return AccuracyGap(points, float(_NORMAL_QUANTILE * 100 * error), _ONE_SEED)


def compression_ratio(run: Analysis) -> float | None:
    """Teacher's parameters over the student's; None if the student is not smaller."""
    ratio: float | None = run.summary.get("compression_ratio")
    return ratio if ratio and round(ratio, 1) > 1 else None


def build_headline(groups: Sequence[RunGroup]) -> str:
    """The sentence on the first group: accuracy, teacher, next best method, student alone."""
    best, run = groups[0], groups[0].runs[0]
    is_alone = len(groups) == 1 and run.recipe["kind"] == "train"
    subject = best.student if is_alone else f"{best.student} {best.method}"
    images = f"{run.summary['test_images']:,} test images of {run.test_data_name}"
    text = f"{subject} classifies {best.top1:.2f}{best.plus_minus} % of {images}"
    to_teacher = compare_to_teacher(best)
    if to_teacher is not None:
        basis, teacher = to_teacher.basis_note(best), f"its teacher {run.summary['teacher']}"
        if to_teacher.is_open:
            text += f", not told apart from {teacher}{basis}: {to_teacher.signed_points},"
        else:
            word = "below" if to_teacher.points < 0 else "above"
            text += f", {to_teacher.magnitude} points{basis} {word} {teacher}"
        if ratio := compression_ratio(run):
            text += f" with {ratio:.1f} times fewer parameters"
        text = text.removesuffix(",")
    baseline = find_baseline(groups)
    others = [group for group in groups[1:] if group.student == best.student]
    if others:
        text += f"; {_compare(best, others[0], baseline)}"
        if baseline is not None and baseline not in (best, others[0]):
            text += f"; {_compare(best, baseline, baseline)}"
    seeds = len(best.runs)
    return f"{text} ({'one seed' if seeds == 1 else f'{seeds} seeds'})."


def _compare(best: RunGroup, other: RunGroup, baseline: RunGroup | None) -> str:
    """A part of the sentence: how far the best method is from another, or that this is open."""
    difference = compare_groups(best, other)
    name = f"the student {other.method}" if other is baseline else other.name
    basis = difference.basis_note(best)
    if not difference.is_significant:
        return f"not told apart from {name}{basis}: {difference.signed_points}"
    return f"{difference.magnitude} points{basis} {difference.direction} {name}"
