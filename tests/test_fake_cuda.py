"""The hot path on a GPU that is not there: fake tensors have a device and a shape, and no values.

A mix of devices raises, and so does reading a value back, which on a GPU would wait for it. PyTorch
runs no backward pass without the device, so that this runs on fake tensors of the CPU.
"""

import warnings
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from cktf.batch import Batch
from cktf.functional.singular_vectors import _Powers
from cktf.models import create
from cktf.objectives import METHODS, BuildContext, compose, features_read
from cktf.taps import Tap

N, B, CLASSES = 1000, 64, 10
EVERYTHING = ("stem", "stages", "blocks", "preacts", "embedding")
CKTF_OPTIONS = {
    "sampled": {"estimator": "sampled"},
    "all": {"estimator": "all"},
    "shared": {"estimator": "shared"},
    "bfloat16": {"estimator": "shared", "storage": "bfloat16"},
    "InfoNCE": {"estimator": "shared", "critic": "infonce"},
    "queue": {"memory": "queue"},
    "batch": {"memory": "batch", "center": True},
    "sample": {"module_norm": "sample", "match": "first"},
    "smallest": {"match": "smallest"},
}
CASES = [
    *[(method, {}) for method in METHODS if method != "cktf"],
    *[("cktf", options) for options in CKTF_OPTIONS.values()],
]
NAMES = [*[method for method in METHODS if method != "cktf"], *CKTF_OPTIONS]


class Kernels(TorchDispatchMode):
    """Counts the operations that are not views."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if not function.is_view and function.namespace != "prim":
            self.counts[str(function)] += 1
        return function(*args, **(kwargs or {}))


def move(module, convert):
    """Replace all parameters and buffers of a module."""
    for part in module.modules():
        for tensors in (part._parameters, part._buffers):
            for name, value in tensors.items():
                if isinstance(value, nn.Parameter):
                    tensors[name] = nn.Parameter(convert(value.detach()), value.requires_grad)
                elif value is not None:
                    tensors[name] = convert(value)
    return module


def build(method, options):
    """Networks and their objective, on the CPU."""
    torch.manual_seed(0)
    names = ("wrn_16_1", "resnet20") if method == "fsp" else ("resnet8", "wrn_16_2")
    student, teacher = (create(name, CLASSES) for name in names)
    teacher.eval().requires_grad_(False)
    with torch.no_grad():
        examples = [Tap(n, needs=EVERYTHING)(torch.rand(2, 3, 32, 32)) for n in (student, teacher)]
    context = BuildContext(*examples, N, torch.randint(CLASSES, (N,)))
    objective = compose(method, context, {method: options} if options else {})
    return student.train(), teacher, objective.train()


def run_step(student, teacher, objective, method, device):
    """Forward passes and losses of a step, those of its phases included."""
    batch = Batch(
        torch.empty(B, 3, 32, 32, device=device).contiguous(memory_format=torch.channels_last),
        torch.empty(B, dtype=torch.int64, device=device),
        torch.empty(B, dtype=torch.int64, device=device),
    )
    reads = features_read(method)
    with torch.no_grad():
        teacher_features = Tap(teacher, needs=reads)(batch.images)
    student_features = Tap(student, needs=reads)(batch.images)
    losses = [objective(student_features, teacher_features, batch)] if objective.weights else []
    losses += [
        phase.objective(student_features, teacher_features, batch) for phase in objective.phases()
    ]
    return losses


def fake_networks(fake, method, options, device):
    """The same with fake tensors on a device."""

    def convert(value):
        with fake:
            return torch.empty_like(fake.from_tensor(value), device=device)

    return [move(module, convert) for module in build(method, options)]


@pytest.fixture(autouse=True)
def _an_h100_that_is_not_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*CUDA is not available.*")
        yield


@pytest.mark.parametrize(("method", "options"), CASES, ids=NAMES)
def test_no_step_mixes_devices_or_reads_a_value(method, options):
    fake = FakeTensorMode()
    student, teacher, objective = fake_networks(fake, method, options, "cuda")
    with fake:
        for _ in range(2):
            losses = run_step(student, teacher, objective, method, "cuda")
            assert all(loss.total.device.type == "cuda" for loss in losses)
            objective.after_step()


class Copies(TorchDispatchMode):
    """Counts copies from the CPU to a GPU and back; those that wait are named."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function.overloadpacket in (torch.ops.aten._to_copy, torch.ops.aten.copy_):
            source = args[1] if function.overloadpacket is torch.ops.aten.copy_ else args[0]
            if source.device != result.device:
                waits = "" if (kwargs or {}).get("non_blocking") else " and waits"
                self.counts[f"to {result.device.type}{waits}"] += 1
        return result


@pytest.mark.parametrize("storage", ["float32", "bfloat16"])
def test_banks_in_host_memory_take_a_copy_each_way(storage, monkeypatch):
    """Keys and their positions to the GPU, positions and rows of the batch back."""
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    # On a CPU, positions are looked at.
    monkeypatch.setattr("cktf._check.indices", lambda *args: None)
    options = {"estimator": "shared", "negatives": 500, "bank_device": "host", "storage": storage}
    fake = FakeTensorMode()
    student, teacher, objective = fake_networks(fake, "cktf", options, "cuda")
    pairs = objective.terms["cktf"].pairs
    group = pairs[0].group
    with fake:
        group._buffers["banks"] = torch.empty(group.banks.shape, dtype=group.banks.dtype)
        for pair in pairs:
            pair._view_group()
        for _ in range(2):
            with Copies() as step:
                run_step(student, teacher, objective, "cktf", "cuda")
                objective.after_step()
            assert step.counts == {"to cuda": 2, "to cpu and waits": 2}


@pytest.mark.parametrize(("method", "options"), CASES, ids=NAMES)
def test_no_backward_pass_reads_a_value(method, options, monkeypatch):
    if options.get("match") == "smallest" or options.get("estimator") == "sampled":
        pytest.skip("on a CPU, reading which map was chosen, or sorting by NumPy, costs nothing")
    # On a CPU positions are looked at.
    monkeypatch.setattr("cktf._check.indices", lambda *args: None)
    fake = FakeTensorMode()
    student, teacher, objective = fake_networks(fake, method, options, "cpu")
    with fake:
        losses = run_step(student, teacher, objective, method, "cpu")
        sum(loss.total for loss in losses).backward()
    trained = [*student.parameters(), *objective.parameters()]
    assert any(p.grad is not None for p in trained)


@pytest.mark.parametrize("shape", [(64, 16), (16, 64)])
def test_the_backward_pass_of_vectors_copies_nothing(shape):
    """Called as a function, since autograd would look for the GPU."""
    with FakeTensorMode():
        rows = torch.empty(B, *shape, device="cuda")
        context = SimpleNamespace(mark_non_differentiable=lambda tensor: None)
        context.save_for_backward = lambda *saved: setattr(context, "saved_tensors", saved)
        vectors = _Powers.forward(context, rows, 2)[1]
        with Kernels() as kernels, Copies() as copies:
            assert _Powers.backward(context, None, vectors)[0].device == rows.device
    assert "aten.index.Tensor" not in kernels.counts
    assert not copies.counts


@pytest.mark.parametrize("batch", [64, 1024])
def test_all_pairs_of_cktf_take_few_kernels(batch, monkeypatch):
    """When each pair was computed by itself they took 793 at a batch of 64, 5,515 at 1,024."""
    monkeypatch.setitem(globals(), "B", batch)
    monkeypatch.setitem(globals(), "N", 20_000)
    fake = FakeTensorMode()
    student, teacher, objective = fake_networks(fake, "cktf", {"estimator": "shared"}, "cuda")
    counts = []
    with fake:
        for _ in range(2):
            with Kernels() as step:
                run_step(student, teacher, objective, "cktf", "cuda")
                objective.after_step()
            with Kernels() as networks, torch.no_grad():
                images = torch.empty(batch, 3, 32, 32, device="cuda")
                for network in (student, teacher):
                    network(images)
            counts.append(step.counts.total() - networks.counts.total())
    # Only the first step computes the normalizers.
    assert counts[1] < counts[0]
    assert counts[1] <= (190 if batch == 64 else 310)
