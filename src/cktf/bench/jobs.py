"""Several processes on one matrix, begun, stopped and awaited together."""

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TypeVar

import torch

from cktf.errors import Interrupted, TrainingError
from cktf.signals import signal_handler

T = TypeVar("T")

# What a process ends with that saved its work and stopped, and one that had none to save yet.
_SAVED = 75
_STOPPED = (_SAVED, -signal.SIGTERM, -signal.SIGINT)


def work_together(work: Callable[[T], None], on: T, jobs: int, folder: Path) -> None:
    """Do work in several processes, and wait for all of them; in this one if it is one.

    SIGTERM is passed on to them, and a terminal's Ctrl-C reaches them by itself: each saves what it
    trains and ends.

    Args:
        work: what each of them does.
        on: its argument.
        jobs: how many.
        folder: of their work.

    Raises:
        Interrupted: they were asked to stop.
        TrainingError: one died; what it had not done is left.
    """
    if jobs == 1:
        work(on)
        return
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_job, args=(work, on, n, jobs)) for n in range(jobs)]
    for worker in workers:
        worker.start()
    with _passed_on(workers) as asked:
        for worker in workers:
            try:
                worker.join()
            except KeyboardInterrupt:
                asked.append("SIGINT")
                worker.join()
    if asked and any(worker.exitcode in _STOPPED for worker in workers):
        raise Interrupted(f"Stopped by {asked[0]}; saved.", folder)
    died = {n: worker.exitcode for n, worker in enumerate(workers, 1) if worker.exitcode}
    if died:
        said = ", ".join(f"{n} of {jobs} (exit code {code})" for n, code in died.items())
        raise TrainingError(
            f"Processes ended before their work was done: {said}; -9 is often too little memory. "
            "Look at what they said above; the same command, with fewer --jobs if need be, goes on."
        )


@contextmanager
def _passed_on(workers: Sequence[BaseProcess]) -> Iterator[list[str]]:
    """Names of the signals that came, while SIGTERM reaches the workers too."""
    asked: list[str] = []

    def pass_on(number: int, frame: object) -> None:
        asked.append(signal.Signals(number).name)
        for worker in workers:
            worker.terminate()

    with signal_handler(pass_on, signal.SIGTERM):
        yield asked


def _job(work: Callable[[T], None], on: T, number: int, jobs: int) -> None:
    """One of several processes: on its share of the processor, and a GPU of its own if it can."""
    torch.set_num_threads(max(1, torch.get_num_threads() // jobs))
    known = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = known.split(",") if known else [str(n) for n in range(torch.cuda.device_count())]
    if len(devices) > 1:
        os.environ["CUDA_VISIBLE_DEVICES"] = devices[number % len(devices)]
    try:
        work(on)
    except KeyboardInterrupt:
        sys.exit(_SAVED)
