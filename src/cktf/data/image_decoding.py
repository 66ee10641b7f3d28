"""One image: opened, turned upright, brought to eight bits a channel, cut to a square.

All that Pillow reads becomes RGB (or gray, if asked): palettes are looked up, CMYK is converted,
transparent images are laid on white, 16 bits are scaled to 8 where a plain conversion would clip
them, and a camera's orientation is applied.
"""

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

RGB, GRAY = 3, 1
# What Pillow reads by itself; others, such as EPS, it hands to programs that run what is in them.
_FORMATS = {
    "AVIF", "BMP", "DDS", "DIB", "GIF", "ICO", "JPEG", "JPEG2000", "MPO", "PCX", "PNG", "PPM",
    "SGI", "TGA", "TIFF", "WEBP",
}  # fmt: skip
# Decoded, so many take 300 MB.
_MOST_PIXELS = 100_000_000
_MODE = {RGB: "RGB", GRAY: "L"}
_ORIENTATION = 0x0112
# By what a camera notes, how to turn its picture upright.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def open_image_file(source: Path | bytes) -> Image.Image:
    """An image of which the header is read and nothing decoded.

    Raises:
        ValueError: a format that is not read, or more pixels than any photograph has.
        Exception: what Pillow raises for what is no image.
    """
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    image = Image.open(file)
    if image.format not in _FORMATS:
        image.close()
        raise ValueError(f"images of the format {image.format} are not read")
    if image.width * image.height > _MOST_PIXELS:
        image.close()
        raise ValueError(f"{image.width} x {image.height} pixels, above {_MOST_PIXELS:,}")
    return image


def decode(image: Image.Image, channels: int = RGB, at_least: int | None = None) -> Image.Image:
    """The image upright, with eight bits in each of `channels` channels.

    Args:
        image: as it was opened.
        channels: RGB or GRAY.
        at_least: the image may come reduced, as long as both sides keep so many pixels; this saves
            most of the time of large JPEGs.

    Raises:
        ValueError: values of which the range is not known.
        Exception: what Pillow's decoders raise for a damaged file.
    """
    if at_least is not None:
        image.draft(None, (at_least, at_least))
    image.load()
    return convert_to_8bit(_upright(image), channels)


def _upright(image: Image.Image) -> Image.Image:
    if "exif" not in image.info:
        return image
    try:
        turn = _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # a damaged note of the camera; the picture beside it may be whole
        return image
    # Not by ImageOps.exif_transpose, which writes the whole note anew, and fails at damage in it.
    return image if turn is None else image.transpose(turn)


def convert_to_8bit(image: Image.Image, channels: int = RGB) -> Image.Image:
    """An image of any mode in mode RGB, or L for one channel.

    >>> convert_to_8bit(Image.new("LA", (1, 1), (0, 0))).getpixel((0, 0))
    (255, 255, 255)
    """
    if image.mode == "F":
        raise ValueError("its values are 32-bit floats, of which the range is not known")
    if image.mode.startswith("I"):
        image = _from_sixteen_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == _MODE[channels] else image.convert(_MODE[channels])


def _from_sixteen_bits(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.int64)
    if values.size and not 0 <= values.min() <= values.max() < 2**16:
        raise ValueError("its values are 32-bit integers, of which the range is not known")
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


def resize_and_center_crop(image: Image.Image, size: int) -> Image.Image:
    """The center of an image, its shorter side scaled to `size`.

    Scaling to the shorter side and then cropping gives the same up to rounding; here what is
    crop_at away is never computed.
    """
    width, height = image.size
    if (width, height) == (size, size):
        return image
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    box = (left, top, left + side, top + side)
    return image.resize((size, size), Image.Resampling.BILINEAR, box=box)


def to_uint8_tensor(image: Image.Image) -> Tensor:
    """[H, W, C] uint8."""
    array = np.array(image)
    return torch.from_numpy(array if array.ndim == 3 else array[:, :, None])


def describe_error(error: Exception) -> str:
    """Why an image cannot be read, in a few words."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image"
    return str(error) or type(error).__name__
