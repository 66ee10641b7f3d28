"""A matrix: pairs of networks, methods, seeds and data sets, and the cells that it stands for."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from typing_extensions import Self

from cktf.errors import RecipeError, nearest
from cktf.objectives import parse
from cktf.recipes import (
    CUSTOM,
    DistillRecipe,
    Problems,
    TrainRecipe,
    TransferRecipe,
    check,
    make_recipe,
    make_transfer,
    put,
    read_recipe,
)
from cktf.recipes.schema import Name

CellRecipe = DistillRecipe | TransferRecipe
Fields = dict[str, Any]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_default=True)


class TeacherEntry(_Section):
    """How a teacher comes about.

    Attributes:
        network: what is trained; by default what the teacher is called.
        weights: a run folder or a file of trained weights, in place of training.
        recipe: fields in which its training differs from the matrix's own.
    """

    network: Name | None = None
    weights: str | None = None
    recipe: Fields = {}


class PairEntry(_Section):
    """A teacher, by its name in the matrix, and a student; `teacher:student` for short.

    Attributes:
        without: methods that are left out for this pair.
        recipe: fields in which its cells differ.
    """

    teacher: Name
    student: Name
    without: list[str] = []
    recipe: Fields = {}

    @model_validator(mode="before")
    @classmethod
    def _short(cls, given: Any) -> Any:
        if not isinstance(given, str):
            return given
        teacher, colon, student = given.partition(":")
        return {"teacher": teacher, "student": student} if colon else {"teacher": teacher}


class MethodEntry(_Section):
    """A method string, with what is special to it; the string alone for short.

    Attributes:
        options: of its terms, over those of the matrix.
        recipe: fields in which its cells differ.
    """

    method: Name
    options: dict[str, Fields] = {}
    recipe: Fields = {}

    @model_validator(mode="before")
    @classmethod
    def _short(cls, given: Any) -> Any:
        return {"method": given} if isinstance(given, str) else given


class Matrix(_Section):
    """Everything that is compared.

    Attributes:
        name: of the matrix.
        about: what it is, for its table.
        kind: what a cell is: `distill`, or `transfer` without labels.
        data: one data set, or several; fields as in a recipe.
        teachers: by name; one that is not listed is the network of that name.
        pairs: of networks.
        methods: by the name that they have in the table; a list of method strings for short.
        seeds: of the students; a teacher has the seed of its own recipe.
        recipe: fields of all recipes.
        options: of terms, wherever a method has them.
        together: so many students at most take turns with one pass of their teacher.
        baseline: the method that others are compared with.
    """

    name: Name
    about: str = ""
    kind: Literal["distill", "transfer"] = "distill"
    data: Annotated[list[Fields], Field(min_length=1)]
    teachers: dict[str, TeacherEntry] = {}
    pairs: Annotated[list[PairEntry], Field(min_length=1)]
    methods: Annotated[dict[str, MethodEntry], Field(min_length=1)]
    seeds: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] = [0]
    recipe: Fields = {}
    options: dict[str, Fields] = {}
    together: int = Field(1, ge=1)
    baseline: str | None = None

    @field_validator("data", mode="before")
    @classmethod
    def _several(cls, given: Any) -> Any:
        return [given] if isinstance(given, Mapping) else given

    @field_validator("methods", mode="before")
    @classmethod
    def _named(cls, given: Any) -> Any:
        return {str(name): name for name in given} if isinstance(given, list) else given

    @model_validator(mode="after")
    def _known(self) -> Self:
        names = [data.get("name") for data in self.data]
        if not all(names) or len(set(names)) < len(names):
            raise ValueError(f"data: each set has a name of its own, given {names}")
        wanted = [(f"pairs: without {m!r}", m) for pair in self.pairs for m in pair.without]
        wanted += [("baseline", self.baseline)] if self.baseline is not None else []
        for where, method in wanted:
            if method not in self.methods:
                raise ValueError(f"{where}: no such method. {nearest(method, self.methods)}")
        taught = {pair.teacher for pair in self.pairs}
        for name in self.teachers.keys() - taught:
            raise ValueError(f"teachers: no pair has {name!r}. {nearest(name, taught)}")
        if self.kind == "transfer" and self.together > 1:
            raise ValueError("together: only students that are distilled take turns")
        return self


@dataclass(frozen=True)
class TeacherPlan:
    """One teacher on one data set, shared by all of its students.

    Attributes:
        name: in the matrix.
        data: name of the data set of its students.
        network: what is trained.
        weights: trained already; None to train by `recipe`.
        recipe: of its training.
    """

    name: str
    data: str
    network: str
    weights: Path | None
    recipe: TrainRecipe

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
    def column(self) -> tuple[str, str]:
        """Data set and pair."""
        return self.data, f"{self.teacher.name}:{self.student}"

    def recipe(self, teacher: str = CUSTOM) -> CellRecipe:
        """Its recipe, with the teacher's weights where they are."""
        fields = merged(self.fields, {"teacher": teacher})
        if fields["kind"] == "transfer":
            return make_transfer(fields)
        recipe = make_recipe(fields)
        assert isinstance(recipe, DistillRecipe)
        return recipe


def slug(*parts: str) -> str:
    """A name for files.

    >>> slug("cifar10", "kd:1", "seed0")
    'cifar10-kd=1-seed0'
    """
    return re.sub(r"[^\w.+=-]", "-", "-".join(parts).replace(":", "="))


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
                put(result, name, merged(before if isinstance(before, Mapping) else {}, value))
            else:
                put(result, name, value)
    return result


def shipped() -> list[str]:
    """Names of the matrices of the library.

    >>> "cpu-cifar10" in shipped()
    True
    """
    found = files("cktf.bench").joinpath("matrices").iterdir()
    return sorted(f.name.removesuffix(".yaml") for f in found if f.name.endswith(".yaml"))


def read_matrix(name: str | Path) -> Matrix:
    """A matrix of the library by name, or one from a file.

    Raises:
        RecipeError: no such matrix, or everything that is wrong with its form.
    """
    path = Path(name)
    if str(name) in shipped():
        path = Path(str(files("cktf.bench").joinpath("matrices", f"{name}.yaml")))
    elif not path.exists():
        hint = nearest(str(name), shipped())
        raise RecipeError([f"There is no matrix {str(name)!r}, by name or as a file. {hint}"])
    return make_matrix(read_recipe(path))


def make_matrix(fields: Mapping[str, Any]) -> Matrix:
    """Check the form of a matrix.

    Raises:
        RecipeError: everything that is wrong.
    """
    try:
        return Matrix.model_validate(dict(fields))
    except ValidationError as error:
        problems = []
        for detail in error.errors():
            where = ".".join(str(part) for part in detail["loc"])
            message = detail["msg"].removeprefix("Value error, ")
            text = f"{where}: {message}" if where else message
            if detail["type"] == "extra_forbidden":
                known = Matrix.model_fields if len(detail["loc"]) == 1 else []
                text = f"{where}: there is no such field. {nearest(str(detail['loc'][-1]), known)}"
            problems.append(text)
        raise RecipeError(problems) from error


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
        problems.found.append(f"--teacher {name}: no pair has it. {nearest(name, taught)}")
    for label, entry in matrix.methods.items():
        with problems.collect(f"methods.{label}"):
            parse(entry.method)
    plans: dict[tuple[str, str], TeacherPlan] = {}
    for data in matrix.data:
        for name in sorted(taught):
            with problems.collect(f"teachers.{name}"):
                plan = _teacher(matrix, name, _data(data, data_dir), weights.get(name))
                plans[data["name"], name] = plan
    problems.stop_if_any()
    cells = list(_cells(matrix, plans, data_dir, settings or {}))
    _check(cells, problems)
    problems.stop_if_any()
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
    recipe = make_recipe(merged(matrix.recipe, {"data": data}, entry.recipe, own))
    assert isinstance(recipe, TrainRecipe)
    file = weights or entry.weights
    where = None if file is None else Path(file).expanduser()
    if where is not None and not where.exists():
        raise RecipeError([f"weights: there is no {where}. Name a run folder or a file."])
    return TeacherPlan(name, recipe.data.name, network, where, recipe)


def _cells(
    matrix: Matrix,
    plans: Mapping[tuple[str, str], TeacherPlan],
    data_dir: str | None,
    settings: Mapping[str, Any],
) -> Iterator[Cell]:
    for data in matrix.data:
        for seed in matrix.seeds:
            for pair in matrix.pairs:
                for label, entry in matrix.methods.items():
                    if label not in pair.without:
                        fields = merged(
                            matrix.recipe, {"data": _data(data, data_dir)}, pair.recipe,
                            entry.recipe, settings,
                            {"kind": matrix.kind, "student": pair.student, "seed": seed,
                             "method": entry.method},
                        )  # fmt: skip
                        fields["options"] = _options(matrix, entry)
                        teacher = plans[data["name"], pair.teacher]
                        yield Cell(data["name"], teacher, pair.student, label, seed, fields)


def _options(matrix: Matrix, entry: MethodEntry) -> dict[str, Fields]:
    terms = parse(entry.method)
    of_all = {name: values for name, values in matrix.options.items() if name in terms}
    return merged(of_all, entry.options)


def _check(cells: list[Cell], problems: Problems) -> None:
    """What can be seen without weights and images; the same mistake is named once."""
    found: dict[str, None] = {}
    names: dict[str, str] = {}
    for cell in cells:
        inner = Problems()
        with inner.collect():
            recipe = cell.recipe()
            distilled = recipe.distilling() if isinstance(recipe, TransferRecipe) else recipe
            inner.found += check(distilled).found
        if names.setdefault(cell.slug, cell.title) != cell.title:
            inner.found.append(f"{cell.title} and {names[cell.slug]} have one name for files.")
        found |= dict.fromkeys(f"{cell.method}: {problem}" for problem in inner.found)
    for teacher in {cell.teacher.slug: cell.teacher for cell in cells}.values():
        if teacher.weights is None:
            where = f"teachers.{teacher.name}"
            found |= dict.fromkeys(f"{where}: {p}" for p in check(teacher.recipe).found)
    problems.found += found


def chosen(
    cells: list[Cell], methods: list[str] | None = None, seeds: list[int] | None = None
) -> list[Cell]:
    """Only some of the methods and seeds.

    Raises:
        RecipeError: one that the matrix has not.
    """
    for name, wanted in (("method", methods), ("seed", seeds)):
        known = {str(getattr(cell, name)) for cell in cells}
        for value in map(str, wanted or []):
            if value not in known:
                raise RecipeError(
                    [f"--{name}s: the matrix has no {value}. {nearest(value, known)}"]
                )
    return [
        cell
        for cell in cells
        if (methods is None or cell.method in methods) and (seeds is None or cell.seed in seeds)
    ]


def with_weights(cell: Cell, weights: Path) -> Cell:
    """The same cell, with a teacher that is trained."""
    return replace(cell, teacher=replace(cell.teacher, weights=weights))
