"""The fields of a matrix, its files, and the matrices that the library ships."""

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator
from typing_extensions import Self

from cktf.config import Section
from cktf.data.config import Name
from cktf.errors import RecipeError, nearest
from cktf.recipes.files import read_recipe
from cktf.user_paths import expand_user_path

Fields = dict[str, Any]


class TeacherEntry(Section):
    """How to obtain a teacher.

    Attributes:
        network: network to train; by default the teacher's name.
        weights: a run folder or a file of trained weights, in place of training.
        recipe: fields in which its training differs from the matrix's recipe.
    """

    network: Name | None = None
    weights: str | None = None
    recipe: Fields = Field({})


class PairEntry(Section):
    """A teacher, by its name in the matrix, and a student; `teacher:student` for short.

    Attributes:
        without: methods that are left out for this pair.
        recipe: fields in which its cells differ.
    """

    teacher: Name
    student: Name
    without: list[str] = Field([])
    recipe: Fields = Field({})

    @model_validator(mode="before")
    @classmethod
    def _expand_string(cls, entry: Any) -> Any:
        if not isinstance(entry, str):
            return entry
        teacher, colon, student = entry.partition(":")
        return {"teacher": teacher, "student": student} if colon else {"teacher": teacher}


class MethodEntry(Section):
    """A method string and its settings; the string alone for short.

    Attributes:
        options: options of its terms, over those of the matrix.
        recipe: fields in which its cells differ.
        against: the method that it is compared with, in place of the matrix's baseline.
    """

    method: Name
    options: dict[str, Fields] = Field({})
    recipe: Fields = Field({})
    against: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _expand_string(cls, entry: Any) -> Any:
        return {"method": entry} if isinstance(entry, str) else entry


class Matrix(Section):
    """A grid of methods, pairs of networks, seeds and data sets to compare.

    Attributes:
        name: name of the matrix.
        about: description above its table's conditions.
        kind: `distill`, or `transfer` without labels.
        data: one data set, or several; fields as in a recipe, or the name alone.
        teachers: by name; one that is not listed is the network of that name.
        pairs: pairs of networks.
        methods: by their names in the table; a list of method strings for short.
        seeds: seeds of the students; a teacher has the seed of its own recipe.
        recipe: fields of all recipes.
        options: options of terms, wherever a method has them.
        interleaved: number of students at most that share one pass of their teacher.
        baseline: the method that others are compared with.
        primary: the method whose difference from its baseline is the primary contrast, which is
            tested without correction.
        held_out: compare accuracies on held-out training images, to choose by.
    """

    name: Name
    about: str = ""
    kind: Literal["distill", "transfer"] = "distill"
    data: Annotated[list[Fields], Field(min_length=1)]
    teachers: dict[str, TeacherEntry] = Field({})
    pairs: Annotated[list[PairEntry], Field(min_length=1)]
    methods: Annotated[dict[str, MethodEntry], Field(min_length=1)]
    seeds: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] = Field([0])
    recipe: Fields = Field({})
    options: dict[str, Fields] = Field({})
    interleaved: int = Field(1, ge=1)
    baseline: str | None = None
    primary: str | None = None
    held_out: bool = False

    @model_validator(mode="before")
    @classmethod
    def _read_old_names(cls, fields: Any) -> Any:
        if not isinstance(fields, dict):
            return fields
        fields = dict(fields)
        if isinstance(fields.get("methods"), list):
            names = [str(name) for name in fields["methods"]]
            if twice := [name for name in names if names.count(name) > 1]:
                raise ValueError(f"methods: {twice[0]} is listed twice")
            fields["methods"] = dict(zip(names, fields["methods"], strict=True))
        if isinstance(fields.get("data"), Mapping | str):
            fields["data"] = [fields["data"]]
        if isinstance(fields.get("data"), list):
            fields["data"] = [{"name": d} if isinstance(d, str) else d for d in fields["data"]]
        if "together" in fields and "interleaved" not in fields:
            fields["interleaved"] = fields.pop("together")
        # Of `added: X`, each method NAME+X is compared with NAME.
        added, methods = fields.pop("added", None), fields.get("methods")
        if added is not None and isinstance(methods, dict):
            fields["methods"] = dict(methods)
            for name, entry in methods.items():
                base = str(name).removesuffix(f"+{added}")
                if base != name and base in methods:
                    entry = {"method": entry} if isinstance(entry, str) else entry
                    fields["methods"][name] = {**entry, "against": base}
        return fields

    @model_validator(mode="after")
    def _check_unique(self) -> Self:
        names = [data.get("name") for data in self.data]
        if not all(names) or len(set(names)) < len(names):
            raise ValueError(f"data: each set has a name of its own, given {names}")
        pairs = [f"{pair.teacher}:{pair.student}" for pair in self.pairs]
        for field, values in (("pairs", pairs), ("seeds", self.seeds)):
            for number, value in enumerate(values):
                if value in values[:number]:
                    raise ValueError(f"{field}: {value} is listed twice")
        return self

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        references: list[tuple[str, str | None]] = [
            *((f"pairs: without {m!r}", m) for pair in self.pairs for m in pair.without),
            ("baseline", self.baseline),
            ("primary", self.primary),
            *((f"methods.{m}.against", entry.against) for m, entry in self.methods.items()),
        ]
        for field, method in references:
            if method is not None and method not in self.methods:
                raise ValueError(f"{field}: no such method. {nearest(method, self.methods)}")
        if self.primary is not None:
            baseline = self.methods[self.primary].against or self.baseline
            if baseline in (None, self.primary):
                raise ValueError(f"primary: {self.primary} has no baseline to be compared with")
        if self.held_out and not (_holds_out(self.recipe) or all(map(_holds_out, self.data))):
            raise ValueError("held_out: no images are; give data: {…, validation: 0.1}")
        teachers = {pair.teacher for pair in self.pairs}
        for name in self.teachers.keys() - teachers:
            raise ValueError(f"teachers: no pair has {name!r}. {nearest(name, teachers)}")
        if self.kind == "transfer" and self.interleaved > 1:
            raise ValueError("interleaved: only students that are distilled can be interleaved")
        return self


def _holds_out(fields: Fields) -> bool:
    """Whether a data section, or a recipe, holds out training images."""
    section = fields.get("data", fields)
    validation = section.get("validation") if isinstance(section, Mapping) else None
    return bool(fields.get("data.validation") or validation)


def shipped_matrices() -> list[str]:
    """Names of the matrices that the library ships.

    >>> "cpu-cifar10" in shipped_matrices()
    True
    """
    entries = files("cktf.bench").joinpath("matrices").iterdir()
    return sorted(e.name.removesuffix(".yaml") for e in entries if e.name.endswith(".yaml"))


def read_matrix(name: str | Path) -> Matrix:
    """Read a matrix of the library by name, or one from a file.

    Raises:
        RecipeError: no such matrix, or everything that is wrong with its form.
    """
    path = expand_user_path(name)
    if str(name) in shipped_matrices():
        path = Path(str(files("cktf.bench").joinpath("matrices", f"{name}.yaml")))
    elif not path.exists():
        hint = nearest(str(name), shipped_matrices())
        raise RecipeError([f"There is no matrix {str(name)!r}, by name or as a file. {hint}"])
    return make_matrix(read_recipe(path))


def make_matrix(fields: Mapping[str, Any]) -> Matrix:
    """Check the fields of a matrix.

    Raises:
        RecipeError: everything that is wrong with them.
    """
    try:
        return Matrix.model_validate(dict(fields))
    except ValidationError as error:
        problems = []
        for detail in error.errors():
            field = ".".join(str(part) for part in detail["loc"])
            message = detail["msg"].removeprefix("Value error, ")
            if detail["type"] == "extra_forbidden":
                known = Matrix.model_fields if len(detail["loc"]) == 1 else []
                message = f"there is no such field. {nearest(str(detail['loc'][-1]), known)}"
            problems.append(f"{field}: {message}" if field else message)
        raise RecipeError(problems) from error
