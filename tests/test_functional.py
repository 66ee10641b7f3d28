"""Each function against a naive loop over its definition, and at the edges of its domain."""

import math

import pytest
import torch
from torch.nn import functional as F

from cktf.errors import MethodError, ShapeError
from cktf.functional import contrast as kernels
from cktf.functional import kd_loss, nce_loss, precision
from cktf.functional.contrast import contrast_loss
from cktf.functional.critics import EPSILON, NormalizerEstimate, _softplus_sums
from cktf.functional.module_vector import module_vector, pooled_grid_size

B, K, N, D = 6, 40, 90, 16


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def test_kd_by_definition():
    student, teacher = torch.randn(5, 7) * 3, torch.randn(5, 7) * 3
    p, q = (teacher / 2.5).softmax(1).tolist(), (student / 2.5).softmax(1).tolist()
    by_hand = sum(
        a * math.log(a / b) for r, s in zip(p, q, strict=True) for a, b in zip(r, s, strict=True)
    )
    assert float(kd_loss(student, teacher, 2.5)) == pytest.approx(by_hand / 5 * 2.5**2, rel=1e-5)


def test_kd_is_finite_for_extreme_logits():
    extreme = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    loss = kd_loss(extreme, -extreme.detach())
    loss.backward()
    assert loss.isfinite()
    assert extreme.grad.isfinite().all()


def test_a_class_that_is_ruled_out_adds_nothing():
    """Logits of -inf, of the teacher or of both, are as if the class were not there."""
    student, teacher = torch.randn(5, 7, requires_grad=True), torch.randn(5, 7)
    out = torch.arange(7) == 3
    both = kd_loss(student.masked_fill(out, -torch.inf), teacher.masked_fill(out, -torch.inf))
    assert both.item() == pytest.approx(kd_loss(student[:, ~out], teacher[:, ~out]).item())
    kd_loss(student, teacher.masked_fill(out, -torch.inf)).backward()
    assert student.grad.isfinite().all()
    assert (student.grad[:, 3] > 0).all()


def contrast(dtype=torch.float32):
    """Anchors, a bank, and which rows they are contrasted with; some rows come twice."""
    anchor = F.normalize(torch.randn(B, D), dim=1).to(dtype)
    bank = F.normalize(torch.randn(N, D), dim=1).to(dtype)
    return anchor, bank, torch.randint(N, (B, 1 + K))


def nce_by_definition(anchor, bank, contrast_index, tau, z):
    """Sample by sample, column by column, in double precision."""
    total, c = 0.0, K / N
    for i in range(len(anchor)):
        for column, j in enumerate(contrast_index[i].tolist()):
            p = torch.exp(anchor[i].double() @ bank[j].double() / tau) / z
            chance = p if column == 0 else c
            total = total - torch.log(chance / (p + c + EPSILON))
    return total / len(anchor)


@pytest.mark.parametrize("tau", [0.07, 0.1, 1.0])
def test_nce_value_and_gradient_by_definition(tau):
    anchor, bank, index = contrast()
    z = float(N * math.exp(0.5))
    fused, naive = (anchor.clone().requires_grad_() for _ in range(2))
    loss = nce_loss(fused, bank, index, temperature=tau, normalizer=z)
    expected = nce_by_definition(naive, bank, index, tau, z)
    loss.backward()
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(fused.grad, naive.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("width", [1, 2, 7, 16, 100, 1023])
def test_sums_of_softplus(width):
    """With few logarithms, as exact as with all of them; entries of minus infinity add nothing."""
    x = torch.randn(5, width) * 8 - 4
    x[0] = -math.inf
    x[1] += 300
    x[2] -= 300
    expected = F.softplus(x.double()).sum(1)
    torch.testing.assert_close(_softplus_sums(x).double(), expected, rtol=1e-6, atol=1e-30)


@pytest.mark.parametrize("there", [True, False], ids=["oneDNN", "MKL"])
def test_products_of_matrices_however_they_lie(there, monkeypatch):
    """By both libraries: whole, transposed, a strided block, one row; and right to float32."""
    if there and precision._onednn() is None:
        pytest.skip("this PyTorch was built without oneDNN")
    if not there:
        monkeypatch.setattr(precision, "_onednn", lambda: None)
    rows, keys, weights = torch.randn(7, 33), torch.randn(101, 33), torch.randn(7, 150)
    for left, right in (
        (rows, keys.t()), (weights[:, 20:121], keys), (rows[:1], keys[:1].t()), (keys, rows.t()),
    ):  # fmt: skip
        found = precision.fast_matmul(left[None], right[None])[0].double()
        torch.testing.assert_close(found, left.double() @ right.double(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("multiplied", [True, False])
@pytest.mark.parametrize("block", [64, 1 << 20])
def test_bfloat16_rows_however_they_are_multiplied(multiplied, block, monkeypatch):
    """As they are or converted, at once or in blocks, with rows that are drawn many times."""
    monkeypatch.setattr(kernels, "BLOCK", block)
    monkeypatch.setattr(kernels, "has_fast_bfloat16", lambda _: multiplied)
    anchor, bank, index = contrast()
    index[:, 2:] = index[:, 2:3]
    bank = bank.bfloat16()
    found, expected = (anchor.clone().requires_grad_() for _ in range(2))
    loss = nce_loss(found, bank, index, temperature=0.1, normalizer=50.0)
    definition = nce_by_definition(expected, bank, index, 0.1, 50.0)
    loss.backward()
    definition.backward()
    assert loss.item() == pytest.approx(definition.item(), rel=2e-2 if multiplied else 1e-5)
    error = (found.grad - expected.grad).norm() / expected.grad.norm()
    assert error < (2e-2 if multiplied else 1e-5)


def test_nce_gradient_is_scaled_by_what_follows():
    anchor, bank, index = contrast()
    once, thrice = (anchor.clone().requires_grad_() for _ in range(2))
    nce_loss(once, bank, index, temperature=0.1, normalizer=99.0).backward()
    (3 * nce_loss(thrice, bank, index, temperature=0.1, normalizer=99.0)).backward()
    torch.testing.assert_close(thrice.grad, 3 * once.grad)


def test_nce_stays_in_float32_under_autocast_and_with_half_inputs():
    anchor, bank, index = contrast()
    plain = nce_loss(anchor, bank, index, temperature=0.07, normalizer=float(N))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = nce_loss(anchor, bank, index, temperature=0.07, normalizer=float(N))
    assert float(mixed) == float(plain)
    half = anchor.bfloat16().requires_grad_()
    loss = nce_loss(half, bank.bfloat16(), index, temperature=0.07, normalizer=float(N))
    loss.backward()
    assert loss.dtype == torch.float32
    assert half.grad.dtype == torch.bfloat16
    assert half.grad.isfinite().all()
    assert loss.item() == pytest.approx(plain.item(), rel=0.05)


def test_nce_survives_extreme_scores():
    anchor, bank, index = contrast()
    anchor.requires_grad_()
    for z in (1e-20, 1e20):
        loss = nce_loss(anchor, bank, index, temperature=0.001, normalizer=z)
        loss.backward()
        assert loss.isfinite()
        assert anchor.grad.isfinite().all()


def test_nce_refuses_what_would_not_be_finite():
    anchor, bank, index = contrast()
    with pytest.raises(ShapeError, match="given float16"):
        nce_loss(anchor, bank.half(), index, temperature=0.07, normalizer=50.0)
    for z in (0.0, torch.zeros(())):
        with pytest.raises(MethodError, match=r"above 0, given 0\.0"):
            nce_loss(anchor, bank, index, temperature=0.1, normalizer=z)


def test_nce_reaches_neither_bank_nor_normalizer():
    anchor, bank, index = contrast()
    z = torch.tensor(50.0, requires_grad=True)
    bank.requires_grad_()
    nce_loss(anchor.requires_grad_(), bank, index, temperature=0.1, normalizer=z).backward()
    assert bank.grad is None
    assert z.grad is None


def test_mean_score_by_definition():
    anchor, bank, index = contrast()
    scores = [float((anchor[i] @ bank[j] / 0.1).exp()) for i in range(B) for j in index[i]]
    found = contrast_loss(anchor, bank[index[:, 0]], bank, index[:, 1:], 0.1, NormalizerEstimate(K))
    assert float(found) == pytest.approx(sum(scores) / len(scores), rel=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a, b, i: (a, b[:, :8], i), "rows of one length"),
        (lambda a, b, i: (a[:3], b, i), "batch of 3"),
        (lambda a, b, i: (a, b, i[:, :1]), "at least one negative"),
        (lambda a, b, i: (a[0], b, i), "anchor as floating-point rows"),
    ],
)
def test_nce_shapes(change, message):
    with pytest.raises(ShapeError, match=message):
        nce_loss(*change(*contrast()), temperature=0.1, normalizer=1.0)


@pytest.mark.parametrize("norm", ["batch", "sample", "none"])
def test_module_vector_by_definition(norm):
    """Normalize, pad, pool, in the published order."""
    fmap = torch.randn(4, 3, 16, 16).relu()
    if norm == "batch":
        fmap_normed = fmap / fmap.norm(dim=0, keepdim=True).clamp_min(1e-12)
    elif norm == "sample":
        fmap_normed = fmap / fmap.norm(dim=1, keepdim=True).clamp_min(1e-12)
    else:
        fmap_normed = fmap
    padded = torch.cat([torch.zeros(4, 1, 16, 16), fmap_normed, torch.zeros(4, 2, 16, 16)], dim=1)
    expected = F.avg_pool2d(padded, 8).flatten(1)
    torch.testing.assert_close(module_vector(fmap, 6, (2, 2), norm), expected)


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("grid", [(3, 2), (4, 4), (1, 1)])
@pytest.mark.parametrize("block", [1, 400, 1 << 19])
def test_module_vector_gradient_over_the_batch(order, grid, block, monkeypatch):
    """The written-out backward against autograd through the definition, in blocks of any size."""
    monkeypatch.setattr("cktf.functional.module_vector._BLOCK", block)
    given = torch.randn(4, 3, 10, 6).relu()
    given[:, :, 0] = 0  # units that nobody's image moves
    given[:, 0, 1, 1] = 1e-14  # and one whose norm is held at the smallest
    found, expected = (given.double().clone().requires_grad_() for _ in range(2))
    weights = torch.randn(4, 5 * grid[0] * grid[1], dtype=torch.float64)
    own = found.contiguous(memory_format=order)
    vector = module_vector(own, 5, grid, "batch")
    assert vector.dtype == torch.float32
    (vector * weights).sum().backward()
    norm = expected.square().sum(0, keepdim=True).clamp_min(1e-24).sqrt()
    pooled = F.adaptive_avg_pool2d(expected / norm, grid)
    (F.pad(pooled, (0, 0, 0, 0, 1, 1)).flatten(1) * weights).sum().backward()
    torch.testing.assert_close(found.grad, expected.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("grid", "exact"), [((4, 4), True), ((1, 1), True), ((3, 2), False)])
@pytest.mark.parametrize("block", [1, 700, 1 << 19])
def test_module_vector_without_norm_is_that_of_autograd(
    order, dtype, grid, exact, block, monkeypatch
):
    """Bit for bit where the sides of the windows are powers of two."""
    monkeypatch.setattr("cktf.functional.module_vector._BLOCK", block)
    given = torch.randn(5, 3, 16, 8).to(dtype).contiguous(memory_format=order)
    found, expected = (given.clone().requires_grad_() for _ in range(2))
    weights = torch.randn(5, 6 * grid[0] * grid[1])
    vector = module_vector(found, 6, grid, "none")
    (vector * weights).sum().backward()
    pooled = F.adaptive_avg_pool2d(expected.float(), grid)
    (F.pad(pooled, (0, 0, 0, 0, 1, 2)).flatten(1) * weights).sum().backward()
    assert found.grad.dtype == dtype
    rounding = 0 if exact else 1e-6
    torch.testing.assert_close(vector, F.pad(pooled, (0, 0, 0, 0, 1, 2)).flatten(1))
    torch.testing.assert_close(found.grad, expected.grad, rtol=rounding, atol=rounding)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("block", [1, 2 * 3 * 60, 1 << 19])
def test_module_vector_of_tokens_without_the_first(dtype, block, monkeypatch):
    """A view whose parts, one sample long, seem to lie in another order than the whole."""
    monkeypatch.setattr("cktf.functional.module_vector._BLOCK", block)
    given, weights = torch.randn(5, 61, 3).to(dtype), torch.randn(5, 3 * 4)
    found, expected = (given.clone().requires_grad_() for _ in range(2))
    maps = found[:, 1:].mT.reshape(5, 3, 10, 6)
    assert not maps.is_contiguous()
    (module_vector(maps, 3, (2, 2), "batch") * weights).sum().backward()
    dense = expected[:, 1:].mT.reshape(5, 3, 10, 6).float()
    norm = dense.square().sum(0, keepdim=True).sqrt()
    (F.adaptive_avg_pool2d(dense / norm, (2, 2)).flatten(1) * weights).sum().backward()
    rounding = (
        {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 0.02, "atol": 0.01}
    )
    torch.testing.assert_close(found.grad, expected.grad, **rounding)


def test_module_vector_of_dead_units_has_a_finite_gradient():
    fmap = torch.zeros(4, 3, 8, 8, requires_grad=True)
    module_vector(fmap, 3, (1, 1), "batch").sum().backward()
    assert fmap.grad.isfinite().all()


@pytest.mark.parametrize(
    ("student", "teacher", "grid"),
    [((32, 32), (32, 32), (4, 4)), ((8, 8), (8, 8), (1, 1)), ((8, 8), (4, 6), (4, 4)),
     ((2, 3), (14, 14), (2, 3)), ((64, 64), (64, 64), (4, 4)), ((16, 8), (16, 8), (2, 1))],
)  # fmt: skip
def test_module_grid(student, teacher, grid):
    assert pooled_grid_size(torch.Size((1, 1, *student)), torch.Size((1, 1, *teacher))) == grid
