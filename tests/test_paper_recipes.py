"""The published protocol of transfer: two steps of each recipe, on small true files."""

import re
import shlex
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from image_files import stl10_bytes
from small_runs import read_metrics, run_command

from cktf.cli.command import build_run_request
from cktf.data import StreamedImages
from cktf.recipes import (
    build_data,
    check_recipe,
    parse_recipe,
    parse_transfer_recipe,
    read_recipe,
    shipped_recipes,
)

SHORT = "--epochs 1 --set data.batch_size=4"


@pytest.fixture
def stl(tmp_path):
    """Ten labeled images, one of each class, ten for the test, and eight without labels."""
    folder, random = tmp_path / "stl10_binary", np.random.default_rng(0)
    folder.mkdir()
    for split, count in (("train", 10), ("test", 10), ("unlabeled", 8)):
        images = random.integers(0, 256, (count, 96, 96, 3), dtype=np.uint8)
        (folder / f"{split}_X.bin").write_bytes(stl10_bytes(images))
        if split != "unlabeled":
            (folder / f"{split}_y.bin").write_bytes(bytes(range(1, 11)))
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("teacher", "student"),
    [("vgg19", "vgg8"), ("ResNet18", "ResNet18"), ("vgg19", "vgg19")],
)
def test_transfer_to_stl10(teacher, student, tiny_imagenet_dir, stl, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_command(
        f"train --recipe paper/transfer-teacher-{teacher} --data-dir {tiny_imagenet_dir} {SHORT} "
        f"--out runs/paper/teacher-{teacher}"
    )
    run_command(
        f"transfer --recipe paper/transfer-{teacher}-{student} --data-dir {stl} {SHORT} "
        "--scratch-epochs 1 --set options.cktf.negatives=4 --out run"
    )
    rows = read_metrics(Path("run/student"))
    assert [row["images"] for row in rows] == [8]
    assert {"cktf.stem", "cktf.module1", "cktf.embedding"} <= rows[0]["terms"].keys()
    assert "ce" not in rows[0]["terms"]


@pytest.mark.parametrize("name", ["vgg19-vgg19", "vgg19-vgg8", "ResNet18-ResNet18"])
def test_what_a_recipe_is_compared_with(name):
    """The options that its head names, with the engine of its own method."""
    text = files("cktf.recipes").joinpath("paper", f"transfer-{name}.yaml").read_text()
    text = text.replace(" \\\n#    ", "")
    (found,) = re.findall(r"as compared there: (.*), and (.*)", text)
    methods = {}
    for line in found:
        _, method, *more = shlex.split(line)
        request = build_run_request(
            "transfer",
            {"method": method, "data_dir": Path("/data"), "set": more[1::2],
             "recipe": Path(f"paper/transfer-{name}")},
        )  # fmt: skip
        recipe = parse_transfer_recipe(request.fields).distill_recipe()
        problems = check_recipe(recipe).messages
        assert not [problem for problem in problems if not problem.startswith("teacher")], problems
        methods[recipe.method] = recipe.options
    assert methods == {
        "kd:1": {}, "crd:1": {"crd": {"estimator": "sampled", "temperature": 0.07}},
    }  # fmt: skip


def test_every_shipped_recipe_is_whole_and_as_published():
    assert len(shipped_recipes()) == 5
    for name in shipped_recipes():
        fields = read_recipe(Path(name))
        recipe = (parse_recipe if fields["kind"] == "train" else parse_transfer_recipe)(fields)
        optimizer = recipe.optimizer
        assert (recipe.epochs, optimizer.lr, optimizer.weight_decay) == (240, 0.05, 5e-4)
        assert recipe.schedule.milestones == (150 / 240, 180 / 240, 210 / 240)


def test_images_are_cut_at_random_from_what_is_stored(stl):
    recipe = parse_transfer_recipe(
        read_recipe(Path("paper/transfer-vgg19-vgg8")) | {"data": {
            "name": "stl10", "dir": str(stl), "image_size": 64, "resized_crops": True,
            "batch_size": 4,
        }}
    )  # fmt: skip
    data = build_data(recipe.data, 0)
    assert isinstance(data.raw_train.images, StreamedImages)
    assert data.raw_train.images.shape == (8, 64, 64, 3)
    assert not data.labeled
    # Of 96 stored pixels, not of 64: the whole image is scaled down.
    assert data.raw_train.images.stored.size == (96, 96)
    assert recipe.labeled.resized_crops


def test_a_recipe_that_is_not_there():
    printed = run_command("transfer --recipe paper/transfer-vgg19", exit_code=2)
    assert "paper/transfer-vgg19-vgg8" in printed
