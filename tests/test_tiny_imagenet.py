"""Tiny ImageNet from the folders of its archive."""

import io

import numpy as np
import pytest
from image_files import VALIDATION, WNIDS, jpeg
from PIL import Image

from cktf.data import load_dataset
from cktf.errors import DataError


def decode(raw):
    return np.asarray(Image.open(io.BytesIO(raw)).convert("RGB"))


@pytest.mark.parametrize("inside", [True, False])
def test_tiny_imagenet(tiny_imagenet_dir, inside):
    train, test = (
        load_dataset(
            "tiny-imagenet", tiny_imagenet_dir if inside else tiny_imagenet_dir.parent, split
        )
        for split in ("train", "test")
    )
    assert train.labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert test.labels.tolist() == [label for _, label in VALIDATION]
    for i, image in enumerate(train.images):
        assert (image.numpy() == decode(jpeg(10 * (i // 2) + i % 2, gray=i % 2 == 1))).all()
    for i, image in enumerate(test.images):
        assert (image.numpy() == decode(jpeg(100 + i))).all()
    # Two classes share a word, so their WordNet IDs follow.
    assert list(train.classes) == [
        "Egyptian cat", "reel (n04067472)", "volleyball", "reel (n04099969)",
    ]  # fmt: skip
    assert train.images.shape[1:] == (64, 64, 3)


LINE = f"val_0.JPEG\t{WNIDS[0]}\t0\t0\t9\t9\n"
BAD_TINY = {
    "no wnids": ("wnids.txt", None, r"no wnids.txt in .*tiny-imagenet-200.zip"),
    "no classes": ("wnids.txt", "", "two or more; found 0"),
    "twice": ("wnids.txt", "\n".join([*WNIDS, WNIDS[1]]), "found twice n04067472"),
    "unknown class": ("wnids.txt", "\n".join([*WNIDS, "n9"]), "none for n9"),
    "no words": ("words.txt", None, "has no words.txt"),
    "no annotations": ("val/val_annotations.txt", None, "val has no val_annotations.txt"),
    "empty annotations": ("val/val_annotations.txt", "", "no line in it"),
    "no tabs": ("val/val_annotations.txt", LINE + "val_1 n1", "line 2: a file, a tab and a class"),
    "foreign class": ("val/val_annotations.txt", "val_0.JPEG\tn1\n", "line 1: .*val_0.JPEG"),
    "absent image": (
        "val/val_annotations.txt", LINE + LINE.replace("val_0", "val_9"), "no val_9.JPEG in val",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("name", "text", "words"), BAD_TINY.values(), ids=BAD_TINY)
def test_malformed_files_are_explained(tiny_imagenet_dir, name, text, words):
    (tiny_imagenet_dir / name).unlink()
    if text is not None:
        (tiny_imagenet_dir / name).write_text(text)
    with pytest.raises(DataError, match=words):
        [load_dataset("tiny-imagenet", tiny_imagenet_dir, split) for split in ("train", "test")]


def test_a_class_of_tiny_imagenet_without_images(tiny_imagenet_dir):
    for path in (tiny_imagenet_dir / "train" / WNIDS[2] / "images").iterdir():
        path.unlink()
    with pytest.raises(DataError, match=f"train/WNID/images; none for {WNIDS[2]}"):
        load_dataset("tiny-imagenet", tiny_imagenet_dir, "train")


def test_tiny_imagenet_needs_a_folder():
    with pytest.raises(DataError, match="Tiny ImageNet needs --data-dir"):
        load_dataset("tiny-imagenet", None, "train")
