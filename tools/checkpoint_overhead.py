"""What saving itself costs a run, with the interval that is the default.

    python tools/checkpoint_overhead.py --minutes 11

Trains resnet8 on fashion-mini with CKTF+KD, whose banks make the checkpoint large, and reads from
the run's own log how long each save took. Kept in results/reliability/overhead.json.
"""

import argparse
import json
import os
import platform
import re
import signal
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import torch

from cktf.engine import Callback, Trainer
from cktf.errors import Interrupted
from cktf.models import Normalized, create
from cktf.recipes import parse_recipe
from cktf.workflows import UserObjects, prepare
from cktf.workflows.run import execute

RESULT = Path(__file__).parents[1] / "results" / "reliability" / "overhead.json"


class StopAfter(Callback):
    """Counts steps, and stops the run after some minutes."""

    def __init__(self, minutes: float) -> None:
        self.minutes, self.began, self.steps = minutes, time.monotonic(), 0

    def on_step_end(self, trainer: Trainer) -> None:
        """Count, and stop when it is time."""
        self.steps += 1
        if time.monotonic() - self.began > 60 * self.minutes:
            os.kill(os.getpid(), signal.SIGTERM)


def main() -> None:
    """Train, read the log, keep, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=11.0)
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    recipe = parse_recipe(
        {
            "kind": "distill", "teacher": "custom", "student": "resnet8", "method": "cktf+kd",
            "epochs": 10_000, "options": {"cktf": {"negatives": 4096}},
        }
    )  # fmt: skip
    torch.manual_seed(0)
    teacher = Normalized(create("resnet20", 10), (0.2190,) * 3, (0.3318,) * 3)
    with tempfile.TemporaryDirectory() as folder:
        run, components = prepare(recipe, Path(folder) / "run", UserObjects(teacher=teacher))
        clock = StopAfter(arguments.minutes)
        with suppress(Interrupted):
            execute(recipe, components, run, show=False, callbacks=[clock])
        seconds, steps = time.monotonic() - clock.began, clock.steps
        saves = [float(s) for s in re.findall(r"saved .* in ([\d.]+) s", run.log_file.read_text())]
        size = max(p.stat().st_size for p in run.checkpoints.folder.glob("*.pt"))
    # The last was asked for by the signal, not by the clock.
    timed = saves[:-1]
    found = {
        "interval_minutes": recipe.checkpoint.minutes,
        "seconds": round(seconds, 1),
        "steps": steps,
        "checkpoint_mb": round(size / 2**20, 1),
        "seconds_of_each_save": timed,
        "overhead_percent": round(100 * sum(timed) / seconds, 3),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
    }
    arguments.out.write_text(json.dumps(found, indent=1) + "\n")
    print(found)


if __name__ == "__main__":
    main()
