"""What a method costs: time of a step and peak memory, measured in a process of its own.

Times of finished runs are not like for like where students took turns or a machine was shared.
"""

import hashlib
import json
import multiprocessing
import statistics
import tempfile
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from cktf.bench.cells import Cell, TeacherPlan
from cktf.bench.results import COSTS, LOCK
from cktf.data import get_labels
from cktf.engine import (
    Callback,
    RunFolder,
    Trainer,
    describe_device,
    peak_memory_mb,
    start_runtime,
    synchronized_time,
)
from cktf.errors import TrainingError
from cktf.files import write_atomically
from cktf.locks import file_lock
from cktf.recipes import (
    CUSTOM,
    DistillRecipe,
    Recipe,
    TrainRecipe,
    TransferRecipe,
    build_data,
    build_student,
    set_input_size,
)
from cktf.workflows.assembly import assemble
from cktf.workflows.components import RunComponents
from cktf.workflows.linear_probe import choose_label_subsets
from cktf.workflows.run import start_run
from cktf.workflows.transfer_learning import scratch_epochs

_WARM_UP, _STEPS = 3, 15
# How many steps there are, and not how long one takes.
_LENGTH = {
    "seed", "epochs", "init_epochs", "scratch_epochs", "schedule", "checkpoint", "teacher_cache",
}  # fmt: skip


@dataclass(frozen=True)
class Cost:
    """Of one method on one pair.

    Attributes:
        step_seconds: median of a step of the main stage, with loading its batch.
        peak_memory_mb: largest memory held while training; of the device if it has its own, else of
            the process.
        hours: what a run takes at that rate, initialization stages and a transfer's training from
            scratch too, evaluation left out.
        device: on which this was measured.
        batches: steps of an epoch.
        stages: initialization stages.
        scratch_batches: steps of an epoch of a transfer's training from scratch.
        step: what decides how long a step takes, as a hash; empty for costs of before.
    """

    step_seconds: float
    peak_memory_mb: float
    hours: float
    device: str
    batches: int = 0
    stages: int = 0
    scratch_batches: int = 0
    step: str = ""

    def for_recipe(self, recipe: Recipe | TransferRecipe) -> "Cost":
        """The same step in a recipe of other epochs."""
        main = self.batches * recipe.epochs
        first = 0 if isinstance(recipe, TrainRecipe) else recipe.init_epochs or 0
        steps = main + self.batches * self.stages * first
        if isinstance(recipe, TransferRecipe):
            steps += self.scratch_batches * scratch_epochs(recipe, main, self.scratch_batches)
        return replace(self, hours=self.step_seconds * steps / 3600)


def measure(cell: Cell) -> Cost:
    """Cost of a cell, with an untrained teacher: weights do not change it.

    Raises:
        CktfError: data that is not there.
    """
    return replace(_apart(cell.recipe(), cell.teacher.network), step=_step_of(cell))


def _step_of(cell: Cell) -> str:
    fields = [cell.teacher.network, cell.recipe().model_dump(mode="json", exclude=_LENGTH)]
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def measure_teacher(plan: TeacherPlan) -> Cost:
    """Cost of a teacher's training."""
    return _apart(plan.recipe, None)


def _apart(recipe: Recipe | TransferRecipe, teacher: str | None) -> Cost:
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


def _measure(given: Recipe | TransferRecipe, teacher_name: str | None) -> Cost:
    recipe = given.distilling() if isinstance(given, TransferRecipe) else given
    data = replace(build_data(recipe.data, recipe.seed), test=None, raw_test=None)
    distilled = isinstance(recipe, DistillRecipe)
    name = recipe.student if isinstance(recipe, DistillRecipe) else recipe.model
    classes = len(data.raw_train.classes) or 10
    teacher = build_student(teacher_name, data.raw_train, classes) if teacher_name else None
    student = build_student(name, data.raw_train, classes)
    if isinstance(recipe, DistillRecipe):
        set_input_size(student, recipe.student_size)
        if teacher is not None:
            set_input_size(teacher, recipe.teacher_size)
    untracked = recipe.runtime.model_copy(update={"track": ()})
    recipe = recipe.model_copy(update={"runtime": untracked})
    if isinstance(recipe, DistillRecipe):
        # Steps of initialization stages are others: some have no student. And features of an
        # untrained teacher are nothing to keep.
        recipe = recipe.model_copy(update={"init_epochs": 0, "teacher_cache": None})
    runtime = start_runtime(recipe.runtime, recipe.seed)
    teacher_label = CUSTOM if distilled else None
    components = RunComponents(runtime, student, teacher, name, teacher_label, data)
    timer = _SynchronizedTimer()
    with tempfile.TemporaryDirectory() as path:
        run = start_run(recipe, components, RunFolder(Path(path)), False, [timer])
        with suppress(_EnoughStepsError), run as started:
            started.trainer.fit()
    # A run that ends before it is warm takes what its last step takes.
    step = statistics.median(timer.seconds[_WARM_UP:] or timer.seconds[-1:])
    memory = peak_memory_mb(runtime.device)
    phases = len(assemble(recipe, components).phases) - 1
    scratch = _scratch_batches(given) if isinstance(given, TransferRecipe) else 0
    device = describe_device(runtime.device)
    return Cost(step, memory, 0.0, device, len(data.train), phases, scratch).for_recipe(given)


class _EnoughStepsError(Exception):
    """Enough steps were measured."""


class _SynchronizedTimer(Callback):
    """Measures the seconds of steps, and ends training after enough of them."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_start(self, trainer: Trainer) -> None:
        self._started = synchronized_time(trainer.device)

    def on_step_end(self, trainer: Trainer) -> None:
        self.seconds.append(synchronized_time(trainer.device) - self._started)
        if len(self.seconds) == _WARM_UP + _STEPS:
            raise _EnoughStepsError


def _scratch_batches(recipe: TransferRecipe) -> int:
    """Steps of an epoch on the most labels alone."""
    labeled = build_data(recipe.labeled.model_copy(update={"batch_size": 2}), recipe.seed)
    labels = get_labels(labeled.raw_train)
    most = choose_label_subsets(labels, recipe.labels_per_class, recipe.draws, recipe.seed)[-1]
    images = len(most.draws[0])
    return images // min(recipe.data.batch_size, images)


def costs_in(place: Path) -> dict[str, Cost]:
    """Costs by `data|pair|method`, as far as they were measured."""
    path = place / COSTS
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return {name: Cost(**cost) for name, cost in found.items()}


def kept_cost(costs: dict[str, Cost], cell: Cell) -> Cost | None:
    """A cell's own among costs that are kept, with hours of its recipe as it is now.

    None where there is none, or a step is another by now, as with batches of another size.
    """
    cost = costs.get(cost_key(*cell.column, cell.method))
    if cost is None or cost.step != _step_of(cell):
        return None
    return cost.for_recipe(cell.recipe())


def cost_key(data: str, pair: str, method: str) -> str:
    """How a cost is found.

    >>> cost_key("cifar10", "wrn_16_2:resnet8", "KD")
    'cifar10|wrn_16_2:resnet8|KD'
    """
    return "|".join((data, pair, method))


def keep_costs(costs: dict[str, Cost], place: Path) -> None:
    """Write costs beside results, and beside those that other processes write."""
    place.mkdir(parents=True, exist_ok=True)
    # Of processes that share the folder, one reads and writes at a time.
    with file_lock(place / LOCK):
        known = costs_in(place) | costs
        text = json.dumps({name: asdict(cost) for name, cost in known.items()}, indent=1)
        write_atomically(place / COSTS, (text + "\n").encode())
