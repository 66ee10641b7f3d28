"""The one training loop: teacher, student, objective, step.

It knows no method by name: whatever is trained is an `Objective` over `Features`.
"""

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import set_seed
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler, MultiStepLR, OneCycleLR

from cktf.batch import Batch
from cktf.data import Loader
from cktf.engine.evaluate import Accuracy, evaluate
from cktf.engine.progress import TrainingProgress, announce
from cktf.engine.run_folder import RunFolder
from cktf.engine.settings import Training, autocast_dtype, peak_memory_mb
from cktf.errors import CheckpointError, TrainingError
from cktf.objectives import Objective
from cktf.taps import Features, Tap

# How often the running loss is read back: a read waits for the device.
_FINITE_EVERY = 20
_CHECKPOINT_VERSION = 1


@dataclass(frozen=True)
class Fitted:
    """What training gave.

    Attributes:
        last: accuracy after the last epoch; None without test data.
        best_top1: the best epoch's, chosen on the test set, in per cent.
        seconds: spent on training, evaluation left out.
        images_per_second: of training.
        peak_memory_mb: largest memory held.
    """

    last: Accuracy | None
    best_top1: float | None
    seconds: float
    images_per_second: float
    peak_memory_mb: float


class Trainer:
    """Trains one network on one objective.

    Args:
        student: the tapped network that is trained.
        teacher: the tapped frozen network; None for an objective that needs none.
        objective: what is minimised; its own parameters train too.
        train: training batches.
        test: evaluated after every epoch; None for no evaluation.
        num_classes: logits of the student.
        training: how.
        run: where everything is written.
        title: shown beside the progress bar.
        show: whether progress is shown.
    """

    def __init__(
        self,
        student: Tap,
        teacher: Tap | None,
        objective: Objective,
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
        self.student, self.teacher, self.objective = student, teacher, objective
        self.train, self.test, self.num_classes = train, test, num_classes
        self.training, self.run, self.title, self.show = training, run, title, show
        place(student.model, training, self.device)
        objective.to(self.device)
        if teacher is not None:
            place(teacher.model, training, self.device)
            teacher.model.eval().requires_grad_(False)
        optimizer = torch.optim.SGD(
            [*student.model.parameters(), *objective.parameters()],
            lr=training.lr,
            momentum=training.momentum,
            weight_decay=training.weight_decay,
            nesterov=training.nesterov,
        )
        self.scheduler = schedule(optimizer, training, len(train))
        self.optimizer = optimizer

    def fit(self) -> Fitted:
        """Train to the end, from the newest checkpoint if the run folder has one."""
        done = self._resume()
        footprint = self.objective.footprint(self.train.batch_size)
        if footprint.step:
            self.run.log(f"memory for contrast: {footprint}")
            announce(f"{self.title}: memory for contrast: {footprint}", self.show)
        if not done and self.objective.filling:
            self._fill()
        training, epochs = self.training, self.training.epochs
        saved_at = time.monotonic()
        with TrainingProgress(self.title, epochs, len(self.train), done, self.show) as progress:
            for epoch in range(done + 1, epochs + 1):
                row = self._epoch(epoch, progress)
                self.run.record(row)
                self.run.log(f"epoch {epoch}/{epochs}: {row}")
                progress.epoch(epoch, row["loss"], row.get("test_top1"), row["images_per_second"])
                overdue = 0 < training.checkpoint_minutes <= (time.monotonic() - saved_at) / 60
                if epoch == epochs or overdue or epoch % training.checkpoint_epochs == 0:
                    self._save(epoch)
                    saved_at = time.monotonic()
        rows = self.run.rows()
        seconds = sum(row["seconds"] for row in rows)
        images = sum(row["images"] for row in rows)
        return Fitted(
            last=_accuracy(rows[-1], self.test) if rows else None,
            best_top1=max((row["test_top1"] for row in rows), default=None) if self.test else None,
            seconds=seconds,
            images_per_second=images / seconds if seconds else 0.0,
            peak_memory_mb=peak_memory_mb(self.device),
        )

    def _epoch(self, epoch: int, progress: TrainingProgress) -> dict[str, Any]:
        self.student.model.train()
        self.objective.train()
        self.objective.begin_epoch(epoch)
        start, lr = time.perf_counter(), 0.0
        sums: dict[str, Tensor] = {}
        total = torch.zeros((), device=self.device)
        for step, batch in enumerate(self.train.epoch(epoch), start=1):
            batch = batch.to(self.device)
            student, teacher = self._features(batch)
            loss = self.objective(student, teacher, batch)
            self.accelerator.backward(loss.total)
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
        seconds = time.perf_counter() - start
        images = len(self.train) * self.train.batch_size
        row: dict[str, Any] = {
            "epoch": epoch,
            "loss": float(total) / len(self.train),
            "terms": {name: float(value) / len(self.train) for name, value in sums.items()},
            "lr": lr,
            "images": images,
            "seconds": seconds,
            "images_per_second": images / seconds,
        }
        if self.test is not None:
            accuracy = self.evaluate(self.student.model, self.test)
            row |= {"test_top1": accuracy.top1, "test_top5": accuracy.top5}
        return row

    def _features(self, batch: Batch) -> tuple[Features, Features | None]:
        """What both networks give for a batch; the teacher without gradient."""
        with self._autocast():
            student = self.student(batch.images)
            if self.teacher is None:
                return student, None
            with torch.no_grad():
                return student, self.teacher(batch.images)

    @torch.no_grad()
    def _fill(self) -> None:
        """Fill the objective's memories from a pass over the training set.

        The student is in training mode, as it will be when these rows are its negatives, but its
        BatchNorm statistics are left as they were.
        """
        network, samples = self.student.model.train(), 0
        buffers = [(buffer, buffer.clone()) for buffer in network.buffers()]
        for batch in self.train.epoch(0, cover=True):
            batch = batch.to(self.device)
            self.objective.fill(*self._features(batch), batch)
            samples += len(batch)
            if self.objective.full_after(samples):
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
            "student": self.student.model.state_dict(),
            "objective": self.objective.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "torch_rng": torch.get_rng_state(),
            "device_rng": torch.cuda.get_rng_state() if self.device.type == "cuda" else None,
            "python_rng": random.getstate(),
            "numpy_rng": _numpy_state(),
        }
        self.run.save_checkpoint(state, epoch)

    def _resume(self) -> int:
        """Take up the newest checkpoint; epochs done, 0 for a fresh run."""
        state = self.run.last_checkpoint()
        if state is None:
            self.run.keep_rows(0)
            return 0
        try:
            if state["version"] != _CHECKPOINT_VERSION:
                raise ValueError(f"it is of version {state['version']}")
            self.student.model.load_state_dict(state["student"])
            self.objective.load_state_dict(state["objective"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.scheduler.load_state_dict(state["scheduler"])
        except (KeyError, RuntimeError, ValueError) as error:
            raise CheckpointError(
                f"The checkpoint in {self.run.path} belongs to another run: {error}. Continue with "
                "the recipe in that folder, or choose another --out."
            ) from error
        torch.set_rng_state(state["torch_rng"])
        if state["device_rng"] is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(state["device_rng"])
        random.setstate(state["python_rng"])
        _set_numpy_state(state["numpy_rng"])
        self.run.keep_rows(state["epoch"])
        self.run.log(f"continued after epoch {state['epoch']}")
        return int(state["epoch"])


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
