"""The rehearsal of a run: a training step of each phase, before anything is written.

It finds what fails only in training mode, with a gradient or in the precision of the run, and a
student that would not learn. Networks, memories and random generators end as they began.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from cktf.batch import Batch
from cktf.engine import (
    Runtime,
    TrainPhase,
    TrainStep,
    is_out_of_memory,
    preserve_buffers,
    preserve_rng,
)
from cktf.errors import CktfError, ModelError, TapError, TrainingError
from cktf.objectives import Loss
from cktf.recipes import CUSTOM
from cktf.taps import Features, freeze, preserve_modes
from cktf.taps.features import FEATURES
from cktf.workflows.components import RunComponents

# A loss below this is 0 but for rounding: there is nothing to learn.
_NO_LOSS = 1e-6


@dataclass(frozen=True)
class Rehearsal:
    """A training step of the main phase.

    Attributes:
        student, teacher: their features of the batch; teacher None where nothing reads it.
        loss: of the batch.
        without_gradient: names of the student's trainable parameters that the backward pass from
            loss and logits does not reach.
    """

    student: Features
    teacher: Features | None
    loss: Loss
    without_gradient: list[str]


def rehearse(
    phases: Sequence[TrainPhase], components: RunComponents, batch: Batch, *, skips: bool
) -> Rehearsal:
    """Take a step of each phase on a batch, without the optimizer; returns that of the last.

    Args:
        phases: of the run.
        components: of the run; its networks are moved to its device.
        batch: the first training batch.
        skips: whether the run skips steps whose loss is not finite.

    Raises:
        ModelError: a network fails in training, or no gradient reaches the student.
        TrainingError: the loss is not finite, and the run does not skip such steps; or a network
            has no deterministic gradient, and the run asks for one.
    """
    runtime, student, teacher = components.runtime, components.student, components.teacher
    # Cached features are computed anew where the number of the view is not known.
    batch = replace(batch.to(runtime.device), view=None)
    with (
        runtime.gpu_algorithms(),
        preserve_rng(runtime.device),
        preserve_modes(student),
        preserve_modes(teacher),
    ):
        runtime.to_device(student)
        if teacher is not None:
            freeze(teacher)
            runtime.to_device(teacher)
        for phase in phases:
            phase.step.objective.to(runtime.device)
            phase.step.train()
            with preserve_buffers(phase.step), _preserve_gradients(phase.step):
                rehearsal = _rehearse_phase(phase.step, components, batch, skips)
    return rehearsal


def _rehearse_phase(
    step: TrainStep, components: RunComponents, batch: Batch, skips: bool
) -> Rehearsal:
    with _explain_failure(step, components, batch):
        student, teacher, loss = _take_step(step, components.runtime, batch)
    if not skips and not bool(loss.total.isfinite()):
        raise _explain_nonfinite(components, student, teacher, loss)
    if step.student is None:
        return Rehearsal(student, teacher, loss, [])
    trained = {n: p for n, p in step.student.named_parameters() if p.requires_grad}
    gradients = [p.grad for p in trained.values() if p.grad is not None]
    if not any(bool(g.any()) for g in gradients) and not float(loss.total.abs()) < _NO_LOSS:
        raise ModelError(
            f"No gradient of the loss reaches the {components.trained_title}, so it would "
            "learn nothing. Look in its forward for no_grad or inference_mode (a decorator left "
            "on?), detach, and steps without a gradient such as argmax or round; and at which of "
            "its parameters have requires_grad."
        )
    return Rehearsal(student, teacher, loss, [n for n, p in trained.items() if p.grad is None])


def _take_step(
    step: TrainStep, runtime: Runtime, batch: Batch
) -> tuple[Features, Features | None, Loss]:
    """Forward and backward; the gradients stay."""
    with runtime.autocast():
        student, teacher = step.features(batch)
        loss = step.objective(student, teacher, batch)
    # A classifier that no term reads is no mistake; its gradient is 0 then.
    roots = [root for root in (loss.total, 0 * student.logits.sum()) if root.requires_grad]
    if roots:
        torch.autograd.backward(roots)
    return student, teacher, replace(loss, total=loss.total.detach())


@contextmanager
def _preserve_gradients(step: TrainStep) -> Iterator[None]:
    """Clear the gradients of what trains; restore a user's own on exit."""
    gradients = [(parameter, parameter.grad) for parameter in step.parameters()]
    step.zero_grad(set_to_none=True)
    try:
        yield
    finally:
        for parameter, gradient in gradients:
            parameter.grad = gradient


@contextmanager
def _explain_failure(step: TrainStep, components: RunComponents, batch: Batch) -> Iterator[None]:
    """Report an error inside as that of the network that fails, with what makes it fail."""
    try:
        yield
    except Exception as error:
        if is_out_of_memory(error) or (
            isinstance(error, CktfError) and not isinstance(error, TapError)
        ):
            raise
        runtime, teacher_tap = components.runtime, step.teacher_tap
        who = components.trained_title
        operation, _, reason = str(error).partition(" does not have a deterministic impl")
        if reason:
            raise TrainingError(
                f"A GPU has no deterministic algorithm for {operation}, which the {who} takes in a "
                "training step. Put another layer in its place (of average pooling, one with fixed "
                "windows; of resizing, nearest), or train without runtime.deterministic."
            ) from error
        if teacher_tap is not None and not _works(_run_teacher, step, runtime, batch):
            who = _teacher_title(components)
        cause = (str(error).splitlines() or [type(error).__name__])[0]
        in_float32 = replace(runtime, precision="float32")
        if runtime.dtype != torch.float32 and _works(_take_step, step, in_float32, batch):
            raise ModelError(
                f"The {who} works in float32 and not in {str(runtime.dtype).removeprefix('torch.')}"
                f", the precision of this run: {cause} Train in float32: --set "
                "runtime.precision=float32."
            ) from error
        message = f"The {who} works in evaluation and fails in a training step: {cause}"
        if "classifier gives logits" in cause:
            message += (
                " Auxiliary heads, which only training has, are left out by an option: "
                "torchvision:googlenet(aux_logits=False)."
            )
        raise ModelError(message) from error


def _run_teacher(step: TrainStep, runtime: Runtime, batch: Batch) -> None:
    assert step.teacher_tap is not None
    with torch.no_grad(), runtime.autocast():
        step.teacher_tap.extract(batch)


def _works(
    function: Callable[[TrainStep, Runtime, Batch], Any],
    step: TrainStep,
    runtime: Runtime,
    batch: Batch,
) -> bool:
    try:
        function(step, runtime, batch)
    except Exception:  # networks raise errors of many types
        return False
    return True


def _explain_nonfinite(
    components: RunComponents, student: Features, teacher: Features | None, loss: Loss
) -> CktfError:
    """Build the error for a first loss that is not finite, by its cause."""
    names = _teacher_title(components), components.trained_title
    for who, features in zip(names, (teacher, student), strict=True):
        if features is not None and (bad := list(_nonfinite_features(features))):
            return ModelError(
                f"The {who} gives NaN or infinity for finite images, before any training: its "
                f"{', '.join(bad)}. Look at its weights, for a logarithm or a division of 0 in its "
                "forward, and at how it normalizes images; --set runtime.precision=float32 helps "
                "where bfloat16 is too coarse."
            )
    terms = [name for name, value in loss.terms.items() if not bool(value.isfinite())]
    return TrainingError(
        f"The loss of the first batch is not finite, before any training; it comes from: "
        f"{', '.join(terms) or 'the sum'}. Look at the options of that method, and at the size of "
        "the networks' outputs."
    )


def _nonfinite_features(features: Features) -> Iterator[str]:
    for name in FEATURES:
        if not all(bool(tensor.isfinite().all()) for tensor in feature_tensors(features, name)):
            yield name


def feature_tensors(features: Features, name: str) -> list[Tensor]:
    """List the tensors of a kind of features, such as `stages`; empty where they are not tapped."""
    tensors: list[Any] = [getattr(features, name)]
    while any(isinstance(value, tuple) for value in tensors):
        tensors = [t for v in tensors for t in (v if isinstance(v, tuple) else (v,))]
    return [tensor for tensor in tensors if tensor is not None]


def check_weights(components: RunComponents) -> None:
    """Raise ModelError if the teacher or the student has NaN in its weights."""
    for who, network in (
        (_teacher_title(components), components.teacher),
        (components.trained_title, components.student),
    ):
        tensors = [] if network is None else [*network.named_parameters(), *network.named_buffers()]
        # Lazy layers and the device meta have no values yet.
        known = [(name, t) for name, t in tensors if not is_lazy(t) and not t.is_meta]
        bad = [name for name, t in known if t.is_floating_point() and bool(t.isnan().any())]
        if bad:
            others = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
            raise ModelError(
                f"The {who} has NaN in its weights, in {bad[0]}{others}, so nothing can be learned "
                "with it. Its training failed, or its file is damaged: take weights of an earlier "
                "checkpoint, or train it again with a lower learning rate."
            )


def _teacher_title(components: RunComponents) -> str:
    return f"teacher {components.teacher_name or CUSTOM}"
