"""Time, launches, busy share and memory of whole steps, and of whole epochs over bare steps."""

import gc
import itertools
import statistics
import time
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from measure import images_per_second
from torch.autograd import DeviceType  # type: ignore[attr-defined]
from torch.profiler import ProfilerActivity, profile

from cktf.batch import Batch
from cktf.data import ImageSet, Loader
from cktf.engine import Trainer, synchronized_time
from gpu_checks.findings import Findings
from gpu_checks.training import (
    FLOOR,
    runtime_fields,
    started_trainer,
    synthetic_images,
    take_steps,
)

NETWORKS = ("resnet32x4", "resnet8x4")
CPU = torch.device("cpu")
SIZE, NEGATIVES, BATCHES = 50_000, 16_384, (64, 256, 1024)
CPU_SIZE, CPU_NEGATIVES, CPU_BATCHES = 1_000, 512, (32,)
KD_AND_CKTF = "cktf+kd"
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    FLOOR: (FLOOR, {}),
    "kd": ("kd", {}),
    "crd": ("crd", {"estimator": "shared"}),
    "cktf+kd shared": (KD_AND_CKTF, {"estimator": "shared"}),
    "cktf+kd shared, bfloat16": (KD_AND_CKTF, {"estimator": "shared", "storage": "bfloat16"}),
    "cktf+kd all": (KD_AND_CKTF, {"estimator": "all"}),
    "cktf+kd sampled": (KD_AND_CKTF, {"estimator": "sampled"}),
    "cktf+kd queue": (KD_AND_CKTF, {"memory": "queue"}),
    "cktf+kd batch": (KD_AND_CKTF, {"memory": "batch"}),
    "rkd": ("rkd", {}),
}
MODES: dict[str, dict[str, Any]] = {
    "eager": {"graph": "off"},
    "graph": {"graph": "on"},
    "compile": {"graph": "off", "compile": True},
    "both": {"graph": "on", "compile": True},
}
# To compile takes most of the time: few cases do.
COMPILED = ("kd", "cktf+kd shared")
# The numbers of the losses are read back after steps 20 and 40, which waits for the GPU. Between
# these, steps are timed; after them, profiled.
TIMED_FROM, TIMED_TO, PROFILED = 20, 39, 5
LAUNCHES = ("cudaLaunch", "cuLaunch", "cudaGraphLaunch", "cudaMemcpy", "cudaMemset")
EPOCH_METHODS, EPOCH_BATCHES, BARE_STEPS = ("kd", "cktf+kd shared"), (64, 256), 200
Case = tuple[int, str, str]


def speed_cases(batches: Iterable[int]) -> list[Case]:
    """Batch size, mode and method of each row: what matters most first."""
    first, *others = batches = list(batches)
    last = batches[-1]
    has_graph = bool(runtime_fields(graph="on"))
    plain, compiled = ("graph", "both") if has_graph else ("eager", "compile")
    few = (FLOOR, *COMPILED)
    ordered = [
        *itertools.product((first,), (plain,), METHODS),
        *itertools.product((first,), (compiled,), few),
        *itertools.product((first,), ("eager",), few),
        *itertools.product(others[::-1], (plain,), METHODS),
        *itertools.product((last,), (compiled, "eager"), few),
        *itertools.product(batches, ("eager",), METHODS),
        *itertools.product((first, last), ("compile",), few),
    ]
    return list(dict.fromkeys(ordered))


def check_speed(findings: Findings) -> None:
    """A row for each method, batch size and mode; nothing here is right or wrong."""
    small = not findings.is_cuda
    images = synthetic_images(CPU_SIZE if small else SIZE)
    chosen = speed_cases(CPU_BATCHES if small else BATCHES)
    if small:
        # A CPU captures no graph, and takes long to compile.
        chosen = [case for case in chosen if case[1] == "eager"]
    floors: dict[tuple[int, str], float] = {}
    for case in findings.timed(chosen, lambda case: f"{case[2]}, B={case[0]}, {case[1]}"):
        batch, mode, name = case
        with findings.case(f"{name}, B={batch}, {mode}"):
            row = measure_steps(findings, images, *case)
            floors.setdefault((batch, mode), row["ms"])
            floor = floors[batch, mode] if name != FLOOR else row["ms"]
            findings.rows.append({**row, "over_floor": round(row["ms"] / floor, 2)})
        _free(findings)
    findings.figures["rows"] = len(findings.rows)


def _free(findings: Findings) -> None:
    gc.collect()
    if findings.is_cuda:
        torch.cuda.empty_cache()


def _options(name: str, small: bool) -> dict[str, dict[str, Any]]:
    method, options = METHODS[name]
    if not method.startswith(("crd", "cktf")):
        return {}
    negatives = CPU_NEGATIVES if small else NEGATIVES
    return {method.partition("+")[0]: {"negatives": negatives} | options}


def measure_steps(
    findings: Findings, images: ImageSet, batch: int, mode: str, name: str
) -> dict[str, Any]:
    """Measure the steps of one method through the trainer, loading included."""
    small = not findings.is_cuda
    first, last = (2, 5) if small else (TIMED_FROM, TIMED_TO)
    with started_trainer(
        findings.device,
        images,
        METHODS[name][0],
        _options(name, small),
        batch_size=batch,
        networks=("resnet20", "resnet8") if small else NETWORKS,
        runtime=runtime_fields(**MODES[mode]) | {"precision": "auto" if small else "bfloat16"},
    ) as trainer:
        trainer.start_epoch(1)
        take_steps(trainer, first)
        if findings.is_cuda:
            torch.cuda.reset_peak_memory_stats()
        ms, host_ms = time_steps(trainer, last - first)
        row = {
            "method": name, "batch": batch, "mode": mode, "ms": round(ms, 3),
            "host_ms": round(host_ms, 3), "images_per_second": round(1e3 * batch / ms),
        }  # fmt: skip
        if findings.is_cuda:
            row["peak_mib"] = round(torch.cuda.max_memory_allocated() / 2**20)
            take_steps(trainer, 1)
            row |= profile_steps(trainer, ms)
    return row


def time_steps(trainer: Trainer, steps: int) -> tuple[float, float]:
    """Milliseconds of a step on the device, by CUDA events; and until the host has issued it."""
    if trainer.device.type != "cuda":
        began = time.perf_counter()
        take_steps(trainer, steps)
        return (1e3 * (time.perf_counter() - began) / steps,) * 2
    events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]  # type: ignore[no-untyped-call]
    torch.cuda.synchronize()
    began = time.perf_counter()
    events[0].record()
    take_steps(trainer, steps)
    events[1].record()
    issued = time.perf_counter() - began
    events[1].synchronize()
    return events[0].elapsed_time(events[1]) / steps, 1e3 * issued / steps


def profile_steps(trainer: Trainer, ms: float) -> dict[str, Any]:
    """Launches by the host in a step, kernels, and the share of `ms` that the GPU is busy."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as recorded:
        take_steps(trainer, PROFILED)
        torch.cuda.synchronize()
    return summarize(recorded.events() or [], PROFILED, ms)


def summarize(events: Iterable[Any], steps: int, ms: float) -> dict[str, Any]:
    """Launches, kernels and busy share of a step, from the profiler's events of several."""
    launches, spans = 0, []
    for event in events:
        if event.device_type == DeviceType.CUDA:
            # Ranges of the user's code are shown on the GPU too, and are not its work.
            if not getattr(event, "is_user_annotation", False):
                spans.append((event.time_range.start, event.time_range.end))
        elif event.name.startswith(LAUNCHES):
            launches += 1
    return {
        "launches": round(launches / steps),
        "kernels": round(len(spans) / steps),
        "busy_percent": round(100 * busy_microseconds(spans) / 1e3 / steps / ms),
    }


def busy_microseconds(spans: Iterable[tuple[float, float]]) -> float:
    """Length of the union of intervals: kernels may overlap."""
    total, until = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total


def check_epochs(findings: Findings) -> None:
    """A whole epoch gives at least 95 % of the images/s of bare steps on one batch."""
    small = not findings.is_cuda
    images = synthetic_images(CPU_SIZE if small else SIZE)
    for batch in EPOCH_BATCHES[:1] if small else EPOCH_BATCHES:
        with findings.case(f"loader alone, B={batch}"):
            findings.figures[f"loader B={batch}, images/s"] = _loader_speed(findings, images, batch)
        for name in findings.timed(EPOCH_METHODS):
            with findings.case(f"{name}, B={batch}"):
                _compare_epoch(findings, images, batch, name)
            _free(findings)


def _start(findings: Findings, images: ImageSet, batch: int, name: str) -> Any:
    small = not findings.is_cuda
    networks = ("resnet20", "resnet8") if small else NETWORKS
    return started_trainer(
        findings.device, images, METHODS[name][0], _options(name, small), batch_size=batch,
        networks=networks, epochs=5, runtime={"precision": "auto" if small else "bfloat16"},
    )  # fmt: skip


def _loader_speed(findings: Findings, images: ImageSet, batch: int) -> int:
    """Images per second of epochs that are loaded on the device."""
    with _start(findings, images, batch, "kd") as trainer:
        return round(images_per_second(trainer.train, findings.device))


def _compare_epoch(findings: Findings, images: ImageSet, batch: int, name: str) -> None:
    """Compare an epoch with bare steps before and after it, of one batch on the device."""
    with _start(findings, images, batch, name) as trainer:
        loader = trainer.train
        bare = RepeatedBatch(next(iter(loader.epoch(1, device=trainer.device))), loader)
        ms = [_epoch_ms(trainer, number, train) for number, train in enumerate(
            (bare, bare, loader, bare), start=1)]  # fmt: skip
    # The first one warms up.
    bare_ms, epoch_ms = statistics.mean((ms[1], ms[3])), ms[2]
    share = bare_ms / epoch_ms
    findings.rows.append({
        "method": name, "batch": batch, "bare_ms": round(bare_ms, 3),
        "epoch_ms": round(epoch_ms, 3), "images_per_second": round(1e3 * batch / epoch_ms),
        "share_percent": round(100 * share, 1),
    })  # fmt: skip
    if findings.is_cuda:
        # A CPU computes the augmentation and the step on the same cores.
        findings.require(share >= 0.95, f"{100 * share:.0f} % of the bare steps' images/s")


class RepeatedBatch:
    """A loader that yields one batch again and again.

    Args:
        batch: on the device of the steps.
        loader: that it stands in for.
    """

    def __init__(self, batch: Batch, loader: Loader) -> None:
        self.batch, self.samples, self.batch_size = batch, loader.samples, loader.batch_size
        self.steps = min(BARE_STEPS, len(loader))

    def __len__(self) -> int:
        return self.steps

    def epoch(
        self, number: int, *, cover: bool = False, start: int = 0, device: torch.device = CPU
    ) -> Iterator[Batch]:
        """Yield the batch for every step."""
        return itertools.repeat(self.batch, self.steps)


def _epoch_ms(trainer: Trainer, number: int, train: Loader) -> float:
    """Milliseconds of a step of a whole epoch, what goes before and after the steps included."""
    trainer.train = train
    synchronized_time(trainer.device)
    began = time.perf_counter()
    trainer.start_epoch(number)
    take_steps(trainer, len(train))
    trainer.end_epoch()
    return 1e3 * (synchronized_time(trainer.device) - began) / len(train)
