"""Weights files: safetensors with the metadata that builds their network."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision import models

from cktf.data import load_dataset
from cktf.errors import CheckpointError
from cktf.models import (
    Normalized,
    build_network,
    create,
    load_network,
    load_weights,
    parse_network_spec,
    save_network,
)
from cktf.recipes import build_student

IMAGES = torch.rand(2, 3, 32, 32)


@pytest.fixture
def saved(tmp_path):
    network = Normalized(create("resnet8", 3), (0.1,) * 3, (0.2,) * 3).eval()
    path = tmp_path / "student.safetensors"
    save_network(network, path, name="resnet8", classes=["a", "b", "c"], dataset="toy")
    return network, path


def test_round_trip(saved):
    network, path = saved
    found, described = load_network(path)
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(found.eval()(images), network(images), rtol=0, atol=0)
    assert described["classes"] == ["a", "b", "c"]
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_weights_of_another_network(saved):
    with pytest.raises(CheckpointError, match=r"missing: block1.*unexpected: .*layer1"):
        load_weights(create("wrn_16_1", 3), saved[1])
    with pytest.raises(CheckpointError, match=r"fc.weight is \(3, 64\) instead of \(10, 64\)"):
        load_weights(create("resnet8", 10), saved[1])


def test_damaged_files(saved, tmp_path):
    path = saved[1]
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="damaged"):
        load_network(path)
    with pytest.raises(CheckpointError, match="no checkpoint"):
        load_weights(create("resnet8", 3), tmp_path / "none.safetensors")


def test_files_without_metadata(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file(create("resnet8", 3).state_dict(), path)
    with pytest.raises(CheckpointError, match="does not say which network"):
        load_network(path)
    load_weights(create("resnet8", 3), path)


def test_timm_network_is_built_again(tmp_path):
    torch.manual_seed(0)
    data = load_dataset("fashion-mini", None, "test")
    network = build_student("timm:test_vit@32", data).eval()
    path = tmp_path / "a.safetensors"
    save_network(network, path, name="timm:test_vit@32", classes=data.classes, dataset="x")
    again, _ = load_network(path)
    torch.testing.assert_close(again.eval()(IMAGES), network(IMAGES))
    assert again.size == 32


def test_loading_runs_no_user_code(user_code, tmp_path, capsys):
    path = tmp_path / "a.safetensors"
    save_network(nn.Linear(2, 2), path, name=f"{user_code}:small", classes=["a", "b"], dataset="x")
    with pytest.raises(CheckpointError, match="loading a file does not run"):
        load_network(path)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_pretrained_network_is_built_again(monkeypatch, tmp_path, name):
    """With the input transform of its pretrained form, without auxiliary heads."""
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


def test_weights_of_other_channels_are_not_said_to_have_other_classes(tmp_path):
    networks = [nn.Sequential(nn.Conv2d(c, 4, 3), nn.Linear(4, 2)) for c in (1, 3)]
    save_network(networks[0], tmp_path / "a.st", name="a", classes=["a", "b"], dataset="custom")
    with pytest.raises(CheckpointError, match="layers of other widths"):
        load_weights(networks[1], tmp_path / "a.st")
