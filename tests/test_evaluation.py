"""The data set on which a run is evaluated, and the size of its images."""

import shutil
from pathlib import Path

import pytest
import torch
from image_files import write_jpegs
from PIL import Image
from small_runs import SmallNet, copy_state, equal_weights, run_command
from torch.utils.data import TensorDataset

import cktf
from cktf.data import load_dataset
from cktf.errors import CktfError, DataError, RunFolderError
from cktf.models import Normalized, build_network, create, parse_network_spec, save_network
from cktf.recipes import (
    DataConfig,
    build_data,
    load_split,
    parse_recipe,
    parse_transfer_recipe,
    to_yaml,
)
from cktf.workflows import evaluation, plan_transfer
from cktf.workflows.analysis import RunAnalyzer
from cktf.workflows.user_objects import UserObjects

TRAIN = "train --model resnet8 --epochs 1 --set data.batch_size=4"


@pytest.fixture
def sets(tmp_path):
    """Three folders of the same classes that differ in image size and in test images."""
    for name, (side, count) in {"a": (64, 3), "b": (96, 4), "c": (128, 5)}.items():
        for part, images in (("train", 2), ("test", count)):
            for label in ("cat", "dog"):
                write_jpegs(tmp_path / name / part / label, images, sizes=[(side, side)])
    return {name: f"imagefolder:{tmp_path / name}" for name in "abc"}


def write_run(folder, recipe):
    """Write the files of a finished run that evaluation reads."""
    folder.mkdir()
    (folder / "recipe.yaml").write_text(to_yaml(recipe))
    save_network(
        create("resnet8", 2), folder / "student.safetensors", name="resnet8",
        classes=["cat", "dog"], dataset="photos",
    )  # fmt: skip
    return folder


@pytest.mark.parametrize("kind", ["train", "transfer"])
def test_the_named_data_set_is_evaluated(sets, tmp_path, monkeypatch, kind):
    section = {"name": sets["a"], "test": sets["b"], "classes": ["cat", "dog"]}
    if kind == "train":
        recipe = parse_recipe({"kind": kind, "model": "resnet8", "data": section})
    else:
        fields = {"teacher": "resnet8", "student": "resnet8", "data": {"name": sets["a"]}}
        recipe = parse_transfer_recipe({"kind": kind, "labeled": section, **fields})
    monkeypatch.chdir(tmp_path)
    # A run folder may be called like a network.
    run = write_run(Path("resnet8"), recipe)
    for data, (measured, images) in {
        None: ("b", 8), sets["a"]: ("a", 6), sets["b"]: ("b", 8), sets["c"]: ("c", 10),
    }.items():  # fmt: skip
        accuracy, name = cktf.evaluate(run, data)
        assert (name, accuracy.samples) == (sets[measured], images)


def test_relative_folders_are_recognized(sets, tmp_path, monkeypatch):
    section = {"name": sets["a"], "test": sets["b"], "dir": "images"}
    recipe = parse_recipe({"kind": "train", "model": "resnet8", "data": section})
    run = write_run(tmp_path / "run", recipe)
    monkeypatch.chdir(tmp_path)
    assert evaluation.load_test_section(run, "imagefolder:b")[1] == recipe.data
    assert evaluation.load_test_section(run, "imagefolder:a")[1].dir == "images"
    assert evaluation.load_test_section(run, "imagefolder:c")[1].name == sets["c"]


def test_evaluation_uses_the_size_of_training(sets, tmp_path, monkeypatch):
    out = tmp_path / "run"
    run_command(f"{TRAIN} --data {sets['a']} --out {out}")
    seen = []

    def accuracy_of(forward, loader, *others):
        seen.append(tuple(next(iter(loader.epoch(0))).images.shape))
        return accuracy(forward, loader, *others)

    accuracy = evaluation.accuracy_of
    monkeypatch.setattr(evaluation, "accuracy_of", accuracy_of)
    for data in (None, sets["a"], sets["c"]):
        cktf.evaluate(out, data)
    assert seen == [(6, 3, 64, 64), (6, 3, 64, 64), (10, 3, 64, 64)]


@pytest.mark.parametrize("tested", ["a", "b"])
def test_a_folder_may_have_moved(sets, tmp_path, tested):
    """--data-dir names its new place; images added later do not change the image size."""
    out, moved = tmp_path / "run", tmp_path / "elsewhere"
    run_command(f"{TRAIN} --data {sets['a']} --out {out} --set data.test={sets[tested]}")
    log = (out / "log.txt").read_text()
    assert f"{sets['a']}: train: 4 images of 2 classes, 64x64, in memory" in log
    expected = cktf.evaluate(out)[0]
    (tmp_path / tested).rename(moved)
    for label in ("cat", "dog"):
        write_jpegs(moved / "train" / label, 9, first=20, sizes=[(256, 256)])
    accuracy, name = cktf.evaluate(out, data_dir=str(moved))
    assert (accuracy, name) == (expected, f"imagefolder:{moved}")
    with pytest.raises(DataError, match="there is no such folder"):
        cktf.evaluate(out)
    section = evaluation.load_test_section(out, sets["a"], str(moved))[1]
    assert (section.name, section.test) == (f"imagefolder:{moved}", None)
    found = RunAnalyzer(data_dir=str(moved)).analyze(out)
    assert (found.missing_reason, tuple(found.images.shape[1:])) == ("", (64, 64, 3))


def test_a_folder_of_test_images_alone(sets, tmp_path):
    recipe = parse_recipe({"kind": "train", "model": "resnet8", "data": {"name": sets["a"]}})
    run = write_run(tmp_path / "run", recipe)
    (tmp_path / "b" / "train").rename(tmp_path / "aside")
    assert cktf.evaluate(run, sets["b"])[0].samples == 8
    with pytest.raises(DataError, match="found test, and no class folders in train"):
        load_dataset(sets["b"], None, "train")


HELD_OUT = "; the fifth of each class that is held out of training"


def test_of_another_folder_of_classes_all_images_count(
    class_folders, tmp_path, monkeypatch, capsys
):
    """And of the run's own, under any of its names, those that training left out."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "400")
    run_command(f"{TRAIN} --data photos --out run")
    Path("link").symlink_to("photos")
    for part in ("train", "val"):
        shutil.copytree("photos", Path("other") / part)
    capsys.readouterr()
    for data, images, remark in (
        ("photos", 6, HELD_OUT), ("./link", 6, HELD_OUT), ("other", 30, "; from val"),
        ("other/val", 30, " MB)"), ("other/train", 30, " MB)"),
    ):  # fmt: skip
        accuracy, name = cktf.evaluate("run", data, show=True)
        assert (accuracy.samples, name) == (images, f"imagefolder:{tmp_path / data}")
        assert capsys.readouterr().err.rstrip().endswith(remark)
    # A folder without a path in its name is another one if its place is another.
    assert cktf.evaluate("run", "imagefolder", "other/val")[0].samples == 30
    assert cktf.evaluate("run", "imagefolder", "photos")[0].samples == 6


def test_training_images_among_those_evaluated_are_counted(sets, tmp_path, capsys):
    run_command(f"{TRAIN} --data {sets['a']} --out {tmp_path / 'run'}")
    capsys.readouterr()
    for part, words in (("train", "; the run was trained on 4 of them"), ("test", "MB)")):
        cktf.evaluate(tmp_path / "run", tmp_path / "a" / part, show=True)
        assert " ".join(capsys.readouterr().err.split()).endswith(words)


def test_another_set_is_tested_at_the_size_of_training(sets):
    section = DataConfig(name=sets["a"], test=sets["c"], batch_size=2)
    data = build_data(section, 0)
    assert data.raw_train.images.shape[1:] == data.raw_test.images.shape[1:] == (64, 64, 3)
    assert load_split(section, "test").images.shape == (10, 64, 64, 3)


@pytest.mark.parametrize(("given", "size"), [({}, 64), ({"image_size": 32}, 32)])
def test_transfer_probes_at_the_size_of_distillation(sets, tmp_path, given, size):
    fields = {
        "teacher": "custom", "student": "custom", "labeled": {"name": sets["c"]} | given,
        "data": {"name": sets["a"], "batch_size": 2},
    }  # fmt: skip
    recipe, out = parse_transfer_recipe({"kind": "transfer", **fields}), tmp_path / "run"
    networks = UserObjects(create("resnet8", 2), create("resnet8", 2))
    plan = plan_transfer(recipe, out, networks)
    assert plan.labeled.raw_train.images.shape[1] == size
    assert plan.components.data.raw_train.images.shape[1] == 64
    # Evaluation, reports and resumed runs use that size too.
    assert plan.recipe.labeled.image_size == size
    write_run(out, plan.recipe)
    assert plan_transfer(recipe, out, networks, resume=True).recipe == plan.recipe


def test_a_data_set_of_ones_own_is_evaluated(few_images, tmp_path, capsys):
    train, test = few_images
    small = {"epochs": 1, "show": False, "overrides": {"data.batch_size": 40}}
    named = Normalized(create("resnet8", 10), train.mean, train.std)
    run = cktf.teach(named, train=train, test=test, out=tmp_path / "run", **small)
    pairs = [test[k] for k in range(len(test))]
    pictures = [
        (Image.fromarray(pixels.numpy()), label)
        for pixels, label in zip(test.images, test.labels, strict=True)
    ]
    tensors = TensorDataset(torch.stack([x for x, _ in pairs]), test.labels)
    for data in (pairs, pictures, tensors, test):
        for of in (run, run.folder, str(run.folder)):
            accuracy, name = cktf.evaluate(of, data=data)
            assert (accuracy.top1, accuracy.samples) == (run.summary["test_top1"], 200)
            assert name == "custom"
    assert "normalizes" not in capsys.readouterr().err
    cktf.evaluate(run, data=[(3 * x - 1, y) for x, y in pairs])
    assert "network normalizes images from [0, 1] itself" in capsys.readouterr().err
    for data, words in (
        (
            [(x, k + 1) for k, (x, _) in enumerate(pairs[:10])],
            "test labels run from 1 to 10.*subtract 1",
        ),
        ([(x, 0.5) for x, _ in pairs], "Targets of a regression"),
        ([(x[:2], y) for x, y in pairs], "network cannot take images"),
        (iter(pairs), "map-style"),
    ):
        with pytest.raises(CktfError, match=words):
            cktf.evaluate(run.folder, data=data)
    with pytest.raises(RunFolderError, match=r"in Python: cktf.evaluate\(run, data=…\)"):
        cktf.evaluate(run)


def test_the_students_modes_are_as_before_an_evaluation(few_images, tmp_path):
    run = cktf.teach(
        SmallNet(), train=few_images[0], epochs=1, out=tmp_path, show=False,
        overrides={"data.batch_size": 40},
    )  # fmt: skip
    run.student.train()
    before = copy_state(run.student)
    accuracy, _ = cktf.evaluate(run, data=few_images[1])
    assert accuracy.samples == 200
    assert run.student.training
    assert equal_weights(before, copy_state(run.student))


def test_the_network_of_a_run_made_in_python_is_named(tmp_path, user_code, monkeypatch):
    network = build_network(parse_network_spec(f"{user_code}:small"), 10).network
    small = {"data.per_class": 2, "data.batch_size": 20}
    run = cktf.teach(
        network, train="fashion-mini", epochs=1, out=tmp_path / "run", show=False, overrides=small
    )
    top1 = run.summary["test_top1"]
    # A session knows the networks of its runs.
    del run
    monkeypatch.chdir(tmp_path)
    assert "--network FILE.py:FUNCTION" in run_command("evaluate run", exit_code=2)
    line = f"--network {user_code}:small"
    assert f"top-1 {top1:.2f} %" in run_command(f"evaluate run {line}")
    assert "do not fit" in run_command("evaluate run --network resnet8", exit_code=2)
    fresh = build_network(parse_network_spec(f"{user_code}:small"), 10).network
    assert cktf.evaluate("run", network=fresh)[0].top1 == top1
    found = RunAnalyzer(max_images=20, network=f"{user_code}:small").analyze(Path("run"))
    assert found.student.logits.shape == (20, 10)
    assert not found.missing_reason
    pytest.importorskip("onnxruntime")
    assert "100.00" in run_command(f"export run {line}")


@pytest.mark.parametrize(
    ("trained", "evaluated"), [("photos", "a.csv"), ("a.csv", "photos"), ("a.csv", "b.csv")]
)
def test_training_images_are_recognized_in_tables(
    tmp_path, monkeypatch, capsys, trained, evaluated
):
    monkeypatch.chdir(tmp_path)
    for label in ("cat", "dog"):
        write_jpegs(tmp_path / "photos" / label, 5)
    files = sorted(Path("photos").rglob("*.jpg"))
    for name, some in {"a.csv": files, "b.csv": files[::2]}.items():
        Path(name).write_text("\n".join(["image,label", *(f"{f},{f.parent.name}" for f in some)]))
    (tmp_path / "link").symlink_to(tmp_path / "photos")
    recipe = {"kind": "train", "model": "resnet8", "data": {"name": trained}}
    run = write_run(tmp_path / "run", parse_recipe(recipe))
    train = load_dataset(trained, None, "train")
    count = len(train)
    if evaluated == "b.csv":
        names = {train.stored.read(i).name + train.stored.read(i).parent.name for i in range(count)}
        count = len(names & {f.name + f.parent.name for f in files[::2]})
    for name in [evaluated, "link"] if evaluated == "photos" else [evaluated]:
        cktf.evaluate(run, data=name, show=True)
        told = " ".join(capsys.readouterr().err.split())
        assert told.endswith(f"; the run was trained on {count} of them")


def test_evaluation_is_independent_of_the_users_defaults(sets, tmp_path, users_default):
    with torch.device("cpu"):
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float32)
        recipe = {"kind": "train", "model": "resnet8", "data": {"name": sets["a"]}}
        run = write_run(tmp_path / "run", parse_recipe(recipe))
        torch.set_default_dtype(before)
    with torch.inference_mode():
        accuracy, _ = cktf.evaluate(run)
    assert accuracy.samples == 6
