"""Malicious files: each is refused, and none runs code."""

import gzip
import io
import json
import os
import pickle
import resource
import struct
import tarfile
import urllib.request
import zlib
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from typer.testing import CliRunner
from unsafe_pickle import MakesFolder

from cktf.cli.main import app
from cktf.data import cifar, fashion, load_dataset
from cktf.data.split_loading import BrokenImagesError
from cktf.errors import CheckpointError, DataError, ModelError, RecipeError
from cktf.models import build_network, create, load_network, parse_network_spec, save_network
from cktf.recipes import build_student, parse_recipe, read_recipe
from cktf.workflows.analysis import RunAnalyzer
from cktf.workflows.train import default_run_path

OWN = """
import pathlib
pathlib.Path("ran").touch()
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU())
        self.fc = nn.Linear(4, num_classes)

    def forward(self, x):
        return self.fc(self.features(x).mean((2, 3)))
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working directory, in which user code that runs leaves a file `ran`."""
    monkeypatch.chdir(tmp_path)

    def refuse(*args, **kwargs):
        raise URLError("no network in tests")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    (tmp_path / "own.py").write_text(OWN)
    names = [str(number) for number in range(10)]
    save_network(
        create("resnet8", 10), tmp_path / "t.safetensors", name="resnet8", classes=names,
        dataset="custom",
    )  # fmt: skip
    yield tmp_path
    assert not (tmp_path / "escaped").exists()


def cktf(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def says(result, *parts):
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)
    for part in parts:
        assert part in result.output


FIELD = {"train": "model", "distill": "student"}
TYPED = {"train": [], "distill": ["--teacher", "t.safetensors", "--method", "kd"]}


@pytest.mark.parametrize("kind", FIELD)
@pytest.mark.parametrize("line", ["own.py:Net", "subprocess:Popen(args='touch ran', shell=True)"])
def test_a_recipe_runs_no_code(here, kind, line):
    fields = {"kind": kind, FIELD[kind]: line, "teacher": "t.safetensors"}
    fields = {k: v for k, v in fields.items() if kind == "distill" or k != "teacher"}
    Path("recipe.yaml").write_text(yaml.dump(fields))
    for arguments in (["--dry-run"], ["--out", "new"]):
        result = cktf(kind, "--recipe", "recipe.yaml", *arguments)
        says(result, FIELD[kind], "names code", "--trust-code")
    Path("held").mkdir()
    Path("held/recipe.yaml").write_text(yaml.dump(fields))
    says(cktf(kind, "--resume", "held"), "--trust-code")
    says(cktf(kind, "--resume", "auto", "--out", "held"), "--trust-code")
    assert not Path("ran").exists()
    assert not Path("new").exists()


def test_trusted_or_typed_code_runs(here):
    Path("recipe.yaml").write_text("kind: train\nmodel: own.py:Net\n")
    result = cktf("train", "--recipe", "recipe.yaml", "--model", "resnet8", "--dry-run")
    assert result.exit_code == 0, result.output
    assert not Path("ran").exists()
    result = cktf("train", "--recipe", "recipe.yaml", "--trust-code", "--dry-run")
    assert result.exit_code == 0, result.output
    assert Path("ran").exists()
    Path("ran").unlink()
    assert cktf("train", "--model", "own.py:Net", "--dry-run").exit_code == 0
    assert Path("ran").exists()


@pytest.mark.parametrize("line", ["own.py:Net", "package.module:Net", " package.module : Net@32"])
def test_weights_name_no_code(here, monkeypatch, line):
    monkeypatch.syspath_prepend(here)
    Path("package").mkdir()
    Path("package/__init__.py").write_text(OWN)
    state = {k: v.contiguous() for k, v in create("resnet8", 10).state_dict().items()}
    told = {"network": line, "classes": ["a", "b"], "dataset": "custom"}
    save_file(state, "s.safetensors", metadata={"cktf": json.dumps(told)})
    with pytest.raises(CheckpointError, match="built by its user's code"):
        load_network(Path("s.safetensors"))
    if "package" in line:
        # Nor does looking whether there is such a module.
        parse_network_spec(line)
    assert not Path("ran").exists()


@pytest.fixture
def own_run(here):
    """A run of `own.py:Net`, and the commands that read it."""
    photos = f"imagefolder:{folder_with(here, 'more.png', png(16, 16))}"
    small = ["--epochs", "1", "--set", "data.batch_size=2"]
    trained = cktf("train", "--model", "own.py:Net", "--data", photos, *small, "--out", "run")
    assert trained.exit_code == 0, trained.output
    labeled = ["--labeled", photos]
    student = ["--student", "resnet8", "--data", photos, "--method", "kd", "--dry-run", *small]
    Path("ran").unlink()
    return [
        ["evaluate", "run"],
        ["probe", "run", *labeled],
        ["probe", "run", *labeled, *small, "--sgd"],
        ["distill", "--teacher", "run", *student],
    ]


def forget():
    Path(os.environ["XDG_STATE_HOME"], "cktf", "own-code").unlink(missing_ok=True)


def test_a_run_of_own_code_is_used_where_it_is_trusted(own_run):
    for command in own_run:
        forget()
        says(cktf(*command), "own.py:Net", "--trust-code")
        assert not Path("ran").exists()
        trusting = cktf(*command, "--trust-code")
        assert trusting.exit_code == 0, trusting.output
        Path("ran").unlink()


def test_code_that_the_user_has_run_runs_again(own_run):
    """Also to resume the run, and when another run names it."""
    own_run += [["train", "--resume", "run"], ["train", "--recipe", "run/recipe.yaml", "--dry-run"]]
    for command in own_run:
        again = cktf(*command)
        assert again.exit_code == 0, again.output


@pytest.mark.parametrize("change", ["content", "place", "name", "arguments", "module"])
def test_code_that_is_not_what_the_user_has_run_does_not_run(own_run, here, monkeypatch, change):
    """A stranger's folder may hold a run, a recipe and a Python file of the same name."""
    line = "own.py:Net"
    if change == "content":
        Path("own.py").write_text(OWN + "\n")
    elif change == "place":
        Path("stranger").mkdir()
        Path("own.py").rename("stranger/own.py")
        Path("run").rename("stranger/run")
        monkeypatch.chdir("stranger")
    elif change == "module":
        monkeypatch.syspath_prepend(here)
        line = "own:Net"
    else:
        line = "own.py:nn.Identity" if change == "name" else "own.py:Net(num_classes=7)"
    if line != "own.py:Net":
        save_network(nn.Identity(), Path("run/student.safetensors"), name=line, classes=["cat"],
                     dataset="photos")  # fmt: skip
        Path("run/recipe.yaml").write_text(yaml.dump({"kind": "train", "model": line}))
    recipe = ["train", "--recipe", "run/recipe.yaml", "--dry-run"]
    for command in (*own_run, recipe) if change != "place" else own_run:
        says(cktf(*command), "--trust-code")
        assert not Path("ran").exists()


def test_own_code_is_the_file_that_was_trained(here, monkeypatch):
    """Wherever one is, and whatever is called so there; once it is gone, what is called so."""
    photos = f"imagefolder:{folder_with(here, 'more.png', png(16, 16))}"
    (here / "a (b)@c").mkdir()
    monkeypatch.chdir(here / "a (b)@c")
    (here / "own.py").rename("own.py")
    own = ["--model", "own.py:Net", "--data", photos, "--epochs", "1"]
    trained = cktf("train", *own, "--set", "data.batch_size=2", "--out", here / "run")
    assert trained.exit_code == 0, trained.output
    monkeypatch.chdir(here)
    # A finished run is read anew.
    again = cktf("train", "--resume", here / "run", "--trust-code")
    assert again.exit_code == 0, again.output
    evaluate = ["evaluate", "run", "--trust-code"]
    forget()
    says(cktf(*evaluate[:-1]), "own.py:Net", "--trust-code")
    (here / "own.py").write_text("raise SystemError('this is another')")
    assert cktf(*evaluate).exit_code == 0
    (here / "a (b)@c" / "own.py").replace("own.py")
    assert cktf(*evaluate).exit_code == 0


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_a_report_runs_code_where_it_is_trusted(here, role):
    """Of the run's own network, and of a teacher that its recipe names."""
    photos = folder_with(here, "more.png", png(16, 16))
    networks = {"student": "resnet8", "teacher": "t.safetensors"} | {role: "own.py:Net"}
    data = {"name": f"imagefolder:{photos}", "batch_size": 2}
    fields = {"kind": "distill", "method": "kd", "data": data}
    Path("run").mkdir()
    Path("run/recipe.yaml").write_text(yaml.dump(fields | networks))
    Path("run/summary.json").write_text(json.dumps({"student": networks["student"]}))
    own = build_network(parse_network_spec(networks["student"]), 2).network
    save_network(
        own, Path("run/student.safetensors"), name=networks["student"], classes=["cat", "dog"],
        dataset="photos",
    )  # fmt: skip
    forget()
    for trust in (False, True):
        Path("ran").unlink(missing_ok=True)
        found = RunAnalyzer(trust_code=trust).analyze(Path("run"))
        assert Path("ran").exists() == trust
        assert ("--trust-code" in found.missing_reason) != trust


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("role", ["--teacher", "--teacher-weights", "--model"])
def test_a_pickle_of_weights_runs_no_code(here, plain, role):
    evil = {"fc.weight": MakesFolder(here / "escaped")}
    if plain:
        Path("evil.pt").write_bytes(pickle.dumps(evil))
    else:
        torch.save(evil, "evil.pt")
    if role == "--model":
        result = cktf("train", "--model", "evil.pt", "--out", "new")
    else:
        teacher = [] if role == "--teacher" else ["--teacher", "resnet8"]
        result = cktf("distill", *teacher, role, "evil.pt", "--student", "resnet8", "--out", "new")
    says(result, "evil.pt")
    assert not Path("new").exists()


def test_timm_opens_no_pickle(here):
    pytest.importorskip("timm")
    torch.save({"fc.weight": MakesFolder(here / "escaped")}, "evil.pt")
    for argument in ("checkpoint_path='evil.pt'", "pretrained_cfg_overlay={'file': 'evil.pt'}"):
        with pytest.raises(ModelError, match="timm opens a file"):
            build_network(parse_network_spec(f"timm:resnet10t({argument})"), 10)


def test_a_pickle_of_images_runs_no_code(here):
    Path("batch").write_bytes(pickle.dumps({"data": MakesFolder(here / "escaped"), "labels": []}))
    with pytest.raises(DataError, match="which images do not need"):
        cifar._read_pickle(cifar.CIFAR10_LAYOUT, Path("batch"))


@pytest.mark.parametrize(
    "text",
    [
        "kind: !!python/object/apply:os.mkdir [escaped]",
        "!!python/object/new:os.mkdir [escaped]",
        "kind: !!python/name:os.system",
        "a: &a [x, x]\nb: &b [*a, *a]\nkind: [*b, *b]",
        "[" * 10_000,
        "kind: " + "x" * 2_000_000,
    ],
)
def test_yaml_makes_plain_values_alone(here, text):
    Path("recipe.yaml").write_text(text)
    says(cktf("train", "--recipe", "recipe.yaml", "--dry-run"), "recipe.yaml")
    with pytest.raises(RecipeError):
        read_recipe(Path("recipe.yaml"))
    assert cktf("train", "--set", f"model={text[:3000]}", "--dry-run").exit_code == 2


@pytest.mark.parametrize("name", ["../../escaped", "/escaped", "..", "a/../../../escaped", "~/x"])
def test_names_in_a_recipe_do_not_leave_the_default_run_path_runs(name):
    fields = {"kind": "train", "model": name, "data": {"name": name}}
    assert default_run_path(parse_recipe(fields)).parent == Path("runs")
    fields = {"kind": "distill", "teacher": name, "student": name, "method": name}
    assert default_run_path(parse_recipe(fields)).parent == Path("runs")


def test_an_archive_that_is_not_the_published_one_is_not_unpacked(here):
    Path("data").mkdir()
    with tarfile.open("data/cifar-10-python.tar.gz", "w:gz") as archive:
        for name in ("../escaped", "cifar-10-batches-py/data_batch_1"):
            member = tarfile.TarInfo(name)
            member.size = 1
            archive.addfile(member, io.BytesIO(b"x"))
    says(cktf("train", "--model", "resnet8", "--data", "cifar10", "--data-dir", "data"), "failed")
    assert [p.name for p in Path("data").iterdir()] == ["cifar-10-python.tar.gz"]


def memory():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@pytest.mark.slow
def test_a_packed_file_is_not_unpacked_to_any_size(here):
    before = memory()
    with gzip.open("train-images-idx3-ubyte.gz", "wb", compresslevel=1) as file:
        for _ in range(600):
            file.write(bytes(1 << 20))
    with pytest.raises(DataError, match="holds more than"):
        fashion._read_idx(Path("train-images-idx3-ubyte.gz"), 3)
    assert memory() - before < 1200


def png(width, height):
    def chunk(kind, content):
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1 << 20), 9)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


def folder_with(here, name, content):
    for kind in ("cat", "dog"):
        for split in ("train", "test"):
            folder = here / "photos" / split / kind
            folder.mkdir(parents=True)
            Image.new("RGB", (16, 16)).save(folder / "good.png")
    (here / "photos" / "train" / "cat" / name).write_bytes(content)
    return here / "photos"


def test_an_image_that_says_it_is_huge_is_not_decoded(here):
    before = memory()
    photos = folder_with(here, "bomb.png", png(12_000, 12_000))
    with (
        pytest.warns(Image.DecompressionBombWarning),
        pytest.raises(BrokenImagesError, match=r"12000 x 12000 pixels"),
    ):
        load_dataset("imagefolder", photos, "train")
    assert memory() - before < 400


def test_an_image_is_given_to_no_other_program(here, monkeypatch):
    """Pillow would have Ghostscript draw it; the first on the path here leaves a mark."""
    (here / "bin").mkdir()
    (here / "bin" / "gs").write_text(f"#!/bin/sh\ntouch {here / 'escaped'}\n")
    (here / "bin" / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{here / 'bin'}:{os.environ['PATH']}")
    eps = io.BytesIO()
    Image.new("RGB", (16, 16)).save(eps, "EPS")
    with pytest.raises(BrokenImagesError, match="format EPS are not supported"):
        load_dataset("imagefolder", folder_with(here, "drawn.png", eps.getvalue()), "train")


@pytest.mark.parametrize("line", ["resnet8(num_classes=4000000000)", "resnet8@4000000000"])
def test_a_network_is_not_built_that_memory_does_not_hold(here, line):
    before = memory()
    with pytest.raises(ModelError, match=r"could not be built .*memory|pixels a side"):
        build_student(line, load_dataset("fashion-mini", None, "test"))
    assert memory() - before < 400


@pytest.mark.slow
def test_networks_that_do_not_take_grey_images(here):
    """Where a network is asked for its logits or classifier before any rehearsal."""
    line = ["--data", "fashion-mini", "--set", "data.channels=1", "--dry-run"]
    teacher = ["--teacher", "t.safetensors", "--student", "resnet8", "--method", "kd"]
    says(cktf("distill", *teacher, *line, "--set", "data.labels=false"), "cannot take images")
    only = ["--model", "resnet8", "--set", "trains=classifier"]
    says(cktf("train", *only, *line), "cannot take images")


def test_rows_of_any_length_are_refused(here):
    teacher = ["--teacher", "t.safetensors", "--student", "resnet8", "--method", "cktf"]
    for memory in ("bank", "batch"):
        settings = [f"options.cktf.memory={memory}", "options.cktf.embedding_dim=1e8"]
        options = [part for setting in settings for part in ("--set", setting)]
        says(cktf("distill", *teacher, *options, "--dry-run"), "embedding_dim", "equal to 65536")
