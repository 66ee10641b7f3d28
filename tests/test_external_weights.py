"""Weights that other programs saved, and teachers loaded from them."""

import argparse
import os
from collections import defaultdict
from types import SimpleNamespace

import numpy as np
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
from cktf.recipes.weights_paths import check_teacher

IMAGES = torch.rand(2, 3, 32, 32)


def build(text, num_classes):
    return build_network(parse_network_spec(text), num_classes)


class RunsCommand:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


class Settings(dict):
    """A configuration whose class a reader of weights does not know."""


def lightning(state):
    inner = {f"model.{key}": value for key, value in state.items()}
    return {
        "state_dict": inner | {"criterion.weight": torch.ones(100)},
        "callbacks": {"ModelCheckpoint": {"best_k_models": {"a.ckpt": torch.tensor(0.3)}}},
        "hyper_parameters": Settings(lr=0.1),
    }


FORMATS = {
    "plain": lambda s: s,
    "published": lambda s: {"epoch": 240, "model": s, "accuracy": 72.5},
    "with options": lambda s: {"opt": argparse.Namespace(lr=0.05), "model": s},
    "parallel": lambda s: {"state_dict": {f"module.{k}": v for k, v in s.items()}},
    "compiled": lambda s: {f"module._orig_mod.{k}": v for k, v in s.items()},
    "nested modules": lambda s: {"net": {f"module.encoder.backbone.{k}": v for k, v in s.items()}},
    "numbers of NumPy": lambda s: {"acc": np.float64(0.5), "epoch": np.int64(3), "model": s},
    "other classes": lambda s: {
        "state_dict": s,
        "args": (Settings(x=1), defaultdict(list, x=[1]), SimpleNamespace(x=2)),
    },
    "averaged": lambda s: {
        "n_averaged": torch.tensor(2), **{f"module.{k}": v for k, v in s.items()}
    },
    "lightning": lightning,
    "operations counted": lambda s: s | dict.fromkeys(
        ("total_ops", "total_params", "fc.total_ops"), torch.ones(1)
    ),
    "an epoch among tensors": lambda s: s | {"epoch": 3},
    "a list": lambda s: [3, s],
    "with an optimizer": lambda s: {
        "optimizer": {"state": {0: {"step": torch.ones(1), "exp_avg": torch.ones(3)}}}, "weights": s
    },
    **{
        name: lambda s, name=name: {"epoch": 1, name: s}
        for name in ("state_dict_ema", "ema_state_dict", "ema", "teacher", "params_ema", "params",
                     "net_state_dict", "generator")
    },
}  # fmt: skip


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("form", FORMATS)
def test_formats_of_weights(form, legacy, tmp_path):
    network = create("resnet8", 100).eval()
    path = tmp_path / "teacher.pth"
    saved = FORMATS[form](network.state_dict())
    torch.save(saved, path, _use_new_zipfile_serialization=not legacy)
    assert identify_network(read_state_dict(path)) == ("resnet8", 100)
    teacher = load_teacher(str(path), None)
    assert teacher.name == "resnet8"
    assert "sha256" in teacher.note
    named = load_teacher("resnet8", None, weights=str(path))
    normal = (IMAGES - teacher.network.mean) / teacher.network.std
    for found in (teacher, named):
        torch.testing.assert_close(found.network.eval()(IMAGES), network(normal))


def test_weights_without_counters_of_batches(tmp_path):
    """As PyTorch before 0.4.1 saved them, and as it loads them."""
    state = create("resnet8", 10).state_dict()
    path = tmp_path / "old.pth"
    torch.save({k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}, path)
    for teacher in (str(path), "resnet8"):
        weights = None if teacher == str(path) else str(path)
        found = load_teacher(teacher, None, weights=weights).network.network.state_dict()
        assert all(torch.equal(found[key], state[key]) for key in state)
    # Statistics are not counters.
    torch.save({k: v for k, v in state.items() if k != "bn1.running_mean"}, path)
    with pytest.raises(CheckpointError, match=r"missing: bn1\.running_mean"):
        load_teacher("resnet8", None, weights=str(path))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_precision(dtype, tmp_path):
    state = create("resnet8", 10).state_dict()
    path = tmp_path / "half.pth"
    torch.save({k: v.to(dtype) if v.is_floating_point() else v for k, v in state.items()}, path)
    found = load_teacher(str(path), None).network.network.state_dict()
    assert found["fc.weight"].dtype == torch.float32
    assert torch.equal(found["fc.weight"], state["fc.weight"].to(dtype).float())


@pytest.mark.parametrize(
    ("plain", "other"),
    [("state_dict", "state_dict_ema"), ("model", "model_ema"), ("params", "params_ema"),
     ("student", "teacher"), ("net", "ema"), ("generator", "swa")],
)  # fmt: skip
@pytest.mark.parametrize("flat", [False, True])
def test_of_two_state_dicts_the_note_says_which_is_loaded(plain, other, flat, tmp_path):
    """Not the averaged one, in whichever order they were saved."""
    state = create("resnet8", 10).state_dict()
    shifted = {key: value + 1 for key, value in state.items()}
    path = tmp_path / "both.pth"
    for content in ({plain: state, other: shifted}, {other: shifted, plain: state}):
        if flat:
            content = {f"{n}.{k}": v for n, inner in content.items() for k, v in inner.items()}
        torch.save(content, path)
        teacher = load_teacher(str(path), None)
        assert torch.equal(teacher.network.network.fc.bias, state["fc.bias"])
        assert f"at {plain!r}" in teacher.note
        assert f"also holds weights of this network at {other!r}" in teacher.note


def test_of_two_networks_the_one_that_fits_is_loaded(tmp_path):
    student, path = create("resnet8", 10), tmp_path / "pair.pth"
    torch.save({"model_t": create("wrn_16_1", 10).state_dict(), "s": student.state_dict()}, path)
    found = load_teacher("resnet8", None, weights=str(path))
    assert torch.equal(found.network.network.fc.bias, student.fc.bias)
    assert "also" not in found.note


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


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        (lambda: create("wrn_16_2", 10).state_dict(),
         r"missing: .*unexpected: .*seem to be those of wrn_16_2"),
        (lambda: create("resnet8", 100).state_dict(), "100 classes instead of 10"),
        (lambda: {k: v for k, v in create("resnet8", 10).state_dict().items() if k[:2] != "fc"},
         "missing: fc.bias, fc.weight. They are of a part of the network"),
        (lambda: {"epoch": 1, "state_dict": {
            f"head.{k}" if k[:2] == "fc" else f"backbone.{k}": v
            for k, v in create("resnet8", 10).state_dict().items()}},
         "missing: fc.bias, fc.weight. They are of a part of the network"),
        (lambda: {f"{k}.x": v for k, v in create("resnet8", 10).state_dict().items()},
         "other names for them"),
        (lambda: {k: v.repeat_interleave(3, 0) if v.dim() else v
                  for k, v in create("resnet8", 10).state_dict().items()},
         "wrong shape: bn1.bias is .*layers of other widths"),
    ],
)  # fmt: skip
def test_weights_of_another_network_are_explained(saved, message, tmp_path):
    path = tmp_path / "w.pth"
    torch.save(saved(), path)
    with pytest.raises(CheckpointError, match=f"(?s)do not fit resnet8: .*{message}"):
        load_teacher("resnet8(num_classes=10)", None, weights=str(path))


def test_weights_of_a_network_of_torchvision_are_named(tmp_path):
    path = tmp_path / "w.pth"
    state = build("torchvision:resnet18", 7).network.state_dict()
    torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}}, path)
    line = f"--teacher torchvision:resnet18 --teacher-weights {path}"
    with pytest.raises(CheckpointError, match=line):
        load_teacher(str(path), None)


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


def test_no_weights(tmp_path):
    path = tmp_path / "w.pth"
    torch.save({"epoch": 3, "best": torch.tensor(0.5), "args": argparse.Namespace()}, path)
    with pytest.raises(CheckpointError, match=r"holds no weights.*it holds epoch, best, args"):
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


def test_a_folder_with_a_file_of_weights(tmp_path):
    save_file(create("resnet8", 10).state_dict(), tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"no run folder.*model\.safetensors"):
        load_teacher(str(tmp_path), None)
    with pytest.raises(CheckpointError, match=r"there is no file .*model\.safetensors"):
        check_teacher("resnet8", str(tmp_path))
    with pytest.raises(CheckpointError, match=r"ask for torchvision:resnet18\(pretrained=True\)"):
        check_teacher("torchvision:resnet18(weights=None)", None)


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        (lambda s: {k: v.numpy() for k, v in s.items()}, r"holds no weights.*torch\.from_numpy"),
        (lambda s: list(s.values()), "holds no weights.*it holds a list"),
        (lambda s: {k: v.to("meta") for k, v in s.items()}, "cannot be loaded into resnet8"),
        (lambda s: {k: v.to_sparse() if v.dim() == 2 else v for k, v in s.items()},
         "cannot be loaded into resnet8.*dense tensors"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:Validating sparse")
def test_tensors_that_are_no_weights(saved, message, tmp_path):
    path = tmp_path / "w.pth"
    torch.save(saved(create("resnet8", 10).state_dict()), path)
    with pytest.raises(CheckpointError, match=f"(?s){message}"):
        load_teacher("resnet8", None, weights=str(path))
    with pytest.raises(CheckpointError, match=r"There is no such file\.$"):
        load_teacher("none.pth", None)


@pytest.mark.parametrize("key", ["model_ema", "state_dict_ema", "ema"])
def test_averaged_weights_alone_are_named(key, tmp_path):
    torch.save({key: create("resnet8", 10).state_dict(), "epoch": 3}, tmp_path / "a.pth")
    assert f"the weights at {key!r} in it" in load_teacher(str(tmp_path / "a.pth"), None).note
