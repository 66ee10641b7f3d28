"""The cells that a matrix stands for: a complete recipe each."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

from cktf.bench.matrix import Fields, Matrix, MethodEntry, TeacherEntry
from cktf.errors import RecipeError, nearest
from cktf.models import is_cktf_weights_file, list_networks, read_metadata
from cktf.objectives import METHODS, parse
from cktf.recipes import (
    CUSTOM,
    DistillRecipe,
    Problems,
    TrainRecipe,
    TransferRecipe,
    check_recipe,
    find_weights_file,
    parse_any_recipe,
    parse_recipe,
    set_field,
)
from cktf.user_paths import expand_user_path

CellRecipe = DistillRecipe | TransferRecipe
# Bytes of a name, of the 255 of most file systems: a file that is being written has a longer one.
_LONGEST = 220


@dataclass(frozen=True)
class TeacherPlan:
    """One teacher on one data set, shared by all of its students.

    Attributes:
        name: in the matrix.
        data: name of the data set of its students.
        network: what is trained.
        weights: trained already; None to train by `recipe`.
        recipe: of its training.
        apart: whether the weights do not say whose they are, so that the network is named too.
    """

    name: str
    data: str
    network: str
    weights: Path | None
    recipe: TrainRecipe
    apart: bool = False

    @property
    def slug(self) -> str:
        """Its name, for files."""
        return slug("teacher", self.data, self.name)


@dataclass(frozen=True)
class Cell:
    """One student with one method and one seed on one data set.

    Attributes:
        data, student, method, seed: what it is; the method by its name in the table.
        teacher: shared with other cells.
        fields: of its recipe, but for the teacher.
    """

    data: str
    teacher: TeacherPlan
    student: str
    method: str
    seed: int
    fields: Fields = field(repr=False, compare=False)

    @property
    def slug(self) -> str:
        """Its name, for files."""
        pair = f"{self.teacher.name}-{self.student}"
        return slug(self.data, pair, self.method, f"seed{self.seed}")

    @property
    def title(self) -> str:
        """Its name, for people."""
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

    def recipe(self, taught: bool = False) -> CellRecipe:
        """Its recipe, with its teacher's weights where they are if it is to be taught."""
        fields = merged(self.fields, {"teacher": CUSTOM})
        if taught:
            weights = str(self.teacher.weights)
            named = {"teacher": self.teacher.network, "teacher_weights": weights}
            fields |= named if self.teacher.apart else {"teacher": weights}
        recipe = parse_any_recipe(fields)
        assert not isinstance(recipe, TrainRecipe)
        return recipe


def slug(*parts: str) -> str:
    """A name for files.

    >>> slug("cifar10", "kd:1", "seed0")
    'cifar10-kd=1-seed0'
    >>> slug("KD (1, 1)", "seed0")
    'KD-1-1-seed0'
    """
    plain = (re.sub(r"[^\w.+=-]+", "-", part.replace(":", "=")).strip("-") for part in parts)
    return "-".join(plain)


def merged(*given: Mapping[str, Any]) -> Fields:
    """Nested fields, the later over the earlier; a dotted name is a field in a section.

    >>> merged({"optimizer": {"lr": 0.1, "momentum": 0.9}}, {"optimizer.lr": 0.01})
    {'optimizer': {'lr': 0.01, 'momentum': 0.9}}
    """
    result: Fields = {}
    for fields in given:
        for name, value in fields.items():
            if isinstance(value, Mapping):
                before = result.get(name)
                set_field(
                    result, name, merged(before if isinstance(before, Mapping) else {}, value)
                )
            else:
                set_field(result, name, value)
    return result


def cells_of(
    matrix: Matrix,
    data_dir: str | None = None,
    weights: Mapping[str, str] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> list[Cell]:
    """The cells of a matrix: seed by seed, so that a part of them is a whole comparison.

    Args:
        matrix: what is compared.
        data_dir: folder of the data sets that do not name their own.
        weights: of teachers by name, in place of training.
        settings: fields that override those of every student's recipe.

    Raises:
        RecipeError: everything that is wrong with any of the recipes.
    """
    weights = weights or {}
    taught = {pair.teacher for pair in matrix.pairs}
    problems = Problems()
    for name in weights.keys() - taught:
        problems.messages.append(f"--teacher {name}: no pair has it. {nearest(name, taught)}")
    for label, entry in matrix.methods.items():
        with problems.collect(f"methods.{label}"):
            parse(entry.method)
    plans: dict[tuple[str, str], TeacherPlan] = {}
    for data in matrix.data:
        for name in sorted(taught):
            with problems.collect(f"teachers.{name}"):
                plan = _teacher(matrix, name, _data(data, data_dir), weights.get(name))
                plans[data["name"], name] = plan
    of_cells = {"kind", "student", "method", "seed", "teacher"}
    for name in of_cells & (settings or {}).keys():
        problems.messages.append(
            f"--set {name}: the matrix says it. Choose cells by --seeds and such."
        )
    for name in matrix.options.keys() - METHODS.keys():
        problems.messages.append(f"options: there is no method {name}. {nearest(name, METHODS)}")
    problems.raise_if_any()
    cells = list(_cells(matrix, plans, data_dir, settings or {}))
    _check(cells, problems)
    problems.raise_if_any()
    return cells


def _data(section: Fields, data_dir: str | None) -> Fields:
    return merged({"dir": data_dir} if data_dir else {}, section)


def _teacher(matrix: Matrix, name: str, data: Fields, weights: str | None) -> TeacherPlan:
    entry = matrix.teachers.get(name, TeacherEntry())
    network = entry.network or name
    own = {"kind": "train", "model": network}
    if matrix.kind == "transfer":
        # Its images have labels, and are of another data set.
        data = {name: value for name, value in data.items() if name == "dir"}
    # What only its students' recipes have is left out; a wrong name is told of those.
    known = TrainRecipe.model_fields
    shared = {n: v for n, v in matrix.recipe.items() if n.partition(".")[0] in known}
    recipe = parse_recipe(merged(shared, {"data": data}, entry.recipe, own))
    assert isinstance(recipe, TrainRecipe)
    file = weights or entry.weights
    where = None if file is None else expand_user_path(file).absolute()
    if where is not None and not where.exists():
        raise RecipeError([f"weights: there is no {where}. Name a run folder or a file."])
    apart = where is not None and _is_apart(where, network, entry.network is not None)
    if where is not None and not apart:
        network = _network_in(where) or network
    return TeacherPlan(name, recipe.data.name, network, where, recipe, apart)


def _is_apart(weights: Path, network: str, named: bool) -> bool:
    """Whether weights need their network's name beside them; RecipeError for another's weights."""
    own, zoo = _network_in(weights), list_networks()
    if own is None:
        # Without a network they are known by their tensors.
        return named
    if own != network and (network in zoo or (named and own in zoo)):
        raise RecipeError(
            [f"weights: {weights} holds a {own}, and here it is called {network}. Give other "
             "weights, or the teacher another name."]
        )  # fmt: skip
    return False


def _network_in(weights: Path) -> str | None:
    """What a file of ours says that it is of, whatever it is called in a matrix."""
    file = find_weights_file(str(weights))
    return str(read_metadata(file)["network"]) if is_cktf_weights_file(file) else None


def _cells(
    matrix: Matrix,
    plans: Mapping[tuple[str, str], TeacherPlan],
    data_dir: str | None,
    settings: Mapping[str, Any],
) -> Iterator[Cell]:
    methods = matrix.methods.items()
    for data, seed, pair, (label, entry) in product(
        matrix.data, matrix.seeds, matrix.pairs, methods
    ):
        if label not in pair.without:
            fields = merged(
                matrix.recipe, {"data": _data(data, data_dir)}, pair.recipe, entry.recipe, settings,
                {"kind": matrix.kind, "student": pair.student, "seed": seed,
                 "method": entry.method},
            )  # fmt: skip
            fields["options"] = _options(matrix, entry, fields.get("options", {}))
            teacher = plans[data["name"], pair.teacher]
            yield Cell(data["name"], teacher, pair.student, label, seed, fields)


def _options(matrix: Matrix, entry: MethodEntry, given: Mapping[str, Any]) -> Fields:
    """Of the matrix, over them those of the method, over both those of recipes and settings."""
    absent = METHODS.keys() - parse(entry.method).keys()

    def own(options: Mapping[str, Any]) -> Fields:
        # What is no method stays, to be told of.
        return {name: values for name, values in options.items() if name not in absent}

    return merged(own(matrix.options), entry.options, own(given))


def _check(cells: list[Cell], problems: Problems) -> None:
    """What can be seen without weights and images; the same mistake is named once."""
    found: dict[str, None] = {}
    names: dict[str, str] = {}
    for cell in cells:
        inner = Problems()
        with inner.collect():
            recipe = cell.recipe()
            distilled = recipe.distilling() if isinstance(recipe, TransferRecipe) else recipe
            inner.messages += check_recipe(distilled).messages
            if recipe.kind == "distill" and not recipe.data.labels:
                inner.messages.append(
                    "data.labels: a table is of accuracies, and without labels there are none. Set "
                    "kind: transfer."
                )
        # Some file systems tell no capitals from others.
        other = names.setdefault(cell.slug.casefold(), cell.title)
        if other != cell.title:
            inner.messages.append(f"{cell.title} and {other} have one name for files.")
        if len(cell.slug.encode()) > _LONGEST:
            inner.messages.append(
                f"{cell.title} is too long for the name of a file. Call networks by shorter names "
                "in `teachers`, or keep them in a folder that is nearer."
            )
        found |= dict.fromkeys(f"{cell.method}: {problem}" for problem in inner.messages)
    for teacher in {(t.data, t.name): t for t in (cell.teacher for cell in cells)}.values():
        where = f"teachers.{teacher.name}"
        other = names.setdefault(teacher.slug, teacher.name)
        if other != teacher.name:
            found[f"{where}: it and {other} have one name for files. Rename one."] = None
        if teacher.weights is None:
            found |= dict.fromkeys(f"{where}: {p}" for p in check_recipe(teacher.recipe).messages)
    problems.messages += found


def chosen(
    cells: list[Cell],
    pairs: list[str] | None = None,
    methods: list[str] | None = None,
    seeds: list[int] | None = None,
) -> list[Cell]:
    """Only some of the pairs, methods and seeds.

    Raises:
        RecipeError: one that the matrix has not.
    """
    for name, wanted in (("pair", pairs), ("method", methods), ("seed", seeds)):
        known = {str(getattr(cell, name)) for cell in cells}
        for value in map(str, wanted or []):
            if value not in known:
                raise RecipeError(
                    [f"--{name}s: the matrix has no {value}. {nearest(value, known)}"]
                )
    return [
        cell
        for cell in cells
        if (pairs is None or cell.pair in pairs)
        and (methods is None or cell.method in methods)
        and (seeds is None or cell.seed in seeds)
    ]


def with_weights(cell: Cell, weights: Path) -> Cell:
    """The same cell, with a teacher that is trained."""
    return replace(cell, teacher=replace(cell.teacher, weights=weights))
