"""Train a network on labels, or distill a student from a teacher: recipe in, run folder out."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cktf.data import ImageSet, is_among_images
from cktf.engine import Callback, RunFolder, default_tensors, start_runtime
from cktf.errors import RecipeError, RunFolderError
from cktf.models import Normalized, parse_network_spec, prepare_user_network
from cktf.recipes import (
    CUSTOM,
    Data,
    DataConfig,
    DistillRecipe,
    LoadedNetwork,
    Recipe,
    TrainRecipe,
    TransferRecipe,
    build_student,
    check_recipe,
    is_weights_path,
    load_initial_network,
    load_teacher,
    parse_any_recipe,
    parse_recipe,
    read_recipe,
    result_fields,
    set_fields,
    set_input_size,
)
from cktf.taps import count_logits, find_classifier, fit_memory_format, type_name
from cktf.user_paths import expand_user_path, keep_working_folder
from cktf.workflows.components import RunComponents
from cktf.workflows.inspection import explain_rejected_images
from cktf.workflows.longer_run import continue_with_epochs
from cktf.workflows.run import Run, execute, find_session_student
from cktf.workflows.teacher_ref import read_teacher_ref, teacher_ref_of
from cktf.workflows.user_objects import UserObjects, check_objects, dataset_name, load_data

# File systems take 255 bytes, of which a hash and a number take some.
_MAX_NAME_BYTES = 240


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
            without `requires_grad` stay frozen, and so do the statistics of a BatchNorm that has
            only such parameters.
        train: a map-style data set of `(image, label)`, or the name of one of the library's, or a
            folder of images.
        test: a data set to evaluate on after every epoch; comes with a named one.
        epochs: passes over the training set.
        out: the run folder; by default a new one in `runs/`.
        seed: random seed (weights, order, augmentation, negatives).
        overrides: any field of the recipe by dotted name: `{"optimizer.lr": 0.02}`.
        resume: continue the run that is in `out`, if there is one; also with other `epochs`.
        show: whether progress is shown.
        callbacks: your own `cktf.Callback` objects, called around steps and epochs.

    Returns:
        The run; its `student` is the trained network.

    Raises:
        CktfError: a mistake that can be mended; the message says how.
    """
    fields: dict[str, Any] = {
        "kind": "train",
        **network_fields(model=model),
        "data": {"name": dataset_name(train)},
        "epochs": epochs,
        "seed": seed,
    }
    set_fields(fields, overrides or {})
    objects = UserObjects(None, model, train, test)
    recipe = continue_with_epochs(parse_recipe(fields), out, resume=resume)
    return run_recipe(recipe, out, objects, resume=resume, show=show, callbacks=callbacks)


def distill(
    teacher: nn.Module | str | Path | Run,
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
        teacher: any trained module from images to logits, a run, its folder, or a weights file. It
            is frozen and in eval mode during the run; its modes are restored.
        student: any module that shares no parameters with the teacher, or the name of a network of
            the library. Its frozen parameters stay frozen, as in `teach`.
        train: a map-style data set of `(image, label)`, or the name of one of the library's, or a
            folder of images.
        unlabeled: instead of `train`, a data set of images or of `(image, anything)`, or the name
            of one; labels are not read.
        test: a data set to evaluate on after every epoch; comes with a named one.
        method: names joined by `+`, each with an optional weight: `cktf+kd`, `crd:0.8`.
        epochs: passes over the training set.
        out: the run folder; by default a new one in `runs/`.
        seed: random seed (weights, order, augmentation, negatives).
        options: for a method in the string, its options: `{"cktf": {"negatives": 4096}}`.
        overrides: any field of the recipe by dotted name: `{"optimizer.lr": 0.02}`.
        resume: continue the run that is in `out`, if there is one; also with other `epochs`.
        show: whether progress is shown.
        callbacks: your own `cktf.Callback` objects, called around steps and epochs.

    Returns:
        The run, with the trained student and the summary.

    Raises:
        CktfError: a mistake that can be mended; the message says how.
    """
    if (made := find_session_student(teacher)) is not None:
        teacher = made
    elif isinstance(teacher, Run):
        teacher = teacher.folder
    if (train is None) == (unlabeled is None):
        raise RecipeError(["train, unlabeled: give one of them, the images to train on."])
    images = train if unlabeled is None else unlabeled
    fields: dict[str, Any] = {
        "kind": "distill",
        **network_fields(teacher=teacher, student=student),
        "method": method,
        "options": {name: dict(values) for name, values in (options or {}).items()},
        "data": {"name": dataset_name(images), "labels": unlabeled is None},
        "epochs": epochs,
        "seed": seed,
    }
    set_fields(fields, overrides or {})
    objects = UserObjects(teacher, student, images, test)
    recipe = continue_with_epochs(parse_recipe(fields), out, resume=resume)
    return run_recipe(recipe, out, objects, resume=resume, show=show, callbacks=callbacks)


def network_fields(**networks: nn.Module | str | Path) -> dict[str, Any]:
    """Build the fields of a recipe that name networks.

    A network that `torch.compile` wraps sets `runtime.compile` as well.
    """
    fields: dict[str, Any] = {}
    for field, network in networks.items():
        if isinstance(network, Path):
            # An absolute path is never read as the name of a network.
            fields[field] = str(expand_user_path(network).absolute())
        else:
            fields[field] = network if isinstance(network, str) else CUSTOM
        if getattr(network, "_orig_mod", None) is not None:
            fields["runtime"] = {"compile": True}
    return fields


def run_recipe(
    recipe: Recipe,
    out: str | Path | None = None,
    objects: UserObjects | None = None,
    *,
    resume: bool = False,
    show: bool = True,
    trust_code: bool = False,
    callbacks: Sequence[Callback] = (),
) -> Run:
    """Train by a recipe: `prepare`, then `execute`; the arguments are theirs.

    Raises:
        CktfError: a mistake, before anything is trained.
    """
    folder, components = prepare(recipe, out, objects, resume=resume, trust_code=trust_code)
    return execute(recipe, components, folder, show, callbacks)


@default_tensors()
@torch.inference_mode(False)
def prepare(
    recipe: Recipe,
    out: str | Path | None = None,
    objects: UserObjects | None = None,
    *,
    resume: bool = False,
    trust_code: bool = False,
) -> tuple[RunFolder, RunComponents]:
    """Check a recipe, and load the networks and images that it names; nothing is written.

    Args:
        recipe: names networks and data.
        out: the run folder; by default a new one in `runs/`.
        objects: networks and data sets for the fields that are `custom`.
        resume: continue the run that is in `out`, if there is one.
        trust_code: whether code that weights name may run.

    Raises:
        RecipeError: all mistakes in the recipe.
    """
    objects = objects or UserObjects()
    problems = check_recipe(recipe)
    problems.messages += check_objects(recipe, objects)
    folder = RunFolder(default_run_path(recipe) if out is None else expand_user_path(out))
    with problems.collect("out"):
        check_run_folder(folder, recipe, resume=resume)
    data: Data | None = None
    if not any(map(problems.mention, ("data", "train", "unlabeled", "test"))):
        with problems.collect("data"), keep_working_folder():
            data = load_data(recipe.data, recipe.seed, objects)
    teacher: LoadedNetwork | None = None
    if isinstance(recipe, DistillRecipe) and not problems.mention("teacher"):
        with problems.collect("teacher"):
            teacher = _load_teacher(recipe, objects, data, trust_code)
            set_input_size(teacher.network, recipe.teacher_size)
    problems.raise_if_any()
    assert data is not None
    runtime = start_runtime(recipe.runtime, recipe.seed)
    runtime.reset_seed()
    student = _load_student(recipe, objects, data, teacher, trust_code)
    if isinstance(recipe, DistillRecipe):
        set_input_size(student.network, recipe.student_size)
    elif recipe.trains == "classifier":
        freeze_features(student.network, next(iter(data.train.epoch(1))).images[:2])
    components = RunComponents(
        runtime, student.network, None, student.name, None, data, student_origin=student.note
    )
    if teacher is not None:
        components = replace(
            components,
            teacher=teacher.network,
            teacher_name=teacher.name,
            teacher_origin=teacher.note,
            teacher_classes=teacher.classes,
            teacher_trained_size=teacher.trained_size,
        )
    return folder, components


def check_run_folder(folder: RunFolder, recipe: Recipe | TransferRecipe, *, resume: bool) -> None:
    """Check that a folder can hold a run, and that a run in it has the same recipe.

    A teacher whose weights were recorded is compared by these, and not by its path.

    Raises:
        RunFolderError: the folder cannot be written, or holds another run.
    """
    folder.check(resume=resume)
    for section in (value for _, value in recipe if isinstance(value, DataConfig)):
        if is_among_images(section.name, section.dir, folder.path):
            raise RunFolderError(
                f"{folder} is among the images of {section.name}, and would be "
                "read as one of its classes. Choose an --out elsewhere."
            )
    if not resume or not folder.recipe.exists():
        return
    before = result_fields(parse_any_recipe(read_recipe(folder.recipe)))
    now = result_fields(recipe)
    changed = sorted(n for n in before.keys() | now.keys() if before.get(n) != now.get(n))
    if (teacher_before := read_teacher_ref(folder.path)) is not None:
        teacher_now = teacher_ref_of(recipe)
        changed = [name for name in changed if name not in ("teacher", "teacher_weights")]
        if teacher_now is None or teacher_now.sha256 != teacher_before.sha256:
            changed.append("the teacher's weights")
    if recipe.earlier_epochs and now["earlier_epochs"] != before["earlier_epochs"]:
        changed = [name for name in changed if name not in ("epochs", "earlier_epochs")]
    if changed:
        raise RunFolderError(
            f"{folder} was started with another recipe; it differs in: {', '.join(changed)}. "
            f"Continue it with --resume {folder} alone, or choose another --out."
        )


def default_run_path(recipe: Recipe, kind: str = "") -> Path:
    """Return the path of a new folder in `runs/`, named by the recipe."""
    if isinstance(recipe, DistillRecipe):
        name = f"{recipe.student}-{recipe.method}"
    else:
        name = recipe.model
    name = f"{name}-{kind}" if kind else name
    stem = f"{name}-{recipe.data.name}-seed{recipe.seed}".replace(":", "=").replace("/", "-")
    stem = re.sub(r"[\x00-\x1f\x7f]", "_", stem)
    encoded = stem.encode(errors="replace")
    if len(encoded) > _MAX_NAME_BYTES:
        digest = hashlib.sha256(encoded).hexdigest()[:8]
        stem = f"{encoded[:_MAX_NAME_BYTES].decode(errors='ignore')}-{digest}"
    number, path = 1, Path("runs") / stem
    while path.exists():
        number += 1
        path = Path("runs") / f"{stem}-{number}"
    return path


def _load_teacher(
    recipe: DistillRecipe, objects: UserObjects, data: Data | None, trust_code: bool
) -> LoadedNetwork:
    if isinstance(objects.teacher, nn.Module):
        return _user_network(objects.teacher)
    raw = None if data is None else data.raw_train
    return load_teacher(
        recipe.teacher,
        None if data is None else data.classes,
        raw if isinstance(raw, ImageSet) else None,
        recipe.teacher_weights,
        trust_code=trust_code,
    )


def _user_network(network: nn.Module) -> LoadedNetwork:
    """Name a user's network by its name in the library, or by its class."""
    network = prepare_user_network(network)
    if isinstance(network, torch.jit.ScriptModule):
        # TorchScript takes no hooks; a module around it, which leaves images as they are, does.
        network = Normalized(network, (0.0,), (1.0,))
    inner = network.network if isinstance(network, Normalized) else network
    return LoadedNetwork(network, str(getattr(inner, "zoo_name", type_name(inner))), "")


def _load_student(
    recipe: Recipe,
    objects: UserObjects,
    data: Data,
    teacher: LoadedNetwork | None,
    trust_code: bool,
) -> LoadedNetwork:
    if isinstance(objects.student, nn.Module):
        return _user_network(objects.student)
    name = recipe.model if isinstance(recipe, TrainRecipe) else recipe.student
    if not isinstance(data.raw_train, ImageSet):
        raise RecipeError(
            [
                f"student: {name!r} can be named with the library's data sets. With your own, "
                f"pass a module: cktf.models.create({name!r}, num_classes)."
            ]
        )
    num_classes = len(data.raw_train.classes)
    if not data.labeled and teacher is not None:
        # Images without labels have no classes: the student predicts those of its teacher.
        images = next(iter(data.train.epoch(1))).images[:2]
        with explain_rejected_images(teacher.network, images, "teacher"):
            num_classes = count_logits(teacher.network, images)
    if is_weights_path(name):
        with explain_rejected_images(None, data.raw_train[0][0][None]):
            return load_initial_network(
                name,
                data.raw_train,
                None if data.labeled else num_classes,
                new_classifier=isinstance(recipe, TrainRecipe) and recipe.new_classifier,
                trust_code=trust_code,
            )
    pretrained = parse_network_spec(name).arguments.get("pretrained")
    note = "begins with the weights it comes with" if pretrained else ""
    return LoadedNetwork(build_student(name, data.raw_train, num_classes), name, note)


def freeze_features(network: nn.Module, images: Tensor) -> None:
    """Freeze all of a network but its classifier.

    Args:
        network: from images to logits.
        images: [B, C, H, W], an example by which the classifier is found.
    """
    with explain_rejected_images(network, images):
        fit_memory_format(network, images)
        path = find_classifier(network, images)
    network.requires_grad_(False)
    network.get_submodule(path).requires_grad_(True)
