"""Many images on disk or in memory, each read and decoded when it is asked for."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar, final

import numpy as np
from PIL import Image

from cktf.data.image_decoding import RGB, decode_image, describe_error, open_image_file
from cktf.machine import usable_cpus

T = TypeVar("T")

_TAIL = 64
# The last bytes of a complete file; zeros may follow them.
_END_MARKERS = {"JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}
_MAX_THREADS = 8
_CHUNK = 64


class StoredImages(ABC):
    """Images by position.

    Attributes:
        size: width and height of images stored as pixels, all alike; None for encoded files, each
            of which has its own size.
    """

    size: tuple[int, int] | None = None

    @abstractmethod
    def __len__(self) -> int:
        """Count the images."""

    @abstractmethod
    def read(self, position: int) -> Path | bytes | np.ndarray:
        """The image's file, the file's bytes, or its pixels [H, W, C] uint8."""

    @abstractmethod
    def image_name(self, position: int) -> str:
        """The path or the number by which a user finds the image."""

    def open_image(self, position: int) -> Image.Image:
        """Open an image; of an encoded file only the header is read."""
        stored = self.read(position)
        if isinstance(stored, np.ndarray):
            return Image.fromarray(stored[:, :, 0] if stored.shape[2] == 1 else stored)
        return open_image_file(stored)

    def load_image(
        self, position: int, channels: int = RGB, min_side: int | None = None
    ) -> Image.Image:
        """Open and decode an image; see `image_decoding.decode_image`."""
        with self.open_image(position) as image:
            return decode_image(image, channels, min_side)

    def read_tail(self, position: int) -> bytes:
        """Read the last 64 bytes of an encoded image."""
        stored = self.read(position)
        if isinstance(stored, Path):
            with stored.open("rb") as file:
                file.seek(max(0, file.seek(0, 2) - _TAIL))
                return file.read()
        return bytes(stored[-_TAIL:])

    def find_defect(self, position: int, decode_png: bool = False) -> str | None:
        """Say why an image cannot be read; None where its header and its end are intact.

        A truncated JPEG or PNG lacks its end marker. Without the marker, and in other formats, the
        whole image is decoded.

        Args:
            position: of the image.
            decode_png: decode every PNG too, which takes many times as long; it fails where a PNG
                is damaged inside, while a damaged JPEG decodes to something.
        """
        try:
            with self.open_image(position) as image:
                skip_marker = decode_png and image.format == "PNG"
                marker = None if skip_marker else _END_MARKERS.get(image.format or "")
                if marker is None or not self.read_tail(position).rstrip(b"\0").endswith(marker):
                    decode_image(image)
        except Exception as error:  # Pillow's decoders raise errors of many types
            return describe_error(error)
        return None

    def read_all_pixels(self) -> np.ndarray:
        """Read images that are stored as pixels: [N, H, W, C] uint8."""
        return np.stack([np.asarray(self.read(i)) for i in range(len(self))])

    def map_positions(self, function: Callable[[int], T]) -> Iterator[T]:
        """Yield `function(position)` for every position, in order, computed by several threads."""
        chunks = [range(i, min(i + _CHUNK, len(self))) for i in range(0, len(self), _CHUNK)]
        with ThreadPoolExecutor(min(_MAX_THREADS, usable_cpus())) as threads:
            for results in threads.map(lambda chunk: [function(i) for i in chunk], chunks):
                yield from results


@final
class ImageFiles(StoredImages):
    """Image files of any format and size."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = [str(path) for path in paths]

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, position: int) -> Path:
        """The path of a file."""
        return Path(self.paths[position])

    def image_name(self, position: int) -> str:
        """The path of a file."""
        return self.paths[position]


@final
class ImageArrays(StoredImages):
    """Images in memory.

    Args:
        pixels: [N, H, W, C] uint8, C 1 or 3.
        title: precedes the position in messages.
    """

    def __init__(self, pixels: np.ndarray, title: str) -> None:
        self.pixels, self.title = pixels, title
        self.size = pixels.shape[2], pixels.shape[1]

    def __len__(self) -> int:
        return len(self.pixels)

    def read(self, position: int) -> np.ndarray:
        """The pixels of an image."""
        return np.asarray(self.pixels[position])

    def image_name(self, position: int) -> str:
        """The title and the position."""
        return f"{self.title}[{position}]"


@final
class StoredSubset(StoredImages):
    """Images at some positions of other stored images, in the order of the positions."""

    def __init__(self, images: StoredImages, positions: Sequence[int]) -> None:
        self.images, self.size = images, images.size
        self.positions = np.asarray(positions, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.positions)

    def read(self, position: int) -> Path | bytes | np.ndarray:
        """Read from the full set."""
        return self.images.read(int(self.positions[position]))

    def image_name(self, position: int) -> str:
        """The name of the image in the full set."""
        return self.images.image_name(int(self.positions[position]))
