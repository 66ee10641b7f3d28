"""Recipes from YAML files, keyword arguments and `field.name=value`, with all mistakes at once."""

import hashlib
import json
import types
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from cktf.data import FOLDER_PREFIX
from cktf.errors import RecipeError, RunFolderError, nearest
from cktf.models import resolve_network_spec, runs_user_code
from cktf.recipes.networks import is_weights_path
from cktf.recipes.schema import DistillRecipe, Recipe, TrainRecipe, TransferRecipe
from cktf.user_paths import expand_user_path

_SCHEMAS: dict[str, type[TrainRecipe] | type[DistillRecipe] | type[TransferRecipe]] = {
    "train": TrainRecipe,
    "distill": DistillRecipe,
    "transfer": TransferRecipe,
}

_HERE = Path(__file__).parent

AnyRecipe = TypeVar(
    "AnyRecipe", TrainRecipe, DistillRecipe, TransferRecipe, Recipe, Recipe | TransferRecipe
)

# Bytes of a recipe; and what PyYAML raises, by what it meets.
_LONGEST = 1_000_000
_NOT_YAML = (
    yaml.YAMLError, ValueError, TypeError, AttributeError, KeyError, OverflowError, RecursionError,
)  # fmt: skip


class _Plain(yaml.SafeLoader):
    """Plain values only, written out: an alias could stand for more than memory holds."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """A value that is there itself."""
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not read; write the value out")
        return super().compose_node(parent, index)


def _decimal(loader: _Plain, node: yaml.ScalarNode) -> int | str:
    """A whole number as people write it: to YAML 1.1, 010 would be 8, and 1:30 be 90."""
    text = str(loader.construct_scalar(node))
    try:
        return int(text)
    except ValueError:
        return text


_Plain.add_constructor("tag:yaml.org,2002:int", _decimal)


def _parsed(text: str) -> Any:
    return yaml.load(text, Loader=_Plain)


def find_recipe(run: Path) -> Path:
    """The recipe in a run folder.

    Raises:
        RunFolderError: no run there.
    """
    path = run / "recipe.yaml"
    if not path.is_file():
        raise RunFolderError(f"{run} holds no run: there is no recipe.yaml in it. Give its folder.")
    return path


def shipped_recipes() -> list[str]:
    """Names of the recipes inside this package: `paper/…`."""
    return sorted(f"paper/{path.stem}" for path in (_HERE / "paper").glob("*.yaml"))


def read_recipe(path: Path) -> dict[str, Any]:
    """The fields of a YAML file, or of a shipped recipe by its name, not yet checked.

    Raises:
        RecipeError: no such file, or one that is not a YAML mapping.
    """
    if not path.exists() and path.with_suffix("").as_posix() in shipped_recipes():
        path = _HERE / path.with_suffix(".yaml")
    try:
        with path.open("rb") as file:
            text = file.read(_LONGEST + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        known = ", ".join(shipped_recipes())
        raise RecipeError(
            [f"{path} cannot be read ({reason}). Give a recipe.yaml, or one of: {known}."]
        ) from error
    if len(text) > _LONGEST:
        raise RecipeError([f"{path} has more than {_LONGEST:,} bytes, and no recipe has so many."])
    try:
        fields = _parsed(text.decode())
    except _NOT_YAML as error:
        raise RecipeError([f"{path} is not YAML: {' '.join(str(error).split())[:300]}"]) from error
    if not isinstance(fields, dict):
        raise RecipeError([f"{path} holds no fields; a recipe is a YAML mapping."])
    return fields


def find_code(fields: Mapping[str, Any]) -> list[str]:
    """Which fields name a Python file or module to build a network by, which would run it."""
    found = []
    for name in ("model", "student", "teacher"):
        line = fields.get(name)
        if isinstance(line, str) and not is_weights_path(line) and runs_user_code(line):
            found.append(f"{name}: {line}")
    return found


def refuse_code(fields: Mapping[str, Any], path: Path) -> None:
    """A recipe from a file may name code; it runs only where the user trusts it.

    Raises:
        RecipeError: it names some.
    """
    if named := find_code(fields):
        raise RecipeError(
            [
                f"{line}: {path} names code, and building the network would run it. Read it, and "
                "add --trust-code if you trust it."
                for line in named
            ]
        )


def apply_assignments(fields: dict[str, Any], assignments: Iterable[str]) -> None:
    """Put `a.b=value` into nested fields; the value is read as YAML.

    >>> fields = {"optimizer": {"lr": 0.05}}
    >>> apply_assignments(fields, ["optimizer.lr=0.02", "epochs=3"])
    >>> fields
    {'optimizer': {'lr': 0.02}, 'epochs': 3}
    """
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals or not all(name.split(".")):
            raise RecipeError([f"--set takes field.name=value, given {assignment!r}."])
        try:
            parsed = _parsed(value)
        except _NOT_YAML as error:
            raise RecipeError([f"--set {assignment[:200]}: the value is not YAML."]) from error
        set_field(fields, name, _number(parsed))


def set_field(fields: dict[str, Any], name: str, value: Any) -> None:
    """Set one dotted field."""
    *path, last = name.split(".")
    for part in path:
        inner = fields.setdefault(part, {})
        if not isinstance(inner, dict):
            raise RecipeError([f"{name}: {part!r} is a single value and has no fields."])
        fields = inner
    fields[last] = value


def set_fields(fields: dict[str, Any], given: Mapping[str, Any], inside: str = "") -> None:
    """Set dotted and nested fields; what they do not name stays.

    >>> fields = {"data": {"name": "custom"}}
    >>> set_fields(fields, {"data": {"batch_size": 8}, "optimizer.lr": 0.1})
    >>> fields
    {'data': {'name': 'custom', 'batch_size': 8}, 'optimizer': {'lr': 0.1}}
    """
    for name, value in given.items():
        if isinstance(value, Mapping):
            set_fields(fields, value, f"{inside}{name}.")
        else:
            set_field(fields, f"{inside}{name}", value)


def _number(value: Any) -> Any:
    # YAML 1.1 reads 1e-3 as a string; every user means the number.
    if isinstance(value, str):
        try:
            return float(value) if "e" in value.lower() else value
        except ValueError:
            return value
    return value


# Fields of `data` that are also those of `labeled`, where it does not set them.
_SHARED_WITH_LABELED = (
    "dir", "workers", "image_size", "channels", "skip_broken", "augment", "resized_crops",
)  # fmt: skip


def parse_any_recipe(fields: Mapping[str, Any]) -> Recipe | TransferRecipe:
    """Check the form of all fields, and build the recipe of their `kind`.

    Raises:
        RecipeError: every unknown field, missing field and impossible value, with the nearest
            valid name.
    """
    kind = fields.get("kind")
    if not isinstance(kind, str) or kind not in _SCHEMAS:
        raise RecipeError([f"kind: {kind!r} is none of: {', '.join(_SCHEMAS)}."])
    if kind == "transfer":
        fields = _with_labeled_section(fields)
    schema = _SCHEMAS[kind]
    try:
        return schema.model_validate(dict(fields))
    except ValidationError as error:
        raise RecipeError(_explain(schema, detail) for detail in error.errors()) from error


def parse_recipe(fields: Mapping[str, Any]) -> Recipe:
    """Build the recipe of a training or a distillation; see `parse_any_recipe`."""
    recipe = parse_any_recipe(fields)
    if isinstance(recipe, TransferRecipe):
        raise RecipeError(["kind: 'transfer' is neither 'train' nor 'distill'."])
    return recipe


def parse_transfer_recipe(fields: Mapping[str, Any]) -> TransferRecipe:
    """Build the recipe of a transfer; see `parse_any_recipe`."""
    recipe = parse_any_recipe({"kind": "transfer", **fields})
    if not isinstance(recipe, TransferRecipe):
        raise RecipeError([f"kind: {recipe.kind!r} is not 'transfer'."])
    return recipe


def _with_labeled_section(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Read no labels of a transfer's `data`; take `labeled` from it where it is not set."""
    data, labeled = fields.get("data", {}), fields.get("labeled", {})
    if not isinstance(data, Mapping) or not isinstance(labeled, Mapping):
        return dict(fields)
    same_data = labeled.get("name", data.get("name")) == data.get("name")
    names = (*_SHARED_WITH_LABELED, "name", "classes") if same_data else _SHARED_WITH_LABELED
    shared = {name: data[name] for name in names if name in data}
    return {**fields, "data": {**data, "labels": False}, "labeled": {**shared, **labeled}}


def _explain(schema: type[BaseModel], detail: ErrorDetails) -> str:
    path = [str(part) for part in detail["loc"]]
    where = ".".join(path)
    if detail["type"] == "extra_forbidden":
        known = _fields_at(schema, path[:-1])
        return f"{where}: there is no such field. {nearest(path[-1], known)}"
    if detail["type"] == "missing":
        return f"{where}: is needed. Give --{path[-1].replace('_', '-')}, or set it in the recipe."
    return f"{where}: {detail['msg']}, given {repr(detail['input'])[:200]}."


def _fields_at(schema: type[BaseModel], path: list[str]) -> list[str]:
    for part in path:
        field = schema.model_fields[part].annotation
        options = get_args(field) if isinstance(field, types.UnionType) else (field,)
        schema = next(o for o in options if isinstance(o, type) and issubclass(o, BaseModel))
    return list(schema.model_fields)


def with_absolute_paths(recipe: AnyRecipe) -> AnyRecipe:
    """The same recipe with absolute paths, so that it means the same in any folder."""
    data = recipe.data.model_copy(update={"dir": _absolute(recipe.data.dir)})
    update: dict[str, Any] = {"data": data}
    if isinstance(recipe, TransferRecipe):
        labeled = recipe.labeled.model_copy(update={"dir": _absolute(recipe.labeled.dir)})
        update["labeled"] = labeled
    if isinstance(recipe, DistillRecipe | TransferRecipe):
        update["teacher"] = _located(recipe.teacher)
        update["teacher_weights"] = _absolute(recipe.teacher_weights)
        update["student"] = _located(recipe.student)
        if recipe.teacher_cache not in (None, "auto"):
            update["teacher_cache"] = _absolute(recipe.teacher_cache)
    else:
        update["model"] = _located(recipe.model)
    return recipe.model_copy(update=update)


# Where a run computes, how often it saves itself and what it does at the unforeseen does not change
# what it computes.
_IGNORED_FIELDS = (
    "data.dir",
    "data.workers",
    "labeled.dir",
    "labeled.workers",
    "runtime.device",
    "runtime.on_nonfinite",
    "runtime.track",
    "teacher_cache",
    "checkpoint.epochs",
    "checkpoint.minutes",
)


# Fields that came later, with the value that does what was done before.
_ADDED_FIELDS = {"new_classifier": False}


def result_fields(recipe: Recipe | TransferRecipe) -> dict[str, Any]:
    """Fields by dotted name, as a file has them, without those that do not change the result."""
    flat: dict[str, Any] = {}
    for name, value in with_absolute_paths(recipe).model_dump(mode="json").items():
        inner = value.items() if isinstance(value, dict) and name != "options" else [("", value)]
        flat |= {f"{name}.{part}".rstrip("."): v for part, v in inner}
    free = {name for name in _IGNORED_FIELDS if not _says_which(flat, name)}
    # As it was before there was the field.
    free |= {name for name in _ADDED_FIELDS if flat.get(name) == _ADDED_FIELDS[name]}
    return {name: value for name, value in flat.items() if name not in free}


def _says_which(flat: dict[str, Any], name: str) -> bool:
    """Whether a field is the folder of a user's own images, which nothing else names."""
    section, _, field = name.partition(".")
    return field == "dir" and FOLDER_PREFIX in (
        flat.get(f"{section}.name"),
        flat.get(f"{section}.test"),
    )


def recipe_hash(recipe: Recipe) -> str:
    """A hash of what decides a recipe's result."""
    fields = json.dumps(result_fields(recipe), sort_keys=True, default=str)
    return hashlib.sha256(fields.encode()).hexdigest()


def _absolute(path: str | None) -> str | None:
    return None if path is None else str(expand_user_path(path).absolute())


def _located(line: str) -> str | None:
    """The absolute path of a run folder or file, or a line with that of its Python file."""
    if is_weights_path(line):
        return _absolute(line)
    return resolve_network_spec(line)


def to_yaml(recipe: Recipe | TransferRecipe) -> str:
    """The complete recipe as YAML, defaults included."""
    fields = recipe.model_dump(mode="json")
    kind = fields.pop("kind")
    return yaml.safe_dump({"kind": kind, **fields}, sort_keys=False)
