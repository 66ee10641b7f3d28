"""No step of training waits for the GPU, from the third one to the next check of its numbers."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from cktf.data import ImageSet
from cktf.objectives import METHODS
from gpu_checks.findings import Findings
from gpu_checks.training import runtime_fields, started_trainer, synthetic_images, take_steps

BATCH, CLASSES = 64, 10
# Methods whose options are chosen below.
OWN = ("cktf", "fsp")
# A CUDA graph is captured in the first steps.
WARMUP, GRAPH_WARMUP, LAST = 2, 6, 19
CONTRAST: tuple[dict[str, Any], ...] = (
    {"estimator": "shared"},
    {"estimator": "shared", "critic": "infonce", "storage": "bfloat16", "center": True},
    {"estimator": "sampled"},
    {"estimator": "all"},
    {"memory": "queue", "queue_size": 1024},
    {"memory": "batch"},
    {"match": "smallest"},
    {"match": "random", "module_norm": "sample"},
    {"init": "forward", "renormalize": (2,)},
)
# A host bank reads the batch's index on the CPU, which waits for it.
WAITS_BY_DESIGN = "cktf+kd (estimator=shared, bank_device=host)"
MODES = {"eager": {"graph": "off"}, "graph": {"graph": "auto"}}
Case = tuple[str, str, dict[str, Any]]


def sync_cases() -> list[Case]:
    """Mode, method and options of every case; methods with their phases."""
    methods: list[tuple[str, dict[str, Any]]] = [
        *((f"{m}+kd" if m not in ("kd", "ce") else m, {}) for m in METHODS if m not in OWN),
        *(("cktf+kd", options) for options in CONTRAST),
        ("fitnet+kd", {"staged": True}),
        # An untrained teacher's flows are too large for its published rate, in any precision.
        ("fsp+kd", {"init_lr": 1e-4}),
    ]
    modes = [mode for mode, fields in MODES.items() if mode == "eager" or runtime_fields(**fields)]
    return [(mode, *method) for mode in modes for method in methods]


def check_synchronization(findings: Findings) -> None:
    """Steps 3 to 19 of every phase run with PyTorch's check for synchronization, as an error."""
    images = synthetic_images(20 * BATCH if findings.is_cuda else 4 * BATCH, CLASSES)
    chosen = sync_cases() if findings.is_cuda else sync_cases()[::3]
    findings.left_out.append(f"{WAITS_BY_DESIGN}: waits by design")
    for case in findings.timed(chosen, describe):
        with findings.case(describe(case)):
            train_unsynchronized(findings, images, *case)


def describe(case: Case) -> str:
    """Name a case."""
    mode, method, options = case
    told = ", ".join(f"{k}={v}" for k, v in options.items())
    return f"{method}{f' ({told})' if told else ''}, {mode}"


def train_unsynchronized(
    findings: Findings, images: ImageSet, mode: str, method: str, options: dict[str, Any]
) -> None:
    """Train one epoch of each phase; an error where a step waits."""
    warmup = GRAPH_WARMUP if mode == "graph" else WARMUP
    chosen = {method.partition("+")[0]: {"negatives": 256} | options} if _contrasts(method) else {}
    if options and not chosen:
        chosen = {method.partition("+")[0]: options}
    fields = runtime_fields(**MODES[mode])
    last = min(LAST, len(images) // BATCH - 1)
    with started_trainer(
        findings.device, images, method, chosen, batch_size=BATCH, runtime=fields
    ) as trainer:
        for number in range(1, trainer.num_epochs + 1):
            trainer.start_epoch(number)
            take_steps(trainer, min(warmup, last))
            with _synchronization_is_an_error(findings):
                take_steps(trainer, max(0, last - warmup))
            trainer.end_epoch()
        findings.require(
            all(torch.isfinite(p).all() for p in trainer.student.parameters()), "weights not finite"
        )


def _contrasts(method: str) -> bool:
    return method.startswith(("crd", "cktf"))


@contextmanager
def _synchronization_is_an_error(findings: Findings) -> Iterator[None]:
    if not findings.is_cuda:
        yield
        return
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
