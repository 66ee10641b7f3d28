"""What all benchmarks share: fair timing, memory of a step, tables, and the machine's name."""

import gc
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from cktf.data import Loader
from cktf.engine import synchronized_time

RESULTS = Path(__file__).parents[1] / "results" / "performance"


def alternate(
    steps: Mapping[str, Callable[[], object]], repeats: int, warmup: int = 2
) -> dict[str, list[float]]:
    """Seconds of each step, taken in turn so that a disturbance falls on all of them."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for repeat in range(repeats + warmup):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if repeat >= warmup:
                times[name].append(time.perf_counter() - start)
    return times


def median_ratio(over: Sequence[float], under: Sequence[float]) -> float:
    """Median of the ratios of one repeat's times."""
    return statistics.median(a / b for a, b in zip(over, under, strict=True))


def consume(batches: Iterable[object]) -> None:
    """Load batches and drop them."""
    for _ in batches:
        pass


def images_per_second(loader: Loader, device: torch.device, epochs: int = 3) -> float:
    """Images that a loader alone brings to a device in a second, after an epoch to warm up."""
    consume(loader.epoch(0, device=device))
    start = synchronized_time(device)
    for number in range(1, epochs + 1):
        consume(loader.epoch(number, device=device))
    seconds = synchronized_time(device) - start
    return epochs * len(loader) * loader.batch_size / seconds


def peak_memory_mb(step: Callable[[], object]) -> float:
    """MiB that a step takes at most beside what is there before it; Linux, a fresh process."""
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    step()
    return (_status("VmHWM") - before) / 1024


def peak_allocated_mb(step: Callable[[], object]) -> float:
    """MiB of tensors that a step holds at most, beside those that were there before it."""
    # What earlier steps left behind is freed now, and not in the middle of this one.
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        step()
    events = [e for e in recorded.profiler.kineto_results.events() if e.name() == "[memory]"]
    # They come thread by thread, not in the order of time.
    events.sort(key=lambda event: event.start_ns())
    held: Iterable[int] = accumulate((e.nbytes() for e in events), initial=0)
    return max(held) / 2**20


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1])
    raise RuntimeError(f"this system does not tell {name}")


def machine() -> str:
    """Processor, threads and versions, as the tables name them."""
    names = [
        line.split(":")[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    name = names[0] if names else platform.processor()
    kind = next((k for k in ("amx", "avx512_bf16", "avx512f", "avx2") if _has(k)), "no AVX2")
    return (
        f"{name} ({platform.machine()}, {kind}), {torch.get_num_threads()} threads of "
        f"{os.cpu_count()} cores, Python {platform.python_version()}, torch {torch.__version__}"
    )


def _has(flag: str) -> bool:
    return flag in Path("/proc/cpuinfo").read_text()


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table whose columns line up."""
    lines = [[str(c) for c in row] for row in (header, *rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    lines.insert(1, ["-" * (w - 1) + ":" if i else "-" * w for i, w in enumerate(widths)])
    return "\n".join(
        "| "
        + " | ".join(
            c.rjust(w) if i else c.ljust(w)
            for i, (c, w) in enumerate(zip(line, widths, strict=True))
        )
        + " |"
        for line in lines
    )


def keep(name: str, record: Mapping[str, Any]) -> None:
    """Write a benchmark's record, from which docs/performance.md is made."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"machine": machine(), **record}, indent=1)
    (RESULTS / f"{name}.json").write_text(text + "\n")
