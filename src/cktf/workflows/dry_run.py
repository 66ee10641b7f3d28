"""A dry run: the training step on two batches, which shows what is compared and what it costs."""

import time
from dataclasses import dataclass, field, replace
from itertools import islice

import torch

from cktf.batch import Batch
from cktf.engine import (
    default_tensors,
    explain_out_of_memory,
    gradient_norm,
    peak_memory_mb,
    preserve_buffers,
)
from cktf.recipes import Recipe
from cktf.taps import CachedTap, FeaturePaths, Features, Tap, freeze, preserve_modes
from cktf.workflows.components import RunComponents
from cktf.workflows.objective_setup import set_up_objective
from cktf.workflows.run_warnings import describe_input

_BATCHES = 2


@dataclass(frozen=True)
class NetworkPreview:
    """A network in a dry run.

    Attributes:
        name: name of the network.
        paths: paths of its features.
        features: the features of a batch that the method reads.
        parameters: number of parameters.
        input: size and normalization of its input.
    """

    name: str
    paths: FeaturePaths
    features: Features
    parameters: int
    input: str


@dataclass(frozen=True)
class DryRun:
    """The results of a dry run.

    Attributes:
        student, teacher: the networks; teacher None where the run has none.
        data: one line about the images.
        terms: loss of each batch by term.
        gradient: gradient norm over the student's parameters, of the last batch.
        step_seconds: time of the last batch's step, loading included.
        steps: number of steps in an epoch.
        epochs: number of epochs of the run, initialization phases included.
        objective: weight of each term.
        contrast: memory of the contrastive objectives; empty without any.
        peak_memory_mb: peak memory so far, in MiB.
        advice: what looks wrong, each with its fix.
    """

    student: NetworkPreview
    teacher: NetworkPreview | None
    data: str
    terms: list[dict[str, float]]
    gradient: float
    step_seconds: float
    steps: int
    epochs: int
    objective: str
    contrast: str
    peak_memory_mb: float
    advice: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Step:
    batch: Batch
    student: Features
    teacher: Features | None
    terms: dict[str, float]
    seconds: float


@default_tensors()
@torch.inference_mode(False)
def preview_run(recipe: Recipe, components: RunComponents) -> DryRun:
    """Run the training step, forward and backward, on two batches; CktfError if it does not fit.

    No weight changes, and nothing is written.
    """
    setup, runtime = set_up_objective(recipe, components), components.runtime
    step, device = setup.phases[-1].step, runtime.device
    batch_size = components.data.train.batch_size
    footprint = setup.objective.footprint(batch_size)
    runtime.reset_seed()
    with (
        runtime.gpu_algorithms(),
        explain_out_of_memory(batch_size, device, footprint, training=True),
        preserve_modes(components.student),
        preserve_modes(components.teacher),
    ):
        runtime.to_device(components.student)
        if components.teacher is not None:
            freeze(components.teacher)
            runtime.to_device(components.teacher)
        setup.objective.to(device)
        steps = []
        step.train()
        start = time.perf_counter()
        with preserve_buffers(step):
            for batch in islice(components.data.train.epoch(1, device=device), _BATCHES):
                # Without its view, no teacher cache is written.
                batch = replace(batch, view=None)
                components.student.zero_grad(set_to_none=True)
                with runtime.autocast():
                    features = step.features(batch)
                    loss = step.objective(*features, batch)
                if loss.total.requires_grad:
                    torch.autograd.backward(loss.total)
                step.objective.after_step()
                terms = {name: float(value) for name, value in loss.terms.items()}
                steps.append(_Step(batch, *features, terms, time.perf_counter() - start))
                start = time.perf_counter()
    last = steps[-1]
    assert step.student_tap is not None
    student = _preview(step.student_tap, components.student_name, last.student, last.batch)
    teacher = None
    if step.teacher_tap is not None and last.teacher is not None:
        assert isinstance(step.teacher_tap, Tap | CachedTap)
        name = components.teacher_name or type(components.teacher).__name__
        teacher = _preview(step.teacher_tap, name, last.teacher, last.batch)
    gradient = float(gradient_norm(list(components.student.parameters()), None))
    components.student.zero_grad(set_to_none=True)
    return DryRun(
        student, teacher, components.data.description or components.data.name,
        [s.terms for s in steps], gradient, last.seconds, len(components.data.train),
        sum(phase.epochs for phase in setup.phases), setup.objective.describe(),
        str(footprint) if footprint.step else "", peak_memory_mb(device), setup.warnings,
    )  # fmt: skip


def _preview(tap: Tap | CachedTap, name: str, features: Features, batch: Batch) -> NetworkPreview:
    count = sum(p.numel() for p in tap.model.parameters())
    described = describe_input(tap.model, batch.images.shape)
    return NetworkPreview(name, tap.paths, features, count, described)
