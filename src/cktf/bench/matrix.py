"""A matrix: pairs of networks, methods, seeds and data sets; its form, and the shipped ones."""

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from typing_extensions import Self

from cktf.data.config import Name
from cktf.errors import RecipeError, nearest
from cktf.recipes import read_recipe
from cktf.user_paths import expand_user_path

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
        against: the method that it is compared with, in place of the matrix's baseline.
    """

    method: Name
    options: dict[str, Fields] = {}
    recipe: Fields = {}
    against: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _short(cls, given: Any) -> Any:
        return {"method": given} if isinstance(given, str) else given


def _holds_out(fields: Fields) -> bool:
    """Whether a data section, or a recipe, holds out training images."""
    inner = fields.get("data", fields)
    own = inner.get("validation") if isinstance(inner, Mapping) else None
    return bool(fields.get("data.validation") or own)


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
        added: in place of a baseline: methods called `NAME+ADDED` stand in a column beside NAME.
        held_out: the table is of accuracies on training images that were held out, to choose by.
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
    added: str | None = None
    held_out: bool = False

    @field_validator("data", mode="before")
    @classmethod
    def _several(cls, given: Any) -> Any:
        return [given] if isinstance(given, Mapping) else given

    @field_validator("methods", mode="before")
    @classmethod
    def _named(cls, given: Any) -> Any:
        return {str(name): name for name in given} if isinstance(given, list) else given

    @model_validator(mode="after")
    def _once(self) -> Self:
        names = [data.get("name") for data in self.data]
        if not all(names) or len(set(names)) < len(names):
            raise ValueError(f"data: each set has a name of its own, given {names}")
        pairs = [f"{pair.teacher}:{pair.student}" for pair in self.pairs]
        for what, given in (("pairs", pairs), ("seeds", self.seeds)):
            for number, each in enumerate(given):
                if each in given[:number]:
                    raise ValueError(f"{what}: {each} is listed twice")
        return self

    @model_validator(mode="after")
    def _known(self) -> Self:
        wanted: list[tuple[str, str | None]]
        wanted = [(f"pairs: without {m!r}", m) for pair in self.pairs for m in pair.without]
        wanted += [("baseline", self.baseline)]
        wanted += [(f"methods.{m}.against", e.against) for m, e in self.methods.items()]
        for where, method in wanted:
            if method is not None and method not in self.methods:
                raise ValueError(f"{where}: no such method. {nearest(method, self.methods)}")
        if self.held_out and not (_holds_out(self.recipe) or all(map(_holds_out, self.data))):
            raise ValueError("held_out: no images are; give data: {…, validation: 0.1}")
        if self.added is not None and any(e.against for e in self.methods.values()):
            raise ValueError("added: it says what all are compared with; leave `against` away")
        if self.added is not None and not any(m.endswith(f"+{self.added}") for m in self.methods):
            raise ValueError(f"added: no method is called NAME+{self.added}")
        taught = {pair.teacher for pair in self.pairs}
        for name in self.teachers.keys() - taught:
            raise ValueError(f"teachers: no pair has {name!r}. {nearest(name, taught)}")
        if self.kind == "transfer" and self.together > 1:
            raise ValueError("together: only students that are distilled take turns")
        return self


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
    path = expand_user_path(name)
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
