"""Transfer learning without labels: distill on unlabeled images, then classify on few labels.

Source: Zhao, Chen, Zhao, "A Contrastive Knowledge Transfer Framework for Model Compression and
Transfer Learning", ICASSP 2023, Figure 2. A transfer is a distillation without labels, a training
from scratch on the labels alone, and linear probes of three networks: the teacher, the distilled
student, and the student before training (the floor). No labels choose an epoch: the last counts.
"""

import io
import json
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cktf.data import ImageSet, get_labels
from cktf.engine import Callback, RunFolder, TrainingConfig, announce, standard_error
from cktf.engine.runtime import default_tensors
from cktf.errors import CheckpointError, Interrupted, RecipeError, RunFolderError
from cktf.files import write_atomically
from cktf.models import copy_network, save_network
from cktf.recipes import (
    CUSTOM,
    Data,
    Problems,
    TrainRecipe,
    TransferRecipe,
    build_student,
    build_train_loader,
    is_weights_path,
    match_labeled_image_size,
    numbered_class_names,
    parse_transfer_recipe,
    select_samples,
    set_field,
    set_fields,
    set_input_size,
    to_yaml,
    with_absolute_paths,
)
from cktf.signals import interrupt_on_signals
from cktf.taps import replace_classifier, resize_classifier
from cktf.user_paths import expand_user_path, keep_working_folder
from cktf.workflows.checks import check_labels
from cktf.workflows.classifier import check_classifier, compute_embedding, install_classifier
from cktf.workflows.components import RunComponents
from cktf.workflows.inspection import explain_rejected_images
from cktf.workflows.label_curve import CURVE, draw_curve
from cktf.workflows.linear_probe import (
    LabelSubset,
    ProbeResult,
    check_probe_dependencies,
    check_probe_labels,
    choose_label_subsets,
    probe_network,
)
from cktf.workflows.objective_setup import set_up_objective
from cktf.workflows.run import Run, execute, read_finished
from cktf.workflows.train import check_run_folder, default_run_path, network_fields, prepare
from cktf.workflows.user_objects import UserObjects, check_data_objects, dataset_name, load_data

_MAX_SCRATCH_EPOCHS = 200
_INITIAL_STUDENT_FILE = "untrained.pt"
STUDENT, SCRATCH = "student", "scratch"


@dataclass(frozen=True, repr=False)
class TransferPlan:
    """A transfer that was checked and can run.

    Attributes:
        recipe: of the transfer.
        folder: its run folder, with the runs `student` and `scratch` in it.
        components: of the distillation.
        initial_student: a copy of the student before training.
        labeled: the images to probe with and to test on.
        subsets: the labeled images of each point of the curve.
        num_classes: of the labeled images; the last classes may have no image.
        example: [2, C, H, W], labeled images by which the classifier of a network is found.
    """

    recipe: TransferRecipe
    folder: RunFolder
    components: RunComponents
    initial_student: nn.Module
    labeled: Data
    subsets: list[LabelSubset]
    num_classes: int
    example: Tensor


@default_tensors()
@torch.inference_mode(False)
def transfer(
    teacher: nn.Module | str | Path,
    student: nn.Module | str,
    *,
    unlabeled: Any,
    labeled: Any = None,
    test: Any = None,
    method: str = "paper/transfer",
    epochs: int = 30,
    labels_per_class: Sequence[int] = (),
    draws: int = 5,
    out: str | Path | None = None,
    seed: int = 0,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    overrides: Mapping[str, Any] | None = None,
    resume: bool = False,
    show: bool = True,
    callbacks: Sequence[Callback] = (),
) -> Run:
    """Train a student on images without labels, and measure its features on few labels.

    Args:
        teacher: any trained module, a run folder, a weights file, or a network with weights. It is
            frozen and in eval mode while the student trains; its modes are restored.
        student: any module that shares no parameters with the teacher, or the name of a network.
        unlabeled: a data set of images or of `(image, anything)`, or its name; labels are unread.
        labeled: a data set of `(image, label)` for the probes, or its name; else the unlabeled one.
        test: a data set to test on; comes with a named one.
        method: names joined by `+`, none of which needs labels; or a preset.
        epochs: passes over the unlabeled images.
        labels_per_class: numbers of labels, each a point of a curve; empty for all labels.
        draws: random draws of labels at each point.
        out: the run folder; by default a new one in `runs/`.
        seed: random seed (weights, order, augmentation, negatives, labels).
        options: for a method in the string, its options.
        overrides: any field of the recipe by dotted name: `{"labeled.classes": ["cat", "dog"]}`.
        resume: continue the transfer that is in `out`, if there is one.
        show: whether progress is shown.
        callbacks: your own `cktf.Callback` objects, for the distillation of the student.

    Returns:
        The run; its `student` has a classifier of the labeled images' classes.

    Raises:
        CktfError: a mistake that can be mended; the message says how.
    """
    fields: dict[str, Any] = {
        "kind": "transfer",
        **network_fields(teacher=teacher, student=student),
        "method": method,
        "options": {name: dict(values) for name, values in (options or {}).items()},
        "epochs": epochs,
        "seed": seed,
        "labels_per_class": list(labels_per_class),
        "draws": draws,
        "data": {"name": dataset_name(unlabeled)},
    }
    if labeled is not None:
        set_field(fields, "labeled.name", dataset_name(labeled))
    if isinstance(test, str | Path):
        set_field(fields, "labeled.test", dataset_name(test))
        test = None
    set_fields(fields, overrides or {})
    objects = UserObjects(teacher, student, unlabeled), UserObjects(train=labeled, test=test)
    plan = plan_transfer(parse_transfer_recipe(fields), out, *objects, resume=resume)
    return run_transfer(plan, show=show, callbacks=callbacks)


def plan_transfer(
    recipe: TransferRecipe,
    out: str | Path | None = None,
    objects: UserObjects | None = None,
    labeled_objects: UserObjects | None = None,
    *,
    resume: bool = False,
    trust_code: bool = False,
) -> TransferPlan:
    """Check a transfer, and load its networks and images; nothing is written.

    Args:
        recipe: of the transfer.
        out: the run folder; by default a new one in `runs/`.
        objects: teacher, student and unlabeled images for the fields that are `custom`.
        labeled_objects: labeled images and test images for `labeled`, where that is `custom`.
        resume: continue the transfer that is in `out`, if there is one.
        trust_code: whether code that weights name may run.

    Raises:
        RecipeError: all mistakes in the recipe.
    """
    recipe = match_labeled_image_size(recipe)
    distill_recipe, problems = recipe.distill_recipe(), Problems()
    path = default_run_path(distill_recipe, "transfer") if out is None else expand_user_path(out)
    folder = RunFolder(path)
    with problems.collect("out"):
        if folder.recipe.exists() and not resume:
            raise RunFolderError(
                f"{folder} already holds a run. Choose another --out, or continue it with "
                "--resume auto."
            )
        check_run_folder(folder, recipe, resume=resume)
    components: RunComponents | None = None
    with problems.collect():
        components = prepare(
            distill_recipe, path / STUDENT, objects, resume=resume, trust_code=trust_code
        )[1]
    labeled: tuple[Data, list[LabelSubset], int] | None = None
    with problems.collect("labeled"), keep_working_folder():
        labeled = _load_labeled(recipe, labeled_objects or UserObjects())
        example = next(iter(labeled[0].train.epoch(1))).images[:2]
    with problems.collect():
        check_probe_dependencies(curve=len(recipe.labels_per_class) > 1)
    if components is not None and labeled is not None:
        data, subsets, num_classes = labeled
        assert components.teacher is not None
        with problems.collect(), explain_rejected_images(components.teacher, example, "teacher"):
            compute_embedding(components.teacher, example, recipe.teacher_embedding)
        with problems.collect(), explain_rejected_images(components.student, example, "student"):
            check_classifier(components.student, num_classes, example, recipe.student_embedding)
    problems.raise_if_any()
    assert components is not None
    initial_student = copy_network(components.student)
    recipe = with_absolute_paths(recipe)
    return TransferPlan(
        recipe, folder, components, initial_student, data, subsets, num_classes, example
    )


def _load_labeled(
    recipe: TransferRecipe, objects: UserObjects
) -> tuple[Data, list[LabelSubset], int]:
    """Load the labeled images; choose those of each point of the curve, and count the classes."""
    # A batch of 2 admits any number of labels; training from scratch builds its own batches.
    section = recipe.labeled.model_copy(update={"batch_size": 2})
    if problems := check_data_objects(section, objects):
        raise RecipeError(problems)
    data = load_data(section, recipe.seed, objects)
    if data.test is None or not data.labeled:
        raise RecipeError(["a probe needs labeled images, and others to test on: give test."])
    labels = get_labels(data.raw_train)
    check_probe_labels(labels, data.classes)
    num_classes = len(data.classes or range(int(labels.max()) + 1))
    check_labels("test", get_labels(data.raw_test), num_classes)
    subsets = choose_label_subsets(
        labels, recipe.labels_per_class, recipe.draws, recipe.seed, data.classes
    )
    return data, subsets, num_classes


def run_transfer(
    plan: TransferPlan, *, show: bool = True, callbacks: Sequence[Callback] = ()
) -> Run:
    """Distill, train from scratch and probe; what the folder already holds is not done again.

    Raises:
        CktfError: networks, data and method do not fit; nothing was trained then.
        Interrupted: a signal stopped it; it can be resumed.
    """
    folder, components, distill_recipe = plan.folder, plan.components, plan.recipe.distill_recipe()
    try:
        with interrupt_on_signals():
            if folder.finished:
                # Reading the distillation checks that it began with the same inputs.
                execute(distill_recipe, components, RunFolder(folder.path / STUDENT))
                num_classes = json.loads(folder.summary.read_text())["classes"]
                replace_classifier(components.student, num_classes, plan.example, bias=True)
                return read_finished(components, folder)
            set_up_objective(distill_recipe, components)
            folder.path.mkdir(parents=True, exist_ok=True)
            with folder.locked():
                return _distill_and_probe(plan, show, callbacks)
    except KeyboardInterrupt as stop:
        if not folder.recipe.exists():
            raise
        # The folder to resume is the transfer's, and not that of the run inside it.
        raise Interrupted(str(stop) or "Stopped.", folder.path) from stop


def _distill_and_probe(plan: TransferPlan, show: bool, callbacks: Sequence[Callback]) -> Run:
    recipe, folder, components = plan.recipe, plan.folder, plan.components
    text = to_yaml(recipe).encode()
    folder.write_with_retries(lambda: write_atomically(folder.recipe, text), "its recipe")
    if recipe.student == CUSTOM:
        _restore_initial_student(plan)
    student_folder = RunFolder(folder.path / STUDENT)
    distilled = execute(recipe.distill_recipe(), components, student_folder, show, callbacks)
    scratch = _train_from_scratch(plan, show)
    assert components.teacher is not None and plan.labeled.test is not None
    results: dict[str, ProbeResult] = {}
    for name, network, embedding in (
        ("teacher", components.teacher, recipe.teacher_embedding),
        ("student", distilled.student, recipe.student_embedding),
        ("floor", plan.initial_student, recipe.student_embedding),
    ):
        announce(f"probing the {name}'s features", show)
        results[name] = probe_network(
            network, plan.labeled.raw_train, plan.labeled.test, plan.subsets, components.runtime,
            embedding=embedding, workers=recipe.labeled.workers,
        )  # fmt: skip
    summary = distilled.summary | _summarize(plan, scratch, results)
    if len(plan.subsets) > 1:
        scratch_top1 = {SCRATCH: scratch.summary["test_top1"]}
        points, path = summary["points"], folder.path / CURVE
        folder.write_with_retries(lambda: draw_curve(points, scratch_top1, path), "the curve")
    classifier = results["student"].classifier
    student = install_classifier(
        distilled.student, classifier, plan.example, recipe.student_embedding
    )
    folder.write_with_retries(
        lambda: save_network(
            student,
            folder.weights,
            name=components.student_name,
            classes=plan.labeled.classes or numbered_class_names(len(classifier.bias)),
            dataset=plan.labeled.name,
            images=plan.example,
        ),
        "the student",
    )
    folder.write_with_retries(lambda: folder.write_summary(summary), "the summary")
    return Run(folder.path, student, summary)


def _restore_initial_student(plan: TransferPlan) -> None:
    """Give a user's student the weights that the transfer began with; the first call saves them.

    When a transfer is resumed, the user's object may have been trained meanwhile.
    """
    path = plan.folder.path / _INITIAL_STUDENT_FILE
    if not path.exists():
        file = io.BytesIO()
        torch.save(plan.initial_student.state_dict(), file)
        plan.folder.write_with_retries(
            lambda: write_atomically(path, file.getvalue()), "the initial student"
        )
        return
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
        for student in (plan.initial_student, plan.components.student):
            student.load_state_dict(state)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise CheckpointError(
            f"{path} is of another student, or damaged ({type(error).__name__}). Continue with "
            "the student of the first call, or choose another out."
        ) from error


def _train_from_scratch(plan: TransferPlan, show: bool) -> Run:
    """Train the initial student on the most labels alone, for about as many steps."""
    recipe, labeled, runtime = plan.recipe, plan.labeled, plan.components.runtime
    subset = plan.subsets[-1]
    images = select_samples(labeled.raw_train, subset.draws[0])
    batch_size = min(recipe.data.batch_size, len(images))
    per_class = (
        recipe.labeled.per_class if recipe.labeled.name == CUSTOM else subset.labels_per_class
    )
    section = recipe.labeled.model_copy(update={"batch_size": batch_size, "per_class": per_class})
    steps = recipe.epochs * len(plan.components.data.train)
    update = {
        "model": recipe.student,
        "data": section,
        "epochs": scratch_epochs(recipe, steps, len(images) // batch_size),
    }
    shared = {name: getattr(recipe, name) for name in TrainingConfig.model_fields}
    scratch_recipe = TrainRecipe(**(shared | update))
    train = build_train_loader(images, section, recipe.seed)
    data = replace(labeled, train=train, raw_train=images, description="")
    runtime.reset_seed()
    by_name = recipe.student != CUSTOM and not is_weights_path(recipe.student)
    if by_name and isinstance(images, ImageSet):
        network: nn.Module = build_student(recipe.student, images, plan.num_classes)
        set_input_size(network, recipe.student_size)
    else:
        network = copy_network(plan.initial_student)
        resize_classifier(network, plan.num_classes, plan.example)
    components = RunComponents(runtime, network, None, plan.components.student_name, None, data)
    return execute(scratch_recipe, components, RunFolder(plan.folder.path / SCRATCH), show)


def scratch_epochs(recipe: TransferRecipe, steps: int, epoch_steps: int) -> int:
    """Return the epochs of training from scratch; by default `steps`, of `epoch_steps` an epoch."""
    return recipe.scratch_epochs or min(_MAX_SCRATCH_EPOCHS, max(1, steps // epoch_steps))


def _summarize(
    plan: TransferPlan, scratch: Run, results: Mapping[str, ProbeResult]
) -> dict[str, Any]:
    data, num_test_images = plan.components.data, len(plan.labeled.raw_test)
    top1 = results["student"].final
    return {
        "unlabeled": data.name,
        "unlabeled_images": data.train.samples,
        "labeled": plan.labeled.name,
        "classes": len(results["student"].classifier.bias),
        "test_images": num_test_images,
        "test_top1": top1,
        # Of the test images alone; the spread over draws of labels is in the points.
        "test_standard_error": standard_error(top1, num_test_images),
        "scratch_top1": scratch.summary["test_top1"],
        "scratch_epochs": scratch.summary["epochs"],
        **{f"{name}_probe_top1": result.final for name, result in results.items()},
        "points": {name: result.points() for name, result in results.items()},
    }
