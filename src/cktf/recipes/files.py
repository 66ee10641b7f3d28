"""Recipes from YAML files, keyword arguments and `field.name=value`, with all mistakes at once."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from cktf.data.config import DataConfig
from cktf.data.registry import FOLDER_PREFIX
from cktf.errors import RecipeError, RunFolderError, nearest
from cktf.models.network_spec import resolve_network_spec
from cktf.models.own_code import needs_trust
from cktf.recipes.schema import DistillRecipe, Recipe, TrainRecipe, TransferRecipe
from cktf.recipes.weights_paths import is_weights_path
from cktf.recipes.yaml_text import YAML_ERRORS, explain_yaml_error, read_yaml
from cktf.user_paths import expand_user_path

_SCHEMAS: dict[str, type[TrainRecipe] | type[DistillRecipe] | type[TransferRecipe]] = {
    "train": TrainRecipe,
    "distill": DistillRecipe,
    "transfer": TransferRecipe,
}

AnyRecipe = TypeVar(
    "AnyRecipe", TrainRecipe, DistillRecipe, TransferRecipe, Recipe, Recipe | TransferRecipe
)

_PACKAGE_DIR = Path(__file__).parent
_MAX_BYTES = 1_000_000


def find_recipe(run: Path) -> Path:
    """Return the path of the recipe in a run folder.

    Raises:
        RunFolderError: no run there.
    """
    path = run / "recipe.yaml"
    if not path.is_file():
        raise RunFolderError(f"{run} holds no run: there is no recipe.yaml in it. Give its folder.")
    return path


def shipped_recipes() -> list[str]:
    """List the names of the recipes inside this package: `paper/…`."""
    return sorted(f"paper/{path.stem}" for path in (_PACKAGE_DIR / "paper").glob("*.yaml"))


def read_recipe(path: Path) -> dict[str, Any]:
    """Read the fields of a YAML file, or of a shipped recipe by its name; they are not checked.

    Raises:
        RecipeError: no such file, or one that is not a YAML mapping.
    """
    if not path.exists() and path.with_suffix("").as_posix() in shipped_recipes():
        path = _PACKAGE_DIR / path.with_suffix(".yaml")
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        known = ", ".join(shipped_recipes())
        raise RecipeError(
            [f"{path} cannot be read ({reason}). Give a recipe.yaml, or one of: {known}."]
        ) from error
    if len(text) > _MAX_BYTES:
        raise RecipeError([f"{path} is too large: a recipe has at most {_MAX_BYTES:,} bytes."])
    try:
        fields = read_yaml(text.decode())
    except YAML_ERRORS as error:
        raise RecipeError([f"{path} is not YAML: {explain_yaml_error(error)}."]) from error
    if not isinstance(fields, dict):
        kind = "a list" if isinstance(fields, list) else "a single value"
        raise RecipeError(
            [
                f"{path} holds no fields: it is {'empty' if fields is None else kind}. Write one "
                "field a line, such as `epochs: 30`."
            ]
        )
    return fields


def find_user_code_fields(fields: Mapping[str, Any]) -> list[str]:
    """List the fields that name a Python file or module, which building the network would run.

    Files that the user has run before, unchanged, are left out.
    """
    specs = {name: fields.get(name) for name in ("model", "student", "teacher")}
    return [
        f"{name}: {spec}"
        for name, spec in specs.items()
        if isinstance(spec, str) and not is_weights_path(spec) and needs_trust(spec)
    ]


def refuse_code(fields: Mapping[str, Any], path: Path) -> None:
    """Refuse a recipe from a file that names code; users may trust it with `--trust-code`.

    Raises:
        RecipeError: it names code.
    """
    if lines := find_user_code_fields(fields):
        raise RecipeError(
            [
                f"{line}: {path} names code, and building the network would run it. Read it, and "
                "add --trust-code if you trust it."
                for line in lines
            ]
        )


def apply_assignments(fields: dict[str, Any], assignments: Iterable[str]) -> None:
    """Set nested fields by `a.b=value`; the value is read as YAML.

    >>> fields = {"optimizer": {"lr": 0.05}}
    >>> apply_assignments(fields, ["optimizer.lr=0.02", "epochs=3"])
    >>> fields
    {'optimizer': {'lr': 0.02}, 'epochs': 3}
    """
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals or not all(name.split(".")):
            raise RecipeError([f"--set takes field.name=value, given {assignment!r}."])
        try:
            value = read_yaml(text, name)
        except YAML_ERRORS as error:
            raise RecipeError(
                [f"--set {assignment[:200]}: the value is not YAML: {explain_yaml_error(error)}."]
            ) from error
        if isinstance(value, str) and "e" in value.lower():
            # YAML 1.1 reads 1e-3 as a string.
            with suppress(ValueError):
                value = float(value)
        set_field(fields, name, value)


def set_field(fields: dict[str, Any], name: str, value: Any) -> None:
    """Set one field by its dotted name; missing sections are added."""
    *path, last = name.split(".")
    for part in path:
        section = fields.setdefault(part, {})
        if not isinstance(section, dict):
            raise RecipeError([f"{name}: {part!r} is a single value and has no fields."])
        fields = section
    fields[last] = value


def set_fields(fields: dict[str, Any], values: Mapping[str, Any], prefix: str = "") -> None:
    """Set fields by dotted or nested names; other fields stay as they are.

    >>> fields = {"data": {"name": "custom"}}
    >>> set_fields(fields, {"data": {"batch_size": 8}, "optimizer.lr": 0.1})
    >>> fields
    {'data': {'name': 'custom', 'batch_size': 8}, 'optimizer': {'lr': 0.1}}
    """
    for name, value in values.items():
        if isinstance(value, Mapping):
            set_fields(fields, value, f"{prefix}{name}.")
        else:
            set_field(fields, f"{prefix}{name}", value)


# Fields of `data` that are also those of `labeled`, where it does not set them.
_SHARED_WITH_LABELED = (
    "dir", "workers", "image_size", "channels", "skip_broken", "augment", "resized_crops",
)  # fmt: skip
# And those that are if it names the same data set.
_OF_SAME_DATA = ("name", "classes", "image_column", "label_column")


def parse_any_recipe(fields: Mapping[str, Any]) -> Recipe | TransferRecipe:
    """Check the form of all fields, and build the recipe of their `kind`.

    Raises:
        RecipeError: every unknown field, missing field and impossible value, with the nearest
            valid name.
    """
    kind = fields.get("kind")
    if not isinstance(kind, str) or kind not in _SCHEMAS:
        raise RecipeError([f"kind: {kind!r} is none of: {', '.join(_SCHEMAS)}."])
    data, labeled = fields.get("data", {}), fields.get("labeled", {})
    if kind == "transfer" and isinstance(data, Mapping) and isinstance(labeled, Mapping):
        # Labels of `data` are not read, and `labeled` is the same data set by default.
        same_data = labeled.get("name", data.get("name")) == data.get("name")
        names = (*_SHARED_WITH_LABELED, *_OF_SAME_DATA) if same_data else _SHARED_WITH_LABELED
        shared = {name: data[name] for name in names if name in data}
        fields = {**fields, "data": {**data, "labels": False}, "labeled": {**shared, **labeled}}
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


# Names of fields in other tools.
_OTHER_NAMES = {
    "learning_rate": "optimizer.lr", "wd": "optimizer.weight_decay",
    "grad_clip": "optimizer.clip", "clip_grad": "optimizer.clip",
    "lr_schedule": "schedule.name", "lr_scheduler": "schedule.name", "scheduler": "schedule.name",
    "bs": "data.batch_size", "batch": "data.batch_size", "num_workers": "data.workers",
    "dataset": "data.name", "img_size": "data.image_size", "imgsz": "data.image_size",
    "val_split": "data.validation", "gpu": "runtime.device", "amp": "runtime.precision",
    "fp16": "runtime.precision", "bf16": "runtime.precision", "num_epochs": "epochs",
    "random_seed": "seed", "arch": "model", "network": "model",
}  # fmt: skip


def suggest_field(kind: str, name: str) -> str | None:
    """The dotted name of the field that the name of none may mean, in a recipe of a kind.

    >>> suggest_field("train", "learning_rate"), suggest_field("train", "batch_size")
    ('optimizer.lr', 'data.batch_size')
    """
    fields: list[str] = []
    for field, info in _SCHEMAS[kind].model_fields.items():
        section = info.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            fields += [f"{field}.{inner}" for inner in section.model_fields]
        else:
            fields.append(field)
    last = name.lower().replace("-", "_").rpartition(".")[2]
    named_so = [field for field in fields if field.rpartition(".")[2] == last]
    if _OTHER_NAMES.get(last) in fields:
        named_so.append(_OTHER_NAMES[last])
    return next(iter(named_so), None)


def _explain(schema: type[BaseModel], detail: ErrorDetails) -> str:
    """Turn a validation error into a message that names the field and what to try."""
    path = [str(part) for part in detail["loc"]]
    name = ".".join(path)
    if detail["type"] == "extra_forbidden":
        section: Any = schema
        for part in path[:-1]:
            section = section.model_fields[part].annotation
        field = suggest_field(schema.model_fields["kind"].default, name)
        hint = f"Did you mean {field!r}?" if field else nearest(path[-1], section.model_fields)
        return f"{name}: there is no such field. {hint}"
    if detail["type"] == "missing":
        return f"{name}: is needed. Give --{path[-1].replace('_', '-')}, or set it in the recipe."
    advice = " Write it in quotes." if detail["type"] == "string_type" else ""
    return f"{name}: {detail['msg']}, given {repr(detail['input'])[:200]}.{advice}"


def with_absolute_paths(recipe: AnyRecipe) -> AnyRecipe:
    """Return the same recipe with absolute paths, so that it means the same in any folder."""

    def absolute(path: str | None) -> str | None:
        return None if path is None else str(expand_user_path(path).absolute())

    update: dict[str, Any] = {}
    for name, value in recipe:
        if isinstance(value, DataConfig):
            update[name] = value.model_copy(update={"dir": absolute(value.dir)})
        elif name in ("model", "student", "teacher"):
            is_path = is_weights_path(value)
            update[name] = absolute(value) if is_path else resolve_network_spec(value)
        elif name == "teacher_weights" or (name == "teacher_cache" and value != "auto"):
            update[name] = absolute(value)
    return recipe.model_copy(update=update)


# Fields that do not change the result: where a run computes, how often it saves, what it reports.
_IGNORED_FIELDS = (
    "data.dir",
    "data.workers",
    "labeled.dir",
    "labeled.workers",
    "runtime.device",
    "runtime.deterministic",
    "runtime.graph",
    "runtime.on_nonfinite",
    "runtime.track",
    "teacher_cache",
    "checkpoint.epochs",
    "checkpoint.minutes",
)


def result_fields(
    recipe: Recipe | TransferRecipe, *, exclude_defaults: bool = False
) -> dict[str, Any]:
    """Return the fields that decide the result, by dotted name, with values as in a file.

    Args:
        recipe: of any kind.
        exclude_defaults: leave out fields at their defaults.
    """
    fields: dict[str, Any] = {}
    recipe = with_absolute_paths(recipe)
    dumped = recipe.model_dump(mode="json", exclude_defaults=exclude_defaults)
    for name, value in dumped.items():
        if isinstance(value, dict) and name != "options":
            fields |= {f"{name}.{inner_name}": inner for inner_name, inner in value.items()}
        else:
            fields[name] = value
    for options in fields.get("options", {}).values():
        # Named as it was when the first checkpoints kept a hash of these fields.
        if "bank_device" in options:
            options["place"] = options.pop("bank_device")
    for name in _IGNORED_FIELDS:
        section, _, field = name.partition(".")
        datasets = fields.get(f"{section}.name"), fields.get(f"{section}.test")
        # The folder of a user's own images, which no other field names, decides the result.
        if field != "dir" or FOLDER_PREFIX not in datasets:
            fields.pop(name, None)
    return fields


def recipe_hash(recipe: Recipe) -> str:
    """Return a hash of the fields that decide the result.

    Fields at their defaults are left out, so that a field that is added later, with a default that
    does what was done before, leaves the hash as it was.
    """
    changed = {"kind": recipe.kind} | result_fields(recipe, exclude_defaults=True)
    fields = json.dumps(changed, sort_keys=True, default=str)
    return hashlib.sha256(fields.encode()).hexdigest()


def to_yaml(recipe: Recipe | TransferRecipe) -> str:
    """Return the complete recipe as YAML, defaults included."""
    fields = recipe.model_dump(mode="json")
    return yaml.safe_dump({"kind": fields.pop("kind"), **fields}, sort_keys=False)
