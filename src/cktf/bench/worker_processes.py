"""Several processes that share one piece of work."""

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch

from cktf.errors import Interrupted, TrainingError
from cktf.machine import usable_cpus
from cktf.output import protect_standard_streams
from cktf.signals import STOP_SIGNALS, signal_handler

T = TypeVar("T")

_SAVED_EXIT_CODE = 75
# Exit codes of a process that saved its progress, or had none to save yet.
_STOPPED_EXIT_CODES = (_SAVED_EXIT_CODE, *(-number for number in STOP_SIGNALS))


def run_in_processes(work: Callable[[T], None], argument: T, jobs: int, folder: Path) -> None:
    """Call a function in several processes and wait for all of them; for one job, in this one.

    A stop signal is passed on to them as SIGTERM, but a terminal sends Ctrl-C to each: they save
    their progress and end.

    Args:
        work: the function.
        argument: its argument.
        jobs: number of processes.
        folder: folder of their progress, for the message.

    Raises:
        Interrupted: they were told to stop.
        TrainingError: one of them died.
    """
    if jobs == 1:
        work(argument)
        return
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_run_job, args=(work, argument, jobs)) for _ in range(jobs)]
    for number, worker in enumerate(workers):
        # A process reads which GPUs it sees once, when it first uses CUDA.
        with _visible_gpu(number):
            worker.start()
    signals: list[str] = []

    def terminate_workers(number: int, frame: object) -> None:
        signals.append(signal.Signals(number).name)
        for worker in workers:
            worker.terminate()

    passed_on = [number for number in STOP_SIGNALS if number != signal.SIGINT]
    with signal_handler(terminate_workers, *passed_on):
        for worker in workers:
            try:
                worker.join()
            except KeyboardInterrupt:
                signals.append("SIGINT")
                worker.join()
    if signals and any(worker.exitcode in _STOPPED_EXIT_CODES for worker in workers):
        raise Interrupted(f"Stopped by {signals[0]}; saved.", folder)
    died = [
        f"{number} of {jobs} (exit code {worker.exitcode})"
        for number, worker in enumerate(workers, 1)
        if worker.exitcode
    ]
    if died:
        raise TrainingError(
            f"Processes ended before their work was done: {', '.join(died)}; -9 is often too "
            "little memory. Look at what they said above; the same command, with fewer --jobs if "
            "need be, goes on."
        )


@contextmanager
def _visible_gpu(number: int) -> Iterator[None]:
    """Let processes that start inside the block see one GPU, each another one in turn."""
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = before.split(",") if before else [str(n) for n in range(torch.cuda.device_count())]
    if len(devices) < 2:
        yield
        return
    os.environ["CUDA_VISIBLE_DEVICES"] = devices[number % len(devices)]
    try:
        yield
    finally:
        del os.environ["CUDA_VISIBLE_DEVICES"]
        if before is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = before


def _run_job(work: Callable[[T], None], argument: T, jobs: int) -> None:
    """Run one of several processes, on its share of the threads."""
    protect_standard_streams()
    threads = min(torch.get_num_threads(), usable_cpus())
    torch.set_num_threads(max(1, threads // jobs))
    try:
        work(argument)
    except KeyboardInterrupt:
        sys.exit(_SAVED_EXIT_CODE)
