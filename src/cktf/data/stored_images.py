"""Many images on disk or in memory, each decoded when it is asked for."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from os import cpu_count
from pathlib import Path
from typing import TypeVar, final

import numpy as np
from PIL import Image

from cktf.data.image_decoding import RGB, decode, describe_error, open_image_file

T = TypeVar("T")

_TAIL = 64
# What a whole file ends with; zeros behind it do no harm.
_ENDS = {"JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}
_THREADS = min(8, cpu_count() or 1)
_CHUNK = 64


class StoredImages(ABC):
    """Images by position."""

    @abstractmethod
    def __len__(self) -> int:
        """How many."""

    @abstractmethod
    def open(self, position: int) -> Image.Image:
        """An image of which the header is read."""

    @abstractmethod
    def name(self, position: int) -> str:
        """What a user would look for."""

    @abstractmethod
    def tail(self, position: int) -> bytes:
        """The last bytes of what is stored."""

    @property
    @abstractmethod
    def size(self) -> tuple[int, int] | None:
        """Width and height of all images; None where each has its own."""

    @abstractmethod
    def whole(self) -> np.ndarray | None:
        """All of them, [N, H, W, C] uint8, where they are stored so; None otherwise."""

    def decoded(
        self, position: int, channels: int = RGB, at_least: int | None = None
    ) -> Image.Image:
        """One image with eight bits in each channel; see `picture.decode`."""
        with self.open(position) as image:
            return decode(image, channels, at_least)

    def flaw(self, position: int, thorough: bool = False) -> str | None:
        """Why an image cannot be read; None where its header and its end are as they should be.

        The end of a JPEG or PNG is where truncation shows; without it, and in other formats, all
        of the image is decoded.

        Args:
            position: of the image.
            thorough: decode all of a PNG, which is not read where it is damaged inside; a JPEG is,
                as something.
        """
        try:
            with self.open(position) as image:
                # That takes many times as long as a look at header and end.
                whole = thorough and image.format == "PNG"
                end = None if whole else _ENDS.get(image.format or "")
                if end is None or not self.tail(position).rstrip(b"\0").endswith(end):
                    decode(image)
        except Exception as error:  # decoders let through what they meet
            return describe_error(error)
        return None

    def take(self, positions: Sequence[int]) -> "StoredImages":
        """Those at some positions, in that order."""
        return StoredSubset(self, positions)

    def each(self, job: Callable[[int], T]) -> Iterator[T]:
        """What `job` makes of each position, in order, computed by several threads."""
        chunks = [range(i, min(i + _CHUNK, len(self))) for i in range(0, len(self), _CHUNK)]
        with ThreadPoolExecutor(_THREADS) as threads:
            for found in threads.map(partial(_all, job), chunks):
                yield from found


def _all(job: Callable[[int], T], positions: range) -> list[T]:
    return [job(position) for position in positions]


@final
class ImageFiles(StoredImages):
    """Image files of any format and size."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = [str(path) for path in paths]

    def __len__(self) -> int:
        return len(self.paths)

    def open(self, position: int) -> Image.Image:
        """The file, its header read."""
        return open_image_file(Path(self.paths[position]))

    def name(self, position: int) -> str:
        """Its path."""
        return self.paths[position]

    def tail(self, position: int) -> bytes:
        """Its last bytes."""
        with open(self.paths[position], "rb") as file:
            end = file.seek(0, 2)
            file.seek(max(0, end - _TAIL))
            return file.read()

    @property
    def size(self) -> None:
        """Each has its own."""

    def whole(self) -> None:
        """They are not stored as pixels."""


@final
class ImageArrays(StoredImages):
    """Images that are in memory already.

    Args:
        pixels: [N, H, W, C] uint8, C 1 or 3.
        title: for messages.
    """

    def __init__(self, pixels: np.ndarray, title: str) -> None:
        self.pixels, self.title = pixels, title

    def __len__(self) -> int:
        return len(self.pixels)

    def open(self, position: int) -> Image.Image:
        """One of them."""
        return array_image(self.pixels[position])

    def name(self, position: int) -> str:
        """Its number."""
        return f"{self.title}[{position}]"

    def tail(self, position: int) -> bytes:
        """Pixels have no end mark."""
        return b""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of all of them."""
        return self.pixels.shape[2], self.pixels.shape[1]

    def whole(self) -> np.ndarray:
        """All of them."""
        return self.pixels


@final
class StoredSubset(StoredImages):
    """Some of other pictures."""

    def __init__(self, pictures: StoredImages, positions: Sequence[int]) -> None:
        self.pictures = pictures
        self.positions = np.asarray(positions, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.positions)

    def open(self, position: int) -> Image.Image:
        """One of them."""
        return self.pictures.open(int(self.positions[position]))

    def name(self, position: int) -> str:
        """What it is called among the others."""
        return self.pictures.name(int(self.positions[position]))

    def tail(self, position: int) -> bytes:
        """The last bytes of what is stored."""
        return self.pictures.tail(int(self.positions[position]))

    @property
    def size(self) -> tuple[int, int] | None:
        """As of the others."""
        return self.pictures.size

    def whole(self) -> np.ndarray | None:
        """All of them, where they are stored as pixels."""
        whole = self.pictures.whole()
        return None if whole is None else whole[self.positions]


def array_image(pixels: np.ndarray) -> Image.Image:
    """[H, W, C] uint8 as a picture."""
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
