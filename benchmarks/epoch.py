"""Images per second of whole epochs, data included, against the rate of bare steps.

    python benchmarks/epoch.py --data-dir DIR [--methods ce kd cktf]

CIFAR-10, wrn_16_2 to resnet8. The epoch is the trainer's own: loading, augmentation, progress,
records. The bare steps repeat one batch that is there already. Both are timed in turn.
"""

import argparse
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from measure import alternate, keep, machine, median_ratio, table

from cktf.batch import Batch
from cktf.data import ImageSet, Loader, MemoryLoader, load_dataset
from cktf.engine import (
    MAIN,
    RunFolder,
    Trainer,
    TrainingConfig,
    TrainPhase,
    TrainStep,
    start_runtime,
)
from cktf.engine.checkpointing import TrainingPosition
from cktf.engine.epoch_metrics import EpochMetrics
from cktf.models import Normalized, create
from cktf.objectives import BuildContext, compose
from cktf.taps import Tap, eval_mode

TEACHER, STUDENT, CLASSES, BATCH = "wrn_16_2", "resnet8", 10, 64
CPU = torch.device("cpu")
OPTIONS = {"cktf": {"estimator": "shared"}}


class Bare:
    """A loader that gives the first batch of an epoch as often as the epoch is long."""

    def __init__(self, loader: Loader) -> None:
        self.batch = next(iter(loader.epoch(1)))
        self.steps, self.samples, self.batch_size = len(loader), loader.samples, loader.batch_size

    def __len__(self) -> int:
        return self.steps

    def epoch(
        self, number: int, *, cover: bool = False, start: int = 0, device: torch.device = CPU
    ) -> Iterator[Batch]:
        """The same batch again and again."""
        return iter([self.batch.to(device)] * (self.steps - start))


def trainer(method: str, data: ImageSet, folder: Path) -> Trainer:
    """A run on CIFAR-10 as `cktf distill` sets it up."""
    torch.manual_seed(0)
    loader = MemoryLoader(data, BATCH, train=True, augment=True)
    networks = [Normalized(create(n, CLASSES), data.mean, data.std) for n in (STUDENT, TEACHER)]
    images = next(iter(loader.epoch(1))).images[:8]
    with torch.no_grad(), eval_mode(networks[0]), eval_mode(networks[1]):
        student, teacher = (Tap(n, needs=("embedding", "stem", "stages"))(images) for n in networks)
    chosen = {name: OPTIONS[name] for name in method.split("+") if name in OPTIONS}
    objective = compose(method, BuildContext(student, teacher, len(data), data.labels), chosen)
    taps = [Tap(n, needs=objective.features) for n in networks]
    run = RunFolder(folder / method)
    run.create(1.0)
    config = TrainingConfig(epochs=1000)
    runtime = start_runtime(config.runtime)
    teacher_tap = taps[1] if objective.needs_teacher else None
    phase = TrainPhase(MAIN, TrainStep(objective, taps[0], teacher_tap, runtime), epochs=1000)
    return Trainer([phase], loader, None, CLASSES, config, run, runtime, show=False)


def rates(method: str, data: ImageSet, repeats: int) -> dict[str, list[float]]:
    """Seconds of whole epochs, and of as many steps on one batch."""
    with tempfile.TemporaryDirectory() as folder:
        whole = trainer(method, data, Path(folder))
        loader, bare = whole.train, Bare(whole.train)

        def epoch(loader: Loader) -> None:
            whole.train = loader
            whole.position, whole.metrics = TrainingPosition(), EpochMetrics()
            whole.start_epoch(1)
            while whole.position.step < len(loader):
                whole.train_step()

        timed = {"epoch": lambda: epoch(loader), "steps": lambda: epoch(bare)}
        return alternate(timed, repeats, warmup=0)


def main() -> None:
    """Parse, measure, print, keep."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--methods", nargs="*", default=["ce", "kd", "cktf"])
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    full = load_dataset("cifar10", Path(args.data_dir), "train")
    data = ImageSet(
        full.images[: args.images], full.labels[: args.images], full.classes, full.mean, full.std
    )
    print(machine())
    rows = []
    for method in args.methods:
        times = rates(method, data, args.repeats)
        images = len(data) // BATCH * BATCH
        rows.append([
            method, f"{images / statistics.median(times['epoch']):.0f}",
            f"{images / statistics.median(times['steps']):.0f}",
            f"{100 * median_ratio(times['steps'], times['epoch']):.0f} %",
        ])  # fmt: skip
    header = ["method", "epoch, images/s", "bare steps, images/s", "epoch : steps"]
    print(f"{TEACHER} to {STUDENT}, {len(data)} images, medians of {args.repeats} epochs")
    print(table(header, rows))
    keep("epoch", {"header": header, "rows": rows, "images": len(data)})


if __name__ == "__main__":
    main()
