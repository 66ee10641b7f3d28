"""Losses and gradients as they come: summed for the record, and known to be finite.

Reading a number back waits for the device. On the CPU nothing waits, and every step is looked at
before it changes the student. On another device the numbers of some steps stay there and are looked
at together, and always before a checkpoint: what is saved is from before the first that is not
finite. Only where such steps are to be skipped is every one waited for.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from cktf.batch import Batch
from cktf.contrast import Footprint
from cktf.errors import TrainingError
from cktf.objectives import Loss

_LOOK_EVERY = 20
# So many in a row are no accident: the student itself is no longer finite.
_MOST_SKIPPED = 100
_TOTAL, _GRADIENT = "loss", "gradient"


@dataclass
class EpochMetrics:
    """The numbers of one epoch so far.

    Attributes:
        names: `loss`, `gradient` (its norm) and the terms.
        sums: of each over the steps that counted, on the device; None before the first.
        counted, skipped, in_a_row: steps.
        lr: learning rate of the last step that counted.
        seconds: spent.
        recent: step, learning rate and numbers of steps that were not looked at yet.
    """

    names: list[str] = field(default_factory=list)
    sums: Tensor | None = None
    counted: int = 0
    skipped: int = 0
    in_a_row: int = 0
    lr: float = 0.0
    seconds: float = 0.0
    recent: list[tuple[int, float, Tensor]] = field(default_factory=list)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of it."""
        kept = ("names", "counted", "skipped", "in_a_row", "lr", "seconds")
        sums = None if self.sums is None else self.sums.cpu()
        return {name: getattr(self, name) for name in kept} | {"sums": sums}

    @classmethod
    def restored(cls, state: dict[str, Any], device: torch.device) -> "EpochMetrics":
        """The one that was saved."""
        tally = cls(**state)
        tally.sums = None if tally.sums is None else tally.sums.to(device)
        return tally

    def numbers(self, loss: Loss, norm: Tensor) -> Tensor:
        """Loss, gradient and terms of a step in one tensor."""
        self.names = [_TOTAL, _GRADIENT, *loss.terms]
        return torch.stack([loss.total.detach(), norm, *loss.terms.values()])

    def add(self, numbers: Tensor, lr: float) -> None:
        """Count a step."""
        self.lr = lr
        self.sums = numbers.clone() if self.sums is None else self.sums.add_(numbers)
        self.counted, self.in_a_row = self.counted + 1, 0

    def skip(self, epoch: int, step: int) -> None:
        """Count a step that changes nothing."""
        self.skipped, self.in_a_row = self.skipped + 1, self.in_a_row + 1
        if self.in_a_row >= _MOST_SKIPPED:
            raise TrainingError(
                f"{_MOST_SKIPPED} steps in a row were not finite, the last of them step {step} of "
                f"epoch {epoch}: there is nothing left to skip to. Try a smaller optimizer.lr."
            )

    def note(self, step: int, lr: float, numbers: Tensor) -> bool:
        """Keep a step to be looked at later; True when it is time."""
        self.recent.append((step, lr, numbers))
        return len(self.recent) >= _LOOK_EVERY

    def first_bad(self) -> tuple[int, float, list[str]] | None:
        """Step, learning rate and names of what is not finite, of those kept; it waits for them."""
        if not self.recent:
            return None
        finite = torch.stack([numbers for _, _, numbers in self.recent]).isfinite().tolist()
        recent, self.recent = self.recent, []
        for (step, lr, _), row in zip(recent, finite, strict=True):
            if not all(row):
                return step, lr, [n for n, good in zip(self.names, row, strict=True) if not good]
        return None

    def row(self) -> dict[str, Any]:
        """Means over the steps that counted, for the record."""
        if self.sums is None:
            raise TrainingError(
                "No step of the epoch was finite, and all were skipped. Look at the images, and "
                "try a smaller optimizer.lr."
            )
        means = dict(zip(self.names, (self.sums.double() / self.counted).tolist(), strict=True))
        loss, gradient = means.pop(_TOTAL), means.pop(_GRADIENT)
        return {
            "loss": loss,
            "terms": means,
            "gradient_norm": gradient,
            "lr": self.lr,
            "skipped": self.skipped,
        }


def gradient_norm(parameters: Sequence[Tensor], clip: float | None) -> Tensor:
    """Length of the whole gradient before it is clipped, on the device.

    Args:
        parameters: whose gradients count, where they have one.
        clip: length to which a longer gradient is shortened; None leaves it.
    """
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if clip is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, clip, norm)
    return norm


def not_finite(
    bad: tuple[int, float, list[str]],
    epoch: int,
    batch: Batch | None,
    student: nn.Module,
    parameters: Sequence[Tensor],
) -> TrainingError:
    """What to say of a step whose numbers are not finite.

    Args:
        bad: step, learning rate and names of what is not finite.
        epoch: in which it was.
        batch: of that step; None where steps came after it.
        student: for the names of its parameters.
        parameters: all that train, with the gradients of that step unless steps came after it.
    """
    step, lr, names = bad
    terms = [name for name in names if name not in (_TOTAL, _GRADIENT)]
    if terms:
        where = f"The loss is not finite at step {step} of epoch {epoch}; it comes from: "
        where += ", ".join(terms)
    elif _TOTAL in names:
        where = f"The loss is not finite at step {step} of epoch {epoch}; it comes from: the sum"
    else:
        where = (
            f"The gradient is not finite at step {step} of epoch {epoch}; the loss is"
            f"{'' if batch is None else _of(student)}"
        )
    return TrainingError(
        f"{where}. The learning rate was {lr:.3g}. Likely cause: {_cause(batch, parameters)} Or go "
        "on without such steps: --on-nonfinite skip."
    )


def _of(student: nn.Module) -> str:
    """The first parameter of the student whose gradient is at fault."""
    for name, parameter in student.named_parameters():
        if parameter.grad is not None and not bool(parameter.grad.isfinite().all()):
            return f", and the first parameter at fault is {name}"
    return ""


def _cause(batch: Batch | None, parameters: Sequence[Tensor]) -> str:
    if batch is None:
        return (
            "not known, for it was seen some steps later. --on-nonfinite skip looks at every step; "
            "a tenth of the learning rate, --set optimizer.lr=…, or --set optimizer.clip=1 may do."
        )
    if not bool(batch.images.isfinite().all()):
        whole = batch.images.flatten(1).isfinite().all(dim=1)
        samples = batch.index[~whole].tolist()[:5]
        return f"the images of samples {samples} hold NaN or infinity: mend or leave them out."
    if not all(bool(p.isfinite().all()) for p in parameters):
        return (
            "weights grew without bound in the steps before. Try a tenth of the learning rate with "
            "--set optimizer.lr=…, or --set optimizer.clip=1."
        )
    return (
        "too large a learning rate, or numbers too large for the precision. Try a tenth with --set "
        "optimizer.lr=…, --set optimizer.clip=1, or --set runtime.precision=float32."
    )


class BufferCopies:
    """Copies of the buffers that a forward pass changes, to restore where its step is skipped.

    These are the student's, and those of the objective's BatchNorm layers. Memories change in
    `Objective.after_step`, which a skipped step does not reach.
    """

    def __init__(self, student: nn.Module, objective: nn.Module) -> None:
        norms = (module for module in objective.modules() if isinstance(module, _NormBase))
        buffers = [*student.buffers(), *(buffer for norm in norms for buffer in norm.buffers())]
        self._copies = [(buffer, buffer.clone()) for buffer in buffers]

    @torch.no_grad()
    def restore(self) -> None:
        """Put the buffers back to before the step."""
        for buffer, copy in self._copies:
            buffer.copy_(copy)


@contextmanager
def enough_memory(
    batch_size: int,
    device: torch.device,
    footprint: Footprint | None = None,
    *,
    training: bool = False,
) -> Iterator[None]:
    """Inside, a network sees batches of images; too little memory is told with what to change.

    Args:
        batch_size: of the images.
        device: where it is.
        footprint: of contrast.
        training: whether that is `data.batch_size`, and not what fits test images.

    Raises:
        TrainingError: memory was not enough.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        told = out_of_memory(error, footprint or Footprint(), batch_size, device, training=training)
        if told is None:
            raise
        raise told from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is that memory was not enough: PyTorch has none of its own on the CPU."""
    kinds = (MemoryError, torch.OutOfMemoryError)
    return isinstance(error, kinds) or "can't allocate memory" in str(error)


def out_of_memory(
    error: BaseException,
    footprint: Footprint,
    batch_size: int,
    device: torch.device,
    *,
    training: bool = True,
) -> TrainingError | None:
    """What to change where memory was not enough; None for an error of another kind.

    Args:
        error: what was raised.
        footprint: of contrast.
        batch_size: of the images that a network saw.
        device: where it is.
        training: whether that is `data.batch_size`, and not what fits test images.
    """
    if not is_out_of_memory(error):
        return None
    text, advice = str(error), []
    if training and batch_size > 2:
        advice.append(f"smaller batches, --set data.batch_size={max(2, batch_size // 2)}")
    options = [o for o in footprint.options(device) if not o.startswith("data.")]
    if options:
        advice.append(
            f"for contrast, which takes {footprint}, of options.METHOD: {', or '.join(options)}"
        )
    if device.type == "cuda":
        advice.append("less precision, --set runtime.precision=bfloat16")
    reason = text.splitlines()[0][:200] if text else "no more memory"
    return TrainingError(
        f"Memory of {device} is not enough for batches of {batch_size} ({reason}). Try "
        f"{'; or '.join(advice) or 'a smaller network'}."
    )
