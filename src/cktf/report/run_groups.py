"""Groups of runs that differ in their seed alone, and names that tell the groups apart."""

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cktf.bench.statistics import sample_std
from cktf.engine import RunFolder, standard_error
from cktf.errors import CktfError, RecipeError, RunFolderError
from cktf.recipes import CUSTOM, parse_any_recipe, result_fields
from cktf.workflows import read_teacher_ref
from cktf.workflows.analysis import Analysis, identify_weights

# The most differing fields that a name lists.
_MAX_LISTED = 4


@dataclass(frozen=True)
class RunGroup:
    """Runs that differ in their seed alone.

    Attributes:
        name: of the method, for people.
        runs: one for each seed.
        repeated: further runs with a recipe and seed of one in `runs`, which are left out.
    """

    name: str
    runs: list[Analysis]
    repeated: Sequence[Analysis] = ()

    @property
    def student(self) -> str:
        """Name of the network."""
        return str(self.runs[0].summary["student"])

    @property
    def method(self) -> str:
        """The name without the student's."""
        return self.name.removeprefix(f"{self.student} ")

    @property
    def top1(self) -> float:
        """Mean accuracy over the seeds, in per cent."""
        return statistics.mean(map(kept_top1, self.runs))

    @property
    def error(self) -> float | None:
        """Standard error of `top1`: over seeds, or for one seed over the test images.

        None if the run recorded none.
        """
        deviation = sample_std(list(map(kept_top1, self.runs)))
        if deviation is not None:
            return deviation / math.sqrt(len(self.runs))
        top1, summary = kept_top1(self.runs[0]), self.runs[0].summary
        if top1 != summary["test_top1"]:
            return standard_error(top1, summary["test_images"])
        recorded: float | None = summary.get("test_standard_error")
        return recorded

    @property
    def plus_minus(self) -> str:
        """The standard error, as it follows the accuracy."""
        return "" if self.error is None else f" ± {self.error:.2f}"

    @property
    def top1_by_seed(self) -> dict[int, float]:
        """Accuracy of each seed, in per cent."""
        return {run.summary["seed"]: kept_top1(run) for run in self.runs}

    def find_run(self, seed: int) -> Analysis:
        """The run with a seed."""
        return next(run for run in self.runs if run.summary["seed"] == seed)

    @property
    def notes(self) -> list[str]:
        """A note on each run that is left out, and what each run warned of."""
        left_out = [
            f"{run.folder} has the recipe and the seed of "
            f"{self.find_run(run.summary['seed']).folder} and is left out."
            for run in self.repeated
        ]
        # Runs of the same networks and images warn of the same.
        warnings = [line for run in self.runs for line in run.summary.get("warnings", [])]
        return left_out + [f"{self.name}: {line}" for line in dict.fromkeys(warnings)]


def kept_top1(run: Analysis) -> float:
    """Accuracy of the weights that a run kept, which may be of an epoch before the last."""
    kept = run.summary.get("kept_test_top1")
    return float(run.summary["test_top1"] if kept is None else kept)


def method_title(method: str) -> str:
    """A method as people write it.

    >>> method_title("cktf+kd"), method_title("fitnet:50"), method_title("ce")
    ('CKTF+KD', 'FitNet:50', 'alone')
    """
    return "alone" if method == "ce" else method.upper().replace("FITNET", "FitNet")


def experiment_fields(run: Analysis) -> dict[str, Any]:
    """The fields of a recipe that decide its result, without the seed."""
    try:
        fields = result_fields(parse_any_recipe(run.recipe))
    except CktfError:
        # A recipe of another version is compared unchanged.
        fields = dict(run.recipe)
    fields.pop("seed", None)
    for method, options in (fields.pop("options", None) or {}).items():
        fields |= {f"{method}.{name}": value for name, value in options.items()}
    if teacher := read_teacher_ref(run.folder):
        # Another teacher may be at its path now.
        fields |= {"teacher": f"sha256 {teacher.sha256}", "teacher_weights": None}
    for name in ("teacher", "teacher_weights"):
        if fields.get(name):
            fields[name] = identify_weights(fields[name])
    if CUSTOM in fields.values():
        # The recipe does not describe objects from Python; the summary has a few facts.
        facts = ("student", "teacher", "teacher_top1", "student_parameters", "test_images")
        fields |= {name: run.summary.get(name) for name in facts}
    return fields


def group_runs(runs: Sequence[Analysis]) -> list[RunGroup]:
    """Group runs by experiment, and the groups by student, the best of each first.

    Students that a method taught come before others, such as a teacher's own run.
    """
    by_experiment: dict[str, list[Analysis]] = {}
    for run in runs:
        key = json.dumps(experiment_fields(run), sort_keys=True, default=str)
        by_experiment.setdefault(key, []).append(run)
    by_student: dict[str, list[RunGroup]] = {}
    names = _group_names(list(by_experiment.values()))
    for name, repetitions in zip(names, by_experiment.values(), strict=True):
        run_by_seed = {run.summary["seed"]: run for run in reversed(repetitions)}
        repeated = [run for run in repetitions if run is not run_by_seed[run.summary["seed"]]]
        group = RunGroup(name, [run_by_seed[seed] for seed in sorted(run_by_seed)], repeated)
        by_student.setdefault(group.student, []).append(group)

    def student_rank(groups: Sequence[RunGroup]) -> tuple[bool, float]:
        has_teacher = any(group.runs[0].recipe["kind"] != "train" for group in groups)
        return not has_teacher, -max(group.top1 for group in groups)

    def sort_by_accuracy(groups: Sequence[RunGroup]) -> list[RunGroup]:
        # On the seeds that all groups of the student have, if there are any.
        shared = set.intersection(*(set(group.top1_by_seed) for group in groups))
        top1s = [[g.top1_by_seed[s] for s in shared] or [g.top1] for g in groups]
        means = {g.name: statistics.mean(values) for g, values in zip(groups, top1s, strict=True)}
        return sorted(groups, key=lambda group: means[group.name], reverse=True)

    students = sorted(by_student.values(), key=student_rank)
    return [group for groups in students for group in sort_by_accuracy(groups)]


def check_same_test_images(runs: Sequence[Analysis]) -> None:
    """Raise RecipeError if runs were tested on different images, or on none."""
    folders: dict[str, list[str]] = {}
    for run in runs:
        if run.summary.get("test_top1") is None:
            message = f"{run.folder} was not tested on labeled images: nothing to compare."
            raise RecipeError([message])
        section = run.recipe.get("labeled" if run.recipe["kind"] == "transfer" else "data") or {}
        images = f"{run.summary['test_images']:,} images of {run.test_data_name}"
        if classes := section.get("classes"):
            images += f" ({', '.join(classes)})"
        folders.setdefault(images, []).append(str(run.folder))
    if len(folders) > 1:
        listed = "; ".join(f"{images}: {', '.join(names)}" for images, names in folders.items())
        message = (
            "A report compares runs that were tested on the same images; these were tested on "
            f"different ones: {listed}. Write a report of each: "
            f"cktf report {' '.join(next(iter(folders.values())))}."
        )
        raise RecipeError([message])


def find_runs(folders: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Find the finished and the unfinished runs; a folder without a recipe is searched for runs.

    In the folder of `cktf bench`, these are its cells, and its teachers where there are no cells.

    Raises:
        RunFolderError: no run in one of the folders, or only unfinished ones.
    """
    finished: list[Path] = []
    unfinished: list[Path] = []
    for folder in folders:
        if (folder / "recipe.yaml").is_file():
            finished.append(folder)
            continue
        search = folder / "cells" if (folder / "cells").is_dir() else folder
        # A transfer has runs of its own inside.
        runs = sorted(recipe.parent for recipe in search.glob("*/recipe.yaml"))
        done = [run for run in runs if RunFolder(run).finished]
        if not done:
            listed = ", ".join(run.name for run in runs)
            raise RunFolderError(
                f"{folder} holds no finished run"
                + (
                    f"; unfinished: {listed}. Continue them first."
                    if runs
                    else ". Give run folders."
                )
            )
        finished += done
        unfinished += [run for run in runs if run not in done]
    return finished, unfinished


def find_baseline(groups: Sequence[RunGroup]) -> RunGroup | None:
    """The best of the first group's student trained without a teacher on the same data set."""
    first = groups[0].runs[0]
    if first.recipe["kind"] == "transfer":
        return None

    def is_baseline(run: Analysis) -> bool:
        model = str(run.recipe.get("model", ""))
        has_weights = Path(model).is_absolute() and ".py:" not in model
        trains_all = run.recipe.get("trains", "all") == "all"
        task = ("student", "dataset")
        is_same_task = all(run.summary[name] == first.summary[name] for name in task)
        return is_same_task and run.summary["method"] == "ce" and trains_all and not has_weights

    return next((group for group in groups if is_baseline(group.runs[0])), None)


def _group_names(groups: Sequence[Sequence[Analysis]]) -> list[str]:
    """Each group's method, with its student if there are several, and what makes it unique."""
    summaries = [group[0].summary for group in groups]
    prefix = len({s["student"] for s in summaries}) > 1
    methods = [
        f"{s['student']} {method_title(s['method'])}" if prefix else method_title(s["method"])
        for s in summaries
    ]
    names = list(methods)
    for method in {method for method in methods if methods.count(method) > 1}:
        numbers = [number for number, other in enumerate(methods) if other == method]
        differences = _describe_differences([groups[number][0] for number in numbers])
        for number, difference in zip(numbers, differences, strict=True):
            names[number] = f"{method} ({difference})"
    return [
        name if names.count(name) == 1 else f"{name} in {group[0].folder}"
        for name, group in zip(names, groups, strict=True)
    ]


def _describe_differences(runs: Sequence[Analysis]) -> list[str]:
    """For each run the values of the fields in which the runs differ."""
    experiments = [experiment_fields(run) for run in runs]

    def differs(name: str) -> bool:
        return len({json.dumps(e.get(name), default=str) for e in experiments}) > 1

    differing = [name for name in dict.fromkeys(n for e in experiments for n in e) if differs(name)]
    if "kind" in differing:
        # Fields of one kind of recipe only say no more than the kind.
        differing = [name for name in differing if all(name in e for e in experiments)]
    if "epochs" in differing and "init_epochs" in differing:
        # The default of init_epochs follows epochs.
        differing.remove("init_epochs")
    rest = ["…"] if len(differing) > _MAX_LISTED else []
    return [
        ", ".join([_describe_field(name, run, e) for name in differing[:_MAX_LISTED]] + rest)
        for run, e in zip(runs, experiments, strict=True)
    ]


def _describe_field(name: str, run: Analysis, fields: dict[str, Any]) -> str:
    """A field and its value for people; a path by its last part."""
    value = run.recipe.get(name) if name in ("teacher", "teacher_weights") else None
    value = value or fields.get(name, "default")
    if value == CUSTOM:
        value = run.summary.get(name)
    if isinstance(value, str):
        return f"{name} {Path(value).name if Path(value).is_absolute() else value}"
    return f"{name} {json.dumps(value, default=str)}"
