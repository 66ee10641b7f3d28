"""Run checks in processes of their own, which may hang or lose the GPU, within a budget of time."""

import importlib
import os
import signal
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

import torch

from gpu_checks.findings import ERROR, SKIPPED, DeviceLostError, Findings

Record = dict[str, Any]
# What a check may take beyond its time, to end its last case; and the least that is worth a start.
GRACE, LEAST = 20.0, 5.0
# How much longer a check may take on a CPU, at its small sizes.
CPU_FACTOR = 3.0


@dataclass(frozen=True)
class Check:
    """A check.

    Attributes:
        number: as in the list of checks.
        name: what it checks, in a few words.
        function: `MODULE:FUNCTION`; it takes `Findings`.
        seconds: that it may take on a GPU.
        lane: checks of one lane run one after another; those of `timing` when all others ended.
    """

    number: int
    name: str
    function: str
    seconds: float
    lane: str


def _serve(connection: Connection, device_name: str, is_timing: bool) -> None:
    """Carry out the checks that come through a connection, until one loses the device."""
    os.setsid()
    if not is_timing:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    device = torch.device(device_name)
    while True:
        function, seconds = connection.recv()
        module, _, name = function.partition(":")
        findings = Findings(device, seconds, lambda record: connection.send(("so far", record)))
        lost = False
        try:
            getattr(importlib.import_module(module), name)(findings)
        except DeviceLostError:
            lost = True
        except Exception:  # a check that cannot even begin
            findings.errors.append(traceback.format_exc()[-1500:])
            lost = not findings.device_works()
        connection.send(("lost" if lost else "done", findings.record()))
        if lost:
            return


class Worker:
    """A process that carries out checks on a device, one at a time."""

    def __init__(self, device: str, *, is_timing: bool = False) -> None:
        context = get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, device, is_timing))
        self._process.start()
        theirs.close()

    def run(self, check: Check, seconds: float) -> tuple[Record, bool]:
        """Carry out a check; return its record, and whether the worker can go on."""
        began = time.monotonic()
        record: Record = {"status": ERROR, "failures": [], "errors": [], "rows": []}
        try:
            self._connection.send((check.function, seconds))
            while self._connection.poll(max(0.0, began + seconds + GRACE - time.monotonic())):
                state, record = self._connection.recv()
                if state != "so far":
                    return record, state == "done"
            problem = f"it did not end within {seconds:.0f} s, and was stopped"
        except (EOFError, OSError):
            self._process.join(5)
            problem = f"its process ended with status {self._process.exitcode}"
        taken = round(time.monotonic() - began, 1)
        errors = [*record["errors"], problem]
        return record | {"status": ERROR, "errors": errors, "seconds": taken}, False

    def stop(self) -> None:
        """End the process, and those that it started."""
        with suppress(OSError):
            if self._process.pid is not None:
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.join()
        self._connection.close()


def run_checks(
    checks: Sequence[Check],
    device: str,
    seconds: float,
    on_record: Callable[[Check, Record], None],
) -> None:
    """Run checks, lanes side by side on a GPU, and those that measure time at the end.

    Args:
        checks: in each lane in this order.
        device: `cuda` or `cpu`.
        seconds: for all.
        on_record: called with each check and its record as it ends, from several threads.
    """
    until = time.monotonic() + seconds
    lanes: dict[str, list[Check]] = {}
    for check in checks:
        lanes.setdefault(check.lane, []).append(check)
    timing = lanes.pop("timing", [])
    reserved = min(sum(check.seconds for check in timing), seconds / 2) * (device == "cuda")
    with ThreadPoolExecutor(2 if device == "cuda" else 1) as pool:
        for lane in [
            pool.submit(_run_lane, lane, device, until - reserved, on_record)
            for lane in lanes.values()
        ]:
            lane.result()
    _run_lane(timing, device, until, on_record)


def _run_lane(
    checks: Sequence[Check],
    device: str,
    until: float,
    on_record: Callable[[Check, Record], None],
) -> None:
    worker: Worker | None = None
    try:
        for check in checks:
            most = check.seconds * (1 if device == "cuda" else CPU_FACTOR)
            seconds = min(most, until - time.monotonic())
            if seconds < LEAST:
                left_out = [f"no time: {max(0.0, seconds):.0f} s left"]
                record = {"status": SKIPPED, "failures": [], "errors": [], "rows": []}
                on_record(check, record | {"left_out": left_out, "seconds": 0.0})
                continue
            worker = worker or Worker(device, is_timing=check.lane == "timing")
            record, goes_on = worker.run(check, seconds)
            on_record(check, record)
            if not goes_on:
                worker.stop()
                worker = None
    finally:
        if worker is not None:
            worker.stop()
