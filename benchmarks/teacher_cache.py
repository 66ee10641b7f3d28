"""What a teacher cache costs and saves: an epoch without, while it is filled, and after.

    python benchmarks/teacher_cache.py --data-dir DIR

LoadedNetwork EfficientNet-Lite0 at 96 pixels, student resnet20 at 32 by CRD, on CIFAR-10's 10,000
training images of two classes, without labels; and the student alone, by cross-entropy. The first
epoch of every run is not counted, but for the one that fills the cache. CPU seconds are those of
the process, which other programs hardly change. All in bfloat16.

Writes results/transfer/teacher-cache.json.
"""

import argparse
import json
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from transfer import CONTRAST, LITE0, RUNTIME
from transfer_page import RESULTS

from cktf.engine import Callback, Trainer
from cktf.recipes import parse_recipe
from cktf.workflows import prepare
from cktf.workflows.run import execute

CLASSES, EPOCHS = ["cat", "dog"], 2
SETTING = (
    "Teacher EfficientNet-Lite0 at 96 pixels, student resnet20 at 32 by CRD, on 10,000 training "
    "images of CIFAR-10 without labels; the student alone by cross-entropy. CPU seconds are those "
    "of one process on one thread."
)


class EpochClock(Callback):
    """Reads both clocks before the first step of each epoch, and after the last of all."""

    def __init__(self) -> None:
        self.marks: list[tuple[float, float]] = []

    def on_epoch_start(self, trainer: Trainer) -> None:
        """Read the clocks."""
        self.marks.append((time.perf_counter(), time.process_time()))

    def on_step_end(self, trainer: Trainer) -> None:
        """Read the clocks after the last step."""
        last = trainer.position.epochs + 1 == trainer.num_epochs
        if last and trainer.position.step == len(trainer.train):
            self.on_epoch_start(trainer)


def epochs_of(fields: dict[str, Any], out: Path) -> list[dict[str, float]]:
    """Seconds and CPU seconds of each epoch of a run."""
    recipe = parse_recipe(fields)
    run, components = prepare(recipe, out)
    clock = EpochClock()
    execute(recipe, components, run, show=False, callbacks=[clock])
    marks = clock.marks
    return [{"seconds": b[0] - a[0], "cpu_seconds": b[1] - a[1]} for a, b in pairwise(marks)]


def main() -> None:
    """Measure, and keep what was found."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data-dir", type=Path, required=True)
    args = parser.parse_args()
    data = {"name": "cifar10", "dir": str(args.data_dir), "classes": CLASSES}
    student = {"epochs": EPOCHS, "runtime": RUNTIME}
    distilling = student | {
        "kind": "distill", "teacher": LITE0, "student": "resnet20", "method": "crd",
        "options": {"crd": CONTRAST},
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary)
        kept = {"data": data | {"labels": False, "views": 1}, "teacher_cache": str(out / "cache")}
        alone = student | {"kind": "train", "model": "resnet20", "data": data}
        without = epochs_of(distilling | {"data": data | {"labels": False}}, out / "without")
        filled, after = epochs_of(distilling | kept, out / "kept")
        trained = epochs_of(alone, out / "alone")
        size = sum(path.stat().st_size for path in (out / "cache").rglob("*") if path.is_file())
    found = {
        "without a cache": without[-1], "while it is filled": filled,
        "from the cache": after, "the student alone": trained[-1],
    }  # fmt: skip
    record = {"setting": SETTING, "images": 10_000,
              "bytes": size, "epochs": found}  # fmt: skip
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "teacher-cache.json").write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
