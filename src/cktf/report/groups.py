"""Runs in groups that differ in nothing but their seed, and names that tell the groups apart."""

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cktf.bench.statistics import spread
from cktf.engine import standard_error
from cktf.errors import CktfError, RecipeError
from cktf.recipes import CUSTOM, parse_any_recipe, result_fields
from cktf.workflows import read_teacher_ref
from cktf.workflows.analysis import Analysis, identify_weights

# Differences that a name lists.
_LISTED = 4


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but their seed.

    Attributes:
        name: of the method, for people.
        runs: one for each seed.
        repeated: runs of a recipe and seed that are among `runs` already, which tell nothing new.
    """

    name: str
    runs: list[Analysis]
    repeated: Sequence[Analysis] = ()

    @property
    def student(self) -> str:
        """Name of the network."""
        return str(self.runs[0].summary["student"])

    @property
    def how(self) -> str:
        """The name without the student's."""
        return self.name.removeprefix(f"{self.student} ")

    @property
    def top1(self) -> float:
        """Mean over the seeds, in per cent."""
        return statistics.mean(map(top1_of, self.runs))

    @property
    def error(self) -> float | None:
        """Standard error of the mean: over seeds, or for one seed over the test images.

        None where nothing tells.
        """
        deviation = spread(list(map(top1_of, self.runs)))
        if deviation is not None:
            return deviation / math.sqrt(len(self.runs))
        summary = self.runs[0].summary
        if top1_of(self.runs[0]) != summary["test_top1"]:
            return standard_error(top1_of(self.runs[0]), summary["test_images"])
        found: float | None = summary.get("test_standard_error")
        return found

    @property
    def plus_minus(self) -> str:
        """The standard error, as it follows the accuracy."""
        return "" if self.error is None else f" ± {self.error:.2f}"

    @property
    def by_seed(self) -> dict[int, float]:
        """Accuracies."""
        return {run.summary["seed"]: top1_of(run) for run in self.runs}

    def of_seed(self, seed: int) -> Analysis:
        """The run with a seed."""
        return next(run for run in self.runs if run.summary["seed"] == seed)

    @property
    def notes(self) -> list[str]:
        """Which runs are left out, and why."""
        kept = {run.summary["seed"]: run.folder for run in self.runs}
        return [
            f"{run.folder} has the recipe and the seed of {kept[run.summary['seed']]} and is left "
            "out: the same seed again is not another seed."
            for run in self.repeated
        ]


def top1_of(run: Analysis) -> float:
    """Accuracy of the weights that a run kept, which are not always those of its last epoch."""
    kept = run.summary.get("kept_test_top1")
    return float(run.summary["test_top1"] if kept is None else kept)


def method_name(method: str) -> str:
    """A method string as people write it.

    >>> method_name("cktf+kd"), method_name("fitnet:50"), method_name("ce")
    ('CKTF+KD', 'FitNet:50', 'alone')
    """
    if method == "ce":
        return "alone"
    return "+".join(
        term.replace("fitnet", "FitNet") if "fitnet" in term else term.upper()
        for term in method.split("+")
    )


def experiment(run: Analysis) -> dict[str, Any]:
    """What decides a run's result beside its seed, by field."""
    try:
        fields = result_fields(parse_any_recipe(run.recipe))
    except CktfError:
        # A recipe of another version is compared as it stands.
        fields = dict(run.recipe)
    fields.pop("seed", None)
    for method, options in (fields.pop("options", None) or {}).items():
        fields |= {f"{method}.{name}": value for name, value in options.items()}
    if told := read_teacher_ref(run.folder):
        # What lies at its path by now may be another.
        fields |= {"teacher": f"sha256 {told.sha256}", "teacher_weights": None}
    for name in ("teacher", "teacher_weights"):
        if fields.get(name):
            fields[name] = identify_weights(fields[name])
    if CUSTOM in fields.values():
        # What was made in Python the recipe does not describe; the summary does a little.
        kept = ("student", "teacher", "teacher_top1", "student_parameters", "test_images")
        fields |= {name: run.summary.get(name) for name in kept}
    return fields


def grouped(runs: Sequence[Analysis]) -> list[Group]:
    """Runs in groups of one experiment each, those of one student together.

    First are students that some run taught, then others; among them the most accurate.
    """
    found: dict[str, list[Analysis]] = {}
    for run in runs:
        key = json.dumps(experiment(run), sort_keys=True, default=str)
        found.setdefault(key, []).append(run)
    groups = []
    for name, same in zip(_names(list(found.values())), found.values(), strict=True):
        first = {run.summary["seed"]: run for run in reversed(same)}
        kept = [first[seed] for seed in sorted(first)]
        repeated = [run for run in same if run is not first[run.summary["seed"]]]
        groups.append(Group(name, kept, repeated))
    students: dict[str, list[Group]] = {}
    for group in groups:
        students.setdefault(group.student, []).append(group)
    ranked = sorted((_ranked(own) for own in students.values()), key=_first_shown)
    return [group for own in ranked for group in own]


def _ranked(groups: Sequence[Group]) -> list[Group]:
    """One student's groups, best first on the seeds that all of them have, if there are any."""
    shared = set.intersection(*(set(group.by_seed) for group in groups))

    def accuracy(group: Group) -> float:
        return statistics.mean(group.by_seed[seed] for seed in shared) if shared else group.top1

    return sorted(groups, key=lambda group: -accuracy(group))


def _first_shown(groups: Sequence[Group]) -> tuple[bool, float]:
    """A teacher's own run beside its students' is not what the report is of."""
    taught = any(group.runs[0].recipe["kind"] != "train" for group in groups)
    return not taught, -max(group.top1 for group in groups)


def refuse_unlike(runs: Sequence[Analysis]) -> None:
    """Accuracies on different images are not compared.

    Raises:
        RecipeError: the runs were tested on several sets of images, or one on none.
    """
    for run in runs:
        if run.summary.get("test_top1") is None:
            raise RecipeError(
                [f"{run.folder} was not tested on labeled images: nothing to compare."]
            )
    tested: dict[str, list[str]] = {}
    for run in runs:
        section = run.recipe.get("labeled" if run.recipe["kind"] == "transfer" else "data") or {}
        chosen = ", ".join(section.get("classes") or ())
        images = f"{run.summary['test_images']:,} images of {run.test_data_name}"
        tested.setdefault(f"{images} ({chosen})" if chosen else images, []).append(str(run.folder))
    if len(tested) > 1:
        found = "; ".join(f"{images}: {', '.join(folders)}" for images, folders in tested.items())
        raise RecipeError(
            [
                "A report compares runs that were tested on the same images, and these were tested "
                f"on others: {found}. Write a report of each: "
                f"cktf report {' '.join(next(iter(tested.values())))}."
            ]
        )


def alone(groups: Sequence[Group]) -> Group | None:
    """The first group's student, trained on the labels of the same data set without a teacher.

    Of several the one whose recipe is most like the first group's, which may be that itself.
    """
    first = groups[0].runs[0]
    if first.recipe["kind"] == "transfer":
        return None
    found = [
        group
        for group in groups
        if group.student == groups[0].student
        and group.runs[0].summary["dataset"] == first.summary["dataset"]
        and _from_scratch(group.runs[0])
    ]
    wanted = experiment(first)

    def unlike(group: Group) -> int:
        own = experiment(group.runs[0])
        return sum(own[name] != wanted[name] for name in own.keys() & wanted.keys())

    return min(found, key=unlike, default=None)


def _from_scratch(run: Analysis) -> bool:
    """Whether labels alone taught a network, all of it, from its first weights."""
    model = str(run.recipe.get("model", ""))
    goes_on = Path(model).is_absolute() and ".py:" not in model
    return (
        run.summary["method"] == "ce" and run.recipe.get("trains", "all") == "all" and not goes_on
    )


def _names(groups: Sequence[Sequence[Analysis]]) -> list[str]:
    """The method of each group; where several have one, what differs between them too."""
    summaries = [group[0].summary for group in groups]
    several = len({s["student"] for s in summaries}) > 1
    names = [
        f"{s['student']} {method_name(s['method'])}" if several else method_name(s["method"])
        for s in summaries
    ]
    told = list(names)
    for name in {name for name in names if names.count(name) > 1}:
        alike = [number for number, other in enumerate(names) if other == name]
        for number, what in zip(alike, _differences([groups[i][0] for i in alike]), strict=True):
            told[number] = f"{name} ({what})"
    return [
        name if told.count(name) == 1 else f"{name} in {group[0].folder}"
        for name, group in zip(told, groups, strict=True)
    ]


def _differences(runs: Sequence[Analysis]) -> list[str]:
    """For each run the values of the fields in which the runs differ."""
    each = [experiment(run) for run in runs]
    differing = [name for name in dict.fromkeys(n for e in each for n in e) if _differs(name, each)]
    if "kind" in differing:
        # What only one kind of recipe has says no more than its kind.
        differing = [name for name in differing if all(name in fields for fields in each)]
    if "epochs" in differing and "init_epochs" in differing:
        # By default they follow the others.
        differing.remove("init_epochs")
    rest = ["…"] if len(differing) > _LISTED else []
    return [
        ", ".join([_said(name, run, fields) for name in differing[:_LISTED]] + rest)
        for run, fields in zip(runs, each, strict=True)
    ]


def _differs(name: str, each: Iterable[Mapping[str, Any]]) -> bool:
    return len({json.dumps(fields.get(name), default=str) for fields in each}) > 1


def _said(name: str, run: Analysis, fields: Mapping[str, Any]) -> str:
    """A field and its value, for people.

    A path is told by its last part.
    """
    value = run.recipe.get(name) if name in ("teacher", "teacher_weights") else None
    value = value or fields.get(name, "default")
    if value == CUSTOM:
        value = run.summary.get(name)
    if isinstance(value, str):
        return f"{name} {Path(value).name if Path(value).is_absolute() else value}"
    return f"{name} {json.dumps(value, default=str)}"
