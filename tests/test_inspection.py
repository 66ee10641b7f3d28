"""What a network shows of itself, and transfer between networks of any family."""

import pytest
import torch
from small_runs import SmallNet, distill, read_metrics, run_command
from torch import nn
from torch.nn import functional as F

import cktf
from cktf.errors import DataError, RecipeError, TapError
from cktf.taps.folding import to_feature_map
from cktf.workflows import inspect


def test_macs_by_hand():
    """A convolution, a pooling that costs nothing, a linear layer."""
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(4, 5),
    )  # fmt: skip
    found = inspect(network, (3, 16, 16))
    assert found.macs == 16 * 16 * 8 * 3 * 9 + 8 * 8 * 4 * 8 + 4 * 5
    assert found.parameters == 8 * 3 * 9 + 8 + 8 * 4 + 4 + 4 * 5 + 5


class Attentive(nn.Module):
    """Attention over the places of a map, by PyTorch's module or by its function."""

    def __init__(self, function):
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, stride=4)
        self.function, self.joined = function, nn.Linear(8, 24)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.linear = nn.Linear(8, 5)

    def forward(self, images):
        tokens = self.patches(images).flatten(2).mT
        if self.function:
            q, k, v = self.joined(tokens).unflatten(2, (3, 2, 4)).permute(2, 0, 3, 1, 4)
            seen = F.scaled_dot_product_attention(q, k, v)
            seen = self.attention.out_proj(seen.transpose(1, 2).flatten(2))
        else:
            seen = self.attention(tokens, tokens, tokens, need_weights=False)[0]
        return self.linear(seen.mean(1))


class Watched(nn.Sequential):
    """Notes on what it computes; one that reads a number computes on images alone."""

    def __init__(self, reads):
        linear = nn.Linear(8 * 14 * 14, 5)
        super().__init__(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), linear)
        self.reads, self.devices = reads, []

    def forward(self, images):
        self.devices.append(images.device.type)
        if self.reads and float(images.sum()) < 0:
            return None
        return super().forward(images)


@pytest.mark.parametrize("reads", [False, True])
def test_macs_are_counted_on_the_meta_device_if_possible(reads):
    """A graph of all layers' attention may be larger than a machine's memory."""
    network = Watched(reads)
    assert inspect(network, (3, 16, 16)).macs == 14 * 14 * 8 * 3 * 9 + 8 * 14 * 14 * 5
    assert network.devices[-2:] == (["meta", "cpu"] if reads else ["cpu", "meta"])
    assert {p.device.type for p in network.parameters()} == {"cpu"}


@pytest.mark.parametrize("function", [True, False])
@pytest.mark.parametrize("graph", [True, False])
def test_macs_of_attention_by_hand(function, graph):
    """Also where nothing is followed for gradients, and PyTorch has a kernel for all of it."""
    network = Attentive(function).requires_grad_(graph)
    with torch.set_grad_enabled(graph):
        found = inspect(network, (3, 16, 16), stages=["patches"], embedding="linear:input")
    projections, products = 4 * 16 * 8 * 8, 2 * 16 * 16 * 8
    assert found.macs == 16 * 8 * 3 * 16 + projections + products + 8 * 5
    assert torch.backends.mha.get_fastpath_enabled()


class Refusing(nn.Module):
    def __init__(self, error):
        super().__init__()
        self.error, self.linear = error, nn.Linear(1, 1)

    def forward(self, images):
        raise self.error


@pytest.mark.parametrize(
    ("error", "said"),
    [(AssertionError("a size of 8"), "a size of 8"), (KeyError("x"), "'x'"),
     (IndexError(), "IndexError")],
)  # fmt: skip
def test_errors_of_the_network_are_reported(error, said):
    with pytest.raises(DataError, match=rf"cannot take images \(2, 3, 32, 32\): {said}. Check"):
        inspect(Refusing(error))
    full = torch.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(torch.OutOfMemoryError):
        inspect(Refusing(full))


@pytest.mark.parametrize(
    ("line", "words", "absent"),
    [("torchvision:vit_b_16@32", ["stage"], "Error"),
     ("timm:test_vit3 --input 3x64x64", ["network.blocks", "stage 4",
      "million multiply-adds for an image of 3 x 160 x 160"], "Error"),
     ("resnet8 --taps layer1,network.layer2 --embedding fc:input",
      ["network.layer1", "stage 2"], "stage 3")],
)  # fmt: skip
def test_the_command_prints_the_features(line, words, absent):
    printed = run_command(f"inspect {line}")
    assert all(word in printed for word in words)
    assert absent not in printed


@pytest.mark.parametrize(
    ("line", "message"),
    [("resnet8 --input 32", "CHANNELSxHEIGHTxWIDTH"), ("resnet9", "Did you mean"),
     ("resnet8 --input 3x0x3", "CHANNELSxHEIGHTxWIDTH"),
     ("torchvision:alexnet", "cannot take images (2, 3, 32, 32)"),
     ("resnet8 --taps layer1,layer9", "no module 'network.layer9'")],
)  # fmt: skip
def test_mistakes(line, message):
    assert message in " ".join(run_command(f"inspect {line}", exit_code=2).split())


# The stages that each family is known for, of images of 64 pixels.
FAMILIES = {
    "timm:test_resnet": 5, "timm:test_vit3": 4, "timm:test_convnext": 4,
    "timm:test_efficientnet": 5,
    "timm:test_byobnet": 5, "timm:mobilenetv3_small_050": 5, "timm:regnetx_002": 5,
    "timm:resnetv2_50x1_bit": 4, "timm:eva02_tiny_patch14_224": 4, "torchvision:squeezenet1_1": 3,
    "torchvision:resnet18": 4, "torchvision:mobilenet_v2": 5, "torchvision:vgg11_bn": 4,
}  # fmt: skip


@pytest.mark.parametrize("line", FAMILIES)
def test_families(line):
    found = inspect(f"{line}@64" if "vit" in line else line, (3, 64, 64))
    shapes = [tuple(stage.shape) for stage in found.features.stages]
    assert len(shapes) == FAMILIES[line]
    sizes = [shape[-1] for shape in shapes]
    assert sizes == sorted(sizes, reverse=True)
    assert found.features.embedding.dim() == 2


@pytest.mark.parametrize(
    ("shape", "given", "expected"),
    [((2, 3, 32, 32), (2, 7, 8, 8), (2, 7, 8, 8)), ((2, 3, 32, 32), (2, 8, 8, 7), (2, 7, 8, 8)),
     ((2, 3, 32, 32), (2, 65, 5), (2, 5, 8, 8)), ((2, 3, 32, 64), (2, 8 + 1, 5), (2, 5, 2, 4)),
     ((2, 3, 30, 50), (2, 6, 4, 7), (2, 6, 4, 7)), ((2, 3, 32, 32), (3, 7, 8, 8), None),
     ((2, 3, 32, 32), (2, 7, 8, 4), None), ((2, 3, 32, 32), (2, 7), None),
     ((2, 3, 32, 32), (), None)],
)  # fmt: skip
def test_as_map(shape, given, expected):
    found = to_feature_map(torch.rand(given), torch.Size(shape))
    assert (None if found is None else tuple(found.shape)) == expected


def test_tokens_fold_row_by_row():
    grid = torch.arange(2 * 12).view(2, 3, 4).float()
    tokens = torch.cat([torch.full((2, 1, 1), -1.0), grid.flatten(1).unsqueeze(2)], dim=1)
    torch.testing.assert_close(to_feature_map(tokens, torch.Size([2, 3, 30, 40])).squeeze(1), grid)


def test_stages_by_name(images, tmp_path):
    for taps, terms in ((["a"], ["module1"]), (["a", "b"], ["module1", "module2"])):
        run = distill(
            [images[0], None], tmp_path / str(len(taps)), method="cktf", epochs=1,
            overrides={"student_taps": taps, "teacher_taps": taps},
        )  # fmt: skip
        row = read_metrics(run.folder)[0]
        assert [t for t in row["terms"] if "module" in t] == [f"cktf.{name}" for name in terms]
    with pytest.raises((RecipeError, TapError), match="no module 'c'"):
        distill([images[0], None], tmp_path / "no", overrides={"student_taps": ["c"]})


@pytest.mark.parametrize(
    ("teacher", "student"), [("timm:test_vit3@32", "resnet8"), ("resnet8", "timm:test_vit3@32")]
)
def test_between_a_convolutional_network_and_a_transformer(images, tmp_path, teacher, student):
    from cktf.recipes import build_student

    torch.manual_seed(0)
    networks = [build_student(line, images[0]) for line in (teacher, student)]
    run = cktf.distill(
        *networks, train=images[0], test=images[1], method="cktf+kd+at+vid+fitnet+sp+nst", epochs=1,
        out=tmp_path / "run", options={"cktf": {"negatives": 64}}, show=False,
        overrides={"optimizer.lr": 0.01},
    )  # fmt: skip
    row = read_metrics(run.folder)[0]
    assert {"cktf.stem", "cktf.module1", "at", "vid", "fitnet", "sp", "nst"} <= set(row["terms"])
    assert all(value == value for value in row["terms"].values())


def test_an_inspection_is_independent_of_the_users_defaults(users_default):
    assert inspect("resnet8").parameters == 78042
    with torch.device("cpu"), torch.inference_mode():
        assert inspect(SmallNet()).features.logits.dtype == torch.get_default_dtype()
