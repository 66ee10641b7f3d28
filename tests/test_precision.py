"""bfloat16 on any CPU: the same rounding, products in float32 where they are faster."""

import pytest
import torch
from small_runs import SmallNet
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import TensorDataset

import cktf
from cktf.batch import Batch
from cktf.engine import RuntimeConfig, evaluate, runtime, start_runtime
from cktf.functional import precision
from cktf.functional.precision import full_precision

CPU = torch.device("cpu")
PRODUCTS = {
    "conv1d": lambda x, w: F.conv1d(x.view(2, 6, 20), w[:4, :18].reshape(4, 6, 3)),
    "conv2d": lambda x, w: F.conv2d(
        x.view(2, 6, 4, 5), w[:4].reshape(4, 6, 2, 2), bias=x[0, :4], padding=1
    ),
    "conv_transpose2d": lambda x, w: F.conv_transpose2d(
        x.view(2, 6, 4, 5), w[:6].reshape(6, 4, 3, 2)
    ),
    "linear": lambda x, w: F.linear(x, w, bias=x[:, 0]),
    "@": lambda x, w: x @ w.t(),
    "bmm": lambda x, w: torch.bmm(x.view(2, 5, 24), w.view(2, 24, 5)),
    "baddbmm": lambda x, w: torch.baddbmm(x[:2, :1, None], x.view(2, 5, 24), w.view(2, 24, 5)),
    "addmm": lambda x, w: torch.addmm(x[:, 0], x, w.t()),
    "attention": lambda x, w: F.scaled_dot_product_attention(
        x.view(2, 5, 24), w.view(2, 5, 24), w.view(2, 5, 24),
        attn_mask=torch.ones(5, 5, dtype=torch.bool).tril(),
    ),
}  # fmt: skip


class Types(TorchDispatchMode):
    """The types that products are computed in."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if any(part in name for part in ("conv", "mm", "attention")) and "backward" not in name:
            self.seen |= {a.dtype for a in args if isinstance(a, torch.Tensor)} - {torch.bool}
        return func(*args, **(kwargs or {}))


@pytest.fixture(params=[True, False], ids=["multiplied", "emulated"])
def multiplied(request, monkeypatch):
    monkeypatch.setattr(runtime, "has_fast_bfloat16", lambda _: request.param)
    return request.param


def autocast(precision):
    return start_runtime(RuntimeConfig(device="cpu", precision=precision)).autocast()


def operands():
    torch.manual_seed(0)
    return torch.randn(10, 24, requires_grad=True), torch.randn(10, 24, requires_grad=True)


@pytest.mark.parametrize("name", PRODUCTS)
def test_a_product_has_bfloat16s_values_and_the_hardwares_type(name, multiplied):
    product, (x, w), (rounded_x, rounded_w) = PRODUCTS[name], operands(), operands()
    with autocast("bfloat16"), Types() as types:
        found = product(x, w)
    with torch.no_grad():
        rounded_x.copy_(rounded_x.bfloat16())
        rounded_w.copy_(rounded_w.bfloat16())
    expected = product(rounded_x, rounded_w)
    assert found.dtype == torch.bfloat16
    assert types.seen == {torch.bfloat16 if multiplied else torch.float32}
    # The result is rounded once; a half of the last of 8 bits, or with sums in bfloat16 a few.
    close = {"rtol": 2**-6, "atol": 2**-5} if multiplied else {"rtol": 2**-8, "atol": 1e-6}
    torch.testing.assert_close(found.float(), expected, **close)

    of_result = torch.randn_like(expected).bfloat16().float()
    found.backward(of_result)
    expected.backward(of_result)
    for ours, exact in ((x.grad, rounded_x.grad), (w.grad, rounded_w.grad)):
        torch.testing.assert_close(ours, exact, rtol=2**-5, atol=2**-4 if multiplied else 2**-7)


def test_what_asks_for_float32_gets_it(multiplied):
    x, w = operands()
    product = full_precision(torch.matmul)
    with autocast("bfloat16"):
        asked = product(x, w.t())
    with autocast("float32"):
        assert torch.equal(asked, x @ w.t())


def test_auto_is_bfloat16_only_where_it_is_multiplied(multiplied):
    x, w = operands()
    with autocast("auto"):
        assert (x @ w.t()).dtype == (torch.bfloat16 if multiplied else torch.float32)


@pytest.mark.parametrize("dtype", [torch.float64, torch.int64])
def test_what_autocast_leaves_is_left(dtype, multiplied):
    values = torch.arange(-50, 50).view(10, 10).to(dtype)
    with autocast("bfloat16"):
        assert torch.equal(torch.mm(values, values), values @ values)
        assert torch.mm(values, values).dtype == dtype


def test_a_result_goes_where_it_is_asked(multiplied):
    x, w = (value.detach() for value in operands())
    result = torch.zeros(10, 10)
    with autocast("bfloat16"):
        torch.mm(x, w.t(), out=result)
    torch.testing.assert_close(result, x @ w.t(), rtol=0.02, atol=0.1)


def test_images_are_loaded_in_their_own_precision(multiplied):
    class Images:
        samples = 4

        def epoch(self, epoch, *, device):
            assert not torch.is_autocast_enabled("cpu")
            yield Batch(torch.rand(4, 3), torch.arange(4) % 2, torch.arange(4))

    network = nn.Linear(3, 2)
    assert autocast("bfloat16")(network)(torch.rand(1, 3)).dtype == torch.bfloat16
    evaluate(autocast("bfloat16")(network), Images(), 2, CPU)


def test_a_network_trains_alike_either_way(monkeypatch):
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 5)
    )
    images, labels = torch.randn(16, 3, 8, 8), torch.arange(16) % 5
    gradients = []
    for native in (True, False):
        monkeypatch.setattr(runtime, "has_fast_bfloat16", lambda _, native=native: native)
        network.zero_grad()
        with autocast("bfloat16"):
            logits = network(images)
        F.cross_entropy(logits.float(), labels).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in network.parameters()]))
    assert (gradients[0] - gradients[1]).norm() < 0.02 * gradients[0].norm()


def test_a_network_is_rounded_once(tmp_path, monkeypatch):
    """Each mode around a network is asked about all that it computes."""
    monkeypatch.setattr(runtime, "has_fast_bfloat16", lambda _: False)
    train = TensorDataset(torch.rand(40, 3, 16, 16), torch.arange(40) % 10)
    depths = set()

    class Watched(SmallNet):
        def forward(self, images):
            depths.add(torch._C._len_torch_function_stack())
            return super().forward(images)

    cktf.distill(
        SmallNet(), Watched(), train=train, method="cktf+kd", epochs=1, out=tmp_path, show=False,
        options={"cktf": {"negatives": 8, "init": "forward"}},
        overrides={"runtime.precision": "bfloat16", "data.batch_size": 8},
    )  # fmt: skip
    assert max(depths) == 1


@pytest.mark.parametrize(
    ("has", "intel", "multiplies"),
    [
        ({"_is_avx512_bf16_supported"}, False, True),
        ({"_is_avx512_bf16_supported"}, True, False),
        ({"_is_avx512_bf16_supported", "_is_amx_tile_supported"}, True, True),
        (set(), False, False),
    ],
    ids=["AMD", "Intel", "AMX", "neither"],
)
def test_which_processors_multiply_bfloat16_faster(has, intel, multiplies, monkeypatch):
    monkeypatch.setattr(precision, "_cpu_supports", lambda probe: probe in has)
    monkeypatch.setattr(precision, "_is_intel", lambda: intel)
    assert precision.has_fast_bfloat16(CPU) is multiplies
