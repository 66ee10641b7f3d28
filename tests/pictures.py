"""A small data set as a folder of images, whose classes colors tell."""

import numpy as np
from PIL import Image


def write_colored(folder, names, counts, side):
    """`FOLDER/SPLIT/CLASS/N.png`; three classes at most, `counts` of each in every split."""
    generator = np.random.default_rng(0)
    for split, count in counts.items():
        for number, name in enumerate(names):
            place = folder / split / name
            place.mkdir(parents=True)
            for i in range(count):
                pixels = generator.integers(0, 90, (side, side, 3), dtype=np.uint8)
                pixels[..., number] += 120
                Image.fromarray(pixels).save(place / f"{i}.png")
