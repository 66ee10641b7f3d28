"""The kernel of dense contrast against its definition in float64, and against the blocks.

On a GPU with `-m gpu`; on a CPU in Triton's interpreter, in a process of its own, since Triton
decides at its import. What the interpreter cannot tell, whether a kernel compiles and fits a GPU,
the compiler tells without one.
"""

import os
import subprocess
import sys

import pytest
import torch
from torch.nn import functional as F

pytest.importorskip("triton", reason="Triton comes with PyTorch's wheels for CUDA")
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from cktf.functional import contrast, dense_kernel
from cktf.functional.contrast import Candidates, contrast_losses, without_kernel
from cktf.functional.critics import InfoNCECritic, NCECritic, NormalizerEstimate

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICES = ["cpu"] if INTERPRETED else [pytest.param("cuda", marks=pytest.mark.gpu)]
TAU, K = 0.1, 50
# Anchors and keys.
SIZES = [(batch, m) for batch in (1, 3, 64, 1024) for m in (1, 1000, 16384)]
DIMS = [1, 16, 20, 100, 256, 300, 512]
if INTERPRETED:
    SIZES, DIMS = [(1, 1), (3, 100), (17, 70)], [1, 20, 512]
DTYPES = [torch.float32, torch.bfloat16]

hardware = pytest.mark.parametrize("device", DEVICES)


@pytest.fixture(autouse=True)
def _seed_and_device(monkeypatch):
    torch.manual_seed(0)
    if INTERPRETED:
        monkeypatch.setattr(contrast, "_has_kernel", lambda *tensors: contrast._kernel_allowed)


def case(device, batch, m, dim, dtype=torch.float32, sides=2, indexed=False):
    """Rows over the temperature, keys, ids of both, and rows of the keys that are read."""
    rows = F.normalize(torch.randn(sides, batch, dim), dim=-1) / TAU
    keys = F.normalize(torch.randn(sides, 2 * m if indexed else m, dim), dim=-1).to(dtype)
    key_index = torch.randint(2 * m, (m,)) if indexed else None
    ids = torch.arange(batch), torch.randint(-1, batch + 5, (m,))
    return [None if x is None else x.to(device) for x in (rows, keys, *ids, key_index)]


def by_definition(rows, keys, anchor_ids, key_ids, key_index, shift):
    """The sums in float64."""
    chosen = (keys if key_index is None else keys[:, key_index]).double()
    own = anchor_ids[:, None] == key_ids
    rows = rows.bfloat16() if keys.dtype == torch.bfloat16 and keys.is_cuda else rows
    x = (rows.double() @ chosen.mT).masked_fill(own, -torch.inf)
    if shift is None:
        return x.exp().sum(-1), x.exp() @ chosen, own.sum(1)
    x = x - shift.double().view(-1, 1, 1)
    return F.softplus(x).sum(-1), x.sigmoid() @ chosen, own.sum(1)


def check_sums(device, batch, m, dim, dtype, indexed, logistic):
    """Those of the kernel against the definition."""
    *tensors, key_index = case(device, batch, m, dim, dtype, indexed=indexed)
    shift = torch.tensor([3.0, 9.0], device=device) if logistic else None
    found = dense_kernel.dense_sums(*tensors, key_index=key_index, shift=shift)
    total, weighted_keys, same = by_definition(*tensors, key_index, shift)
    assert torch.equal(found[2].cpu(), same.cpu())
    torch.testing.assert_close(found[0].double(), total, rtol=3e-5, atol=1e-7)
    # Weights are rounded to the type of the keys, and sums of tensor cores towards zero. Errors are
    # told by the largest sum of a row.
    rounding = 1e-2 if dtype == torch.bfloat16 else 2e-5 if INTERPRETED else 2e-4
    scale = weighted_keys.abs().amax(-1, keepdim=True) + 1e-30
    torch.testing.assert_close(
        found[1].double() / scale, weighted_keys / scale, rtol=0, atol=rounding
    )


@hardware
@pytest.mark.parametrize("logistic", [True, False], ids=["nce", "infonce"])
@pytest.mark.parametrize("indexed", [True, False], ids=["index", "all"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_sums_are_those_of_the_definition(device, size, dtype, indexed, logistic):
    check_sums(device, *size, 128, dtype, indexed, logistic)


@hardware
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dim", DIMS)
def test_sums_of_rows_of_other_lengths(device, dim, dtype):
    check_sums(device, 6 if INTERPRETED else 64, 100, dim, dtype, indexed=True, logistic=True)


@hardware
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_without_a_gradient_the_sums_are_the_same(device, dtype):
    *tensors, _ = case(device, 17, 70, 128, dtype)
    expected, _, _ = dense_kernel.dense_sums(*tensors)
    found, weighted_keys, _ = dense_kernel.dense_sums(*tensors, has_gradient=False)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
    assert not weighted_keys.any()


@hardware
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "critic",
    [NCECritic(torch.tensor([2.0, 3.0]), K, 200), InfoNCECritic(), NormalizerEstimate(K)],
    ids=["nce", "infonce", "normalizer"],
)
def test_losses_and_gradients_are_those_of_the_blocks(device, critic, dtype):
    rows, keys, anchor_ids, key_ids, key_index = case(device, 5, 90, 32, dtype, indexed=True)
    # The second anchor has no negative, the third no key of its own id.
    anchor_ids, key_ids = anchor_ids * 0 + 7, key_ids * 0 + 8
    anchor_ids[1], anchor_ids[2], key_ids[:40] = 8, 9, 7
    key_ids[:40] = 8
    if isinstance(critic, NCECritic):
        critic = NCECritic(critic.log_normalizer.to(device), K, 200)
    candidates = Candidates(anchor_ids, key_ids, K)
    positive = F.normalize(torch.randn_like(rows), dim=-1)
    results = []
    for blocks in (False, True):
        anchor = F.normalize(rows, dim=-1).requires_grad_()
        arguments = (anchor, positive, keys, candidates, TAU, critic, key_index)
        if blocks:
            with without_kernel():
                losses = contrast_losses(*arguments)
        else:
            losses = contrast_losses(*arguments)
        losses.sum().backward()
        results.append((losses.detach(), anchor.grad))
    rounding = 5e-2 if dtype == torch.bfloat16 else 1e-4
    for found, expected in zip(*results, strict=True):
        scale = expected.abs().max()
        torch.testing.assert_close(found / scale, expected / scale, rtol=0, atol=rounding)


@hardware
def test_sums_repeat_bit_for_bit_and_do_not_depend_on_strides(device):
    rows, keys, anchor_ids, key_ids, _ = case(device, 40, 300, 48)
    first = dense_kernel.dense_sums(rows, keys, anchor_ids, key_ids)
    apart = keys.transpose(0, 1).contiguous().transpose(0, 1)
    backwards = keys.mT.contiguous().mT
    for same in (keys, apart, backwards):
        again = dense_kernel.dense_sums(rows, same, anchor_ids, key_ids)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@hardware
def test_small_terms_are_not_rounded_away(device):
    """Of softplus, at exp(x) of 1e-9: a logarithm of 1 + exp(x) in float32 is 0."""
    rows, keys, anchor_ids, key_ids, _ = case(device, 2, 100, 16)
    shift = torch.tensor([20.7, 20.7], device=device)
    found, _, _ = dense_kernel.dense_sums(0 * rows, keys, anchor_ids, key_ids - 9, shift=shift)
    expected = 100 * torch.exp(-shift[0]).expand_as(found)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_in_host_memory_are_chosen_there(device, dtype):
    rows, keys, anchor_ids, key_ids, key_index = case(device, 8, 100, 32, dtype, indexed=True)
    losses = [
        contrast_losses(
            rows, rows, bank, Candidates(anchor_ids, key_ids, K), TAU, InfoNCECritic(), key_index
        )
        for bank in (keys, keys.cpu())
    ]
    torch.testing.assert_close(*losses, rtol=1e-5, atol=0)


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=pytest.mark.gpu)])
def test_the_kernel_serves_on_a_gpu_and_can_be_captured(device, monkeypatch):
    rows, keys, anchor_ids, key_ids, key_index = case(device, 64, 1000, 128, indexed=True)
    calls = []
    sums = dense_kernel.dense_sums
    monkeypatch.setattr(
        dense_kernel, "dense_sums", lambda *a, **k: calls.append(1) or sums(*a, **k)
    )

    def loss():
        candidates = Candidates(anchor_ids, key_ids, K)
        anchor = F.normalize(rows, dim=-1)
        return contrast_losses(anchor, anchor, keys, candidates, TAU, InfoNCECritic(), key_index)

    eager = loss()
    assert calls == [1]
    with without_kernel():
        torch.testing.assert_close(loss(), eager, rtol=1e-4, atol=1e-4)
    assert calls == [1]
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = loss()
    rows.copy_(rows.flip(1))
    anchor_ids.copy_(anchor_ids.flip(0))
    graph.replay()
    torch.testing.assert_close(captured, loss(), rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED, reason="the process of the interpreter")
def test_in_tritons_interpreter():
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    done = subprocess.run(
        [*command, __file__, "-m", "not slow and not gpu"],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout


class NoGPU:
    """The driver of Triton for a GPU that is not there: it compiles for it."""

    def __init__(self, capability):
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self):
        return self.target

    def get_current_device(self):
        # Triton keeps what it compiled by device.
        return self.target.arch

    def get_current_stream(self, device):
        return 0


class Compiler:
    """In place of a kernel: compiles it as a launch would, and does not launch it."""

    def __init__(self, kernel):
        self.kernel, self.compiled = kernel, []

    def __getitem__(self, grid):
        def compile_kernel(*arguments, **options):
            options["product"] = dense_kernel.product_type(arguments[1].dtype)
            self.compiled.append(self.kernel.warmup(*arguments, grid=grid, **options))

        return compile_kernel


@pytest.mark.skipif(INTERPRETED, reason="the interpreter does not compile")
@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dim", [1, 128, 200, 512])
def test_it_compiles_and_fits_without_a_gpu(dim, dtype, capability, monkeypatch):
    """For A100 and H100, in the 99 KB of shared memory of a GPU with the least."""
    *tensors, key_index = case("cpu", 64, 100, dim, dtype, indexed=True)
    compiler = Compiler(dense_kernel._kernel)
    monkeypatch.setattr(dense_kernel, "_kernel", compiler)
    monkeypatch.setattr(driver, "_active", NoGPU(capability))
    dense_kernel.dense_sums(*tensors, key_index=key_index, shift=torch.zeros(2))
    tensors[1] = tensors[1][:, :100]
    dense_kernel.dense_sums(*tensors, has_gradient=False)
    assert len(compiler.compiled) == 2
    for compiled in compiler.compiled:
        assert compiled.asm["cubin"]
        assert compiled.metadata.shared <= 99 * 1024
