"""Networks against the published family, and weights on disk."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from cktf.errors import CheckpointError, ModelError
from cktf.models import Normalized, create, load_network, load_weights, names, save_network

FACTS = json.loads((Path(__file__).parent / "facts" / "zoo.json").read_text())


def formula(name: str, key: str, position: int, value: torch.Tensor) -> torch.Tensor:
    """The weights that the facts prescribe for the position-th key."""
    k = np.arange(value.numel(), dtype=np.float64)
    w = np.sin(k * (0.7 + 0.013 * (position % 17)) + 0.1 * position)
    if key.endswith("running_var"):
        w = 1 + 0.2 * w
    elif value.dim() == 1:
        scale, shift = (0.1, 1.0) if key.endswith("weight") else (0.05, 0.0)
        w = shift + scale * w
    else:
        w = w * np.sqrt(2 / (value.numel() / value.shape[0]))
    return torch.from_numpy(w.reshape(value.shape)).float()


def test_the_facts_cover_every_network():
    assert set(names()) == set(FACTS)


@pytest.mark.parametrize("name", list(FACTS))
def test_keys_shapes_and_parameters_are_the_published_ones(name):
    network = create(name, 10)
    shapes = {key: list(value.shape) for key, value in network.state_dict().items()}
    assert shapes == FACTS[name]["state"]
    assert sum(p.numel() for p in network.parameters()) == FACTS[name]["parameters"]


@pytest.mark.parametrize("name", [name for name, facts in FACTS.items() if facts["logits_32"]])
def test_logits_are_the_published_ones(name, capsys):
    network = create(name, 10).eval()
    state = network.state_dict()
    for position, key in enumerate(sorted(state)):
        if state[key].is_floating_point():
            state[key] = formula(name, key, position, state[key])
    network.load_state_dict(state)
    images = torch.from_numpy(np.sin(0.05 * np.arange(2 * 3 * 32 * 32))).view(2, 3, 32, 32).float()
    with torch.no_grad():
        logits = network(images)
    error = float((logits - torch.tensor(FACTS[name]["logits_32"])).abs().max())
    with capsys.disabled():
        print(f"\n    {name}: largest difference of logits {error:.1e}", end="")
    assert error < 1e-3


@pytest.mark.parametrize("size", [32, 64, 96])
def test_other_sizes_than_32(size):
    for name in ("resnet8", "wrn_16_1"):
        assert create(name, 7)(torch.rand(2, 3, size, size)).shape == (2, 7)


def test_unknown_network_names_the_nearest():
    with pytest.raises(ModelError, match="resnet20"):
        create("resnt20", 10)
    with pytest.raises(ModelError, match="2 classes"):
        create("resnet8", 1)


def test_normalized_is_the_formula():
    network = create("resnet8", 10).eval()
    images = torch.rand(2, 3, 32, 32)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    by_hand = torch.stack([(images[:, c] - mean[c]) / std[c] for c in range(3)], dim=1)
    torch.testing.assert_close(Normalized(network, mean, std)(images), network(by_hand))
    with pytest.raises(ModelError, match="positive std"):
        Normalized(network, mean, (0.5, 0.0, 0.7))


class TestWeights:
    @pytest.fixture
    def saved(self, tmp_path):
        network = Normalized(create("resnet8", 3), (0.1,) * 3, (0.2,) * 3).eval()
        path = tmp_path / "student.safetensors"
        save_network(network, path, name="resnet8", classes=["a", "b", "c"], dataset="toy")
        return network, path

    def test_round_trip(self, saved):
        network, path = saved
        found, described = load_network(path)
        images = torch.rand(2, 3, 32, 32)
        torch.testing.assert_close(found.eval()(images), network(images), rtol=0, atol=0)
        assert described["classes"] == ["a", "b", "c"]
        assert [p.name for p in path.parent.iterdir()] == [path.name]

    def test_another_network_is_named_by_its_keys(self, saved):
        with pytest.raises(CheckpointError, match=r"missing: block1.*unexpected: .*layer1"):
            load_weights(create("wrn_16_1", 3), saved[1])
        with pytest.raises(CheckpointError, match=r"fc.weight is \(3, 64\) instead of \(10, 64\)"):
            load_weights(create("resnet8", 10), saved[1])

    def test_damage_is_said(self, saved, tmp_path):
        path = saved[1]
        path.write_bytes(path.read_bytes()[:1000])
        with pytest.raises(CheckpointError, match="damaged"):
            load_network(path)
        with pytest.raises(CheckpointError, match="no checkpoint"):
            load_weights(create("resnet8", 3), tmp_path / "none.safetensors")

    def test_a_strangers_file(self, tmp_path):
        path = tmp_path / "weights.safetensors"
        save_file(create("resnet8", 3).state_dict(), path)
        with pytest.raises(CheckpointError, match="does not say which network"):
            load_network(path)
        load_weights(create("resnet8", 3), path)
