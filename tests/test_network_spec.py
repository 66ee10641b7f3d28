"""Specs of networks: parsed and checked without building or running anything."""

import pytest

from cktf.errors import ModelError
from cktf.models import parse_network_spec


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
