"""Teach a network on labels, or distill a student from a teacher: recipe in, run folder out."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn

from cktf.data import ImageSet
from cktf.engine import Callback, RunFolder, start_runtime
from cktf.errors import RecipeError, RunFolderError
from cktf.models import Normalized
from cktf.recipes import (
    CUSTOM,
    AnyRecipe,
    Data,
    DistillRecipe,
    LoadedNetwork,
    Recipe,
    TrainRecipe,
    build_student,
    check_recipe,
    is_pretrained_spec,
    is_weights_path,
    load_initial_network,
    load_teacher,
    parse_recipe,
    read_recipe,
    result_fields,
    set_field,
    set_fields,
    set_input_size,
)
from cktf.taps import count_logits, find_classifier
from cktf.user_paths import expand_user_path
from cktf.workflows.components import RunComponents
from cktf.workflows.inspection import explain_rejected_images
from cktf.workflows.run import Run, execute
from cktf.workflows.teacher_ref import read_teacher_ref, teacher_ref_of
from cktf.workflows.user_objects import UserObjects, check_objects, load_data

T = TypeVar("T")


def teach(
    model: nn.Module | str,
    *,
    train: Any,
    test: Any = None,
    epochs: int = 30,
    out: str | Path | None = None,
    seed: int = 0,
    overrides: Mapping[str, Any] | None = None,
    resume: bool = False,
    show: bool = True,
    callbacks: Sequence[Callback] = (),
) -> Run:
    """Train a network on labels alone.

    Args:
        model: any module from images to logits, or the name of a network of the library. Parameters
            that require no gradient stay as they are, and so do the statistics of BatchNorm whose
            parameters are all such.
        train: a map-style data set of `(image, label)`, or the name of one of the library's.
        test: a data set to evaluate on after every epoch; comes with a named one.
        epochs: passes over the training set.
        out: the run folder; by default a new one in `runs/`.
        seed: random seed (weights, order, augmentation, negatives).
        overrides: any field of the recipe by dotted name: `{"optimizer.lr": 0.02}`.
        resume: continue the run that is in `out`, if there is one.
        show: whether progress is shown.
        callbacks: your own `cktf.Callback` objects, called around steps and epochs.

    Returns:
        The run; its `student` is the trained network.

    Raises:
        CktfError: a mistake that can be mended; the message says how.
    """
    model, compiled = plain(model)
    fields: dict[str, Any] = {"kind": "train", "model": name_of(model)} | compiled
    recipe = _recipe(fields, train, epochs, seed, overrides)
    return run_recipe(
        recipe,
        out,
        student=model,
        train=train,
        test=test,
        resume=resume,
        show=show,
        callbacks=callbacks,
    )


def distill(
    teacher: nn.Module | str | Path,
    student: nn.Module | str,
    *,
    train: Any = None,
    unlabeled: Any = None,
    test: Any = None,
    method: str = "cktf+kd",
    epochs: int = 30,
    out: str | Path | None = None,
    seed: int = 0,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    overrides: Mapping[str, Any] | None = None,
    resume: bool = False,
    show: bool = True,
    callbacks: Sequence[Callback] = (),
) -> Run:
    """Train a student from a teacher.

    Args:
        teacher: any trained module from images to logits, a run folder or a weights file. It is
            frozen and in eval mode until the run ends, and then as it was.
        student: any module that shares no parameters with the teacher, or the name of a network of
            the library. What of it is frozen stays so, as in `teach`.
        train: a map-style data set of `(image, label)`, or the name of one of the library's.
        unlabeled: in its place images whose labels are not read, if they have any: a data set of
            images, of `(image, anything)`, or a name.
        test: a data set to evaluate on after every epoch; comes with a named one.
        method: names joined by `+`, each with an optional weight: `cktf+kd`, `crd:0.8`.
        epochs: passes over the training set.
        out: the run folder; by default a new one in `runs/`.
        seed: random seed (weights, order, augmentation, negatives).
        options: for a method in the string, its options: `{"cktf": {"negatives": 4096}}`.
        overrides: any field of the recipe by dotted name: `{"optimizer.lr": 0.02}`.
        resume: continue the run that is in `out`, if there is one.
        show: whether progress is shown.
        callbacks: your own `cktf.Callback` objects, called around steps and epochs.

    Returns:
        The run, with the trained student and the summary.

    Raises:
        CktfError: a mistake that can be mended; the message says how.
    """
    teacher, teacher_compiled = plain(teacher)
    student, student_compiled = plain(student)
    fields: dict[str, Any] = {
        "kind": "distill",
        "teacher": name_of(teacher),
        "student": name_of(student),
        "method": method,
        "options": {name: dict(values) for name, values in (options or {}).items()},
        **teacher_compiled,
        **student_compiled,
    }
    if (train is None) == (unlabeled is None):
        raise RecipeError(["train, unlabeled: give one of them, the images to train on."])
    if unlabeled is not None:
        train = unlabeled
        set_field(fields, "data.labels", False)
    recipe = _recipe(fields, train, epochs, seed, overrides)
    return run_recipe(
        recipe,
        out,
        teacher=teacher,
        student=student,
        train=train,
        test=test,
        resume=resume,
        show=show,
        callbacks=callbacks,
    )


def plain(network: T) -> tuple[T, dict[str, Any]]:
    """A network without `torch.compile` around it, and the field that compiles it in training."""
    inner = getattr(network, "_orig_mod", None)
    return (network, {}) if inner is None else (inner, {"runtime": {"compile": True}})


def name_of(network: nn.Module | str | Path) -> str:
    """What a recipe calls a network."""
    if isinstance(network, Path):
        # Never the name of a network.
        return str(expand_user_path(network).absolute())
    return CUSTOM if isinstance(network, nn.Module) else network


def _recipe(
    fields: dict[str, Any],
    train: Any,
    epochs: int,
    seed: int,
    overrides: Mapping[str, Any] | None,
) -> Recipe:
    fields |= {"epochs": epochs, "seed": seed}
    set_field(fields, "data.name", train if isinstance(train, str) else CUSTOM)
    set_fields(fields, overrides or {})
    return parse_recipe(fields)


def run_recipe(
    recipe: Recipe,
    out: str | Path | None = None,
    *,
    teacher: nn.Module | str | Path | None = None,
    student: nn.Module | str | None = None,
    train: Any = None,
    test: Any = None,
    resume: bool = False,
    show: bool = True,
    trust_code: bool = False,
    callbacks: Sequence[Callback] = (),
) -> Run:
    """Carry out a recipe; objects stand in for what it calls `custom`.

    With `trust_code` a file of weights may name code that builds its network.

    Raises:
        RecipeError: everything that is wrong with the recipe, before anything is trained.
    """
    objects = UserObjects(teacher, student, train, test)
    run, components = prepare(recipe, out, objects, resume=resume, trust_code=trust_code)
    return execute(recipe, components, run, show, callbacks)


def prepare(
    recipe: Recipe,
    out: str | Path | None = None,
    objects: UserObjects | None = None,
    *,
    resume: bool = False,
    trust_code: bool = False,
) -> tuple[RunFolder, RunComponents]:
    """Make sure that a recipe can be carried out, and load what it needs; nothing is written.

    Raises:
        RecipeError: everything that is wrong with it.
    """
    objects = objects or UserObjects()
    problems = check_recipe(recipe)
    problems.messages += check_objects(recipe, objects)
    run = RunFolder(folder_of(recipe) if out is None else expand_user_path(out))
    with problems.collect("out"):
        run.check(resume=resume)
        if resume and run.recipe.exists():
            check_same(recipe, parse_recipe(read_recipe(run.recipe)), run)
    data: Data | None = None
    if not any(map(problems.mention, ("data", "train", "unlabeled", "test"))):
        with problems.collect("data"):
            data = load_data(recipe.data, recipe.seed, objects)
    teacher: LoadedNetwork | None = None
    if isinstance(recipe, DistillRecipe) and not problems.mention("teacher"):
        with problems.collect("teacher"):
            teacher = _teacher(recipe, objects, data, trust_code)
            set_input_size(teacher.network, recipe.teacher_size)
    problems.raise_if_any()
    assert data is not None
    runtime = start_runtime(recipe.runtime, recipe.seed)
    runtime.reset_seed()
    student, name, origin = _student(recipe, objects, data, teacher, trust_code)
    if isinstance(recipe, DistillRecipe):
        set_input_size(student, recipe.student_size)
    if isinstance(recipe, TrainRecipe) and recipe.trains == "classifier":
        freeze_features(student, next(iter(data.train.epoch(1))).images[:2])
    components = RunComponents(runtime, student, None, name, None, data, student_origin=origin)
    if teacher is not None:
        components = replace(
            components,
            teacher=teacher.network,
            teacher_name=teacher.name,
            teacher_origin=teacher.note,
            teacher_classes=teacher.classes,
        )
    return run, components


def check_same(recipe: AnyRecipe, started: AnyRecipe, run: RunFolder) -> None:
    """A run is continued with the recipe that it was started with.

    Its teacher is the one of the same weights, where these were noted, and not what is at its path.

    Raises:
        RunFolderError: it differs.
    """
    before, now = result_fields(started), result_fields(recipe)
    changed = sorted(n for n in before.keys() | now.keys() if before.get(n) != now.get(n))
    known = read_teacher_ref(run.path)
    if known is not None:
        now_taught = teacher_ref_of(recipe)
        same = now_taught is not None and now_taught.sha256 == known.sha256
        changed = [name for name in changed if name not in ("teacher", "teacher_weights")]
        changed += [] if same else ["the teacher's weights"]
    if changed:
        raise RunFolderError(
            f"{run.path} was started with another recipe; it differs in: {', '.join(changed)}. "
            f"Continue it with --resume {run.path} alone, or choose another --out."
        )


def folder_of(recipe: Recipe, kind: str = "") -> Path:
    """A folder of its own for a run that was given none."""
    if isinstance(recipe, DistillRecipe):
        name = f"{recipe.student}-{recipe.method}"
    else:
        name = recipe.model
    name = f"{name}-{kind}" if kind else name
    stem = f"{name}-{recipe.data.name}-seed{recipe.seed}".replace(":", "=").replace("/", "-")
    number, path = 1, Path("runs") / stem
    while path.exists():
        number += 1
        path = Path("runs") / f"{stem}-{number}"
    return path


def _teacher(
    recipe: DistillRecipe, objects: UserObjects, data: Data | None, trust_code: bool
) -> LoadedNetwork:
    if isinstance(objects.teacher, nn.Module):
        return LoadedNetwork(objects.teacher, _name_of(objects.teacher), "")
    raw = None if data is None else data.raw_train
    return load_teacher(
        recipe.teacher,
        None if data is None else data.classes,
        raw if isinstance(raw, ImageSet) else None,
        recipe.teacher_weights,
        trust_code=trust_code,
    )


def _name_of(network: nn.Module) -> str:
    """A network's name in the library, or its class."""
    inner = network.network if isinstance(network, Normalized) else network
    return str(getattr(inner, "zoo_name", type(inner).__name__))


def _student(
    recipe: Recipe,
    objects: UserObjects,
    data: Data,
    teacher: LoadedNetwork | None,
    trust_code: bool,
) -> tuple[nn.Module, str, str]:
    """The network to train, its name, and what was loaded."""
    if isinstance(objects.student, nn.Module):
        return objects.student, _name_of(objects.student), ""
    name = recipe.model if isinstance(recipe, TrainRecipe) else recipe.student
    if not isinstance(data.raw_train, ImageSet):
        raise RecipeError(
            [
                f"student: {name!r} can be named with the library's data sets. With your own, "
                f"pass a module: cktf.models.create({name!r}, num_classes)."
            ]
        )
    classes = len(data.raw_train.classes)
    if not data.labeled and teacher is not None:
        # Nobody knows the classes: the student tells those of its teacher.
        classes = _logits(teacher.network, data)
    if is_weights_path(name):
        told = None if data.labeled else classes
        anew = isinstance(recipe, TrainRecipe) and recipe.new_classifier
        with explain_rejected_images(data.raw_train[0][0][None]):
            found = load_initial_network(
                name, data.raw_train, told, new_classifier=anew, trust_code=trust_code
            )
        return found.network, found.name, found.note
    began = "begins with the weights it comes with" if is_pretrained_spec(name) else ""
    return build_student(name, data.raw_train, classes), name, began


def freeze_features(network: nn.Module, images: Tensor) -> None:
    """Leave only the classifier to be trained.

    Args:
        network: from images to logits.
        images: [B, C, H, W], an example by which the classifier is found.
    """
    with explain_rejected_images(images):
        path = find_classifier(network, images)
    network.requires_grad_(False)
    network.get_submodule(path).requires_grad_(True)


def _logits(network: nn.Module, data: Data) -> int:
    """How many a network gives."""
    images = next(iter(data.train.epoch(1))).images[:2]
    with explain_rejected_images(images):
        return count_logits(network, images)
