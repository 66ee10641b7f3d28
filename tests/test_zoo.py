"""The library's networks against the two published families, and their features."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models import shufflenetv2

from cktf.errors import ModelError
from cktf.models import create, list_networks, to_published_keys
from cktf.taps import Tap

FAMILIES = json.loads((Path(__file__).parent / "facts" / "zoo.json").read_text())
NETWORKS = [(family, name) for family, facts in FAMILIES.items() for name in facts]
DEEP = {"ResNet101", "ResNet152", "resnet110"}
# The published networks that gave other than two rows of logits read each image as four.
LOGITS = [
    (family, name, size)
    for family, name in NETWORKS
    for size in (32, 64)
    if len(FAMILIES[family][name].get(f"logits_{size}") or ()) == 2
]
ALL = ("embedding", "stem", "stages", "blocks", "preacts")
# Ratio of the image size to the size of the stem and of each stage.
SHRINKING = {
    "resnet": (1, 1, 2, 4),
    "wrn": (1, 1, 2, 4),
    "vgg": (1, 2, 4, 8, 16),
    "MobileNetV2": (2, 2, 4, 8, 16),
    "ShuffleV": (1, 2, 4, 8),
    "ResNet": (1, 1, 2, 4, 8),
}
ONE_OF_EACH = ("resnet5", "wrn_16_1", "vgg8", "MobileNetV2", "ShuffleV1", "ShuffleV2", "ResNet10")


def published_state(family: str, name: str) -> dict[str, list[int]]:
    """Keys and shapes of the published network, from the facts file."""
    facts = FAMILIES[family][name]
    return FAMILIES[facts.get("same_state_as", family)][name]["state"]


def formula_weights(key: str, position: int, shape: list[int]) -> torch.Tensor:
    """The weights for which the facts file holds logits; `position` is that of the sorted key."""
    if key.endswith("num_batches_tracked"):
        return torch.tensor(0)
    n = int(np.prod(shape))
    w = np.sin(np.arange(n, dtype=np.float64) * (0.7 + 0.013 * (position % 17)) + 0.1 * position)
    if key.endswith("running_var"):
        w = 1 + 0.2 * w
    elif len(shape) == 1:
        scale, shift = (0.1, 1.0) if key.endswith("weight") else (0.05, 0.0)
        w = shift + scale * w
    else:
        w = w * np.sqrt(2 / (n / shape[0]))
    return torch.from_numpy(w.reshape(shape)).float()


def build_on_meta(name: str) -> nn.Module:
    """A network on the meta device, with shapes and without values."""
    with torch.device("meta"):
        return create(name, 10).eval()


def build_with_formula_weights(family: str, name: str) -> nn.Module:
    """A network with the formula's weights, loaded from one family's keys."""
    shapes = published_state(family, name)
    state = {key: formula_weights(key, i, shapes[key]) for i, key in enumerate(sorted(shapes))}
    network = build_on_meta(name)
    network.load_state_dict(to_published_keys(state, name), assign=True)
    return network


def published_images(size: int) -> torch.Tensor:
    return torch.from_numpy(np.sin(0.05 * np.arange(2 * 3 * size**2))).view(2, 3, size, -1).float()


def test_the_facts_cover_every_network():
    assert set(list_networks()) == {name for _, name in NETWORKS}


def mark_deep(cases):
    """The parameters of a test, those of deep networks marked slow."""
    tuples = [case if isinstance(case, tuple) else (case,) for case in cases]
    return [
        pytest.param(*values, marks=pytest.mark.slow if {*values} & DEEP else ())
        for values in tuples
    ]


@pytest.mark.parametrize(("family", "name"), mark_deep(NETWORKS))
def test_keys_shapes_and_parameters_are_the_published_ones(family, name):
    network = build_on_meta(name)
    shapes = {key: list(value.shape) for key, value in network.state_dict().items()}
    translated = to_published_keys(published_state(family, name), name)
    assert shapes == translated
    assert list(shapes) == list(translated)
    parameters = sum(p.numel() for p in network.parameters())
    assert parameters == FAMILIES[family][name]["parameters"]


@pytest.mark.parametrize(("family", "name", "size"), mark_deep(LOGITS))
def test_logits_are_the_published_ones(family, name, size, capsys):
    network = build_with_formula_weights(family, name)
    with torch.no_grad():
        logits = network(published_images(size))
    error = float((logits - torch.tensor(FAMILIES[family][name][f"logits_{size}"])).abs().max())
    with capsys.disabled():
        print(f"\n    {name}, {size} pixels: largest difference of logits {error:.1e}", end="")
    # The facts have six decimals; 1e-3 would pass strides in other places and another pooling.
    assert error < 1e-5


def test_only_vgg_keys_differ_between_families():
    ours, theirs = FAMILIES["crd_family"], FAMILIES["cktf_family"]
    renamed = [n for n in ours if n in theirs and theirs[n].get("state", {}).keys()]
    assert renamed == [name for name in ours if name.startswith("vgg")]
    for name in renamed:
        state = theirs[name]["state"]
        assert to_published_keys(state, name) == ours[name]["state"]
        assert to_published_keys(ours[name]["state"], name) == ours[name]["state"]
    assert to_published_keys({"block2.1.bn.weight": 0}, "ResNet10") == {"block2.1.bn.weight": 0}
    assert to_published_keys({"block2.1.other": 0}, "vgg13") == {"block2.1.other": 0}
    with pytest.raises(ModelError, match="Did you mean 'vgg1"):
        to_published_keys({}, "vgg14")


@pytest.mark.parametrize("name", mark_deep(list_networks()))
def test_features_fit_together(name):
    """Embedding, stages, blocks and preacts agree with the modules between them."""
    family = "crd_family" if name in FAMILIES["crd_family"] else "cktf_family"
    network = build_with_formula_weights(family, name)
    with torch.no_grad():
        f = Tap(network, needs=ALL)(published_images(32))
        classifier = network.get_submodule(network.feature_paths.embedding.removesuffix(":input"))
        assert isinstance(classifier, nn.Linear)
        torch.testing.assert_close(classifier(f.embedding), f.logits)
        assert all(stage is blocks[-1] for stage, blocks in zip(f.stages, f.blocks, strict=True))
        if name == "MobileNetV2":
            # Linear bottlenecks.
            assert all(a is b for a, b in zip(f.preacts, f.stages, strict=True))
        elif name.startswith("wrn"):
            # The activation comes behind the next normalization.
            torch.testing.assert_close(network.bn1(f.stages[-1]), f.preacts[-1])
            assert [m.shape for m in f.preacts] == [m.shape for m in f.stages]
        else:
            for before, after in zip(f.preacts, f.stages, strict=True):
                assert before.min() < 0
                torch.testing.assert_close(before.relu(), after)


@pytest.mark.parametrize("name", mark_deep(list_networks()))
@pytest.mark.parametrize("size", [32, 64, 96])
def test_resolutions_of_the_features(name, size):
    f = Tap(build_on_meta(name), needs=ALL)(torch.empty(2, 3, size, size, device="meta"))
    shrinking = next(s for prefix, s in SHRINKING.items() if name.startswith(prefix))
    if name.startswith("vgg") and size == 32:
        shrinking = (*shrinking[:-1], 8)
    maps = [f.stem, *f.stages]
    assert [tuple(m.shape[2:]) for m in maps] == [(size // by, size // by) for by in shrinking]
    for stage, blocks, preact in zip(f.stages, f.blocks, f.preacts, strict=True):
        assert stage is blocks[-1]
        assert preact.shape == stage.shape
        assert {block.shape[2:] for block in blocks} == {stage.shape[2:]}
    assert f.logits.shape == (2, 10)


@pytest.mark.parametrize("name", mark_deep(list_networks()))
def test_every_module_runs_and_none_works_in_place(name):
    network, ran = build_on_meta(name), set()
    for path, module in network.named_modules():
        module.register_forward_hook(lambda *_, path=path: ran.add(path))
    network(torch.empty(2, 3, 64, 64, device="meta"))
    assert {path for path, _ in network.named_modules()} - ran == set()
    assert not any(getattr(module, "inplace", False) for module in network.modules())


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_any_size_or_a_clear_refusal(name):
    network = create(name, 7).eval()
    with torch.no_grad():
        for height, width in ((33, 33), (47, 70), (9, 64)):
            assert network(torch.rand(1, 3, height, width)).shape == (1, 7)
        if name != "vgg8":
            assert network(torch.rand(1, 3, 3, 3)).shape == (1, 7)
            return
        assert network(torch.rand(1, 3, 8, 8)).shape == (1, 7)
        with pytest.raises(ModelError, match=r"at least 8 pixels .*; these have 7 x 32\. Enlarge"):
            network(torch.rand(1, 3, 7, 32))


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_fresh_weights_are_trained_by_the_logits(name):
    network = create(name, 5)
    logits = network(torch.rand(8, 3, 32, 32))
    F.cross_entropy(logits, torch.arange(8) % 5).backward()
    assert logits.isfinite().all()
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key


def test_vgg_pools_a_fourth_time_where_eight_pixels_are_left():
    network, ran = build_on_meta("vgg8"), []
    network.pool3.register_forward_hook(lambda *_: ran.append(size))
    for size in (32, 48, 63, 64, 96):
        network(torch.empty(2, 3, size, size, device="meta"))
    assert ran == [64, 96]


def test_shufflenet_v2_is_the_one_of_torchvision_with_a_small_stem():
    """The facts have no logits of it; torchvision's has the same stages and the same order."""
    network = build_with_formula_weights("crd_family", "ShuffleV2")
    other = shufflenetv2.ShuffleNetV2([4, 8, 4], [24, 116, 232, 464, 1024], num_classes=10).eval()
    other.conv1[0], other.maxpool = nn.Conv2d(3, 24, 1, bias=False), nn.Identity()
    pairs = [
        (other.conv1[0], network.conv1),
        (other.conv1[1], network.bn1),
        (other.conv5[0], network.conv2),
        (other.conv5[1], network.bn2),
        (other.fc, network.linear),
    ]
    for theirs, ours in zip(
        [*other.stage2, *other.stage3, *other.stage4],
        [*network.layer1, *network.layer2, *network.layer3],
        strict=True,
    ):
        kinds = (nn.Conv2d, nn.BatchNorm2d)
        with_weights = [m for m in theirs.modules() if isinstance(m, kinds)]
        # Theirs alternate in the order of our numbers: conv1, bn1, conv2, bn2, ...
        for k, module in enumerate(with_weights):
            pairs.append((module, getattr(ours, f"{'bn' if k % 2 else 'conv'}{k // 2 + 1}")))
    for theirs, ours in pairs:
        theirs.load_state_dict(ours.state_dict())
    images = published_images(64)
    with torch.no_grad():
        torch.testing.assert_close(network(images), other(images))


def test_unknown_network_names_the_nearest():
    with pytest.raises(ModelError, match="resnet20"):
        create("resnt20", 10)
    with pytest.raises(ModelError, match="'ResNet18'"):
        create("resnet18", 10)
    with pytest.raises(ModelError, match="2 classes"):
        create("resnet8", 1)
