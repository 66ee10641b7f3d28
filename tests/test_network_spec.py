"""Specs of networks: parsed and checked without building or running anything."""

import importlib
from pathlib import Path

import pytest

from cktf.errors import ModelError
from cktf.models import parse_network_spec
from cktf.models.network_spec import _registered_names
from cktf.recipes import is_weights_path


@pytest.mark.parametrize(
    ("line", "library", "name", "arguments", "size"),
    [("resnet8", "", "resnet8", {}, None), (" vgg13@64 ", "", "vgg13", {}, 64),
     ("timm:resnet18", "timm", "resnet18", {}, None),
     ("timm:resnet18.a1_in1k(pretrained=True)", "timm", "resnet18.a1_in1k",
      {"pretrained": True}, None),
     ("torchvision:resnet18(norm_layer=None)@96", "torchvision", "resnet18",
      {"norm_layer": None}, 96),
     ("torchvision:resnet18(weights='DEFAULT')", "torchvision", "resnet18",
      {"pretrained": "DEFAULT"}, None),
     ("torchvision:resnet50(weights=ResNet50_Weights.IMAGENET1K_V2)@96", "torchvision", "resnet50",
      {"pretrained": "IMAGENET1K_V2"}, 96),
     ("torchvision:resnet18(weights=true)", "torchvision", "resnet18", {"pretrained": True}, None),
     ("torchvision:resnet18(weights=None)", "torchvision", "resnet18", {}, None),
     ('timm:resnet18(pretrained=true, global_pool="avg", drop_rate=none)', "timm", "resnet18",
      {"pretrained": True, "global_pool": "avg", "drop_rate": None}, None),
     ("torchvision:vit_b_16@96", "torchvision", "vit_b_16", {}, 96),
     ("torch.nn:Linear(in_features=3, out_features=[1, 2])", "torch.nn", "Linear",
      {"in_features": 3, "out_features": [1, 2]}, None)],
)  # fmt: skip
def test_specs_are_parsed(line, library, name, arguments, size):
    source = parse_network_spec(line)
    assert (source.library, source.name) == (library, name)
    assert (source.arguments, source.size) == (arguments, size)
    assert source.is_user_code == (library == "torch.nn")


@pytest.mark.parametrize(
    ("line", "message"),
    [("", "names no network"), (":x", "names no network"), ("resnet9", "Did you mean"),
     ("timm:resnet81", "Did you mean"), ("torchvision:resnt18", "Did you mean 'resnet18'"),
     ("nowhere.at.all:x", "no Python module"), ("no.py:f", "no file no.py"),
     ("torchvision:resnet18(weights='IMAGENET1K_V9')", "no weights 'IMAGENET1K_V9'.*IMAGENET1K_V1"),
     ("timm:resnet18(weights='DEFAULT')", r"timm:resnet18\(pretrained=True\)"),
     ("timm:resnet18(pretrained='a1_in1k')", r"resnet18\.TAG\(pretrained=True\)"),
     ("timm:resnet18(3)", "by name, with plain values"),
     ("timm:resnet18(x=open('y'))", "by name, with plain values"),
     ("timm:resnet18(**{'x': 1})", "by name, with plain values"),
     ("timm:resnet18(x=)", "by name, with plain values")],
)  # fmt: skip
def test_malformed_specs_are_explained(line, message):
    with pytest.raises(ModelError, match=message):
        parse_network_spec(line)


def test_checking_a_file_does_not_run_it(user_code, capsys):
    parse_network_spec(f"{user_code}:small")
    with pytest.raises(ModelError, match="Did you mean 'small'"):
        parse_network_spec(f"{user_code}:smal")
    assert capsys.readouterr().out == ""


def test_a_file_without_a_function_lists_what_it_has(user_code, capsys):
    builders = "NAME. It has small, fixed, usual, Wrapped, number, broken"
    for line in (user_code, f"{user_code}:", f"{user_code}(width=3)", f"{user_code}@32"):
        with pytest.raises(ModelError, match=builders):
            parse_network_spec(line)
        assert not is_weights_path(line)
    with pytest.raises(ModelError, match=r"no file none\.py"):
        parse_network_spec("none.py")
    with pytest.raises(ModelError, match=r"defines no 'x'\. It has small, fixed"):
        parse_network_spec(f"{user_code}:x")
    assert capsys.readouterr().out == ""


def test_a_module_that_is_a_file_here(user_code, monkeypatch):
    monkeypatch.chdir(Path(user_code).parent)
    Path("nets").mkdir()
    Path(user_code).rename("nets/some.py")
    for line in ("nets/some:small", "nets/some.py::small", "nowhere.some:small"):
        found = r"Did you mean nets/some\.py:small" if "/" in line else "no Python module"
        with pytest.raises(ModelError, match=found):
            parse_network_spec(line)


def test_names_from_a_star_import_are_looked_up_later(tmp_path):
    path = tmp_path / "net.py"
    path.write_text("from anything import *\n")
    assert parse_network_spec(f"{path}:Net").name == "Net"


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_names_that_are_read_from_files_are_those_of_the_library(library):
    pytest.importorskip(library)
    models = importlib.import_module(f"{library}.models")
    known = models.list_models(**({} if library == "timm" else {"module": models}))
    assert _registered_names(library) == set(known)


def test_a_network_that_the_user_registers_in_timm_is_known():
    registry = pytest.importorskip("timm.models")
    with pytest.raises(ModelError, match="no network 'network_of_mine'"):
        parse_network_spec("timm:network_of_mine")

    def network_of_mine():
        """Never built."""

    registry.register_model(network_of_mine)
    assert parse_network_spec("timm:network_of_mine").name == "network_of_mine"
