"""Networks from anywhere, and weights that others saved."""

import argparse
import os
import sys

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision import models

from cktf.data import load_dataset
from cktf.errors import CheckpointError, ModelError
from cktf.models import (
    Normalized,
    build_network,
    create,
    identify_network,
    load_network,
    parse_network_spec,
    read_state_dict,
    save_network,
)
from cktf.models.network_building import drop_pretrained
from cktf.recipes import build_student, load_initial_network, load_teacher

IMAGES = torch.rand(2, 3, 32, 32)
OWN = """
from torch import nn
print("ran")

def small(num_classes, width=4):
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(width, num_classes))

def fixed():
    return small(3)

def usual(num_classes=3):
    return small(num_classes)

class Wrapped(nn.Module):
    def __init__(self, num_classes=3):
        super().__init__()
        self.model = small(num_classes)
        self.forward = self.model.forward

def number(num_classes):
    return num_classes

def broken(num_classes):
    raise RuntimeError("out of luck")
"""

WRITTEN = """
from __future__ import annotations
from dataclasses import dataclass
from functools import partial
from torch import nn
from blocks_beside import Linear

@dataclass
class Options:
    width: int = 8

class Net(nn.Sequential):
    def __init__(self, num_classes):
        super().__init__(nn.Flatten(), Linear(Options().width, num_classes))
        self.origin = __name__

made = partial(Net, 7)
typed: partial = made

def late(num_classes):
    import late_beside
    return Net(num_classes)
"""


@pytest.fixture
def own(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(OWN)
    return str(path)


class TestLines:
    @pytest.mark.parametrize(
        ("line", "library", "name", "arguments", "size"),
        [("resnet8", "", "resnet8", {}, None), (" vgg13@64 ", "", "vgg13", {}, 64),
         ("timm:resnet18", "timm", "resnet18", {}, None),
         ("timm:resnet18.a1_in1k(pretrained=True)", "timm", "resnet18.a1_in1k",
          {"pretrained": True}, None),
         ("torchvision:resnet18(norm_layer=None)@96", "torchvision", "resnet18",
          {"norm_layer": None}, 96),
         ("torchvision:vit_b_16@96", "torchvision", "vit_b_16", {}, 96),
         ("torch.nn:Linear(in_features=3, out_features=[1, 2])", "torch.nn", "Linear",
          {"in_features": 3, "out_features": [1, 2]}, None)],
    )  # fmt: skip
    def test_parts(self, line, library, name, arguments, size):
        source = parse_network_spec(line)
        assert (source.library, source.name) == (library, name)
        assert (source.arguments, source.size) == (arguments, size)
        assert source.is_user_code == (library == "torch.nn")

    @pytest.mark.parametrize(
        ("line", "message"),
        [("", "names no network"), (":x", "names no network"), ("resnet9", "Did you mean"),
         ("timm:resnet81", "Did you mean"), ("torchvision:resnt18", "Did you mean 'resnet18'"),
         ("nowhere.at.all:x", "no Python module"), ("no.py:f", "no file no.py"),
         ("timm:resnet18(3)", "by name, with plain values"),
         ("timm:resnet18(x=open('y'))", "by name, with plain values"),
         ("timm:resnet18(**{'x': 1})", "by name, with plain values"),
         ("timm:resnet18(x=)", "by name, with plain values")],
    )  # fmt: skip
    def test_mistakes(self, line, message):
        with pytest.raises(ModelError, match=message):
            parse_network_spec(line)

    def test_a_file_is_not_run_to_be_checked(self, own, capsys):
        parse_network_spec(f"{own}:small")
        with pytest.raises(ModelError, match="Did you mean 'small'"):
            parse_network_spec(f"{own}:smal")
        assert capsys.readouterr().out == ""


class TestBuilding:
    @pytest.mark.parametrize(
        "line", ["timm:mobilenetv3_small_050", "torchvision:mobilenet_v3_small", "vgg8", "resnet8"]
    )
    def test_as_many_classes_as_the_data(self, line):
        built = build_network(parse_network_spec(line), 7)
        assert built.network.eval()(IMAGES).shape == (2, 7)
        assert built.mean is None

    def test_own_code(self, own):
        assert (
            build_network(parse_network_spec(f"{own}:small(width=6)"), 5).network[0].out_channels
            == 6
        )
        assert build_network(parse_network_spec(f"{own}:fixed"), 5).network(IMAGES).shape == (2, 3)

    @pytest.mark.parametrize("name", ["Net", "made", "typed", "late"])
    def test_files_as_they_are_written(self, tmp_path, monkeypatch, name):
        """A dataclass with annotations as text, assigned names, and files beside it."""
        for module in ("blocks_beside", "late_beside"):
            monkeypatch.delitem(sys.modules, module, raising=False)
            (tmp_path / f"{module}.py").write_text("from torch import nn\nLinear = nn.Linear\n")
        path = tmp_path / "net.py"
        path.write_text(WRITTEN)
        paths = list(sys.path)
        network = build_network(parse_network_spec(f"{path}:{name}"), 5).network
        assert network[1].out_features == (7 if name in ("made", "typed") else 5)
        assert sys.path == paths
        # Another file of the same name is another module.
        other = tmp_path / "other" / "net.py"
        other.parent.mkdir()
        other.write_text(WRITTEN.replace("8", "9"))
        kept = sys.modules[network.origin]
        build_network(parse_network_spec(f"{other}:{name}"), 5)
        assert sys.modules[network.origin] is kept

    @pytest.mark.parametrize(
        ("name", "message"),
        [("number", "gives a int"), ("broken", "out of luck"), ("small(depth=3)", "depth")],
    )
    def test_what_fails_says_so(self, own, name, message):
        with pytest.raises(ModelError, match=message):
            build_network(parse_network_spec(f"{own}:{name}"), 5)

    @pytest.mark.parametrize(
        ("name", "head"),
        [("squeezenet1_1", "classifier.1"), ("mobilenet_v3_small", "classifier.3")],
    )
    def test_pretrained_weights_but_for_the_classifier(self, monkeypatch, name, head):
        trained = models.get_model(name).state_dict()
        monkeypatch.setattr(models.WeightsEnum, "get_state_dict", lambda *_, **__: trained)
        source = parse_network_spec(f"torchvision:{name}(pretrained=True)")
        assert build_network(source, None).network(IMAGES).shape == (2, 1000)
        network = build_network(source, 7).network.eval()
        assert network(IMAGES).shape == (2, 7)
        state = network.state_dict()
        kept = {k for k in state if torch.equal(state[k], trained[k])}
        assert state.keys() - kept == {f"{head}.weight", f"{head}.bias"}

    @pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
    def test_a_pretrained_network_comes_back_from_its_file(self, monkeypatch, tmp_path, name):
        """With what its pretrained form does to images, and without heads that it does not have."""
        trained = models.get_model(name, aux_logits=True, init_weights=False).state_dict()
        monkeypatch.setattr(models.WeightsEnum, "get_state_dict", lambda *_, **__: trained)
        line = f"torchvision:{name}(pretrained=True)"
        network = build_network(parse_network_spec(line), 3).network.eval()
        assert network.transform_input
        path = tmp_path / "student.safetensors"
        save_network(network, path, name=line, classes=("a", "b", "c"), dataset="custom")
        again = load_network(path)[0].eval()
        images = torch.rand(1, 3, 96, 96)
        with torch.no_grad():
            assert torch.equal(network(images), again(images))

    def test_a_pretrained_vit_is_of_the_size_of_its_images(self):
        found = drop_pretrained(parse_network_spec("torchvision:vit_h_14(pretrained=True)"))
        assert found.arguments == {"image_size": 518}

    @pytest.mark.parametrize(
        ("name", "mean", "size"),
        [("resnet18", 0.485, 224), ("efficientnet_b1", 0.485, 240), ("inception_v3", 0.485, 299),
         ("swin_v2_t", 0.485, 256), ("efficientnet_v2_l", 0.5, 480)],
    )  # fmt: skip
    def test_pretrained_weights_see_what_they_were_trained_on(self, monkeypatch, name, mean, size):
        """By the tables of torchvision's documentation."""
        monkeypatch.setattr(models, "get_model", lambda *_, **__: nn.Identity())
        built = build_network(parse_network_spec(f"torchvision:{name}(pretrained=True)"), None)
        assert (built.mean[0], built.size) == (mean, size)
        assert built.std[0] == (0.5 if mean == 0.5 else 0.229)
        assert build_network(parse_network_spec(f"torchvision:{name}"), 7).mean is None
        assert (
            build_network(parse_network_spec(f"torchvision:{name}(pretrained=True)@64"), 7).size
            == 64
        )

    def test_a_network_of_one_size_sees_its_own(self):
        data = load_dataset("fashion-mini", None, "test")
        vit = build_student("timm:test_vit", data)
        assert vit.size == 160
        smaller = build_student("timm:test_vit@64", data)
        assert smaller.size == 64
        assert smaller.eval()(IMAGES).shape == (2, 10)
        assert build_student("timm:test_vit@64", data).network.patch_embed.img_size == (64, 64)
        assert build_student("resnet8@48", data).size == 48
        seen = []
        network = Normalized(nn.Identity(), [0.0] * 3, [1.0] * 3, 16)
        network.network.register_forward_hook(lambda m, a, out: seen.append(out.shape))
        network(IMAGES)
        assert seen == [(2, 3, 16, 16)]

    def test_saved_and_built_again_by_its_line(self, tmp_path):
        torch.manual_seed(0)
        data = load_dataset("fashion-mini", None, "test")
        network = build_student("timm:test_vit@32", data).eval()
        path = tmp_path / "a.safetensors"
        save_network(network, path, name="timm:test_vit@32", classes=data.classes, dataset="x")
        again, _ = load_network(path)
        torch.testing.assert_close(again.eval()(IMAGES), network(IMAGES))
        assert again.size == 32

    def test_a_file_does_not_run_code_that_it_names(self, own, tmp_path, capsys):
        path = tmp_path / "a.safetensors"
        save_network(nn.Linear(2, 2), path, name=f"{own}:small", classes=["a", "b"], dataset="x")
        with pytest.raises(CheckpointError, match="loading a file does not run"):
            load_network(path)
        assert capsys.readouterr().out == ""


class Runs:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


FORMS = {
    "plain": lambda s: s,
    "published": lambda s: {"epoch": 240, "model": s, "accuracy": 72.5},
    "with options": lambda s: {"opt": argparse.Namespace(lr=0.05), "model": s},
    "parallel": lambda s: {"state_dict": {f"module.{k}": v for k, v in s.items()}},
    "compiled": lambda s: {f"module._orig_mod.{k}": v for k, v in s.items()},
}


class TestWeights:
    @pytest.mark.parametrize("form", FORMS)
    def test_forms_in_circulation(self, form, tmp_path):
        network = create("resnet8", 100).eval()
        path = tmp_path / "teacher.pth"
        torch.save(FORMS[form](network.state_dict()), path)
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
    def test_networks_are_known_by_their_weights(self, name):
        with torch.device("meta"):
            network = create(name, 37)
        assert identify_network(network.state_dict()) == (name, 37)

    def test_safetensors_and_a_named_network(self, tmp_path):
        network = build_network(parse_network_spec("timm:mobilenetv3_small_050"), 5).network.eval()
        path = tmp_path / "w.safetensors"
        save_file(network.state_dict(), path)
        with pytest.raises(CheckpointError, match="no network of this library has just these"):
            load_teacher(str(path), None)
        teacher = load_teacher("timm:mobilenetv3_small_050", None, weights=str(path))
        assert teacher.network.eval()(IMAGES).shape == (2, 5)

    def test_as_many_classes_as_the_weights(self, own, tmp_path):
        """Also of two classifiers; not against what the line itself says."""
        path = tmp_path / "w.pth"
        line = "timm:levit_128s(num_classes=10)@32"
        torch.save(build_network(parse_network_spec(line), None).network.state_dict(), path)
        teacher = load_teacher("timm:levit_128s@32", None, weights=str(path)).network.eval()
        assert teacher(IMAGES).shape == (2, 10)
        with pytest.raises(CheckpointError, match="wrong shape"):
            load_teacher("timm:levit_128s(num_classes=7)@32", None, weights=str(path))
        torch.save(build_network(parse_network_spec(f"{own}:small"), 6).network.state_dict(), path)
        teacher = load_teacher(f"{own}:usual", None, weights=str(path)).network.eval()
        assert teacher(IMAGES).shape == (2, 6)

    @pytest.mark.parametrize("form", FORMS)
    def test_what_looks_like_a_prefix_may_be_a_name(self, form, own, tmp_path):
        path = tmp_path / "w.pth"
        network = build_network(parse_network_spec(f"{own}:Wrapped"), 5).network.eval()
        torch.save(FORMS[form](network.state_dict()), path)
        teacher = load_teacher(f"{own}:Wrapped", None, weights=str(path)).network.eval()
        torch.testing.assert_close(teacher.network(IMAGES), network(IMAGES))
        save_network(
            network, path.with_suffix(".safetensors"), name="x", classes="abcde", dataset=""
        )
        load_teacher(f"{own}:Wrapped", None, weights=str(path.with_suffix(".safetensors")))
        # And what is one, in a network that has no such name.
        teacher = load_teacher(f"{own}:usual", None, weights=str(path)).network.eval()
        torch.testing.assert_close(teacher.network(IMAGES), network(IMAGES))

    def test_own_code_with_the_weights_of_a_run(self, own, tmp_path):
        """What the run's file says of its images is kept."""
        data = load_dataset("fashion-mini", None, "test")
        network = build_student(f"{own}:small@16", data).eval()
        path = tmp_path / "student.safetensors"
        save_network(network, path, name=f"{own}:small@16", classes=data.classes, dataset="x")
        teacher = load_teacher(f"{own}:small", None, weights=str(path)).network.eval()
        assert (teacher.size, teacher.mean.tolist()) == (16, network.mean.tolist())
        torch.testing.assert_close(teacher(IMAGES), network(IMAGES))

    @pytest.mark.parametrize(
        ("form", "classes", "fresh"),
        [("published", 10, False), ("published", 100, True), ("named", 10, False),
         ("numbered", 10, False), ("numbered", 100, True), ("others", 10, True)],
    )  # fmt: skip
    def test_a_classifier_goes_on_unless_its_classes_are_others(
        self, form, classes, fresh, tmp_path
    ):
        data = load_dataset("fashion-mini", None, "test")
        network, path = create("resnet8", classes), tmp_path / "w.pth"
        if form == "published":
            torch.save(network.state_dict(), path)
        else:
            told = {
                "named": data.classes, "others": data.classes[::-1],
                "numbered": [f"class {number}" for number in range(classes)],
            }[form]  # fmt: skip
            save_network(network, path, name="resnet8", classes=told, dataset="x")
        found = load_initial_network(str(path), data)
        state = getattr(found.network, "network", found.network).state_dict()
        changed = {
            k for k, v in network.state_dict().items()
            if v.shape != state[k].shape or not torch.equal(v, state[k])
        }  # fmt: skip
        assert changed == ({"fc.weight", "fc.bias"} if fresh else set())
        assert ("new classifier of 10 classes" in found.note) == fresh
        assert len(state["fc.bias"]) == 10

    def test_weights_of_another_network_are_named(self, tmp_path):
        path = tmp_path / "w.pth"
        torch.save(create("wrn_16_2", 10).state_dict(), path)
        message = r"(?s)do not fit resnet8: missing: .*unexpected: .*seem to be those of wrn_16_2"
        with pytest.raises(CheckpointError, match=message):
            load_teacher("resnet8", None, weights=str(path))

    def test_nothing_in_a_pickle_runs(self, tmp_path):
        witness = tmp_path / "witness"
        path = tmp_path / "evil.pth"
        torch.save({"model": Runs(f"touch {witness}")}, path)
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
    def test_damage(self, content, message, tmp_path):
        path = tmp_path / "w.pth"
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=message):
            read_state_dict(path)

    def test_no_weights(self, tmp_path):
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
    def test_teachers_without_weights(self, teacher, weights, message):
        with pytest.raises(CheckpointError, match=message):
            load_teacher(teacher, None, weights=weights)
