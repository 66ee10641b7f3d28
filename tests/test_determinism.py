"""Deterministic runs: settings of the process, and gradients that a GPU would add in any order."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small_runs import (
    CustomNet,
    SmallNet,
    assert_equal_runs,
    distill_few,
    run_command,
    stop_after_steps,
)
from test_fake_cuda import Kernels
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from cktf.cli.command import build_run_request
from cktf.data import load_dataset
from cktf.engine import RuntimeConfig, start_available_runtime
from cktf.engine.determinism import gpu_algorithms, set_deterministic_cublas
from cktf.errors import Interrupted, TrainingError
from cktf.functional.maps import average_pool
from cktf.functional.module_vector import module_vector
from cktf.models import create
from cktf.recipes import parse_recipe, recipe_hash

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
VARIABLE = "CUBLAS_WORKSPACE_CONFIG"


def settings():
    cudnn = torch.backends.cudnn
    return torch.get_deterministic_debug_mode(), cudnn.deterministic, cudnn.benchmark


@pytest.fixture(autouse=True)
def _settings_of_the_process():
    before = settings()
    yield
    torch.set_deterministic_debug_mode(before[0])
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = before[1:]


@pytest.mark.parametrize(
    ("device", "deterministic", "inside"),
    [
        (CUDA, True, (2, True, False)),
        (CUDA, False, (0, False, True)),
        (CPU, True, (0, False, False)),
    ],
)
def test_settings_are_those_of_the_run_and_restored(device, deterministic, inside):
    before = settings()
    algorithms = gpu_algorithms(device, deterministic=deterministic)
    algorithms.__enter__()
    assert settings() == inside
    # As where an exception leaves the run.
    with pytest.raises(KeyError):
        algorithms.gen.throw(KeyError())
    assert settings() == before


@pytest.mark.parametrize("deterministic", [True, False])
def test_what_the_process_asks_for_stays(deterministic):
    """Also that nondeterministic operations only warn, which a run refuses meanwhile."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = deterministic
    before = settings()
    with gpu_algorithms(CUDA, deterministic=deterministic):
        assert settings() == ((2, True, False) if deterministic else before)
    assert settings() == before


def test_cublas_is_set_up_before_cuda_starts(monkeypatch):
    monkeypatch.setenv(VARIABLE, "")
    monkeypatch.delenv(VARIABLE)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    set_deterministic_cublas()
    assert os.environ[VARIABLE] == ":4096:8"
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    set_deterministic_cublas()
    monkeypatch.delenv(VARIABLE)
    with pytest.raises(TrainingError, match=f"{VARIABLE}=:4096:8 .* has used CUDA already"):
        set_deterministic_cublas()
    monkeypatch.setenv(VARIABLE, ":0:0")
    with pytest.raises(TrainingError, match=r"sets it to ':0:0'\. Unset it"):
        set_deterministic_cublas()


def test_a_trained_network_asks_nothing_of_the_process():
    assert not start_available_runtime(RuntimeConfig(deterministic=True)).deterministic


def test_a_cpu_takes_no_notice(small_run, monkeypatch):
    monkeypatch.setenv(VARIABLE, ":0:0")
    overrides = {"runtime.device": "cpu", "runtime.deterministic": True}
    run, other = (
        small_run("a", overrides=overrides, method="cktf+kd"),
        small_run("b", method="cktf+kd"),
    )
    assert_equal_runs(run, other)


def test_a_run_may_be_continued_with_it_or_without():
    recipe = {"kind": "train", "model": "resnet8", "data": {"name": "fashion-mini"}}
    hashes = {
        recipe_hash(parse_recipe(recipe | {"runtime": {"deterministic": value, "graph": graph}}))
        for value, graph in ((True, "auto"), (False, "off"))
    }
    assert len(hashes) == 1


def test_the_option_sets_the_field(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("kind: train\nmodel: resnet8\nruntime: {deterministic: true}\n")
    fields = build_run_request("train", {"recipe": recipe, "deterministic": False}).fields
    assert fields["runtime"]["deterministic"] is True
    fields = build_run_request("train", {"deterministic": True}).fields
    assert fields["runtime"]["deterministic"] is True
    assert "--deterministic" in run_command("train --help")


class _AddsInAnyOrder(torch.autograd.Function):
    @staticmethod
    def forward(ctx, images):
        return images.clone()

    @staticmethod
    def backward(ctx, grad):
        raise RuntimeError(
            "adaptive_avg_pool2d_backward_cuda does not have a deterministic implementation, but "
            "you set 'torch.use_deterministic_algorithms(True)'."
        )


def test_a_student_without_a_deterministic_gradient_is_refused(few_images, tmp_path):
    student = CustomNet(lambda self, x: _AddsInAnyOrder.apply(self.body(x)), body=SmallNet())
    words = "no deterministic algorithm for adaptive_avg_pool2d_backward_cuda, which the student"
    with pytest.raises(TrainingError, match=words):
        distill_few(few_images, tmp_path / "run", student=student)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("size", [(2, 3), (3, 2), (5, 7), (1, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_averages_as_products(size, dtype, monkeypatch):
    """Windows that overlap, on a device that stands for a GPU."""
    maps, expected = (torch.rand(2, 3, 5, 7, dtype=dtype, generator=seeded()) for _ in range(2))
    weights = torch.rand(2, 3, *size, dtype=dtype)
    (F.adaptive_avg_pool2d(expected.requires_grad_(), size) * weights).sum().backward()
    monkeypatch.setattr("cktf.functional.maps._must_be_deterministic", lambda maps: True)
    monkeypatch.setattr(F, "adaptive_avg_pool2d", None)
    pooled = average_pool(maps.requires_grad_(), size)
    (pooled * weights).sum().backward()
    assert pooled.dtype == dtype
    torch.testing.assert_close(maps.grad, expected.grad)


def test_averages_as_products_stay_on_the_device():
    torch.use_deterministic_algorithms(True)
    with FakeTensorMode():
        maps = torch.empty(2, 3, 5, 7, device="cuda", dtype=torch.bfloat16)
        with Kernels() as kernels:
            pooled = average_pool(maps, (2, 3))
    assert pooled.device.type == "cuda"
    assert pooled.dtype == torch.bfloat16
    assert not any("adaptive" in name for name in kernels.counts)


def seeded():
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("norm", ["batch", "sample", "none"])
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_module_vectors_as_products(norm, order, monkeypatch):
    maps, expected = (
        torch.rand(4, 3, 10, 6, generator=seeded()).contiguous(memory_format=order)
        for _ in range(2)
    )
    weights = torch.rand(4, 5 * 3 * 4)
    value = module_vector(expected.requires_grad_(), 5, (3, 4), norm)
    (value * weights).sum().backward()
    monkeypatch.setattr("cktf.functional.maps._must_be_deterministic", lambda maps: True)
    found = module_vector(maps.requires_grad_(), 5, (3, 4), norm)
    (found * weights).sum().backward()
    torch.testing.assert_close(found, value)
    torch.testing.assert_close(maps.grad, expected.grad)


EVERY_METHOD = "kd+fitnet+at+sp+cc+vid+rkd+pkt+ft+nst+kdsvd+crd+ab+fsp"


def compare_resumed_run(folder, device, method, estimator):
    """A run that is stopped inside its second epoch and resumed, and one that is not."""
    train, test = (load_dataset("fashion-mini", None, split) for split in ("train", "test"))
    images = [data.subset(torch.arange(200) * (len(data) // 200)) for data in (train, test)]

    def run(name, **more):
        torch.manual_seed(0)
        options = {"negatives": 64, "estimator": estimator}
        return distill_few(
            images, folder / name, teacher=create("resnet20", 10), student=create("resnet8", 10),
            method=method, options={"cktf": options} if "cktf" in method else {},
            overrides={"runtime.device": device, "runtime.deterministic": True}, **more,
        )  # fmt: skip

    whole = run("whole")
    with pytest.MonkeyPatch.context() as patch:
        stop_after_steps(patch, 7)
        with pytest.raises(Interrupted):
            run("stopped")
    assert_equal_runs(run("stopped", resume=True), whole)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(
    ("method", "estimator"),
    [(EVERY_METHOD, ""), *[("cktf+kd", name) for name in ("sampled", "all", "shared")]],
)
def test_a_run_on_a_gpu_is_resumed_bit_for_bit(method, estimator, tmp_path):
    """In a process of its own, since cuBLAS reads its variable once."""
    code = (
        "import sys, pathlib, test_determinism as t\n"
        "t.compare_resumed_run(pathlib.Path(sys.argv[1]), 'cuda', *sys.argv[2:])"
    )
    command = [sys.executable, "-c", code, str(tmp_path), method, estimator]
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
