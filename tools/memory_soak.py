"""Memory of long training: does it grow after the first epoch?

    python tools/memory_soak.py --minutes 60 cktf queue

Trains resnet8 on fashion-mini with CKTF+KD, its memory a bank or a queue, for so many minutes,
ends it with SIGTERM, and keeps in results/reliability/ what the resident memory was every few
seconds. Growth is the mean of the last quarter against that of the second epoch. Exits with 1 if it
is 1 % or more.
"""

import argparse
import json
import os
import platform
import signal
import statistics
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import torch

from cktf.engine import Callback, Trainer
from cktf.errors import Interrupted
from cktf.models import Normalized, create
from cktf.recipes import parse_recipe
from cktf.workflows import UserObjects, prepare
from cktf.workflows.run import execute

RESULTS = Path(__file__).parents[1] / "results" / "reliability"
EVERY, LIMIT = 2.0, 1.0
MEMORIES: dict[str, dict[str, Any]] = {
    "cktf": {"negatives": 4096},
    "queue": {"negatives": 4096, "memory": "queue", "queue_size": 8192},
}


class MemorySampler(Callback):
    """Records resident memory every few seconds, and stops the run after some minutes."""

    def __init__(self, minutes: float) -> None:
        self.minutes, self.samples = minutes, list[tuple[float, int, int]]()
        self._process, self._began, self._next_at = psutil.Process(), time.monotonic(), 0.0

    def on_step_end(self, trainer: Trainer) -> None:
        """Record, and stop when it is time."""
        elapsed = time.monotonic() - self._began
        if elapsed >= self._next_at:
            rss = self._process.memory_info().rss
            self.samples.append((round(elapsed, 1), len(trainer.run.rows()), rss))
            self._next_at = elapsed + EVERY
        if elapsed > 60 * self.minutes:
            os.kill(os.getpid(), signal.SIGTERM)


def soak(memory: str, minutes: float, folder: Path) -> dict[str, Any]:
    """Train with a kind of memory, and what was resident meanwhile."""
    recipe = parse_recipe(
        {
            "kind": "distill", "teacher": "custom", "student": "resnet8", "method": "cktf+kd",
            "epochs": 100_000, "options": {"cktf": MEMORIES[memory]},
        }
    )  # fmt: skip
    torch.manual_seed(0)
    teacher = Normalized(create("resnet20", 10), (0.2190,) * 3, (0.3318,) * 3)
    run, components = prepare(recipe, folder / memory, UserObjects(teacher=teacher))
    sampler = MemorySampler(minutes)
    began, samples = time.monotonic(), sampler.samples
    with suppress(Interrupted):
        execute(recipe, components, run, show=False, callbacks=[sampler])
    first = statistics.fmean(rss for _, epochs, rss in samples if epochs == 1)
    last = statistics.fmean(rss for _, _, rss in samples[-max(1, len(samples) // 4) :])
    return {
        "memory": memory,
        "options": MEMORIES[memory],
        "minutes": round((time.monotonic() - began) / 60, 1),
        "epochs": len(run.rows()),
        "steps": len(run.rows()) * len(components.data.train),
        "checkpoints_written_every_minutes": recipe.checkpoint.minutes,
        "second_epoch_mb": round(first / 2**20, 1),
        "last_quarter_mb": round(last / 2**20, 1),
        "growth_percent": round(100 * (last / first - 1), 3),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "seconds_epochs_bytes": samples,
    }


def main() -> None:
    """Soak, keep, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("memories", nargs="*", default=list(MEMORIES), choices=list(MEMORIES))
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    worst = 0.0
    for memory in arguments.memories:
        with tempfile.TemporaryDirectory() as folder:
            found = soak(memory, arguments.minutes, Path(folder))
        (arguments.out / f"memory-{memory}.json").write_text(json.dumps(found) + "\n")
        print({name: value for name, value in found.items() if name != "seconds_epochs_bytes"})
        worst = max(worst, found["growth_percent"])
    raise SystemExit(worst >= LIMIT)


if __name__ == "__main__":
    main()
