"""Decode one image: turn it upright, convert it to eight bits a channel, crop it to a square.

Every format that Pillow decodes by itself becomes RGB, or gray on request: palettes are looked up,
CMYK is converted, transparent pixels are laid on white, 16 bits are scaled to 8 where a plain
conversion would clip them, and the camera's orientation is applied.
"""

import io
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from cktf.errors import install_command

RGB, GRAY = 3, 1
# Formats that Pillow decodes by itself. It hands others, such as EPS, to programs that run them.
_FORMATS = {
    "AVIF", "BMP", "DDS", "DIB", "GIF", "HEIF", "ICO", "JPEG", "JPEG2000", "MPO", "PCX", "PNG",
    "PPM", "SGI", "TGA", "TIFF", "WEBP",
}  # fmt: skip
_HEIC = install_command("heic")
# Packages for photographs that Pillow reads with a plugin or since a later version.
MISSING_DECODERS = {
    ".heic": _HEIC, ".heif": _HEIC, ".hif": _HEIC, ".avif": "pip install 'pillow>=11.3'",
}  # fmt: skip
_HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
# 300 MB when decoded to RGB.
_MAX_PIXELS = 100_000_000
_MODES = {RGB: "RGB", GRAY: "L"}
# The transpose that turns an image upright, by the value of its orientation tag.
_TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def open_image_file(source: Path | bytes) -> Image.Image:
    """Open an image and read its header, without decoding its pixels.

    Raises:
        ValueError: a format that is not supported, or more than 100 million pixels.
        Exception: what Pillow raises for a file that is not an image.
    """
    image: Image.Image
    try:
        image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)
    except UnidentifiedImageError:
        image = _open_heic(source)
    if image.format not in _FORMATS:
        image.close()
        raise ValueError(f"images of the format {image.format} are not supported")
    if image.width * image.height > _MAX_PIXELS:
        image.close()
        raise ValueError(f"{image.width} x {image.height} pixels, above {_MAX_PIXELS:,}")
    return image


@cache
def register_heif() -> bool:
    """Make Pillow read HEIC photographs; False without pillow-heif (the extra `heic`)."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return False
    register_heif_opener()
    return True


def _open_heic(source: Path | bytes) -> Image.Image:
    """Open a HEIC photograph, whatever the end of its name."""
    with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file:
        header = file.read(12)
    if header[4:8] != b"ftyp" or header[8:] not in _HEIC_BRANDS:
        raise UnidentifiedImageError
    if not register_heif():
        raise ValueError(f"a HEIC photograph, which is read after {_HEIC}")
    return Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)


def decode_image(
    image: Image.Image, channels: int = RGB, min_side: int | None = None
) -> Image.Image:
    """Decode an opened image, upright, with eight bits in each channel.

    Args:
        image: the opened image.
        channels: RGB or GRAY.
        min_side: a JPEG may be decoded at a fraction of its size, as long as both sides keep this
            many pixels; this saves most of the time that large JPEGs take.

    Raises:
        ValueError: pixel values whose range is unknown.
        Exception: what Pillow's decoders raise for a damaged file.
    """
    if min_side is not None:
        image.draft(None, (min_side, min_side))
    image.load()
    return convert_to_8bit(_turn_upright(image), channels)


def _turn_upright(image: Image.Image) -> Image.Image:
    try:
        # Of EXIF, or else of XMP.
        transpose = _TRANSPOSES.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # the EXIF block may be damaged while the pixels are intact
        return image
    # ImageOps.exif_transpose rewrites the whole EXIF block and fails where it is damaged.
    return image if transpose is None else image.transpose(transpose)


def convert_to_8bit(image: Image.Image, channels: int = RGB) -> Image.Image:
    """Convert an image of any mode to mode RGB, or to mode L for one channel.

    >>> convert_to_8bit(Image.new("LA", (1, 1), (0, 0))).getpixel((0, 0))
    (255, 255, 255)
    """
    if image.mode == "F":
        raise ValueError("the range of its values, 32-bit floats, is unknown")
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.size and not 0 <= values.min() <= values.max() < 2**16:
            raise ValueError("the range of its values, 32-bit integers, is unknown")
        image = Image.fromarray(((values + 128) // 257).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == _MODES[channels] else image.convert(_MODES[channels])


def resize_and_center_crop(image: Image.Image, size: int) -> Image.Image:
    """Scale the shorter side to `size` and crop the center to `size` x `size`.

    The two steps are one resampling of a box, so that pixels outside the crop are never computed;
    the result equals scaling and then cropping up to rounding.
    """
    return ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)


def to_uint8_tensor(image: Image.Image) -> Tensor:
    """Convert an image to a tensor [H, W, C] uint8."""
    array = np.array(image)
    return torch.from_numpy(array if array.ndim == 3 else array[:, :, None])


def describe_error(error: Exception) -> str:
    """Say in a few words why an image cannot be decoded."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image"
    return str(error) or type(error).__name__
