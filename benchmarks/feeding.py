"""Images per second of loading alone, beside torchvision's usual pipeline of one image at a time.

    python benchmarks/feeding.py --data-dir DIR [--images 10000] [--workers 2]

CIFAR-10 from memory, cropped and flipped; and a folder of JPEGs of 256 pixels, CIFAR-10's images
enlarged, read at 64 and at 224 pixels with a crop of random place and size and a flip: streamed by
workers as every larger data set is, and once from memory, where it is cropped and flipped. All give
float batches of 64 and may use the same cores. Medians of repeats in turn.
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from measure import alternate, consume, keep, machine, median_ratio, table
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import CIFAR10, ImageFolder

from cktf.data import DatasetLoader, ImageSet, Loader, MemoryLoader, ReadOptions, load_dataset

BATCH, JPEG_SIDE = 64, 256
# With a budget of no bytes a data set is streamed, however small.
STREAMED, IN_MEMORY = 0, 1 << 34
Epoch = Callable[[], object]


class Arrays(CIFAR10):  # type: ignore[misc]
    """torchvision's CIFAR-10, with images that are here already."""

    def __init__(self, data: ImageSet[Any], transform: Callable[[Image.Image], Any]) -> None:
        self.data, self.targets = data.images.numpy(), data.labels.tolist()
        self.transform, self.target_transform = transform, None


def write_jpegs(data: ImageSet[Any], folder: Path) -> None:
    """A folder for each class with its images, enlarged."""
    for position, (pixels, label) in enumerate(zip(data.images, data.labels, strict=True)):
        path = folder / "train" / data.classes[int(label)] / f"{position:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(pixels.numpy()).resize(
            (JPEG_SIDE, JPEG_SIDE), Image.Resampling.BICUBIC
        )
        image.save(path, quality=90)


def usual(data: Any, workers: int) -> Epoch:
    """An epoch of torchvision's pipeline."""
    loader = DataLoader(data, BATCH, shuffle=True, num_workers=workers, drop_last=True)
    return lambda: consume(loader)


def ours(loader: Loader) -> Epoch:
    """An epoch of ours."""
    return lambda: consume(loader.epoch(1))


def of_cifar(data: ImageSet[Any], workers: int) -> dict[str, Epoch]:
    """CIFAR-10 from memory."""
    steps = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()]
    arrays = Arrays(data, transforms.Compose([*steps, transforms.ToTensor()]))
    return {
        "usual": usual(arrays, workers),
        "ours, from memory": ours(MemoryLoader(data, BATCH, train=True, augment=True)),
    }


def of_folder(folder: Path, size: int, workers: int) -> dict[str, Epoch]:
    """A folder of JPEGs at one size."""
    steps = [transforms.RandomResizedCrop(size), transforms.RandomHorizontalFlip()]
    images = ImageFolder(folder / "train", transforms.Compose([*steps, transforms.ToTensor()]))
    name = f"imagefolder:{folder}"
    streamed, held = (
        load_dataset(
            name, None, "train", ReadOptions(image_size=size, hold_out=False, budget=budget)
        )
        for budget in (STREAMED, IN_MEMORY)
    )
    return {
        "usual": usual(images, workers),
        "ours, streamed": ours(
            DatasetLoader(streamed, BATCH, train=True, augment=True, workers=workers)
        ),
        "ours, from memory": ours(
            MemoryLoader(cast(ImageSet, held), BATCH, train=True, augment=True)
        ),
    }


def main() -> None:
    """Parse, measure, print, keep."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    print(machine())
    data = load_dataset("cifar10", args.data_dir, "train")
    data = data.subset(torch.arange(args.images))
    rows: list[list[str]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_jpegs(data, folder)
        measured = {"CIFAR-10, 32 px": of_cifar(data, args.workers)} | {
            f"JPEGs, {size} px": of_folder(folder, size, args.workers) for size in (64, 224)
        }
        for what, epochs in measured.items():
            times = alternate(epochs, args.repeats, warmup=1)
            rows += [
                [
                    what, how, f"{args.images / statistics.median(seconds):.0f}",
                    f"{median_ratio(times['usual'], seconds):.1f}",
                ]
                for how, seconds in times.items()
            ]  # fmt: skip
    header = ["images", "loader", "images/s", "times the usual"]
    print(table(header, rows))
    record = {"images": args.images, "workers": args.workers, "batch": BATCH}
    keep("feeding", record | {"header": header, "rows": rows})


if __name__ == "__main__":
    main()
