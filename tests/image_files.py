"""Small data sets in the file layouts that cktf reads."""

import io

import numpy as np
import torch
from PIL import Image

WNIDS = ["n02124075", "n04067472", "n04540053", "n04099969"]
WORDS = "n00000001\tentity\nn02124075\tEgyptian cat\nn04067472\treel\nn04540053\tvolleyball\n"
WORDS += "n04099969\treel, rocking chair\n"
# The validation images of Tiny ImageNet and their labels.
VALIDATION = [("val_0.JPEG", 2), ("val_1.JPEG", 0), ("val_2.JPEG", 3), ("val_3.JPEG", 1)]


def pixels(seed, *shape):
    """Random bytes of a shape."""
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def smooth_image(seed, width=40, height=40, gray=False):
    """An image that JPEG keeps nearly unchanged."""
    corners = pixels(seed, 3, 3) if gray else pixels(seed, 3, 3, 3)
    return Image.fromarray(corners).resize((width, height), Image.Resampling.BILINEAR)


def encode_image(image, kind="JPEG", **options):
    """The bytes of an image file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def jpeg(seed, gray=False):
    """The bytes of a smooth image of 64 x 64 pixels, nearly unchanged."""
    return encode_image(smooth_image(seed, 64, 64, gray), quality=95)


def write_jpegs(folder, count, *, sizes=((40, 40),), first=0, ending=".jpg"):
    """`count` JPEGs in a folder, whose sizes alternate."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        image = smooth_image(first + i, *sizes[i % len(sizes)])
        (folder / f"{first + i:03}{ending}").write_bytes(encode_image(image))
    return folder


def write_colored_images(folder, names, counts, side):
    """`FOLDER/SPLIT/CLASS/N.png`, at most three classes that differ by color.

    `counts` gives the number of images per class for each split.
    """
    generator = np.random.default_rng(0)
    for split, count in counts.items():
        for label, name in enumerate(names):
            class_dir = folder / split / name
            class_dir.mkdir(parents=True)
            for i in range(count):
                image = generator.integers(0, 90, (side, side, 3), dtype=np.uint8)
                image[..., label] += 120
                Image.fromarray(image).save(class_dir / f"{i}.png")


def write_cifar10(folder, images, labels):
    """CIFAR-10's binary layout, 60 images a file, from [N, 32, 32, 3] bytes and their labels."""
    for number, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        part = slice(60 * number, 60 * (number + 1))
        planes = images[part].permute(0, 3, 1, 2).reshape(60, -1)
        records = torch.cat([labels[part].byte().unsqueeze(1), planes], dim=1)
        (folder / f"{name}.bin").write_bytes(records.numpy().tobytes())


def stl10_bytes(images):
    """[N, 96, 96, 3] as in the file: three planes, each column by column, value by value."""
    found = np.empty((len(images), 3, 96, 96), np.uint8)
    for channel in range(3):
        for x in range(96):
            found[:, channel, x, :] = images[:, :, x, channel]
    return found.tobytes()
