"""Transfer learning without labels: distil on unlabelled images, then classify on few labels.

Source: Zhao, Chen, Zhao, "A Contrastive Knowledge Transfer Framework for Model Compression and
Transfer Learning", ICASSP 2023, Figure 2. What the student's features are worth is measured beside
the teacher's own, those of a student with random weights (the floor), and a student that is trained
from scratch on the labels alone.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from torch import nn

from cktf.engine import RunFolder, announce, write_atomically
from cktf.errors import RunFolderError
from cktf.models import save_network
from cktf.recipes import (
    Data,
    Problems,
    TrainRecipe,
    TransferRecipe,
    build_data,
    loader_of_test,
    located,
    make_transfer,
    new_network,
    read_recipe,
    to_yaml,
)
from cktf.workflows.probe import Probed, choose, classifying, embed, probe_features
from cktf.workflows.run import Parts, Run, assemble, execute
from cktf.workflows.train import prepare

_MOST_SCRATCH_EPOCHS = 200
TEACHER, STUDENT, SCRATCH, FLOOR = "teacher", "student", "scratch", "floor"


@dataclass(frozen=True)
class Transferred:
    """A finished transfer.

    Attributes:
        folder: where everything is.
        student: the network with its classifier of the labelled images' classes.
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
        parts: networks and unlabelled images.
        labelled: images to probe with and to test on.
    """

    recipe: TransferRecipe
    run: RunFolder
    parts: Parts
    labelled: Data


def plan(recipe: TransferRecipe, out: str | Path, *, resume: bool = False) -> Planned:
    """Make sure that all of a transfer can be carried out; nothing is written.

    Raises:
        RecipeError: everything that is wrong with it.
    """
    run, problems = RunFolder(Path(out)), Problems()
    with problems.collect("out"):
        _check_folder(recipe, run, resume)
    parts: Parts | None = None
    labelled: Data | None = None
    with problems.collect():
        parts = prepare(recipe.distilling(), run.path / STUDENT, resume=resume)[1]
    with problems.collect("labeled"):
        labelled = build_data(recipe.labeled, recipe.seed)
        choose(labelled.raw_train.labels, recipe.labels_per_class, recipe.draws, recipe.seed)
    problems.stop_if_any()
    assert parts is not None
    assert labelled is not None
    return Planned(recipe, run, parts, labelled)


def _check_folder(recipe: TransferRecipe, run: RunFolder, resume: bool) -> None:
    run.check(resume=resume)
    if resume and run.recipe.exists():
        before = make_transfer(read_recipe(run.recipe))
        if to_yaml(before) != to_yaml(located(recipe)):
            raise RunFolderError(
                f"{run.path} was started with another recipe. Continue it with --resume {run.path} "
                "alone, or choose another --out."
            )
    elif run.recipe.exists():
        raise RunFolderError(
            f"{run.path} already holds a transfer. Choose another --out, or continue it with "
            "--resume auto."
        )


def transfer(planned: Planned, *, show: bool = True) -> Transferred:
    """Carry out a transfer; what is done already is not done again.

    Raises:
        CktfError: networks, data and method do not fit; nothing was trained then.
    """
    recipe, run, parts = planned.recipe, planned.run, planned.parts
    distilling = recipe.distilling()
    if not run.finished:
        assemble(distilling, parts)
        run.path.mkdir(parents=True, exist_ok=True)
        write_atomically(run.recipe, to_yaml(located(recipe)).encode())
    distilled = execute(distilling, parts, RunFolder(run.path / STUDENT), show)
    if run.finished:
        return Transferred(run.path, distilled.student, json.loads(run.summary.read_text()))
    scratch = _scratch(planned, show)
    assert parts.teacher is not None
    probed = _probe(planned, {TEACHER: parts.teacher, STUDENT: distilled.student}, show)
    example = next(iter(planned.labelled.train.epoch(1))).images[:2]
    student = classifying(distilled.student, probed[STUDENT].classifier, example)
    assert planned.labelled.classes is not None
    save_network(
        student, run.weights, name=parts.student_name, classes=planned.labelled.classes,
        dataset=planned.labelled.name,
    )  # fmt: skip
    summary = distilled.summary | {
        "labeled": planned.labelled.name,
        "unlabeled": parts.data.name,
        "unlabeled_images": parts.data.train.samples,
        "test_top1": probed[STUDENT].final,
        "test_images": len(planned.labelled.raw_test),
        "scratch_top1": scratch.summary["test_top1"],
        "scratch_epochs": scratch.summary["epochs"],
        **{f"{name}_probe_top1": found.final for name, found in probed.items()},
        "points": {name: found.points() for name, found in probed.items()},
    }
    run.write_summary(summary)
    return Transferred(run.path, student, summary)


def _probe(planned: Planned, networks: Mapping[str, nn.Module], show: bool) -> dict[str, Probed]:
    """Probe networks, and last a student as it was before it learnt anything."""
    recipe, labelled = planned.recipe, planned.labelled
    labels = labelled.raw_train.labels
    choices = choose(labels, recipe.labels_per_class, recipe.draws, recipe.seed)
    # Only labels that are drawn by some choice are looked at.
    needed = torch.unique(torch.cat([draw for choice in choices for draw in choice.draws]))
    choices = [
        replace(choice, draws=[torch.searchsorted(needed, draw) for draw in choice.draws])
        for choice in choices
    ]
    few = labelled.raw_train.subset(needed)
    assert labelled.test is not None
    loaders = loader_of_test(few), labelled.test
    training = recipe.training()
    set_seed(recipe.seed)
    floor = new_network(recipe.student, planned.parts.data.raw_train, len(few.classes))
    found = {}
    for name, network in {**networks, FLOOR: floor}.items():
        announce(f"probing the {name}'s features", show)
        fitted, tested = (embed(network, loader, training) for loader in loaders)
        found[name] = probe_features(fitted, tested, choices, recipe.seed)
    return found


def _scratch(planned: Planned, show: bool) -> Run:
    """The same student on the labels alone, for as many steps."""
    recipe, data = planned.recipe, planned.recipe.labeled
    if recipe.labels_per_class:
        data = data.model_copy(update={"per_class": max(recipe.labels_per_class)})
    labels = len(planned.labelled.raw_train)
    if data.per_class is not None:
        labels = data.per_class * len(planned.labelled.raw_train.classes)
    data = data.model_copy(update={"batch_size": min(recipe.data.batch_size, labels)})
    steps = recipe.epochs * len(planned.parts.data.train)
    epochs = recipe.scratch_epochs or min(
        _MOST_SCRATCH_EPOCHS, max(1, steps // (labels // data.batch_size))
    )
    shared = ("seed", "optimizer", "schedule", "runtime", "checkpoint")
    own = TrainRecipe(
        model=recipe.student, epochs=epochs, data=data,
        **{name: getattr(recipe, name) for name in shared},
    )  # fmt: skip
    run, parts = prepare(own, planned.run.path / SCRATCH, resume=True)
    return execute(own, parts, run, show)
