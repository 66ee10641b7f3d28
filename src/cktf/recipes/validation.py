"""Recipes checked: problems that show without reading images or weights."""

from collections.abc import Iterator
from contextlib import contextmanager

from pydantic import TypeAdapter, ValidationError

from cktf.data.config import DataConfig
from cktf.data.registry import HUB_PREFIX, TABLE_PREFIX, find_hidden_folder, get_dataset_info
from cktf.engine.config import RuntimeConfig
from cktf.engine.launcher import check_launcher
from cktf.errors import CktfError, RecipeError, nearest
from cktf.models.network_spec import parse_network_spec
from cktf.objectives.method_string import parse, term_names
from cktf.recipes.schema import CUSTOM, DistillRecipe, Recipe, TrainRecipe
from cktf.recipes.weights_paths import check_teacher, find_weights_file, is_weights_path

_COLUMN_FIELDS = ("image_column", "label_column")
# Fields for data sets by name: a user's own data set does these things itself.
_NAMED_DATASET_FIELDS = (
    "image_size",
    "channels",
    "resized_crops",
    "views",
    "skip_broken",
    "classes",
    "per_class",
    *_COLUMN_FIELDS,
)


class Problems:
    """Problems with a recipe, collected so that all are reported at once.

    Attributes:
        messages: one per problem, each beginning with the name of its field.
    """

    def __init__(self) -> None:
        self.messages: list[str] = []

    @contextmanager
    def collect(self, field: str = "") -> Iterator[None]:
        """Collect errors raised inside the block, under a field's name if it has one."""
        prefix = f"{field}: " if field else ""
        try:
            yield
        except RecipeError as error:
            self.messages += [f"{prefix}{problem}" for problem in error.problems]
        except CktfError as error:
            self.messages.append(f"{prefix}{error}")

    def mention(self, field: str) -> bool:
        """Whether a problem is of a field, or of one inside it."""
        return any(message.startswith((f"{field}:", f"{field}.")) for message in self.messages)

    def raise_if_any(self) -> None:
        """Raise all problems in one error."""
        if self.messages:
            raise RecipeError(self.messages)


def check_recipe(recipe: Recipe) -> Problems:
    """Find every problem with a recipe that shows without reading images or weights."""
    problems = Problems()
    if recipe.data.name != CUSTOM:
        with problems.collect("data.name"):
            info = get_dataset_info(recipe.data.name)
            if info.needs_directory and recipe.data.dir is None:
                hidden = find_hidden_folder(recipe.data.name, None)
                problems.messages.append(
                    f"data.dir: {recipe.data.name} needs a folder: --data-dir DIR."
                    + (f" {hidden}." if hidden else "")
                )
        if recipe.data.name.partition(":")[0] not in (TABLE_PREFIX, HUB_PREFIX):
            problems.messages += [
                f"data.{field}: is for data sets hf:NAME and table:FILE, given "
                f"{getattr(recipe.data, field)!r}. Leave it out."
                for field in _COLUMN_FIELDS
                if getattr(recipe.data, field) is not None
            ]
    else:
        problems.messages += [
            f"data.{field}: is for data sets by name, given {getattr(recipe.data, field)!r}. Do it "
            "in your own data set."
            for field in _NAMED_DATASET_FIELDS
            if getattr(recipe.data, field) != DataConfig.model_fields[field].default
        ]
    network = recipe.model if isinstance(recipe, TrainRecipe) else recipe.student
    if network != CUSTOM:
        with problems.collect("model" if isinstance(recipe, TrainRecipe) else "student"):
            check_network(network)
    if not recipe.data.labels:
        problems.messages += _check_unlabeled(recipe)
    if isinstance(recipe, DistillRecipe):
        problems.messages += _check_teacher_cache(recipe)
        with problems.collect("method"):
            _check_options(recipe, problems)
        if recipe.teacher != CUSTOM:
            with problems.collect("teacher"):
                check_teacher(recipe.teacher, recipe.teacher_weights)
    _check_runtime(recipe.runtime, problems)
    return problems


def check_network(text: str) -> None:
    """Raise CktfError unless a text names a network to train, or weights to start from."""
    if is_weights_path(text):
        find_weights_file(text)
    else:
        parse_network_spec(text)


def _check_runtime(runtime: RuntimeConfig, problems: Problems) -> None:
    """Check what the recipe asks of this machine; PyTorch is imported only to be asked."""
    if runtime.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            problems.messages.append(
                "runtime.device: PyTorch sees no 'cuda' here. Use cpu or auto."
            )
    with problems.collect("runtime"):
        check_launcher()
    if runtime.track is not None:
        from cktf.engine import available_trackers

        with problems.collect("runtime.track"):
            available_trackers(runtime.track)


def _check_unlabeled(recipe: Recipe) -> Iterator[str]:
    """Yield problems of a recipe whose images have no labels."""
    if isinstance(recipe, TrainRecipe):
        yield "data.labels: training without a teacher needs labels."
    else:
        from cktf.objectives import METHODS

        methods = term_names(recipe.method, labeled=False)
        for name in sorted(methods & METHODS.keys()):
            if "labels" in METHODS[name].requires:
                yield f"method: {name} needs labels, and there are none. Leave it out."
        if methods and all(n in METHODS and METHODS[n].only_initializes for n in methods):
            yield (
                f"method: {' and '.join(sorted(methods))} only initialize the student, and without "
                "labels nothing is left to train it on. Add a method such as cktf."
            )
    for field in ("validation", "per_class"):
        if getattr(recipe.data, field):
            yield f"data.{field}: needs labels, and there are none."


def _check_teacher_cache(recipe: DistillRecipe) -> Iterator[str]:
    """Yield problems of a teacher cache, which needs a finite set of views."""
    if recipe.teacher_cache is None:
        return
    if recipe.data.name == CUSTOM:
        yield (
            "teacher_cache: your own data set augments its images itself, so that no view "
            "repeats. Use a data set by name, or train without a cache."
        )
    elif recipe.data.augment and not recipe.data.views:
        yield (
            "teacher_cache: every epoch has new augmentations, which no cache holds. Give a number "
            "of views: --teacher-cache views=8, or --set data.views=8."
        )


def _check_options(recipe: DistillRecipe, problems: Problems) -> None:
    """Check the options of each method, and convert their values."""
    methods = parse(recipe.method, labeled=recipe.data.labels)
    if not recipe.options:
        return
    from cktf.objectives import METHODS

    for name, values in recipe.options.items():
        if name not in methods:
            problems.messages.append(
                f"options.{name}: the method {recipe.method!r} does not name it. "
                f"{nearest(name, methods)}"
            )
            continue
        known = METHODS[name].options()
        for option, value in values.items():
            if option not in known:
                problems.messages.append(
                    f"options.{name}.{option}: {name} has no such option. {nearest(option, known)}"
                )
                continue
            try:
                # The converted value is kept: YAML 1.1 reads 1e1 as a string.
                values[option] = TypeAdapter(known[option].annotation).validate_python(value)
            except ValidationError as error:
                message = error.errors()[0]["msg"]
                problems.messages.append(f"options.{name}.{option}: {message}, given {value!r}.")
