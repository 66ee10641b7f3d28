"""Transfer learning without labels: distill on unlabeled images, then classify on few labels.

Source: Zhao, Chen, Zhao, "A Contrastive Knowledge Transfer Framework for Model Compression and
Transfer Learning", ICASSP 2023, Figure 2. What the student's features are worth is measured beside
the teacher's own, those of the student before it learned anything (the floor), and a student that
is trained from scratch on the labels alone. The student that counts is the last epoch's: nothing is
chosen by labels.
"""

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cktf.data import ImageSet, get_labels
from cktf.engine import RunFolder, announce, standard_error
from cktf.errors import Interrupted, RecipeError, RunFolderError
from cktf.files import write_atomically
from cktf.models import Normalized, load_weights, save_network
from cktf.recipes import (
    CUSTOM,
    Data,
    DistillRecipe,
    Problems,
    TrainRecipe,
    TransferRecipe,
    build_student,
    build_test_loader,
    build_train_loader,
    is_weights_path,
    match_image_sizes,
    numbered_class_names,
    parse_transfer_recipe,
    read_recipe,
    select_samples,
    set_field,
    set_fields,
    set_input_size,
    to_yaml,
    with_absolute_paths,
)
from cktf.signals import interrupt_on_signals
from cktf.taps import new_classifier, resize_classifier
from cktf.user_paths import expand_user_path
from cktf.workflows.assembly import assemble
from cktf.workflows.checks import check_labels
from cktf.workflows.classifier import check_classifier, compute_embedding, install_classifier
from cktf.workflows.components import RunComponents
from cktf.workflows.initial_student import restore_initial_student
from cktf.workflows.inspection import explain_rejected_images
from cktf.workflows.label_curve import CURVE, draw_curve
from cktf.workflows.linear_probe import (
    LabelSubset,
    ProbeResult,
    check_classes,
    check_probes,
    choose_label_subsets,
    embed_images,
    probe_features,
)
from cktf.workflows.run import Run, execute
from cktf.workflows.train import check_same, folder_of, name_of, plain, prepare
from cktf.workflows.user_objects import UserObjects, check_data_objects, load_data

_MOST_SCRATCH_EPOCHS = 200
TEACHER, STUDENT, SCRATCH, FLOOR = "teacher", "student", "scratch", "floor"


@dataclass(frozen=True)
class Transferred:
    """A finished transfer.

    Attributes:
        folder: where everything is.
        student: the network with its classifier of the labeled images' classes.
        summary: what summary.json holds.
    """

    folder: Path
    student: nn.Module
    summary: dict[str, Any]


@dataclass(frozen=True)
class Planned:
    """A transfer that can be carried out.

    Attributes:
        recipe: of the whole.
        run: its folder.
        components: networks and unlabeled images.
        untrained: the student as it is before it learns anything.
        labeled: images to probe with and to test on.
        choices: which of them are used, for each point of the curve.
        classes: of the labeled images, by name where they have names: those that are here may lack
            the last of them.
    """

    recipe: TransferRecipe
    run: RunFolder
    components: RunComponents
    untrained: nn.Module
    labeled: Data
    choices: list[LabelSubset]
    classes: int


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
) -> Transferred:
    """Train a student on images without labels, and measure its features on few labels.

    Args:
        teacher: any trained module, a run folder, a weights file, or a network with weights. It is
            frozen and in eval mode while the student is trained, and then as it was.
        student: any module that shares no parameters with the teacher, or the name of a network.
        unlabeled: images whose labels are not read, if they have any: a data set of images, of
            `(image, anything)`, or a name.
        labeled: images for the probes: a data set of `(image, label)`, or a name; by default those
            of the data set that `unlabeled` names.
        test: a data set to test on; comes with a named one.
        method: names joined by `+`, none of which needs labels; or a preset.
        epochs: passes over the unlabeled images.
        labels_per_class: numbers of labels, each a point of a curve; empty for all labels.
        draws: random choices of labels at each point.
        out: the run folder; by default a new one in `runs/`.
        seed: of everything random.
        options: for a method in the string, its options.
        overrides: any field of the recipe by dotted name: `{"labeled.classes": ["cat", "dog"]}`.
        resume: continue the transfer that is in `out`, if there is one.
        show: whether progress is shown.

    Raises:
        CktfError: a mistake that can be mended; the message says how.
    """
    teacher, teacher_compiled = plain(teacher)
    student, student_compiled = plain(student)
    fields: dict[str, Any] = {
        "kind": "transfer", "teacher": name_of(teacher), "student": name_of(student),
        "method": method, "options": {n: dict(values) for n, values in (options or {}).items()},
        "epochs": epochs, "seed": seed, "labels_per_class": list(labels_per_class), "draws": draws,
        "data": {"name": unlabeled if isinstance(unlabeled, str) else CUSTOM},
        **teacher_compiled, **student_compiled,
    }  # fmt: skip
    if labeled is not None:
        set_field(fields, "labeled.name", labeled if isinstance(labeled, str) else CUSTOM)
    if isinstance(test, str):
        set_field(fields, "labeled.test", test)
        test = None
    set_fields(fields, overrides or {})
    objects = UserObjects(teacher, student, unlabeled), UserObjects(train=labeled, test=test)
    return carry_out(plan(parse_transfer_recipe(fields), out, *objects, resume=resume), show=show)


def plan(
    recipe: TransferRecipe,
    out: str | Path | None = None,
    objects: UserObjects | None = None,
    labeled: UserObjects | None = None,
    *,
    resume: bool = False,
    trust_code: bool = False,
) -> Planned:
    """Make sure that all of a transfer can be carried out; nothing is written.

    Args:
        recipe: of the whole.
        out: the run folder.
        objects: what stands in for teacher, student and unlabeled images.
        labeled: what stands in for the labeled images and those for the test.
        resume: continue what is there.
        trust_code: whether code that weights name may run.

    Raises:
        RecipeError: everything that is wrong with it.
    """
    recipe = match_image_sizes(recipe)
    distilling, problems = recipe.distilling(), Problems()
    run = RunFolder(folder_of(distilling, "transfer") if out is None else expand_user_path(out))
    with problems.collect("out"):
        _check_folder(recipe, run, resume)
    components: RunComponents | None = None
    data: Data | None = None
    choices: list[LabelSubset] = []
    classes = 0
    with problems.collect():
        components = prepare(
            distilling, run.path / STUDENT, objects, resume=resume, trust_code=trust_code
        )[1]
    with problems.collect("labeled"):
        data = _labeled(recipe, labeled or UserObjects())
        labels = get_labels(data.raw_train)
        check_classes(labels)
        classes = len(data.classes or range(int(labels.max()) + 1))
        check_labels("test", get_labels(data.raw_test), classes)
        choices = choose_label_subsets(labels, recipe.labels_per_class, recipe.draws, recipe.seed)
    with problems.collect():
        check_probes(curve=len(choices) > 1)
    if components is not None and data is not None and classes:
        with problems.collect():
            _check_networks(recipe, components, _example(data), classes)
    problems.raise_if_any()
    assert components is not None and data is not None
    return Planned(
        recipe, run, components, copy.deepcopy(components.student), data, choices, classes
    )


def _check_networks(
    recipe: TransferRecipe, components: RunComponents, images: Tensor, classes: int
) -> None:
    """Raise unless both networks can be probed, and the student given a new classifier."""
    assert components.teacher is not None
    with explain_rejected_images(images):
        compute_embedding(components.teacher, images, recipe.teacher_embedding)
        check_classifier(components.student, classes, images, recipe.student_embedding)


def _labeled(recipe: TransferRecipe, objects: UserObjects) -> Data:
    # Any number of labels will do: the batches of training from scratch are made later.
    section = recipe.labeled.model_copy(update={"batch_size": 2})
    if problems := check_data_objects(section, objects):
        raise RecipeError(problems)
    data = load_data(section, recipe.seed, objects)
    if data.test is None or not data.labeled:
        raise RecipeError(["a probe needs labeled images, and others to test on: give test."])
    return data


def _check_folder(recipe: TransferRecipe, run: RunFolder, resume: bool) -> None:
    run.check(resume=resume)
    if run.recipe.exists():
        if not resume:
            raise RunFolderError(
                f"{run.path} already holds a run. Choose another --out, or continue it with "
                "--resume auto."
            )
        check_same(recipe, match_image_sizes(parse_transfer_recipe(read_recipe(run.recipe))), run)


def carry_out(planned: Planned, *, show: bool = True) -> Transferred:
    """Carry out a transfer; what is done already is not done again.

    Raises:
        CktfError: networks, data and method do not fit; nothing was trained then.
        Interrupted: a signal asked it to stop; it can be continued.
    """
    run, components, distilling = planned.run, planned.components, planned.recipe.distilling()
    try:
        with interrupt_on_signals():
            if run.finished:
                student = execute(
                    distilling, components, RunFolder(run.path / STUDENT), show
                ).student
                return _read(planned, student)
            assemble(distilling, components)
            run.path.mkdir(parents=True, exist_ok=True)
            with run.locked():
                return _carry_out(planned, distilling, show)
    except KeyboardInterrupt as stopped:
        if not run.recipe.exists():
            raise
        # One of its runs was stopped, or its probes; what is continued is the whole.
        raise Interrupted(str(stopped) or "Stopped.", run.path) from stopped


def _carry_out(planned: Planned, distilling: DistillRecipe, show: bool) -> Transferred:
    recipe, run, components = planned.recipe, planned.run, planned.components
    text = to_yaml(with_absolute_paths(recipe)).encode()
    run.insist(lambda: write_atomically(run.recipe, text), "its recipe")
    if recipe.student == CUSTOM:
        restore_initial_student((planned.untrained, components.student), run)
    distilled = execute(distilling, components, RunFolder(run.path / STUDENT), show)
    scratch = _scratch(planned, show)
    assert components.teacher is not None
    networks = {TEACHER: components.teacher, STUDENT: distilled.student, FLOOR: planned.untrained}
    probed = _probe(planned, networks, show)
    summary = _summary(planned, distilled, scratch, probed)
    found = summary["points"]
    if len(planned.choices) > 1:
        level = {SCRATCH: scratch.summary["test_top1"]}
        run.insist(lambda: draw_curve(found, level, run.path / CURVE), "the curve")
    example = _example(planned.labeled)
    student = install_classifier(
        distilled.student, probed[STUDENT].classifier, example, recipe.student_embedding
    )
    classes = planned.labeled.classes or numbered_class_names(len(probed[STUDENT].classifier.bias))
    about = {"name": components.student_name, "dataset": planned.labeled.name}
    run.insist(
        lambda: save_network(student, run.weights, classes=classes, images=example, **about),
        "the student",
    )
    run.insist(lambda: run.write_summary(summary), "the summary")
    return Transferred(run.path, student, summary)


def _example(labeled: Data) -> Tensor:
    """Two images by which a network's classifier is found."""
    return next(iter(labeled.train.epoch(1))).images[:2]


def _read(planned: Planned, student: nn.Module) -> Transferred:
    """A transfer that is finished already, with the probe's classifier in the student."""
    summary = json.loads(planned.run.summary.read_text())
    new_classifier(student, summary["classes"], _example(planned.labeled), bias=True)
    load_weights(
        student.network if isinstance(student, Normalized) else student, planned.run.weights
    )
    return Transferred(planned.run.path, student.eval(), summary)


def _summary(
    planned: Planned, distilled: Run, scratch: Run, probed: Mapping[str, ProbeResult]
) -> dict[str, Any]:
    data = planned.components.data
    images = len(planned.labeled.raw_test)
    return distilled.summary | {
        "unlabeled": data.name,
        "unlabeled_images": data.train.samples,
        "labeled": planned.labeled.name,
        "classes": len(probed[STUDENT].classifier.bias),
        "test_images": images,
        "test_top1": probed[STUDENT].final,
        # Of the test images alone; how far the draws of labels differ is in the points.
        "test_standard_error": standard_error(probed[STUDENT].final, images),
        "scratch_top1": scratch.summary["test_top1"],
        "scratch_epochs": scratch.summary["epochs"],
        **{f"{name}_probe_top1": found.final for name, found in probed.items()},
        "points": {name: found.points() for name, found in probed.items()},
    }


def _probe(
    planned: Planned, networks: Mapping[str, nn.Module], show: bool
) -> dict[str, ProbeResult]:
    """Probe networks on the same labels; only those that some choice has are looked at."""
    drawn = [draw for choice in planned.choices for draw in choice.draws]
    needed = torch.unique(torch.cat(drawn))
    choices = [
        replace(choice, draws=[torch.searchsorted(needed, draw) for draw in choice.draws])
        for choice in planned.choices
    ]
    assert planned.labeled.test is not None
    recipe, found = planned.recipe, {}
    few = select_samples(planned.labeled.raw_train, needed)
    loaders = build_test_loader(few, recipe.labeled.workers), planned.labeled.test
    for name, network in networks.items():
        announce(f"probing the {name}'s features", show)
        path = recipe.teacher_embedding if name == TEACHER else recipe.student_embedding
        fitted, tested = (
            embed_images(network, loader, planned.components.runtime, path) for loader in loaders
        )
        found[name] = probe_features(fitted, tested, choices, recipe.seed)
    return found


def scratch_epochs(recipe: TransferRecipe, steps: int, batches: int) -> int:
    """Of training from scratch: where a recipe does not say, about as many steps as without labels.

    Args:
        recipe: of the transfer.
        steps: on images without labels.
        batches: steps of an epoch on the most labels.
    """
    return recipe.scratch_epochs or min(_MOST_SCRATCH_EPOCHS, max(1, steps // batches))


def _scratch(planned: Planned, show: bool) -> Run:
    """The same student on the most labels alone, for as many steps."""
    recipe, labeled = planned.recipe, planned.labeled
    chosen = planned.choices[-1]
    few = select_samples(labeled.raw_train, chosen.draws[0])
    update: dict[str, Any] = {"batch_size": min(recipe.data.batch_size, len(few))}
    if recipe.labeled.name != CUSTOM:
        update["per_class"] = chosen.labels
    section = recipe.labeled.model_copy(update=update)
    steps = recipe.epochs * len(planned.components.data.train)
    own = TrainRecipe(
        model=recipe.student, data=section, seed=recipe.seed, optimizer=recipe.optimizer,
        schedule=recipe.schedule, runtime=recipe.runtime, checkpoint=recipe.checkpoint,
        epochs=scratch_epochs(recipe, steps, len(few) // section.batch_size),
    )  # fmt: skip
    train = build_train_loader(few, section, recipe.seed)
    data = replace(labeled, train=train, raw_train=few, description="")
    planned.components.runtime.reset_seed()
    if not isinstance(few, ImageSet) or is_weights_path(recipe.student) or recipe.student == CUSTOM:
        network: nn.Module = copy.deepcopy(planned.untrained)
        resize_classifier(network, planned.classes, _example(planned.labeled))
    else:
        network = set_input_size(
            build_student(recipe.student, few, planned.classes), recipe.student_size
        )
    components = RunComponents(
        planned.components.runtime, network, None, planned.components.student_name, None, data
    )
    return execute(own, components, RunFolder(planned.run.path / SCRATCH), show)
