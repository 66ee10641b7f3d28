"""Make fashion-mini, the data set inside the package: a balanced part of Fashion-MNIST.

    python tools/make_fashion_mini.py [DIR]     # default: where Debian's package puts the files

Writes src/cktf/data/fashion_mini/{train,test}.xz: for each of 10,000 training and 5,000 test images
one byte of label and 28x28 bytes of image. Each is drawn from the split of the same name, so no
test image is in training. The same seed gives the same files.
"""

import lzma
import sys
from pathlib import Path

import numpy as np

from cktf.data.fashion import load_fashion_mnist

PER_CLASS = {"train": 1000, "test": 500}
SEED = 2023
TARGET = Path(__file__).parents[1] / "src" / "cktf" / "data" / "fashion_mini"


def main() -> None:
    """Draw and write both splits; print the sizes of the files."""
    directory = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    TARGET.mkdir(exist_ok=True)
    for split, count in PER_CLASS.items():
        data = load_fashion_mnist(directory, split)
        labels = data.labels.numpy()
        random = np.random.default_rng(SEED)
        chosen = np.concatenate(
            [random.choice(np.flatnonzero(labels == c), count, replace=False) for c in range(10)]
        )
        pixels = data.images[chosen, 2:-2, 2:-2, 0].numpy().reshape(len(chosen), -1)
        records = np.concatenate([labels[chosen, None].astype(np.uint8), pixels], axis=1)
        path = TARGET / f"{split}.xz"
        filters = [{"id": lzma.FILTER_LZMA2, "preset": 9, "lc": 0, "lp": 0, "pb": 0}]
        path.write_bytes(lzma.compress(records.tobytes(), filters=filters))
        print(f"{path.name}: {len(chosen)} images, {path.stat().st_size:,} bytes")
        if split == "train":
            gray = data.images.float() / 255
            print(f"all training images, padded: mean {gray.mean():.4f}, std {gray.std():.4f}")


if __name__ == "__main__":
    main()
