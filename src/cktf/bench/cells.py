"""The cells of a matrix: a complete recipe for each student."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from cktf.bench.matrix import Fields, Matrix, TeacherEntry
from cktf.errors import RecipeError, nearest
from cktf.models.zoo import list_networks
from cktf.objectives.method_string import METHOD_NAMES, parse
from cktf.recipes.files import parse_any_recipe, parse_recipe, set_fields
from cktf.recipes.schema import CUSTOM, DistillRecipe, TrainRecipe, TransferRecipe
from cktf.recipes.validation import Problems, check_network, check_recipe
from cktf.recipes.weights_paths import find_weights_file
from cktf.user_paths import expand_user_path

CellRecipe = DistillRecipe | TransferRecipe
# Bytes of a file name, of the 255 of most file systems; temporary names are longer.
_MAX_NAME_BYTES = 220


@dataclass(frozen=True)
class TeacherPlan:
    """One teacher on one data set, shared by all of its students.

    Attributes:
        name: its name in the matrix.
        data: name of the data set of its students.
        network: name of the network.
        weights: trained weights; None to train by `recipe`.
        recipe: recipe of its training.
        weights_lack_name: the weights do not record their network, so that recipes name it too.
    """

    name: str
    data: str
    network: str
    weights: Path | None
    recipe: TrainRecipe
    weights_lack_name: bool = False

    @property
    def slug(self) -> str:
        """Name for files."""
        return slug("teacher", self.data, self.name)


@dataclass(frozen=True)
class Cell:
    """One student with one method and one seed on one data set.

    Attributes:
        data, student, method, seed: names in the matrix, and the seed.
        teacher: shared with other cells.
        fields: fields of its recipe, without the teacher.
    """

    data: str
    teacher: TeacherPlan
    student: str
    method: str
    seed: int
    fields: Fields = field(repr=False, compare=False)

    @property
    def slug(self) -> str:
        """Name for files."""
        pair = f"{self.teacher.name}-{self.student}"
        return slug(self.data, pair, self.method, f"seed{self.seed}")

    @property
    def title(self) -> str:
        """Name for people."""
        pair = f"{self.teacher.name} → {self.student}"
        return f"{self.data}, {pair}, {self.method}, seed {self.seed}"

    @property
    def pair(self) -> str:
        """`teacher:student`."""
        return f"{self.teacher.name}:{self.student}"

    @property
    def column(self) -> tuple[str, str]:
        """Data set and pair."""
        return self.data, self.pair

    def recipe(self, with_teacher_weights: bool = False) -> CellRecipe:
        """Recipe of the cell, without its teacher unless that is to be loaded."""
        weights = str(self.teacher.weights)
        teacher = {"teacher": weights if with_teacher_weights else CUSTOM}
        if with_teacher_weights and self.teacher.weights_lack_name:
            teacher = {"teacher": self.teacher.network, "teacher_weights": weights}
        recipe = parse_any_recipe(merge_fields(self.fields, teacher))
        assert not isinstance(recipe, TrainRecipe)
        return recipe


def slug(*parts: str) -> str:
    """Join parts to a file name.

    >>> slug("cifar10", "kd:1", "seed0")
    'cifar10-kd=1-seed0'
    >>> slug("KD (1, 1)", "seed0")
    'KD-1-1-seed0'
    """
    plain = (re.sub(r"[^\w.+=-]+", "-", part.replace(":", "=")).strip("-") for part in parts)
    return "-".join(plain)


def merge_fields(*sections: Mapping[str, Any]) -> Fields:
    """Merge nested or dotted fields, the later over the earlier.

    >>> merge_fields({"optimizer": {"lr": 0.1, "momentum": 0.9}}, {"optimizer.lr": 0.01})
    {'optimizer': {'lr': 0.01, 'momentum': 0.9}}
    """
    fields: Fields = {}
    for section in sections:
        set_fields(fields, section)
    return fields


def build_cells(
    matrix: Matrix,
    data_dir: str | None = None,
    weights: Mapping[str, str] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> list[Cell]:
    """Build the cells of a matrix, seed by seed, so that a part of them is a whole comparison.

    Args:
        matrix: the comparison.
        data_dir: folder of the data sets that do not name their own.
        weights: of teachers by name, in place of training.
        settings: fields that override those of every student's recipe.

    Raises:
        RecipeError: everything that is wrong with any of the recipes.
    """
    weights, settings = weights or {}, settings or {}
    teachers = {pair.teacher for pair in matrix.pairs}
    problems = Problems()
    for name in weights.keys() - teachers:
        problems.messages.append(f"--teacher {name}: no pair has it. {nearest(name, teachers)}")
    for label, entry in matrix.methods.items():
        with problems.collect(f"methods.{label}"):
            parse(entry.method)
    plans: dict[tuple[str, str], TeacherPlan] = {}
    sections = [{"dir": data_dir, **data} if data_dir else data for data in matrix.data]
    for data, name in product(sections, sorted(teachers)):
        with problems.collect(f"teachers.{name}"):
            plans[data["name"], name] = _plan_teacher(matrix, name, data, weights.get(name))
    for name in {"kind", "student", "method", "seed", "teacher"} & settings.keys():
        problems.messages.append(
            f"--set {name}: the matrix says it. Choose cells by --seeds and such."
        )
    for name in matrix.options.keys() - set(METHOD_NAMES):
        hint = nearest(name, METHOD_NAMES)
        problems.messages.append(f"options: there is no method {name}. {hint}")
    # Names are checked before options of methods, which need PyTorch.
    for student in sorted({pair.student for pair in matrix.pairs}):
        with problems.collect("student"):
            check_network(student)
    problems.raise_if_any()
    cells = list(_build_cells(matrix, sections, plans, settings))
    _check_cells(cells, problems)
    problems.raise_if_any()
    return cells


def _plan_teacher(matrix: Matrix, name: str, data: Fields, weights: str | None) -> TeacherPlan:
    """Build a teacher's recipe, and check that given weights are of its network."""
    entry = matrix.teachers.get(name, TeacherEntry())
    network = entry.network or name
    if matrix.kind == "transfer":
        # The teacher learns from labeled images of another data set.
        data = {name: value for name, value in data.items() if name == "dir"}
    # Fields that only students have are left out; their recipes report unknown names.
    known = TrainRecipe.model_fields
    shared = {n: v for n, v in matrix.recipe.items() if n.partition(".")[0] in known}
    fields = merge_fields(shared, {"data": data}, entry.recipe, {"kind": "train", "model": network})
    recipe = parse_recipe(fields)
    assert isinstance(recipe, TrainRecipe)
    dataset, file = recipe.data.name, weights or entry.weights
    if file is None:
        return TeacherPlan(name, dataset, network, None, recipe)
    path = expand_user_path(file).absolute()
    if not path.exists():
        raise RecipeError([f"weights: there is no {path}. Name a run folder or a file."])
    from cktf.models import is_cktf_weights_file, read_metadata

    checkpoint = find_weights_file(str(path))
    if not is_cktf_weights_file(checkpoint):
        # Without a name in the matrix, the shapes of the tensors tell the network.
        return TeacherPlan(name, dataset, network, path, recipe, entry.network is not None)
    stored = str(read_metadata(checkpoint)["network"])
    named_otherwise = network in list_networks() or (
        entry.network is not None and stored in list_networks()
    )
    if stored != network and named_otherwise:
        raise RecipeError(
            [f"weights: {path} holds a {stored}, and here it is called {network}. Give other "
             "weights, or the teacher another name."]
        )  # fmt: skip
    return TeacherPlan(name, dataset, stored, path, recipe)


def _build_cells(
    matrix: Matrix,
    sections: list[Fields],
    plans: Mapping[tuple[str, str], TeacherPlan],
    settings: Mapping[str, Any],
) -> Iterator[Cell]:
    for data, seed, pair, (label, entry) in product(
        sections, matrix.seeds, matrix.pairs, matrix.methods.items()
    ):
        if label not in pair.without:
            fields = merge_fields(
                matrix.recipe, {"data": data}, pair.recipe, entry.recipe, settings,
                {"kind": matrix.kind, "student": pair.student, "seed": seed,
                 "method": entry.method},
            )  # fmt: skip
            # Unknown names stay, so that validation reports them.
            absent = set(METHOD_NAMES) - parse(entry.method).keys()
            first, last = (
                {name: values for name, values in options.items() if name not in absent}
                for options in (matrix.options, fields.get("options", {}))
            )
            fields["options"] = merge_fields(first, entry.options, last)
            teacher = plans[data["name"], pair.teacher]
            yield Cell(data["name"], teacher, pair.student, label, seed, fields)


def _check_cells(cells: list[Cell], problems: Problems) -> None:
    """Check everything that needs no weights and images; report the same mistake once."""
    messages: dict[str, None] = {}
    titles: dict[str, str] = {}
    for cell in cells:
        inner = Problems()
        with inner.collect():
            recipe = cell.recipe()
            distilled = recipe.distill_recipe() if isinstance(recipe, TransferRecipe) else recipe
            inner.messages += check_recipe(distilled).messages
            if recipe.kind == "distill" and not recipe.data.labels:
                inner.messages.append(
                    "data.labels: a table is of accuracies, and without labels there are none. Set "
                    "kind: transfer."
                )
        # Some file systems do not distinguish capitals.
        other = titles.setdefault(cell.slug.casefold(), cell.title)
        if other != cell.title:
            inner.messages.append(f"{cell.title} and {other} have one name for files.")
        if len(cell.slug.encode()) > _MAX_NAME_BYTES:
            inner.messages.append(
                f"{cell.title} is too long for the name of a file. Call networks by shorter names "
                "in `teachers`, or keep them in a folder that is nearer."
            )
        messages |= dict.fromkeys(f"{cell.method}: {problem}" for problem in inner.messages)
    for teacher in {(t.data, t.name): t for t in (cell.teacher for cell in cells)}.values():
        field = f"teachers.{teacher.name}"
        other = titles.setdefault(teacher.slug, teacher.name)
        if other != teacher.name:
            messages[f"{field}: it and {other} have one name for files. Rename one."] = None
        if teacher.weights is None:
            messages |= dict.fromkeys(
                f"{field}: {p}" for p in check_recipe(teacher.recipe).messages
            )
    problems.messages += messages


def select_cells(
    cells: list[Cell],
    pairs: list[str] | None = None,
    methods: list[str] | None = None,
    seeds: list[str] | None = None,
) -> list[Cell]:
    """Select the cells of some pairs, methods and seeds; None selects all.

    Raises:
        RecipeError: the matrix does not have one of them.
    """
    selected = cells
    for name, selection in (("pair", pairs), ("method", methods), ("seed", seeds)):
        known = {str(getattr(cell, name)) for cell in cells}
        values = known if selection is None else set(selection)
        for value in values - known:
            raise RecipeError([f"--{name}s: the matrix has no {value}. {nearest(value, known)}"])
        selected = [cell for cell in selected if str(getattr(cell, name)) in values]
    return selected
