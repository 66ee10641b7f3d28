"""Which folders a run may write to, where it writes, and what the folder is called by default."""

import os
import shutil
from pathlib import Path

import pytest
from small_runs import after_each_step, read_metrics

import cktf
from cktf.data import is_among_images
from cktf.engine import RunFolder
from cktf.errors import RecipeError, RunFolderError
from cktf.recipes import parse_recipe
from cktf.workflows.train import default_run_path


@pytest.mark.parametrize(
    ("names", "is_free"),
    [
        ([], True),
        (["slurm-17.out", "train.log", ".gitkeep"], True),
        (["recipe.yaml"], True),
        (["checkpoints/", "lock", "log.txt"], True),
        (["summary.json", "curve.svg"], True),
        (["recipe.yaml", "lock", "notes.md", "student.onnx"], True),
        (["checkpoints/checkpoint-000001-000000000.json", "metrics.jsonl"], True),
        (["cat.jpg"], False),
        (["cat/"], False),
        (["recipe.yaml", "train.py"], False),
        (["checkpoints/", "lock", "train.py"], False),
    ],
)
def test_a_run_writes_to_a_free_folder_or_one_of_its_own(tmp_path, names, is_free):
    for name in names:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.mkdir() if name.endswith("/") else path.touch()
    if is_free:
        RunFolder(tmp_path).check(resume=True)
    else:
        with pytest.raises(RunFolderError, match=r"cktf did not write \(\w"):
            RunFolder(tmp_path).check(resume=True)


def test_an_empty_name_is_the_working_folder(tmp_path, monkeypatch, few_images):
    (tmp_path / "thesis.tex").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match=rf"{tmp_path} holds files .* \(thesis.tex\)"):
        cktf.teach("resnet8", train=few_images[0], out="")
    assert os.listdir() == ["thesis.tex"]


@pytest.mark.parametrize(
    ("path", "alone", "beside_train"),
    [
        ("photos", True, True),
        ("photos/run", True, False),
        ("photos/cat/run", True, False),
        ("photos/Train/run", True, True),
        ("photos/test/cat", True, True),
        ("photos/.run", False, False),
        ("photos2", False, False),
        ("photos/../runs", False, False),
    ],
)
def test_paths_among_images(tmp_path, path, alone, beside_train):
    photos = tmp_path / "photos"
    (photos / "cat").mkdir(parents=True)
    name = f"imagefolder:{photos}"
    assert is_among_images(name, None, tmp_path / path) == alone
    (photos / "Train").mkdir()
    assert is_among_images(name, None, tmp_path / path) == beside_train
    assert is_among_images("imagefolder", str(photos), tmp_path / path) == beside_train
    assert not is_among_images("cifar10", str(photos), tmp_path / path)


class Moving(list):
    """A data set that changes the working folder when a sample is read."""

    def __init__(self, data, folder):
        super().__init__((data[i][0], i % 10) for i in range(len(data)))
        self.folder = folder

    def __getitem__(self, index):
        os.chdir(self.folder)
        return super().__getitem__(index)


@pytest.mark.parametrize("how", ["distill", pytest.param("transfer", marks=pytest.mark.slow)])
def test_a_run_stays_where_it_began(tmp_path, monkeypatch, few_images, teacher_dir, how):
    """Its paths are those of the beginning, although every sample changes the working folder."""
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    for folder in (here, elsewhere):
        folder.mkdir()
    teacher_dir.rename(here / "teacher")
    monkeypatch.chdir(here)
    images = [Moving(data, elsewhere) for data in few_images]
    fields = {"data.batch_size": 100, "runtime.track": "none"}
    if how == "distill":
        student = cktf.models.create("resnet8", 10)
        run = cktf.distill(
            "teacher", student, train=images[0], test=images[1], method="kd", epochs=1,
            out="runs/a", overrides=fields, show=False,
        )  # fmt: skip
    else:
        run = cktf.transfer(
            "teacher", cktf.models.create("resnet8", 10), unlabeled=images[0], labeled=images[0],
            test=images[1], epochs=1, out="runs/a", show=False,
            overrides=fields | {"scratch_epochs": 1, "data.name": "custom"}, method="kd",
        )  # fmt: skip
    assert run.folder == here / "runs" / "a"
    assert (run.folder / "summary.json").is_file()
    assert f"teacher: {here}/teacher\n" in (run.folder / "recipe.yaml").read_text()
    assert not list(elsewhere.iterdir())


def distill_fields(**fields):
    return parse_recipe({"kind": "distill", "teacher": "t", "student": "resnet8", **fields})


def test_a_long_default_name_is_cut_and_stays_its_own():
    names = [
        default_run_path(distill_fields(method="+".join([f"kd:{n}"] * 80))).name for n in (1, 2)
    ]
    assert names[0] != names[1]
    assert all(name.startswith("resnet8-kd=") and len(name) <= 250 for name in names)
    again = default_run_path(distill_fields(method="+".join(["kd:1"] * 80))).name
    assert again == names[0]
    path = default_run_path(distill_fields(student="é" * 200))
    assert len(path.name.encode()) <= 250


def test_a_default_name_of_any_characters_can_be_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a\nb\0", "net.py:Net(a='/x')", "-rf", "ü"):
        path = default_run_path(distill_fields(student=name))
        assert path.parent == Path("runs")
        path.mkdir(parents=True)
    assert default_run_path(distill_fields(student="ü")).name.endswith("-2")


def test_a_folder_that_is_deleted_during_training_is_made_again(small_run, monkeypatch):
    def delete(trainer):
        if trainer.position.step == 2:
            shutil.rmtree(trainer.run.path, ignore_errors=True)

    after_each_step(monkeypatch, delete)
    run = small_run(overrides={"runtime.track": "none"})
    names = {path.name for path in run.folder.iterdir()}
    assert {"recipe.yaml", "summary.json", "student.safetensors", "metrics.jsonl"} <= names
    assert [row["epoch"] for row in read_metrics(run.folder)] == [1, 2]
    assert list((run.folder / "checkpoints").glob("*.pt"))
