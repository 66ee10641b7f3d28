"""Networks by name, normalized networks, and weights on disk."""

import pytest
import torch
from safetensors.torch import save_file

from cktf.errors import CheckpointError, ModelError
from cktf.models import Normalized, create, load_network, load_weights, save_network


def test_unknown_network_names_the_nearest():
    with pytest.raises(ModelError, match="resnet20"):
        create("resnt20", 10)
    with pytest.raises(ModelError, match="'ResNet18'"):
        create("resnet18", 10)
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
