"""The one training loop: teacher, student, objective, step.

It knows no method by name: whatever is trained is an `Objective` over `Features`.
"""

import random
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import set_seed
from torch import Tensor, nn
from torch.optim.lr_scheduler import ConstantLR, LRScheduler, MultiStepLR, OneCycleLR

from cktf.batch import Batch
from cktf.data import Loader
from cktf.engine.evaluate import Accuracy, evaluate
from cktf.engine.progress import TrainingProgress, announce
from cktf.engine.run_folder import RunFolder
from cktf.engine.settings import Training, autocast_dtype, peak_memory_mb
from cktf.errors import CheckpointError, TrainingError
from cktf.objectives import Loss, Objective
from cktf.taps import Features, SharedTap, Tap

# How often the running loss is read back: a read waits for the device.
_FINITE_EVERY = 20
_CHECKPOINT_VERSION = 2


MAIN = "train"


@dataclass(frozen=True)
class Stage:
    """One stage of a run: an objective, and the networks tapped for it.

    Attributes:
        name: `train` for the last, in which the student is trained on the whole sum.
        objective: what is minimised; its own parameters train too.
        student: the tapped network that is trained; None where only the objective trains.
        teacher: the tapped frozen network; None for an objective that needs none.
        epochs: passes over the training set.
        lr: learning rate of a stage before the last, which stays; None follows the schedule.
        weight: of the loss.
        keeps_statistics: the student stays in eval mode: its BatchNorm statistics do not change.
    """

    name: str
    objective: Objective
    student: Tap | None
    teacher: Tap | SharedTap | None
    epochs: int
    lr: float | None = None
    weight: float = 1.0
    keeps_statistics: bool = False


@dataclass(frozen=True)
class Fitted:
    """What training gave.

    Attributes:
        last: accuracy after the last epoch; None without test data.
        best_top1: the best epoch's, chosen on the test set, in per cent.
        seconds: spent on training in all stages, evaluation left out.
        images_per_second: of the last stage.
        peak_memory_mb: largest memory held.
    """

    last: Accuracy | None
    best_top1: float | None
    seconds: float
    images_per_second: float
    peak_memory_mb: float


class Trainer:
    """Trains one network, stage after stage.

    Args:
        student: the network that is trained.
        stages: in order; the last is the one that `Training` describes, and its objective holds
            whatever the others train.
        train: training batches.
        test: evaluated after every epoch of the last stage; None for no evaluation.
        num_classes: logits of the student.
        training: how.
        run: where everything is written.
        title: shown beside the progress bar.
        show: whether progress is shown.
    """

    def __init__(
        self,
        student: nn.Module,
        stages: Sequence[Stage],
        train: Loader,
        test: Loader | None,
        num_classes: int,
        training: Training,
        run: RunFolder,
        title: str = "",
        show: bool = True,
    ) -> None:
        self.accelerator = accelerator(training)
        self.device = self.accelerator.device
        self.student, self.stages, self.objective = student, stages, stages[-1].objective
        self.train, self.test, self.num_classes = train, test, num_classes
        self.training, self.run, self.title, self.show = training, run, title, show
        place(student, training, self.device)
        self.objective.to(self.device)
        for stage in stages:
            if stage.teacher is not None:
                place(stage.teacher.model, training, self.device)
                stage.teacher.model.eval().requires_grad_(False)

    def steps(self) -> Iterator[None]:
        """Train to the end, from the newest checkpoint if the run folder has one.

        It stops after every step, so that several runs can take turns.
        """
        state = self._resume()
        done = 0 if state is None else int(state["epoch"])
        footprint = self.objective.footprint(self.train.batch_size)
        if footprint.step:
            self.run.log(f"memory for contrast: {footprint}")
            announce(f"{self.title}: memory for contrast: {footprint}", self.show)
        before = 0
        for stage in self.stages:
            if done < before + stage.epochs:
                own = max(done - before, 0)
                self._begin(stage, state if own else None)
                yield from self._train(stage, before, own)
            before += stage.epochs

    def fitted(self) -> Fitted:
        """What came of a run that is at its end."""
        rows = self.run.rows()
        last = [row for row in rows if row["stage"] == MAIN]
        rate = sum(row["images"] for row in last) / sum(row["seconds"] for row in last)
        return Fitted(
            last=_accuracy(last[-1], self.test),
            best_top1=max(row["test_top1"] for row in last) if self.test else None,
            seconds=sum(row["seconds"] for row in rows),
            images_per_second=rate,
            peak_memory_mb=peak_memory_mb(self.device),
        )

    def _begin(self, stage: Stage, state: dict[str, Any] | None) -> None:
        """A new optimiser for a stage, or the one that a checkpoint left inside it."""
        trained = [] if stage.student is None else list(self.student.parameters())
        self.optimizer = torch.optim.SGD(
            [*trained, *stage.objective.parameters()],
            lr=self.training.lr if stage.lr is None else stage.lr,
            momentum=self.training.momentum,
            weight_decay=self.training.weight_decay,
            nesterov=self.training.nesterov,
        )
        self.scheduler: LRScheduler
        if stage.lr is None:
            self.scheduler = schedule(self.optimizer, self.training, len(self.train))
        else:
            self.scheduler = ConstantLR(self.optimizer, factor=1.0)
        if state is not None:
            with self._of_this_run():
                self.optimizer.load_state_dict(state["optimizer"])
                self.scheduler.load_state_dict(state["scheduler"])
        elif stage.objective.filling:
            self._fill(stage)

    def _train(self, stage: Stage, before: int, done: int) -> Iterator[None]:
        """The epochs of a stage that are not done; epochs are counted on from stage to stage."""
        saved_at = time.monotonic()
        title = self.title if stage.name == MAIN else f"{self.title}: first {stage.name}"
        with TrainingProgress(title, stage.epochs, len(self.train), done, self.show) as progress:
            for epoch in range(done + 1, stage.epochs + 1):
                row = yield from self._epoch(stage, epoch, before + epoch, progress)
                self.run.record(row)
                self.run.log(f"{stage.name}: epoch {epoch}/{stage.epochs}: {row}")
                progress.epoch(epoch, row["loss"], row.get("test_top1"), row["images_per_second"])
                minutes = (time.monotonic() - saved_at) / 60
                overdue = 0 < self.training.checkpoint_minutes <= minutes
                regular = (before + epoch) % self.training.checkpoint_epochs == 0
                if epoch == stage.epochs or overdue or regular:
                    self._save(before + epoch)
                    saved_at = time.monotonic()

    def _epoch(
        self, stage: Stage, epoch: int, passes: int, progress: TrainingProgress
    ) -> Generator[None, None, dict[str, Any]]:
        if stage.student is not None:
            self.student.train(not stage.keeps_statistics)
        stage.objective.train()
        stage.objective.begin_epoch(epoch)
        start, elsewhere, lr = time.perf_counter(), 0.0, 0.0
        sums: dict[str, Tensor] = {}
        total = torch.zeros((), device=self.device)
        for step, batch in enumerate(self.train.epoch(passes), start=1):
            loss = self._loss(stage, batch.to(self.device))
            self.accelerator.backward(stage.weight * loss.total)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            lr = self.optimizer.param_groups[0]["lr"]
            self.scheduler.step()
            total += loss.total.detach()
            for name, value in loss.terms.items():
                sums[name] = sums[name] + value if name in sums else value
            if step % _FINITE_EVERY == 0 or step == len(self.train):
                self._check_finite(total, sums, epoch, step)
            progress.step()
            left = time.perf_counter()
            yield
            elsewhere += time.perf_counter() - left
        seconds = time.perf_counter() - start - elsewhere
        images = len(self.train) * self.train.batch_size
        row: dict[str, Any] = {
            "stage": stage.name,
            "epoch": epoch,
            "loss": float(total) / len(self.train),
            "terms": {name: float(value) / len(self.train) for name, value in sums.items()},
            "lr": lr,
            "images": images,
            "seconds": seconds,
            "images_per_second": images / seconds,
        }
        if self.test is not None and stage.name == MAIN:
            accuracy = self.evaluate(self.student, self.test)
            row |= {"test_top1": accuracy.top1, "test_top5": accuracy.top5}
        return row

    def _loss(self, stage: Stage, batch: Batch) -> Loss:
        """The objective's loss of a batch; adapters compute in the networks' precision."""
        with self._autocast():
            return stage.objective(*self._features(stage, batch), batch)  # type: ignore[no-any-return]

    def _features(self, stage: Stage, batch: Batch) -> tuple[Features, Features | None]:
        """What both networks give for a batch; the teacher without gradient."""
        teacher = None
        with self._autocast():
            if stage.teacher is not None:
                with torch.no_grad():
                    teacher = stage.teacher(batch.images)
            student = teacher if stage.student is None else stage.student(batch.images)
        assert student is not None
        return student, teacher

    @torch.no_grad()
    def _fill(self, stage: Stage) -> None:
        """Fill the objective's memories from a pass over the training set.

        The student is in training mode, as it will be when these rows are its negatives, but its
        BatchNorm statistics are left as they were.
        """
        network, samples = self.student.train(), 0
        buffers = [(buffer, buffer.clone()) for buffer in network.buffers()]
        for batch in self.train.epoch(0, cover=True):
            batch = batch.to(self.device)
            stage.objective.fill(*self._features(stage, batch), batch)
            samples += len(batch)
            if stage.objective.full_after(samples):
                break
        for buffer, before in buffers:
            buffer.copy_(before)
        self.run.log(f"memories filled from {samples} training images")

    def evaluate(self, network: nn.Module, loader: Loader) -> Accuracy:
        """Accuracy of a network on a data set, in the precision of training."""
        network.eval()
        with self._autocast():
            return evaluate(network, loader, self.num_classes, self.device)

    @contextmanager
    def _autocast(self) -> Iterator[None]:
        dtype = autocast_dtype(self.training.precision, self.device)
        with torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None):
            yield

    def _check_finite(self, total: Tensor, sums: dict[str, Tensor], epoch: int, step: int) -> None:
        if bool(total.isfinite()):
            return
        bad = [name for name, value in sums.items() if not bool(value.isfinite())]
        raise TrainingError(
            f"The loss is not finite by step {step} of epoch {epoch}, at learning rate "
            f"{self.optimizer.param_groups[0]['lr']:.3g}; it comes from: "
            f"{', '.join(bad) or 'the sum'}. Usual causes: NaN in the images, or too large a "
            f"learning rate: try a tenth with --set optimizer.lr={self.training.lr / 10:g}. "
            f"Checkpoints are in {self.run.checkpoints}."
        )

    def _save(self, epoch: int) -> None:
        state = {
            "version": _CHECKPOINT_VERSION,
            "epoch": epoch,
            "student": self.student.state_dict(),
            "objective": self.objective.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "torch_rng": torch.get_rng_state(),
            "device_rng": torch.cuda.get_rng_state() if self.device.type == "cuda" else None,
            "python_rng": random.getstate(),
            "numpy_rng": _numpy_state(),
        }
        self.run.save_checkpoint(state, epoch)

    def _resume(self) -> dict[str, Any] | None:
        """Take up the newest checkpoint, but for the optimiser; None for a fresh run."""
        state = self.run.last_checkpoint()
        if state is None:
            self.run.keep_rows(0)
            return None
        with self._of_this_run():
            if state["version"] != _CHECKPOINT_VERSION:
                raise ValueError(f"it is of version {state['version']}")
            self.student.load_state_dict(state["student"])
            self.objective.load_state_dict(state["objective"])
        torch.set_rng_state(state["torch_rng"])
        if state["device_rng"] is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(state["device_rng"])
        random.setstate(state["python_rng"])
        _set_numpy_state(state["numpy_rng"])
        self.run.keep_rows(state["epoch"])
        self.run.log(f"continued after epoch {state['epoch']}")
        return state

    @contextmanager
    def _of_this_run(self) -> Iterator[None]:
        try:
            yield
        except (KeyError, RuntimeError, ValueError) as error:
            raise CheckpointError(
                f"The checkpoint in {self.run.path} belongs to another run: {error}. Continue with "
                "the recipe in that folder, or choose another --out."
            ) from error


def accelerator(training: Training) -> Accelerator:
    """The devices to train on, and the seed of everything random."""
    if training.device == "cuda" and not torch.cuda.is_available():
        raise TrainingError("Device 'cuda' was asked for, and PyTorch sees none. Use device=cpu.")
    # Accelerate remembers the first device of a process; every run chooses its own.
    AcceleratorState._reset_state(reset_partial_state=True)
    made = Accelerator(cpu=training.device == "cpu", mixed_precision="no")
    if made.num_processes > 1 or made.gradient_accumulation_steps > 1:
        raise TrainingError(
            "A run is one process without gradient accumulation; the launcher asks for "
            f"{made.num_processes} processes and {made.gradient_accumulation_steps} steps. Start "
            "cktf without a launcher."
        )
    set_seed(training.seed)
    return made


def place(network: nn.Module, training: Training, device: torch.device) -> None:
    """Put a network where and how it is to compute."""
    network.to(device)
    if training.channels_last:
        network.to(memory_format=torch.channels_last)


def _numpy_state() -> tuple[Tensor, int, int, float]:
    """NumPy's global generator, in types that a checkpoint may hold."""
    _, keys, position, has_gauss, gauss = cast(tuple[Any, ...], np.random.get_state(legacy=True))
    return torch.from_numpy(keys.astype(np.int64)), int(position), int(has_gauss), float(gauss)


def _set_numpy_state(state: tuple[Tensor, int, int, float]) -> None:
    keys, position, has_gauss, gauss = state
    words = keys.numpy().astype(np.uint32)
    np.random.set_state(("MT19937", words, position, has_gauss, gauss))


def schedule(optimizer: torch.optim.Optimizer, training: Training, steps: int) -> LRScheduler:
    """The learning rate, step by step."""
    total = training.epochs * steps
    if training.schedule == "onecycle":
        return OneCycleLR(optimizer, training.lr, total_steps=total, cycle_momentum=False)
    at = [round(fraction * total) for fraction in training.milestones]
    return MultiStepLR(optimizer, at, training.gamma)


def _accuracy(row: dict[str, Any], test: Loader | None) -> Accuracy | None:
    if test is None:
        return None
    return Accuracy(row["test_top1"], row["test_top5"], test.samples)
