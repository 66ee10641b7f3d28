"""Any kind of image file becomes an upright image of eight bits a channel."""

import io
import struct
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from image_files import encode_image, pixels, smooth_image
from PIL import Image, ImageOps
from torchvision.transforms import v2

from cktf.data import picture
from cktf.data.image_decoding import (
    convert_to_8bit,
    decode_image,
    open_image_file,
    register_heif,
    resize_and_center_crop,
)

RAMP = np.linspace(0, 255, 20).round().astype(np.uint8).reshape(4, 5)
SIXTEEN = RAMP.astype(np.uint16) * 257
COLOR = np.stack([RAMP, RAMP[::-1], RAMP.T.reshape(4, 5)], axis=2)


def gray(array):
    return np.stack([array] * 3, axis=2)


def with_alpha(color, alpha):
    return Image.fromarray(np.concatenate([color, alpha[..., None]], axis=2))


def on_white(color, alpha):
    """The definition, of 8-bit values."""
    share = alpha[..., None] / 255
    return color * share + 255 * (1 - share)


def palette():
    image = Image.fromarray((RAMP > 100).astype(np.uint8), "L")
    image.putpalette([250, 10, 20, 0, 60, 240] + [0] * 762)
    return image


def cmyk():
    cyan_magenta_yellow = [*map(Image.fromarray, np.moveaxis(255 - COLOR, 2, 0).copy())]
    return Image.merge("CMYK", [*cyan_magenta_yellow, Image.new("L", (5, 4), 0)])


PALETTE = np.where((RAMP > 100)[..., None], [0, 60, 240], [250, 10, 20])
KINDS = {
    "RGB": (encode_image(Image.fromarray(COLOR), "PNG"), COLOR),
    "gray": (encode_image(Image.fromarray(RAMP), "PNG"), gray(RAMP)),
    "black and white": (
        encode_image(Image.fromarray(RAMP > 100), "PNG"), gray(np.where(RAMP > 100, 255, 0)),
    ),
    "RGBA": (encode_image(with_alpha(COLOR, RAMP), "PNG"), on_white(COLOR, RAMP)),
    "gray with alpha": (
        encode_image(Image.fromarray(np.stack([RAMP[::-1], RAMP], axis=2)), "PNG"),
        on_white(gray(RAMP[::-1]), RAMP),
    ),
    "palette": (encode_image(palette(), "PNG"), PALETTE),
    "palette with a transparent color": (
        encode_image(palette(), "PNG", transparency=0),
        np.where((RAMP > 100)[..., None], [0, 60, 240], 255),
    ),
    "16 bits": (encode_image(Image.fromarray(SIXTEEN), "PNG"), gray(RAMP)),
    "16 bits in TIFF": (encode_image(Image.fromarray(SIXTEEN), "TIFF"), gray(RAMP)),
    "32 bits that hold 16": (
        encode_image(Image.fromarray(SIXTEEN.astype(np.int32)), "TIFF"), gray(RAMP),
    ),
    "CMYK": (encode_image(cmyk(), "TIFF"), COLOR),
}  # fmt: skip


@pytest.mark.parametrize(("raw", "expected"), KINDS.values(), ids=KINDS)
def test_every_kind_becomes_rgb(raw, expected):
    found = decode_image(Image.open(io.BytesIO(raw)))
    assert found.mode == "RGB"
    assert np.abs(np.asarray(found) - expected).max() <= 1


@pytest.mark.parametrize("raw", [raw for raw, _ in KINDS.values()], ids=KINDS)
def test_every_kind_becomes_gray_on_request(raw):
    found = decode_image(Image.open(io.BytesIO(raw)), channels=1)
    colors = np.asarray(decode_image(Image.open(io.BytesIO(raw)))) @ np.array([0.299, 0.587, 0.114])
    assert found.mode == "L"
    assert np.abs(np.asarray(found) - colors).max() <= 1


def test_cmyk_jpeg_keeps_its_colors():
    color = smooth_image(3)
    raw = encode_image(color.convert("CMYK"), "JPEG", quality=95)
    found = np.asarray(decode_image(Image.open(io.BytesIO(raw)))).astype(int)
    assert np.abs(found - np.asarray(color)).max() < 20


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_upright(orientation):
    upright = Image.fromarray(pixels(1, 6, 9, 3))
    turns = Image.Transpose
    undone = {
        1: None, 2: turns.FLIP_LEFT_RIGHT, 3: turns.ROTATE_180, 4: turns.FLIP_TOP_BOTTOM,
        5: turns.TRANSPOSE, 6: turns.ROTATE_90, 7: turns.TRANSVERSE, 8: turns.ROTATE_270,
    }[orientation]  # fmt: skip
    stored = upright if undone is None else upright.transpose(undone)
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = decode_image(Image.open(io.BytesIO(encode_image(stored, "PNG", exif=exif.tobytes()))))
    assert (np.asarray(found) == np.asarray(upright)).all()


def xmp(orientation):
    return (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="'
        f'{orientation}"/></x:xmpmeta>'
    ).encode()


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize("in_exif", [None, 1, 8])
def test_orientation_is_that_of_pillow(kind, in_exif):
    """EXIF comes before XMP; images are trained on as `exif_transpose` turns them for users."""
    exif = Image.Exif()
    if in_exif is not None:
        exif[0x0112] = in_exif
    tags = {"exif": exif} if kind == "TIFF" else {"exif": exif.tobytes(), "xmp": xmp(6)}
    raw = encode_image(smooth_image(4, 24, 8), kind, **tags)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(raw))).convert("RGB")
    turned = in_exif == 8 or (in_exif is None and kind != "TIFF")
    assert expected.size == ((8, 24) if turned else (24, 8))
    found = picture.decode(picture.open_image(raw))
    assert (np.asarray(found) == np.asarray(expected)).all()


HEIC = b"\0\0\0\x1cftypheic\0\0\0\0mif1heic"


@pytest.fixture
def unregistered_heif():
    register_heif.cache_clear()
    yield
    register_heif.cache_clear()


@pytest.mark.usefixtures("unregistered_heif")
def test_heic_needs_an_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(ValueError, match=r"a HEIC photograph, .* pip install .*\[heic\]'"):
        open_image_file(HEIC)


@pytest.mark.usefixtures("unregistered_heif")
def test_heic_is_read_with_its_extra(monkeypatch, tmp_path):
    """Whatever the name of the file: phones call such files .jpg too."""

    def open_heic(file, name):
        file.close()
        image = Image.new("RGB", (4, 2), "red")
        image.format = "HEIF"
        return image

    def register():
        Image.register_open("HEIF", open_heic, lambda start: start[4:12] == b"ftypheic")

    for name in ("OPEN", "ID"):
        monkeypatch.setattr(Image, name, getattr(Image, name).copy())
    monkeypatch.setitem(sys.modules, "pillow_heif", SimpleNamespace(register_heif_opener=register))
    (tmp_path / "a.jpg").write_bytes(HEIC)
    for source in (HEIC, tmp_path / "a.jpg"):
        assert decode_image(open_image_file(source)).size == (4, 2)


def test_orientation_is_read_from_damaged_exif():
    """Orientation 6 and a resolution that is text, which Pillow cannot write again."""
    entries = [(0x0112, 3, 1, struct.pack("<HH", 6, 0)), (0x011A, 2, 4, b"abc\0")]
    note = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(entries))
    note += b"".join(struct.pack("<HHI", *entry[:3]) + entry[3] for entry in entries) + bytes(4)
    stored = Image.fromarray(pixels(1, 4, 8, 3))
    raw = encode_image(stored, exif=note)
    found = decode_image(Image.open(io.BytesIO(raw)))
    expected = Image.open(io.BytesIO(raw)).transpose(Image.Transpose.ROTATE_270)
    assert (np.asarray(found) == np.asarray(expected)).all()


def test_integers_of_unknown_range_are_refused():
    with pytest.raises(ValueError, match="range of its values, 32-bit integers, is unknown"):
        convert_to_8bit(Image.fromarray(np.array([[70_000]], dtype=np.int32)))


@pytest.mark.parametrize(("width", "height"), [(37, 90), (90, 37), (48, 48), (300, 20), (32, 32)])
def test_center_crop_matches_torchvision(width, height):
    image = smooth_image(5, width, height)
    expected = v2.Compose([v2.Resize(32), v2.CenterCrop(32)])(image)
    found = resize_and_center_crop(image, 32)
    assert found.size == (32, 32)
    apart = np.abs(np.asarray(found).astype(int) - np.asarray(expected))
    # Half a pixel, where torchvision rounds the other side.
    assert apart.max() <= 12
    assert apart.mean() < 2


def test_large_jpegs_are_decoded_at_a_fraction():
    image = Image.open(io.BytesIO(encode_image(smooth_image(2, 640, 480))))
    assert min(decode_image(image, min_side=64).size) == 120
    image = Image.open(io.BytesIO(encode_image(smooth_image(2, 640, 480), "PNG")))
    assert decode_image(image, min_side=64).size == (640, 480)
