"""Weights that other programs saved, and teachers loaded from them."""

import argparse
import os

import pytest
import torch
from safetensors.torch import save_file

from cktf.data import load_dataset
from cktf.errors import CheckpointError
from cktf.models import (
    build_network,
    create,
    identify_network,
    parse_network_spec,
    read_state_dict,
    save_network,
)
from cktf.recipes import build_student, load_initial_network, load_teacher

IMAGES = torch.rand(2, 3, 32, 32)


def build(text, num_classes):
    return build_network(parse_network_spec(text), num_classes)


class RunsCommand:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


FORMATS = {
    "plain": lambda s: s,
    "published": lambda s: {"epoch": 240, "model": s, "accuracy": 72.5},
    "with options": lambda s: {"opt": argparse.Namespace(lr=0.05), "model": s},
    "parallel": lambda s: {"state_dict": {f"module.{k}": v for k, v in s.items()}},
    "compiled": lambda s: {f"module._orig_mod.{k}": v for k, v in s.items()},
}


@pytest.mark.parametrize("form", FORMATS)
def test_formats_of_weights(form, tmp_path):
    network = create("resnet8", 100).eval()
    path = tmp_path / "teacher.pth"
    torch.save(FORMATS[form](network.state_dict()), path)
    state = read_state_dict(path)
    assert state.keys() == network.state_dict().keys()
    assert identify_network(state) == ("resnet8", 100)
    teacher = load_teacher(str(path), None)
    assert teacher.name == "resnet8"
    assert "sha256" in teacher.note
    normal = (IMAGES - teacher.network.mean) / teacher.network.std
    torch.testing.assert_close(teacher.network.eval()(IMAGES), network(normal))


@pytest.mark.parametrize(
    "name",
    ["wrn_16_1", "vgg8", "MobileNetV2", "ShuffleV1", "ShuffleV2", "ResNet18", "resnet5x4"],
)
def test_networks_are_identified_by_their_weights(name):
    with torch.device("meta"):
        network = create(name, 37)
    assert identify_network(network.state_dict()) == (name, 37)


def test_safetensors_and_a_named_network(tmp_path):
    network = build("timm:mobilenetv3_small_050", 5).network.eval()
    path = tmp_path / "w.safetensors"
    save_file(network.state_dict(), path)
    with pytest.raises(CheckpointError, match="no network of this library has just these"):
        load_teacher(str(path), None)
    teacher = load_teacher("timm:mobilenetv3_small_050", None, weights=str(path))
    assert teacher.network.eval()(IMAGES).shape == (2, 5)


def test_as_many_classes_as_the_weights(user_code, tmp_path):
    """With two classifiers too; an explicit num_classes wins."""
    path = tmp_path / "w.pth"
    line = "timm:levit_128s(num_classes=10)@32"
    torch.save(build(line, None).network.state_dict(), path)
    teacher = load_teacher("timm:levit_128s@32", None, weights=str(path)).network.eval()
    assert teacher(IMAGES).shape == (2, 10)
    with pytest.raises(CheckpointError, match="wrong shape"):
        load_teacher("timm:levit_128s(num_classes=7)@32", None, weights=str(path))
    torch.save(build(f"{user_code}:small", 6).network.state_dict(), path)
    teacher = load_teacher(f"{user_code}:usual", None, weights=str(path)).network.eval()
    assert teacher(IMAGES).shape == (2, 6)


@pytest.mark.parametrize("form", FORMATS)
def test_prefixes_that_are_names_of_modules_stay(form, user_code, tmp_path):
    path = tmp_path / "w.pth"
    network = build(f"{user_code}:Wrapped", 5).network.eval()
    torch.save(FORMATS[form](network.state_dict()), path)
    teacher = load_teacher(f"{user_code}:Wrapped", None, weights=str(path)).network.eval()
    torch.testing.assert_close(teacher.network(IMAGES), network(IMAGES))
    save_network(network, path.with_suffix(".safetensors"), name="x", classes="abcde", dataset="")
    load_teacher(f"{user_code}:Wrapped", None, weights=str(path.with_suffix(".safetensors")))
    # In a network without such modules the same prefix is stripped.
    teacher = load_teacher(f"{user_code}:usual", None, weights=str(path)).network.eval()
    torch.testing.assert_close(teacher.network(IMAGES), network(IMAGES))


def test_user_code_with_the_weights_of_a_run(user_code, tmp_path):
    """The file's mean, std and size are used."""
    data = load_dataset("fashion-mini", None, "test")
    network = build_student(f"{user_code}:small@16", data).eval()
    path = tmp_path / "student.safetensors"
    save_network(network, path, name=f"{user_code}:small@16", classes=data.classes, dataset="x")
    teacher = load_teacher(f"{user_code}:small", None, weights=str(path)).network.eval()
    assert (teacher.size, teacher.mean.tolist()) == (16, network.mean.tolist())
    torch.testing.assert_close(teacher(IMAGES), network(IMAGES))


@pytest.mark.parametrize(
    ("form", "classes", "fresh"),
    [("published", 10, False), ("published", 100, True), ("named", 10, False),
     ("numbered", 10, False), ("numbered", 100, True), ("others", 10, True)],
)  # fmt: skip
def test_a_classifier_is_kept_if_its_classes_match(form, classes, fresh, tmp_path):
    data = load_dataset("fashion-mini", None, "test")
    network, path = create("resnet8", classes), tmp_path / "w.pth"
    if form == "published":
        torch.save(network.state_dict(), path)
    else:
        class_names = {
            "named": data.classes, "others": data.classes[::-1],
            "numbered": [f"class {number}" for number in range(classes)],
        }[form]  # fmt: skip
        save_network(network, path, name="resnet8", classes=class_names, dataset="x")
    found = load_initial_network(str(path), data)
    state = getattr(found.network, "network", found.network).state_dict()
    changed = {
        k for k, v in network.state_dict().items()
        if v.shape != state[k].shape or not torch.equal(v, state[k])
    }  # fmt: skip
    assert changed == ({"fc.weight", "fc.bias"} if fresh else set())
    assert ("new classifier of 10 classes" in found.note) == fresh
    assert len(state["fc.bias"]) == 10


def test_weights_of_another_network_are_named(tmp_path):
    path = tmp_path / "w.pth"
    torch.save(create("wrn_16_2", 10).state_dict(), path)
    message = r"(?s)do not fit resnet8: missing: .*unexpected: .*seem to be those of wrn_16_2"
    with pytest.raises(CheckpointError, match=message):
        load_teacher("resnet8", None, weights=str(path))


def test_pickles_run_no_code(tmp_path):
    witness = tmp_path / "witness"
    path = tmp_path / "evil.pth"
    torch.save({"model": RunsCommand(f"touch {witness}")}, path)
    with pytest.raises(CheckpointError, match="could run code, so it was not opened"):
        read_state_dict(path)
    assert not witness.exists()
    # The trap works: opened without care, it runs.
    torch.load(path, weights_only=False)
    assert witness.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "damaged"), (b"no pickle at all", "damaged")],
)
def test_damage(content, message, tmp_path):
    path = tmp_path / "w.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        read_state_dict(path)


def test_no_weights(tmp_path):
    path = tmp_path / "w.pth"
    torch.save({"epoch": 3}, path)
    with pytest.raises(CheckpointError, match="holds no weights"):
        read_state_dict(path)
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        read_state_dict(tmp_path / "none.pth")


@pytest.mark.parametrize(
    ("teacher", "weights", "message"),
    [("resnet8", None, "without trained weights"), ("timm:resnet18", None, "pretrained=True"),
     ("resnet8", "none.pth", "no file none.pth"), ("nothing", None, "neither a run folder")],
)  # fmt: skip
def test_teachers_without_weights(teacher, weights, message):
    with pytest.raises(CheckpointError, match=message):
        load_teacher(teacher, None, weights=weights)
