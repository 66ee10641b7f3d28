"""Cost of a method: step time and peak memory, measured in a process of its own.

Times of finished runs cannot be compared: students were interleaved, or a machine was shared.
"""

import hashlib
import json
import multiprocessing
import os
import re
import statistics
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch

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
from cktf.workflows.components import RunComponents
from cktf.workflows.linear_probe import choose_label_subsets
from cktf.workflows.objective_setup import set_up_objective
from cktf.workflows.run import start_run
from cktf.workflows.transfer_learning import scratch_epochs

_WARM_UP, _STEPS = 3, 15
# Fields that decide the number of steps, and not the time of one.
_LENGTH_FIELDS = {
    "seed", "epochs", "init_epochs", "scratch_epochs", "schedule", "checkpoint", "teacher_cache",
}  # fmt: skip


@dataclass(frozen=True)
class Cost:
    """Cost of one method on one pair.

    Attributes:
        step_seconds: median time of a step of the main stage, with loading its batch.
        peak_memory_mb: largest memory held while training; of the device if it has its own, else of
            the process.
        hours: time of a run at that rate, with initialization stages and a transfer's training from
            scratch, without evaluation.
        device: the device it was measured on.
        batches: steps of an epoch.
        stages: number of initialization stages.
        scratch_batches: steps of an epoch of a transfer's training from scratch.
        step: hash of the fields that decide the time of a step; empty in older files.
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
        """Estimate the hours of a recipe with the same step and other epochs."""
        main = self.batches * recipe.epochs
        first = 0 if isinstance(recipe, TrainRecipe) else recipe.init_epochs or 0
        steps = main + self.batches * self.stages * first
        if isinstance(recipe, TransferRecipe):
            steps += self.scratch_batches * scratch_epochs(recipe, main, self.scratch_batches)
        return replace(self, hours=self.step_seconds * steps / 3600)


def measure_cell(cell: Cell) -> Cost:
    """Measure a cell with an untrained teacher: weights do not change its cost.

    Raises:
        CktfError: missing data.
    """
    return replace(_measure_in_process(cell.recipe(), cell.teacher.network), step=_step_hash(cell))


def measure_teacher(plan: TeacherPlan) -> Cost:
    """Measure the training of a teacher."""
    return _measure_in_process(plan.recipe, None)


def _step_hash(cell: Cell) -> str:
    fields = [cell.teacher.network, cell.recipe().model_dump(mode="json", exclude=_LENGTH_FIELDS)]
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def _measure_in_process(recipe: Recipe | TransferRecipe, teacher: str | None) -> Cost:
    """Measure in a new process, since peak memory is that of the whole process.

    On Linux it is a fork of a process that has imported PyTorch, which takes seconds, and done
    nothing else. On macOS such forks are not safe.
    """
    forks = sys.platform == "linux"
    context = multiprocessing.get_context("forkserver" if forks else "spawn")
    context.set_forkserver_preload([__name__, "torch._dynamo"])
    try:
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            return pool.submit(_measure_fork if forks else _measure, recipe, teacher).result()
    except BrokenProcessPool as error:
        raise TrainingError(
            "A process that measured ended before it was done, often for too little memory. Take "
            "a smaller data.batch_size, or a machine with more."
        ) from error


def _measure_fork(recipe: Recipe | TransferRecipe, teacher: str | None) -> Cost:
    """Measure in a fork, where the pages of libraries that it has not used yet count as well."""
    cost = _measure(recipe, teacher)
    unused = max(0.0, _libraries_mb(os.getppid()) - _libraries_mb(os.getpid()))
    on_gpu = recipe.runtime.device != "cpu" and torch.cuda.is_available()
    return cost if on_gpu else replace(cost, peak_memory_mb=cost.peak_memory_mb + unused)


def _libraries_mb(process: int) -> float:
    """MiB of files in the memory of a process on Linux, its libraries above all."""
    line = re.search(r"RssFile:\s*(\d+) kB", Path(f"/proc/{process}/status").read_text())
    return int(line[1]) / 2**10 if line else 0.0


def _measure(cell_recipe: Recipe | TransferRecipe, teacher_name: str | None) -> Cost:
    transfer = cell_recipe if isinstance(cell_recipe, TransferRecipe) else None
    recipe = transfer.distill_recipe() if transfer else cast(Recipe, cell_recipe)
    data = replace(build_data(recipe.data, recipe.seed), test=None, raw_test=None)
    classes = len(data.raw_train.classes) or 10
    teacher = build_student(teacher_name, data.raw_train, classes) if teacher_name else None
    name = recipe.student if isinstance(recipe, DistillRecipe) else recipe.model
    student = build_student(name, data.raw_train, classes)
    update: dict[str, Any] = {"runtime": recipe.runtime.model_copy(update={"track": ()})}
    if isinstance(recipe, DistillRecipe):
        set_input_size(student, recipe.student_size)
        if teacher is not None:
            set_input_size(teacher, recipe.teacher_size)
        # Initialization stages have other steps, and an untrained teacher's features no use.
        update |= {"init_epochs": 0, "teacher_cache": None}
    recipe = recipe.model_copy(update=update)
    runtime = start_runtime(recipe.runtime, recipe.seed)
    teacher_label = CUSTOM if isinstance(recipe, DistillRecipe) else None
    components = RunComponents(runtime, student, teacher, name, teacher_label, data)
    timer = _SynchronizedTimer()
    with tempfile.TemporaryDirectory() as path:
        run = start_run(recipe, components, RunFolder(Path(path)), False, [timer])
        with suppress(_EnoughStepsError), run as started:
            started.trainer.fit()
    # A run that ends while it warms up has its last step only.
    step = statistics.median(timer.seconds[_WARM_UP:] or timer.seconds[-1:])
    memory = peak_memory_mb(runtime.device)
    phases = len(set_up_objective(recipe, components).phases) - 1
    scratch = 0
    if transfer:
        # An epoch on the largest choice of labels.
        section = transfer.labeled.model_copy(update={"batch_size": 2})
        labels = get_labels(build_data(section, transfer.seed).raw_train)
        counts, draws, seed = transfer.labels_per_class, transfer.draws, transfer.seed
        images = len(choose_label_subsets(labels, counts, draws, seed)[-1].draws[0])
        scratch = images // min(transfer.data.batch_size, images)
    device = describe_device(runtime.device)
    return Cost(step, memory, 0.0, device, len(data.train), phases, scratch).for_recipe(cell_recipe)


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


def read_costs(place: Path) -> dict[str, Cost]:
    """Read measured costs, by `data|pair|method`."""
    path = place / COSTS
    costs: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return {key: Cost(**cost) for key, cost in costs.items()}


def find_cost(costs: dict[str, Cost], cell: Cell) -> Cost | None:
    """Find a cell's cost among measured ones, with the hours of its present recipe.

    None where there is none, or its step was another, as with batches of another size.
    """
    cost = costs.get(cost_key(*cell.column, cell.method))
    if cost is None or cost.step != _step_hash(cell):
        return None
    return cost.for_recipe(cell.recipe())


def cost_key(data: str, pair: str, method: str) -> str:
    """Key of a cost.

    >>> cost_key("cifar10", "wrn_16_2:resnet8", "KD")
    'cifar10|wrn_16_2:resnet8|KD'
    """
    return "|".join((data, pair, method))


def save_costs(costs: dict[str, Cost], place: Path) -> None:
    """Add costs to those beside the results."""
    place.mkdir(parents=True, exist_ok=True)
    # One of the processes that share the folder reads and writes at a time.
    with file_lock(place / LOCK):
        merged = read_costs(place) | costs
        text = json.dumps({key: asdict(cost) for key, cost in merged.items()}, indent=1)
        write_atomically(place / COSTS, (text + "\n").encode())
