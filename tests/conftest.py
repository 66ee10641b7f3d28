"""Fixtures that several test files share."""

import shlex
import urllib.request
from urllib.error import URLError

import pytest
import torch
import yaml
from image_files import VALIDATION, WNIDS, WORDS, jpeg, write_cifar10, write_jpegs
from network_files import USER_CODE
from safetensors.torch import save_file
from small_matrix import TINY, make_bench, save_teacher
from small_runs import SmallNet, distill_few, stop_after_steps
from typer.testing import CliRunner

from cktf.bench import run_bench
from cktf.cli.main import app
from cktf.data import ImageSet, load_dataset
from cktf.data.cifar_classes import CIFAR10
from cktf.errors import Interrupted
from cktf.models import Normalized, create, save_network


def pytest_collection_modifyitems(items):
    """Tests marked `gpu` are skipped where there is none."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU"))


@pytest.fixture(autouse=True)
def no_code_is_remembered(tmp_path_factory, monkeypatch):
    """No test trusts code because another has run it."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))


@pytest.fixture(scope="session")
def images():
    """Every tenth training and every tenth test image of fashion-mini: 1,000 and 500."""
    sets = []
    for split in ("train", "test"):
        full = load_dataset("fashion-mini", None, split)
        sets.append(
            ImageSet(full.images[::10], full.labels[::10], full.classes, full.mean, full.std)
        )
    return sets


@pytest.fixture(scope="session")
def few_images(images):
    """200 training and 200 test images."""
    return [data.subset(torch.arange(200)) for data in images]


@pytest.fixture
def small_run(few_images, tmp_path):
    """Distill KD between small networks into `tmp_path / name`: two epochs of five steps."""

    def run(name="run", *, data=few_images, method="kd", **options):
        return distill_few(data, tmp_path / name, method=method, **options)

    return run


@pytest.fixture
def interrupted_run(small_run, monkeypatch):
    """Like `small_run`, but SIGTERM comes after `steps` steps."""

    def run(steps, name="run", **options):
        with monkeypatch.context() as patch:
            stop_after_steps(patch, steps)
            with pytest.raises(Interrupted):
                small_run(name, **options)

    return run


@pytest.fixture
def student():
    torch.manual_seed(0)
    return SmallNet()


@pytest.fixture
def cifar_dir(images, tmp_path):
    """A folder in CIFAR-10's binary layout, 60 images a file, six of each class."""
    order = images[0].labels.argsort(stable=True).view(10, -1).T.flatten()
    write_cifar10(tmp_path, images[0].images[order], images[0].labels[order])
    return str(tmp_path)


@pytest.fixture
def teacher_dir(images, tmp_path):
    """A run folder that holds an untrained resnet8 for CIFAR-10's classes."""
    torch.manual_seed(0)
    path = tmp_path / "teacher" / "student.safetensors"
    path.parent.mkdir()
    network = Normalized(create("resnet8", 10), images[0].mean, images[0].std)
    save_network(network, path, name="resnet8", classes=CIFAR10, dataset="cifar10")
    return path.parent


@pytest.fixture(scope="session")
def cli_dir(tmp_path_factory):
    """A folder with a good teacher, and with everything that mistakes need."""
    folder = tmp_path_factory.mktemp("cli")

    def save(path, classes, name="resnet8", dataset="fashion-mini"):
        path.parent.mkdir(exist_ok=True)
        network = create("resnet8", len(classes))
        save_network(network, path, name=name, classes=classes, dataset=dataset)

    ten = load_dataset("fashion-mini", None, "test").classes
    save(folder / "teacher" / "student.safetensors", ten)
    save(folder / "animals.safetensors", ["cat", "dog", "horse"], dataset="animals")
    save(folder / "own.safetensors", ten, name="MyNetwork")
    whole = (folder / "teacher" / "student.safetensors").read_bytes()
    (folder / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    save_file({"weight": torch.zeros(2)}, folder / "foreign.safetensors")
    (folder / "empty").mkdir()
    (folder / "held" / "checkpoints").mkdir(parents=True)
    (folder / "held" / "checkpoints" / "epoch-00001.pt").write_bytes(b"")
    (folder / "broken").mkdir()
    (folder / "file").write_text("not a folder")
    recipes = {
        "held/recipe.yaml": "kind: train\nmodel: resnet8\nepochs: 1\n",
        "broken/recipe.yaml": "kind: [train\n",
        "unclosed.yaml": "kind: [train\n",
        "list.yaml": "- train\n",
        "distill.yaml": "kind: distill\nteacher: teacher\nstudent: resnet8\n",
        "train.yaml": "kind: train\nmodel: resnet8\nepochs: 5\noptimizer: {lr: 0.25}\n",
        "other.yaml": "kind: evaluate\n",
    }
    for name, text in recipes.items():
        (folder / name).write_text(text)
    return folder


@pytest.fixture
def run_cli(cli_dir, monkeypatch):
    """Runs a command in `cli_dir`, without a network and without training."""

    def refuse(*args, **kwargs):
        raise URLError("no network")

    def train(trainer):
        raise AssertionError("training has started")

    monkeypatch.chdir(cli_dir)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("HOME", str(cli_dir))
    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setattr("cktf.engine.Trainer.fit", train)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return lambda line: CliRunner().invoke(app, shlex.split(line))


@pytest.fixture
def tiny_imagenet_dir(tmp_path):
    """Tiny ImageNet's layout with four classes: two training images each, four for validation."""
    folder = tmp_path / "tiny-imagenet-200"
    for label, wnid in enumerate(WNIDS):
        images = folder / "train" / wnid / "images"
        images.mkdir(parents=True)
        for i in range(2):
            (images / f"{wnid}_{i}.JPEG").write_bytes(jpeg(10 * label + i, gray=i == 1))
        (folder / "train" / wnid / f"{wnid}_boxes.txt").write_text(f"{wnid}_0.JPEG\t0\t0\t9\t9\n")
    (folder / "val" / "images").mkdir(parents=True)
    for seed, (name, _) in enumerate(VALIDATION):
        (folder / "val" / "images" / name).write_bytes(jpeg(100 + seed))
    lines = [f"{name}\t{WNIDS[label]}\t0\t32\t44\t62\n" for name, label in VALIDATION]
    (folder / "val" / "val_annotations.txt").write_text("".join(lines))
    (folder / "wnids.txt").write_text("\n".join(WNIDS))
    (folder / "words.txt").write_text(WORDS)
    return folder


@pytest.fixture
def class_folders(tmp_path):
    """DIR/CLASS alone: 30 JPEGs of three classes."""
    root = tmp_path / "photos"
    for label, (name, count) in enumerate({"cat": 10, "dog": 15, "ant": 5}.items()):
        write_jpegs(root / name, count, first=100 * label)
    return root


@pytest.fixture
def split_folders(tmp_path):
    """DIR/train/CLASS and DIR/val/CLASS: 8 and 4 JPEGs of two classes."""
    root = tmp_path / "photos"
    for part, count in (("train", 4), ("val", 2)):
        for label, name in enumerate(("cat", "dog")):
            write_jpegs(root / part / name, count, first=100 * label + (50 if part == "val" else 0))
    return root


@pytest.fixture
def user_code(tmp_path):
    """The path of a Python file with functions and classes that build networks."""
    path = tmp_path / "networks.py"
    path.write_text(USER_CODE)
    return str(path)


@pytest.fixture(scope="session")
def teacher_weights(tmp_path_factory):
    """A file with a random resnet14 of two classes, the teacher of `small_matrix.TINY`."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    save_teacher(path)
    return path


@pytest.fixture(scope="session")
def finished(tmp_path_factory, teacher_weights):
    """The folder of `small_matrix.TINY`, trained at once, each cell alone."""
    out = tmp_path_factory.mktemp("finished")
    assert run_bench(make_bench(out, teacher_weights)) == []
    return out


@pytest.fixture
def tiny_yaml(teacher_weights, tmp_path):
    """A file of `small_matrix.TINY` with its teacher."""
    path = tmp_path / "tiny.yaml"
    teachers = {"resnet14": {"weights": str(teacher_weights)}}
    path.write_text(yaml.safe_dump(TINY | {"teachers": teachers}, sort_keys=False))
    return path


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    """The CPU, and a GPU where there is one."""
    return torch.device(request.param)


@pytest.fixture(params=["meta", torch.float64])
def users_default(request):
    """Another default device, on which numbers cannot be read, or another default type."""
    dtype = torch.get_default_dtype()
    is_type = isinstance(request.param, torch.dtype)
    (torch.set_default_dtype if is_type else torch.set_default_device)(request.param)
    yield
    # A device, the CPU too, would stay on the stack of modes of the process.
    torch.set_default_device(None)
    torch.set_default_dtype(dtype)
