"""Features from any network, and the traps on the way."""

from types import SimpleNamespace

import pytest
import torch
from small_runs import CustomNet
from torch import nn
from torch.utils.checkpoint import checkpoint

from cktf.errors import ModelError, TapError
from cktf.models import Normalized, build_network, create, parse_network_spec
from cktf.taps import FeaturePaths, Tap, infer_paths, resize_classifier

IMAGES = torch.rand(2, 3, 32, 32)
ALL = ("embedding", "stem", "stages", "blocks", "preacts")


def end_with_classifier(*layers, channels):
    """Layers, pooling and a classifier of five classes."""
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 5)]
    return nn.Sequential(*layers, *head).eval()


@pytest.mark.parametrize("inplace", [False, True])
def test_inferred_preactivations(inplace):
    """Of an activation that overwrites its input too; of a linear end; none where it is hidden."""
    torch.manual_seed(0)
    a = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU(inplace))
    b = nn.Sequential(nn.Conv2d(4, 6, 3, 2, 1), nn.ReLU(inplace), nn.Conv2d(6, 6, 1))
    network = end_with_classifier(nn.Conv2d(3, 3, 1), a, b, channels=6)
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

    layers = nn.Conv2d(3, 4, 3, 2, 1), Functional(4, 6, 3, 2, 1)
    assert infer_paths(end_with_classifier(*layers, channels=6), IMAGES).preacts == ()


def test_a_tap_returns_only_needed_features_and_leaves_no_hooks():
    network = create("resnet8", 10)
    f = Tap(network, needs=["embedding"])(IMAGES)
    assert (f.stem, f.stages, f.blocks, f.preacts) == (None, (), (), ())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())


def plain():
    """Strided convolutions, nothing in place."""
    return CustomNet(
        lambda net, x: net.head(net.pool(net.b(net.a(net.first(x)))).flatten(1)),
        first=nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
        a=nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()),
        b=nn.Sequential(nn.Conv2d(8, 12, 3, 2, 1), nn.ReLU(), nn.Dropout(0.1)),
        pool=nn.AdaptiveAvgPool2d(1),
        head=nn.Sequential(nn.Linear(12, 6), nn.ReLU(), nn.Linear(6, 5)),
    )


def test_infer_on_an_unseen_network():
    paths = infer_paths(plain(), IMAGES)
    assert paths.stem == "first.2"
    assert paths.stages == ("a", "b")
    assert paths.embedding == "head.2:input"
    f = Tap(plain(), paths)(IMAGES)
    assert f.embedding.shape == (2, 6)
    assert [tuple(m.shape[1:]) for m in f.stages] == [(8, 32, 32), (12, 16, 16)]


def test_infer_agrees_with_the_zoo():
    network = create("resnet20", 10)
    assert infer_paths(network, IMAGES) == network.feature_paths


def test_infer_on_preactivation_networks_finds_the_activated_maps():
    f = Tap.infer(create("wrn_16_2", 10).eval(), IMAGES)(IMAGES)
    assert [tuple(m.shape[1:]) for m in f.stages] == [(32, 32, 32), (64, 16, 16), (128, 8, 8)]


def test_infer_leaves_the_network_as_it_was():
    network = plain().train()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    infer_paths(network, IMAGES)
    assert network.training
    network.a.eval()
    infer_paths(network, IMAGES)
    assert (network.training, network.a.training, network.b.training) == (True, False, True)
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


def of_tokens(norm=None):
    """A user's vision transformer, whose blocks lie in PyTorch's own encoder."""
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    return CustomNet(
        lambda net, x: net.fc(net.transformer(net.patches(x).flatten(2).mT).mean(1)),
        transformer=nn.TransformerEncoder(layer, 8, norm, enable_nested_tensor=False),
        patches=nn.Conv2d(3, 16, 8, 8), fc=nn.Linear(16, 5),
    )  # fmt: skip


def of_torchvision():
    from torchvision.models import VisionTransformer

    return VisionTransformer(32, 8, num_layers=8, num_heads=2, hidden_dim=16, mlp_dim=32)


@pytest.mark.parametrize(
    ("make", "path", "last"),
    [(of_torchvision, "encoder.layers.encoder_layer_{}", "encoder.layers"),
     (lambda: of_tokens(nn.LayerNorm(16)), "transformer.layers.{}", "transformer.layers.7"),
     (of_tokens, "transformer.layers.{}", "transformer")],
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


def squeeze_and_excite():
    """Channel attention: its 1x1 maps must not be taken for stages."""
    return CustomNet(
        lambda net, x: net.fc(net.out((x := net.conv(x)) * net.gate(x)).mean((2, 3))),
        conv=nn.Conv2d(3, 8, 3, 2, 1), out=nn.Conv2d(8, 8, 1), fc=nn.Linear(8, 4),
        gate=nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 8, 1), nn.Sigmoid()),
    )  # fmt: skip


class Attending(nn.Module):
    """A block that gives two things; inside, every place's attention to every place."""

    def __init__(self, both):
        super().__init__()
        self.heads, self.out, self.both = nn.Conv2d(2, 2, 1), nn.Conv2d(8, 8, 1), both

    def forward(self, x):
        attention = self.heads(torch.stack(2 * [x.flatten(2).mT @ x.flatten(2)], dim=1))
        x = self.out(x) + (x.flatten(2) @ attention.mean(1)).unflatten(2, x.shape[2:])
        return (x, attention) if self.both else x


def attentive(both):
    """Attention of 4 x 4 places is 16 x 16, and no smaller map would stand before it."""

    def forward(net, x):
        x = net.attending(net.b(net.a(net.first(x))))
        return net.fc((x[0] if both else x).mean((2, 3)))

    return CustomNet(
        forward, first=nn.Conv2d(3, 8, 3, 2, 1), a=nn.Conv2d(8, 8, 3, 2, 1),
        b=nn.Conv2d(8, 8, 3, 2, 1), attending=Attending(both), fc=nn.Linear(8, 5),
    )  # fmt: skip


def enlarged(decoder):
    """Images are enlarged inside; so is a map in a decoder, which gives it."""
    network = CustomNet(
        lambda net, x: net.fc(net.decoder(net.b(net.a(net.first(net.up(x))))).mean((2, 3))),
        up=nn.Upsample(scale_factor=4), first=nn.Conv2d(3, 4, 3, 2, 1), fc=nn.Linear(4, 5),
        a=nn.Sequential(nn.Conv2d(4, 4, 3, 2, 1), nn.ReLU()),
        b=nn.Sequential(nn.Conv2d(4, 6, 3, 2, 1), nn.ReLU()),
        decoder=nn.Sequential(decoder, nn.Conv2d(6, 4, 1)),
    )  # fmt: skip
    return Normalized(network, (0.5,) * 3, (0.2,) * 3)


@pytest.mark.parametrize(
    ("network", "stages"),
    [
        (end_with_classifier(nn.Conv2d(3, 8, 3, 2, 1), Residual(), channels=8), ("1",)),
        (squeeze_and_excite(), ("out",)),
        (attentive(both=False), ("a", "attending")),
        (attentive(both=True), ("a", "attending.out")),
        (enlarged(nn.Upsample(scale_factor=2)), ("network.decoder",)),
        (enlarged(nn.Identity()), ("network.a", "network.decoder")),
    ],
    ids=["branches", "channel attention", "attention", "two outputs", "decoder", "enlarged"],
)
def test_infer_takes_the_last_map_of_each_resolution_for_a_stage(network, stages):
    assert infer_paths(network, IMAGES).stages == stages


def test_infer_ignores_attention_in_efficientformer():
    """Inside a block of maps of 14 x 14, attention between 7 x 7 places."""
    timm = pytest.importorskip("timm")
    images = torch.rand(2, 3, 224, 224)
    network = timm.create_model("efficientformerv2_s0", pretrained=False).eval()
    f = Tap.infer(network, images)(images)
    assert [m.shape[-1] for m in f.stages] == [112, 56, 28, 14, 7]


def small(forward):
    return CustomNet(
        forward, conv=nn.Conv2d(3, 4, 3), relu=nn.ReLU(inplace=True), fc=nn.Linear(4, 2)
    )


def overwritten():
    return small(lambda net, x: net.fc(net.relu(net.conv(x)).mean((2, 3))))


def shared_activation():
    """One activation after both layers, which overwrites the outputs of both."""
    return CustomNet(
        lambda net, x: net.fc(net.relu(net.b(net.relu(net.a(x)))).mean((2, 3))),
        relu=nn.ReLU(inplace=True), a=nn.Conv2d(3, 4, 3), b=nn.Conv2d(4, 4, 3), fc=nn.Linear(4, 2),
    )  # fmt: skip


def unused():
    return small(lambda net, x: net.fc(net.conv(x).mean((2, 3))))


def twice():
    return small(lambda net, x: net.fc(torch.relu(net.conv(x) + net.conv(x)).mean((2, 3))))


def pair():
    return small(lambda net, x: (net.fc(net.relu(net.conv(x)).mean((2, 3))), x))


def recomputed():
    """Its convolution runs without a gradient, and again in the backward pass."""

    def forward(net, x):
        recomputed = checkpoint(net.conv, x.clone().requires_grad_(), use_reentrant=True)
        return net.fc(recomputed.mean((2, 3)))

    return small(forward)


@pytest.mark.parametrize(
    ("network", "paths", "message"),
    [
        (overwritten(), FeaturePaths(stem="conv"), "overwritten in place"),
        (twice(), FeaturePaths(stem="conv"), "more than once"),
        (unused(), FeaturePaths(stem="relu"), "did not run"),
        (unused(), FeaturePaths(stem="cnov"), "no module 'cnov'. Did you mean 'conv'"),
        (unused(), FeaturePaths(embedding="conv"), "one vector per image"),
        (unused(), FeaturePaths(), "has no path for its"),
        (unused(), None, "does not say where its features are"),
        (pair(), FeaturePaths(stem="relu"), "tuple"),
        (recomputed(), FeaturePaths(stem="conv"), "without a gradient.*use_reentrant=False"),
        (create("resnet8", 10), FeaturePaths(stem="fc"), "of the images' proportions"),
    ],
)
def test_traps(network, paths, message):
    needs = [n for n in ("stem", "embedding") if paths and getattr(paths, n)] or ["stem"]
    with pytest.raises(TapError, match=message):
        Tap(network, paths, needs)(IMAGES)


def test_a_frozen_module_may_run_without_a_gradient():
    network = recomputed()
    network.conv.requires_grad_(False)
    features = Tap(network, FeaturePaths(stem="conv"), ["stem"])(IMAGES)
    assert features.logits.requires_grad
    with torch.no_grad():
        Tap(recomputed(), FeaturePaths(stem="conv"), ["stem"])(IMAGES)


def test_infer_avoids_overwritten_outputs():
    assert infer_paths(overwritten(), IMAGES).stem == "relu"


def test_infer_says_why_no_map_is_left():
    said = r"outputs of a, b are overwritten in place by a later layer, and relu runs more than"
    with pytest.raises(TapError, match=said):
        infer_paths(shared_activation(), IMAGES)


@pytest.mark.parametrize(
    ("output", "example"),
    [(lambda y: (y, y), r"network\(images\)\[0\]"), (lambda y: {"logits": y}, r"\['logits'\]"),
     (lambda y: SimpleNamespace(logits=y), r"network\(images\)\.logits")],
)  # fmt: skip
def test_an_output_that_holds_the_logits(output, example):
    network = CustomNet(lambda net, x: output(net.fc(x.mean((2, 3)))), fc=nn.Linear(3, 2))
    with pytest.raises(TapError, match=f"returns only its logits, such as .*{example}"):
        Tap(network, FeaturePaths(), ())(IMAGES)


def test_infer_without_a_linear_layer():
    network = CustomNet(lambda net, x: net.conv(x).mean((2, 3))[:, 1:], conv=nn.Conv2d(3, 4, 3))
    with pytest.raises(TapError, match=r"CustomNet runs no layer .* --student-embedding"):
        infer_paths(network, IMAGES)
    paths = FeaturePaths(embedding="conv:input")
    assert infer_paths(network, IMAGES, paths).embedding == "conv:input"


def test_infer_a_convolutional_classifier():
    """As in SqueezeNet, it classifies every place."""
    body = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU())
    head = nn.Sequential(nn.Conv2d(4, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    network = CustomNet(lambda net, x: net.classifier(net.body(x)), body=body, classifier=head)
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


def tail(last=None):
    """Its classifier is defined before the layer that runs before it."""

    def forward(net, x):
        logits = net.fc(net.proj(net.features(x).mean((2, 3))))
        return logits if last is None else logits + net.last(logits)

    features = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU())
    return CustomNet(
        forward, fc=nn.Linear(3, 5), features=features, proj=nn.Linear(4, 3), last=last
    )


def convolution():
    head = nn.Sequential(nn.Conv2d(4, 5, 1, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), head)


@pytest.mark.parametrize(
    ("make", "path"),
    [(tail, "fc"), (lambda: Normalized(tail(), [0.0] * 3, [1.0] * 3), "network.fc"),
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
        resize_classifier(tail(nn.Linear(5, 5)), 7, IMAGES)
    with pytest.raises(ModelError, match="runs no linear layer or convolution"):
        resize_classifier(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), 7, IMAGES)
