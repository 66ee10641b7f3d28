"""Features from any network, and the traps on the way."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from cktf.errors import ModelError, TapError
from cktf.models import Normalized, build_network, create, parse_network_spec
from cktf.taps import FeaturePaths, Tap, infer_paths, resize_classifier

IMAGES = torch.rand(2, 3, 32, 32)
ALL = ("embedding", "stem", "stages", "blocks", "preacts")


@pytest.mark.parametrize("name", ["resnet20", "wrn_16_2"])
def test_zoo_features_fit_together(name):
    network = create(name, 10).eval()
    f = Tap(network, needs=ALL)(IMAGES)
    torch.testing.assert_close(network.fc(f.embedding), f.logits)
    pooled = (f.stages if name.startswith("resnet") else [p.relu() for p in f.preacts])[-1]
    torch.testing.assert_close(pooled.mean((2, 3)), f.embedding)
    assert all(stage is blocks[-1] for stage, blocks in zip(f.stages, f.blocks, strict=True))
    assert [m.shape[-1] for m in f.stages] == [32, 16, 8]
    assert f.stem.shape[-1] == 32
    if name.startswith("resnet"):
        for before, after in zip(f.preacts, f.stages, strict=True):
            assert before.min() < 0
            torch.testing.assert_close(before.relu(), after)
    else:
        torch.testing.assert_close(f.stem, network.conv1(IMAGES))


@pytest.mark.parametrize("inplace", [False, True])
def test_inferred_preactivations(inplace):
    """Of an activation that overwrites its input too; of a linear end; none where it is hidden."""
    torch.manual_seed(0)
    a = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU(inplace))
    b = nn.Sequential(nn.Conv2d(4, 6, 3, 2, 1), nn.ReLU(inplace), nn.Conv2d(6, 6, 1))
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5)]
    network = nn.Sequential(nn.Conv2d(3, 3, 1), a, b, *head).eval()
    paths = infer_paths(network, IMAGES)
    assert paths.preacts == ("1.2:input", "2")
    tap = Tap(network, paths, needs=["preacts", "stages"])
    features = tap(IMAGES)
    torch.testing.assert_close(features.preacts[0].relu(), features.stages[0])
    assert features.preacts[0].min() < 0
    assert features.preacts[1] is features.stages[1]
    features.preacts[0].sum().backward()
    assert a[0].weight.grad.abs().sum() > 0

    class Functional(nn.Conv2d):
        def forward(self, x):
            return super().forward(x).relu()

    hidden = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), Functional(4, 6, 3, 2, 1), *head)
    assert infer_paths(hidden.eval(), IMAGES).preacts == ()


def test_a_tap_returns_only_needed_features_and_leaves_no_hooks():
    network = create("resnet8", 10)
    f = Tap(network, needs=["embedding"])(IMAGES)
    assert (f.stem, f.stages, f.blocks, f.preacts) == (None, (), (), ())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())


class Plain(nn.Module):
    """A network of a user who never heard of taps: strided convolutions, nothing in place."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.a = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
        self.b = nn.Sequential(nn.Conv2d(8, 12, 3, 2, 1), nn.ReLU(), nn.Dropout(0.1))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Sequential(nn.Linear(12, 6), nn.ReLU(), nn.Linear(6, 5))

    def forward(self, x):
        return self.head(self.pool(self.b(self.a(self.first(x)))).flatten(1))


def test_infer_on_an_unseen_network():
    paths = infer_paths(Plain(), IMAGES)
    assert paths.stem == "first.2"
    assert paths.stages == ("a", "b")
    assert paths.embedding == "head.2:input"
    f = Tap(Plain(), paths)(IMAGES)
    assert f.embedding.shape == (2, 6)
    assert [tuple(m.shape[1:]) for m in f.stages] == [(8, 32, 32), (12, 16, 16)]


def test_infer_agrees_with_the_zoo():
    network = create("resnet20", 10)
    known = network.feature_paths
    assert infer_paths(network, IMAGES) == known


def test_infer_on_preactivation_networks_finds_the_activated_maps():
    f = Tap.infer(create("wrn_16_2", 10).eval(), IMAGES)(IMAGES)
    assert [tuple(m.shape[1:]) for m in f.stages] == [(32, 32, 32), (64, 16, 16), (128, 8, 8)]


@pytest.mark.slow
def test_infer_on_torchvision():
    from torchvision.models import mobilenet_v2, resnet18, vgg11_bn

    images = torch.rand(2, 3, 64, 64)
    assert infer_paths(resnet18(num_classes=10), images).stages == (
        "layer1", "layer2", "layer3", "layer4",
    )  # fmt: skip
    assert infer_paths(resnet18(num_classes=10), images).blocks[1] == ("layer2.0", "layer2.1")
    for network in (mobilenet_v2(num_classes=10), vgg11_bn(num_classes=10)):
        f = Tap.infer(network.eval(), images)(images)
        sizes = [m.shape[-1] for m in f.stages]
        assert sizes == sorted(sizes, reverse=True)
        assert len(sizes) >= 4


def test_infer_leaves_the_network_as_it_was():
    network = Plain().train()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    infer_paths(network, IMAGES)
    assert network.training
    network.a.eval()
    infer_paths(network, IMAGES)
    assert (network.training, network.a.training, network.b.training) == (True, False, True)
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


class OfTokens(nn.Module):
    """A user's vision transformer, whose blocks lie in PyTorch's own encoder."""

    def __init__(self, norm=None):
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.patches, self.fc = nn.Conv2d(3, 16, 8, 8), nn.Linear(16, 5)
        self.transformer = nn.TransformerEncoder(layer, 8, norm, enable_nested_tensor=False)

    def forward(self, x):
        return self.fc(self.transformer(self.patches(x).flatten(2).mT).mean(1))


def of_torchvision():
    from torchvision.models import VisionTransformer

    return VisionTransformer(32, 8, num_layers=8, num_heads=2, hidden_dim=16, mlp_dim=32)


@pytest.mark.parametrize(
    ("make", "path", "last"),
    [(of_torchvision, "encoder.layers.encoder_layer_{}", "encoder.layers"),
     (lambda: OfTokens(nn.LayerNorm(16)), "transformer.layers.{}", "transformer.layers.7"),
     (OfTokens, "transformer.layers.{}", "transformer")],
)  # fmt: skip
def test_infer_opens_the_module_that_holds_all_blocks(make, path, last):
    paths = infer_paths(make(), IMAGES)
    assert paths.stages == (*(path.format(k) for k in (1, 3, 5)), last)
    assert paths.blocks[1] == tuple(path.format(k) for k in range(4))
    assert [len(blocks) for blocks in paths.blocks] == [2, 4, 6, 8]
    f = Tap(make(), paths, needs=ALL)(IMAGES)
    assert [tuple(m.shape[1:]) for m in f.stages] == [(16, 4, 4)] * 4


class Residual(nn.Module):
    """Alike modules that something goes around are no chain of blocks."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU()) for _ in range(4))

    def forward(self, x):
        for layer in self.layers:
            x = x + layer(x)
        return x


def test_infer_does_not_take_branches_for_blocks():
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)]
    network = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), Residual(), *head)
    assert infer_paths(network, IMAGES).stages == ("1",)


class SqueezeExcite(nn.Module):
    """Channel attention: its 1x1 maps must not be taken for stages."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, 2, 1)
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 8, 1), nn.Sigmoid())
        self.out = nn.Conv2d(8, 8, 1)
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        x = self.conv(x)
        return self.fc(self.out(x * self.gate(x)).mean((2, 3)))


def test_infer_ignores_squeeze_and_excitation():
    assert infer_paths(SqueezeExcite(), IMAGES).stages == ("out",)


class Attending(nn.Module):
    """A block that gives two things; inside, every place's attention to every place."""

    def __init__(self, both):
        super().__init__()
        self.heads, self.out, self.both = nn.Conv2d(2, 2, 1), nn.Conv2d(8, 8, 1), both

    def forward(self, x):
        attention = self.heads(torch.stack(2 * [x.flatten(2).mT @ x.flatten(2)], dim=1))
        x = self.out(x) + (x.flatten(2) @ attention.mean(1)).unflatten(2, x.shape[2:])
        return (x, attention) if self.both else x


@pytest.mark.parametrize("both", [False, True])
def test_infer_ignores_attention_between_places(both):
    """Of 4 x 4 places it is 16 x 16, and no smaller map would stand before it."""

    class Attentive(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.a = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 2, 1)
            self.b, self.attending = nn.Conv2d(8, 8, 3, 2, 1), Attending(both)
            self.fc = nn.Linear(8, 5)

        def forward(self, x):
            x = self.attending(self.b(self.a(self.first(x))))
            return self.fc((x[0] if both else x).mean((2, 3)))

    last = "attending.out" if both else "attending"
    assert infer_paths(Attentive(), IMAGES).stages == ("a", last)


def test_infer_ignores_attention_in_efficientformer():
    """Inside a block of maps of 14 x 14, attention between 7 x 7 places."""
    timm = pytest.importorskip("timm")
    images = torch.rand(2, 3, 224, 224)
    network = timm.create_model("efficientformerv2_s0", pretrained=False).eval()
    f = Tap.infer(network, images)(images)
    assert [m.shape[-1] for m in f.stages] == [112, 56, 28, 14, 7]


class Enlarged(nn.Module):
    """Images are enlarged inside; so is a map in a decoder, which gives it."""

    def __init__(self):
        super().__init__()
        self.up, self.first = nn.Upsample(scale_factor=4), nn.Conv2d(3, 4, 3, 2, 1)
        self.a = nn.Sequential(nn.Conv2d(4, 4, 3, 2, 1), nn.ReLU())
        self.b = nn.Sequential(nn.Conv2d(4, 6, 3, 2, 1), nn.ReLU())
        self.decoder = nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(6, 4, 1))
        self.fc = nn.Linear(4, 5)

    def forward(self, x):
        return self.fc(self.decoder(self.b(self.a(self.first(self.up(x))))).mean((2, 3)))


def test_infer_on_networks_that_enlarge():
    network = Normalized(Enlarged(), (0.5,) * 3, (0.2,) * 3)
    assert infer_paths(network, IMAGES).stages == ("network.decoder",)
    network.network.decoder[0] = nn.Identity()
    assert infer_paths(network, IMAGES).stages == ("network.a", "network.decoder")


class Overwritten(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.relu = nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True)
        self.fc = nn.Linear(4, 2)

    def forward(self, x):
        return self.fc(self.relu(self.conv(x)).mean((2, 3)))


class Twice(Overwritten):
    def forward(self, x):
        return self.fc(torch.relu(self.conv(x) + self.conv(x)).mean((2, 3)))


class Unused(Overwritten):
    def forward(self, x):
        return self.fc(self.conv(x).mean((2, 3)))


class NoLinear(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        return self.conv(x).mean((2, 3))[:, 1:]


class Everywhere(nn.Module):
    """A convolution classifies every place, as in SqueezeNet."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU())
        self.classifier = nn.Sequential(nn.Conv2d(4, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    def forward(self, x):
        return self.classifier(self.body(x))


class Recomputed(Overwritten):
    """Its convolution runs without a gradient, and again in the backward pass."""

    def forward(self, x):
        found = checkpoint(self.conv, x.clone().requires_grad_(), use_reentrant=True)
        return self.fc(found.mean((2, 3)))


class Pair(Overwritten):
    def forward(self, x):
        return super().forward(x), x


@pytest.mark.parametrize(
    ("network", "paths", "message"),
    [
        (Overwritten(), FeaturePaths(stem="conv"), "overwritten in place"),
        (Twice(), FeaturePaths(stem="conv"), "more than once"),
        (Unused(), FeaturePaths(stem="relu"), "did not run"),
        (Unused(), FeaturePaths(stem="cnov"), "no module 'cnov'. Did you mean 'conv'"),
        (Unused(), FeaturePaths(embedding="conv"), "one vector per image"),
        (Unused(), FeaturePaths(), "has no path for its"),
        (Unused(), None, "does not say where its features are"),
        (Pair(), FeaturePaths(stem="relu"), "tuple"),
        (Recomputed(), FeaturePaths(stem="conv"), "without a gradient.*use_reentrant=False"),
    ],
)
def test_traps(network, paths, message):
    needs = [n for n in ("stem", "embedding") if paths and getattr(paths, n)] or ["stem"]
    with pytest.raises(TapError, match=message):
        Tap(network, paths, needs)(IMAGES)


def test_a_frozen_module_may_run_without_a_gradient():
    network = Recomputed()
    network.conv.requires_grad_(False)
    features = Tap(network, FeaturePaths(stem="conv"), ["stem"])(IMAGES)
    assert features.logits.requires_grad
    with torch.no_grad():
        Tap(Recomputed(), FeaturePaths(stem="conv"), ["stem"])(IMAGES)


def test_infer_avoids_overwritten_outputs():
    assert infer_paths(Overwritten(), IMAGES).stem == "relu"


def test_infer_without_a_linear_layer():
    with pytest.raises(TapError, match=r"NoLinear runs no layer .* --student-embedding"):
        infer_paths(NoLinear(), IMAGES)
    given = FeaturePaths(embedding="conv:input")
    assert infer_paths(NoLinear(), IMAGES, given).embedding == "conv:input"


def test_infer_a_convolutional_classifier():
    network = Everywhere()
    tap = Tap.infer(network, IMAGES)
    assert tap.paths.stages == ("body",)
    features = tap(IMAGES)
    layer = network.classifier[0]
    again = features.embedding @ layer.weight.flatten(1).T + layer.bias
    torch.testing.assert_close(again, features.logits)


def test_unknown_feature():
    with pytest.raises(TapError, match="Did you mean 'stages'"):
        Tap(create("resnet8", 10), needs=["stage"])


# A classifier in the place of another


class Tail(nn.Module):
    """Its classifier is defined before the layer that runs before it."""

    def __init__(self, last=None):
        super().__init__()
        self.fc, self.features = nn.Linear(3, 5), nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU())
        self.proj, self.last = nn.Linear(4, 3), last

    def forward(self, x):
        logits = self.fc(self.proj(self.features(x).mean((2, 3))))
        return logits if self.last is None else logits + self.last(logits)


def convolution():
    head = nn.Sequential(nn.Conv2d(4, 5, 1, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), head)


@pytest.mark.parametrize(
    ("make", "path"),
    [(Tail, "fc"), (lambda: Normalized(Tail(), [0.0] * 3, [1.0] * 3), "network.fc"),
     (convolution, "2.0"), (lambda: create("resnet8", 5), "fc")],
)  # fmt: skip
def test_the_classifier_is_the_layer_that_gives_the_logits(make, path):
    network = make().eval()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    old = network.get_submodule(path)
    assert not resize_classifier(network, 5, IMAGES)
    assert network.get_submodule(path) is old
    assert resize_classifier(network, 5, IMAGES, force=True)
    assert not torch.equal(network.get_submodule(path).weight, old.weight)
    assert resize_classifier(network, 7, IMAGES)
    assert network(IMAGES).shape == (2, 7)
    after = network.state_dict()
    assert after.keys() == before.keys()
    changed = {k for k in after if not torch.equal(after[k], before[k])}
    assert changed == {k for k in before if k.startswith(path)}


def test_a_network_of_two_classifiers_gets_two():
    pytest.importorskip("timm")
    network = build_network(parse_network_spec("timm:levit_128s@32"), 5).network.eval()
    assert resize_classifier(network, 7, IMAGES)
    assert network(IMAGES).shape == (2, 7)
    assert resize_classifier(network, 7, IMAGES, force=True)


def test_errors_of_networks_without_a_classifier():
    with pytest.raises(ModelError, match=r"with more than one layer.*with 7 classes"):
        resize_classifier(Tail(nn.Linear(5, 5)), 7, IMAGES)
    with pytest.raises(ModelError, match="runs no linear layer or convolution"):
        resize_classifier(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), 7, IMAGES)
