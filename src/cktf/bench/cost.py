"""What a method costs: time of a step and peak memory, measured in a process of its own.

Times of finished runs are not like for like where students took turns or a machine was shared.
"""

import json
import multiprocessing
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from cktf.bench.cells import Cell, TeacherPlan
from cktf.engine import RunFolder, device_of, peak_memory_mb, write_atomically
from cktf.errors import TrainingError
from cktf.recipes import (
    CUSTOM,
    DistillRecipe,
    Recipe,
    TransferRecipe,
    build_data,
    new_network,
)
from cktf.workflows.parts import Parts
from cktf.workflows.run import assemble, describe, executing

_WARM_UP, _STEPS = 3, 15


@dataclass(frozen=True)
class Cost:
    """Of one method on one pair.

    Attributes:
        step_seconds: median of a step of the main stage, with loading its batch.
        peak_memory_mb: largest memory held; of the device if it has its own, else of the process.
        hours: what a run takes at that rate, initialisation stages too, evaluation left out.
        device: on which this was measured.
    """

    step_seconds: float
    peak_memory_mb: float
    hours: float
    device: str


def measure(cell: Cell) -> Cost:
    """Cost of a cell, with an untrained teacher: weights do not change it.

    Raises:
        CktfError: data that is not there.
    """
    recipe = cell.recipe()
    plain = recipe.distilling() if isinstance(recipe, TransferRecipe) else recipe
    return _apart(plain, cell.teacher.network)


def measure_teacher(plan: TeacherPlan) -> Cost:
    """Cost of a teacher's training."""
    return _apart(plan.recipe, None)


def _apart(recipe: Recipe, teacher: str | None) -> Cost:
    """A process that has done nothing else, since peak memory is of the whole process."""
    context = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            return pool.submit(_measure, recipe, teacher).result()
    except BrokenProcessPool as error:
        raise TrainingError(
            "A process that measured ended before it was done, often for too little memory. Take "
            "a smaller data.batch_size, or a machine with more."
        ) from error


def _measure(recipe: Recipe, teacher_name: str | None) -> Cost:
    data = replace(build_data(recipe.data, recipe.seed), test=None, raw_test=None)
    distilled = isinstance(recipe, DistillRecipe)
    name = recipe.student if isinstance(recipe, DistillRecipe) else recipe.model
    classes = len(data.raw_train.classes) or 10
    teacher = new_network(teacher_name, data.raw_train, classes) if teacher_name else None
    student = new_network(name, data.raw_train, classes)
    runtime = recipe.runtime.model_copy(update={"track": ()})
    recipe = recipe.model_copy(update={"runtime": runtime})
    whole = recipe
    if isinstance(recipe, DistillRecipe):
        # Steps of initialisation stages are others: some have no student.
        recipe = recipe.model_copy(update={"init_epochs": 0})
    parts = Parts(student, teacher, name, CUSTOM if distilled else None, data)
    seconds, at = [], 0.0
    with tempfile.TemporaryDirectory() as folder:
        steps = executing(recipe, parts, RunFolder(Path(folder)), show=False)
        for number, _ in enumerate(steps):
            now = time.perf_counter()
            if number > _WARM_UP:
                seconds.append(now - at)
            if number == _WARM_UP + _STEPS:
                break
            at = time.perf_counter()
        steps.close()
    device = device_of(recipe.training())
    step, memory = statistics.median(seconds), peak_memory_mb(device)
    passes = sum(stage.epochs for stage in assemble(whole, parts).stages) * len(data.train)
    return Cost(step, memory, step * passes / 3600, describe(device))


def costs_in(place: Path) -> dict[str, Cost]:
    """Costs by `data|pair|method`, as far as they were measured."""
    path = place / "costs.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return {name: Cost(**cost) for name, cost in found.items()}


def cost_key(data: str, pair: str, method: str) -> str:
    """How a cost is found.

    >>> cost_key("cifar10", "wrn_16_2:resnet8", "KD")
    'cifar10|wrn_16_2:resnet8|KD'
    """
    return "|".join((data, pair, method))


def keep_costs(costs: dict[str, Cost], place: Path) -> None:
    """Write costs beside results."""
    place.mkdir(parents=True, exist_ok=True)
    known = costs_in(place) | costs
    text = json.dumps({name: asdict(cost) for name, cost in known.items()}, indent=1)
    write_atomically(place / "costs.json", (text + "\n").encode())
