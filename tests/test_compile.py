"""Networks through torch.compile; its code generator is left out, since it needs a C compiler."""

import copy
import pickle
from functools import partial

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import TensorDataset

import cktf
from cktf.batch import Batch
from cktf.models import create
from cktf.objectives import BuildContext, compose
from cktf.taps import Tap

NAMES = ("resnet8", "resnet14")
# PyTorch hides this warning of its own, except where warnings are errors.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")


@pytest.fixture(autouse=True)
def traced_only(monkeypatch):
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))


def random_images():
    torch.manual_seed(0)
    return TensorDataset(torch.rand(24, 3, 16, 16), torch.arange(24) % 4)


def test_a_compiled_tap_is_one_graph():
    torch._dynamo.utils.counters.clear()
    Tap(create("resnet8", 10), needs=["stages", "preacts"], compile=True)(torch.rand(4, 3, 32, 32))
    assert not torch._dynamo.utils.counters["graph_break"]


def test_a_compiled_objective_gives_the_same_losses_and_has_no_break():
    torch.manual_seed(0)
    student, teacher = (Tap(create(name, 10))(torch.rand(6, 3, 32, 32)) for name in NAMES)
    context = BuildContext(student, teacher, 40, torch.arange(40) % 10)
    options = {"cktf": {"negatives": 16, "estimator": "all"}, "crd": {"negatives": 16}}
    objective = compose("cktf+crd+kd", context, options).train()
    compiled = copy.deepcopy(objective)
    compiled.compile(backend="aot_eager")
    torch._dynamo.utils.counters.clear()
    batch = Batch(torch.empty(0), torch.arange(6), torch.arange(6))
    for one in (objective, compiled):
        for _ in range(2):
            torch.manual_seed(1)
            loss = one(student, teacher, batch)
            one.after_step()
        loss.total.backward(retain_graph=True)
    assert not torch._dynamo.utils.counters["graph_break"]
    for (name, p), q in zip(objective.named_parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad, msg=lambda text, name=name: f"{name}: {text}")
    for p, q in zip(objective.buffers(), compiled.buffers(), strict=True):
        torch.testing.assert_close(p, q)


def test_a_compiled_tap_gives_the_same_features_and_gradients():
    torch.manual_seed(0)
    network, images = create("resnet8", 10), torch.rand(4, 3, 32, 32)
    needs = ["embedding", "stem", "stages", "blocks"]
    found = []
    for compile in (False, True):
        network.zero_grad()
        features = Tap(network, needs=needs, compile=compile)(images)
        everything = [
            features.stem, *features.stages, features.blocks[0][-1], features.embedding,
            features.logits,
        ]  # fmt: skip
        sum(f.square().mean() for f in everything).backward()
        found.append(everything + [p.grad.clone() for p in network.parameters()])
    for plain, compiled in zip(*found, strict=True):
        torch.testing.assert_close(compiled, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_compiled_network_is_tapped_and_compiled_with_its_taps():
    network = create("resnet8", 10).eval()
    images, expected = torch.rand(2, 3, 32, 32), Tap(network)(torch.zeros(2, 3, 32, 32))
    for tap in (Tap(torch.compile(network)), Tap.infer(torch.compile(network), images)):
        assert tap.model is network
        found = tap(torch.zeros(2, 3, 32, 32))
        torch.testing.assert_close(found.stem, expected.stem, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_compiled_tap_leaves_no_hooks_and_compiles_once():
    network, images = create("resnet8", 4), torch.rand(4, 3, 32, 32)
    tap = Tap(network, compile=True)
    tap(images)
    with torch._dynamo.config.patch(error_on_recompile=True):
        first, second = tap(images), tap(images / 2)
    assert not torch.equal(first.stem, second.stem)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())
    pickle.dumps(network)


@pytest.mark.slow
def test_one_process_compiles_for_several_taps():
    """Networks of one class, tapped at different places, one after another."""
    images = torch.rand(4, 3, 32, 32)
    for needs in ([], ["embedding"], ["stem", "stages"], ["embedding"]):
        network = create("resnet8", 10).eval()
        plain, compiled = (Tap(network, needs=needs, compile=c)(images) for c in (False, True))
        torch.testing.assert_close(compiled.logits, plain.logits)
        for name in needs:
            torch.testing.assert_close(getattr(compiled, name), getattr(plain, name))


@pytest.mark.slow
def test_a_run_with_networks_that_the_user_compiled(tmp_path):
    """They train compiled, and what is saved loads into the plain network."""
    data = random_images()
    teacher, student = create("resnet14", 4), create("resnet8", 4)
    before = student.conv1.weight.clone()
    run = cktf.distill(
        torch.compile(teacher), torch.compile(student), train=data, test=data, method="cktf+kd",
        epochs=1, out=tmp_path / "run", options={"cktf": {"negatives": 8}}, show=False,
        overrides={"data.batch_size": 8},
    )  # fmt: skip
    assert "compile: true" in (run.folder / "recipe.yaml").read_text()
    assert run.student is student
    assert not torch.equal(student.conv1.weight, before)
    saved = load_file(run.folder / "student.safetensors")
    assert torch.equal(saved["conv1.weight"], student.conv1.weight)


@pytest.mark.slow
def test_a_transfer_and_a_probe_of_networks_that_the_user_compiled(tmp_path):
    """What counts is the plain network; here it also trains uncompiled, to save time."""
    data = random_images()
    teacher, student = create("resnet8", 4), create("resnet8", 4)
    plain, compiled = (
        cktf.probe(network, labeled=data, test=data, labels_per_class=[1], draws=1)
        for network in (student, torch.compile(student))
    )
    assert plain.top1 == compiled.top1
    fields = {"data.batch_size": 8, "scratch_epochs": 1, "runtime.compile": False}
    done = cktf.transfer(
        torch.compile(teacher), torch.compile(student), unlabeled=data, labeled=data, test=data,
        method="kd", epochs=1, labels_per_class=[1], draws=1, out=tmp_path / "run", show=False,
        overrides=fields,
    )  # fmt: skip
    assert done.student is student
