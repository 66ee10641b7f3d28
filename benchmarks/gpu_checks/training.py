"""Runs over synthetic images, taken step by step through the real `Trainer`."""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from cktf.data import ImageSet
from cktf.engine import RuntimeConfig, Trainer
from cktf.models import Normalized, create
from cktf.recipes import CUSTOM, parse_recipe
from cktf.taps import Tap, freeze
from cktf.workflows.run import start_run
from cktf.workflows.train import prepare
from cktf.workflows.user_objects import UserObjects

# The student on labels, with the teacher's forward pass: both networks, and no transfer.
FLOOR = "floor"
MEAN, STD = (0.5,) * 3, (0.25,) * 3


def synthetic_images(count: int, classes: int = 100) -> ImageSet:
    """Random images [count, 32, 32, 3] with labels."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (count, 32, 32, 3), generator=generator, dtype=torch.uint8)
    labels = torch.randint(classes, (count,), generator=generator)
    labels[:classes] = torch.arange(classes)
    return ImageSet(pixels, labels, [str(c) for c in range(classes)], MEAN, STD)


def runtime_fields(**values: Any) -> dict[str, Any]:
    """Those of the given fields that `RuntimeConfig` has here."""
    return {k: v for k, v in values.items() if k in RuntimeConfig.model_fields}


@contextmanager
def started_trainer(
    device: torch.device,
    images: ImageSet,
    method: str,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    batch_size: int = 64,
    networks: tuple[str, str] = ("resnet20", "resnet8"),
    runtime: Mapping[str, Any] | None = None,
    epochs: int = 1,
) -> Iterator[Trainer]:
    """A trainer before its first epoch.

    Args:
        device: where it trains.
        images: the training set.
        method: a method string, or `FLOOR`.
        options: of the methods.
        batch_size: B.
        networks: names of teacher and student.
        runtime: fields of `RuntimeConfig`.
        epochs: of each phase.
    """
    torch.manual_seed(0)
    teacher, student = (
        Normalized(create(name, len(images.classes)), MEAN, STD) for name in networks
    )
    fields = {
        "kind": "distill", "teacher": CUSTOM, "student": CUSTOM,
        "method": "ce" if method == FLOOR else method,
        "options": {k: dict(v) for k, v in (options or {}).items()},
        "data": {"name": CUSTOM, "batch_size": batch_size},
        "epochs": epochs, "init_epochs": epochs,
        # A schedule of any number of steps.
        "optimizer": {"lr": 0.01}, "schedule": {"name": "multistep"},
        "runtime": {"device": device.type, "track": "none", **(runtime or {})},
    }  # fmt: skip
    recipe = parse_recipe(fields)
    with tempfile.TemporaryDirectory() as folder:
        objects = UserObjects(teacher, student, images, None)
        run_folder, components = prepare(recipe, Path(folder) / "run", objects)
        with start_run(recipe, components, run_folder, show=False) as started:
            if method == FLOOR:
                step, run = started.trainer.phases[-1].step, components.runtime
                run.to_device(teacher)
                freeze(teacher)
                compiles = recipe.runtime.compile
                step.teacher_tap = Tap(teacher, needs=(), compile=compiles)
            with started.trainer.training():
                yield started.trainer


def take_steps(trainer: Trainer, count: int) -> None:
    """Take so many steps of the present epoch."""
    for _ in range(count):
        trainer.train_step()
