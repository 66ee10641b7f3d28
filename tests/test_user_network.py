"""Networks as users bring them: wrapped, scripted, of inference mode, with a state of their own."""

import copy
import json
from types import SimpleNamespace

import pytest
import torch
from network_files import USER_CODE
from safetensors.torch import load_file, save_file
from small_runs import CustomNet, SmallNet, assert_equal_runs, distill_few, run_command
from torch import nn

import cktf
from cktf.engine import start_runtime
from cktf.engine.config import RuntimeConfig
from cktf.errors import CheckpointError, DataError, ModelError, RecipeError, TapError
from cktf.models import copy_network, load_weights, prepare_user_network
from cktf.taps import fit_memory_format, needs_contiguous_images
from cktf.workflows import inspect
from cktf.workflows.inspection import explain_rejected_images

SCRIPTS = pytest.mark.filterwarnings(
    "ignore:.torch.jit:FutureWarning", "ignore:.torch.jit:DeprecationWarning"
)
IMAGES = torch.rand(2, 3, 32, 32)


def flattening(channels=3):
    """A classifier that views maps of several pixels, which must be contiguous."""
    return CustomNet(
        lambda net, x: net.fc(net.b(net.a(x)).relu().view(len(x), -1)),
        a=nn.Conv2d(channels, 4, 3, 4, 1),
        b=nn.Conv2d(4, 4, 3, 1, 1),
        fc=nn.Linear(4 * 8 * 8, 10),
    )


def test_wrappers_are_removed():
    network = SmallNet()
    assert prepare_user_network(nn.DataParallel(network)) is network
    compiled = torch.compile(network, backend="eager")
    assert prepare_user_network(nn.DataParallel(compiled)) is network


def test_tensors_of_inference_mode_are_replaced():
    with torch.inference_mode():
        network = SmallNet(width=4)
        network.tied = nn.Linear(8, 10)
        network.tied.weight = network.fc.weight
    prepare_user_network(network)
    tensors = [*network.parameters(), *network.buffers()]
    assert not any(tensor.is_inference() for tensor in tensors)
    assert network.tied.weight is network.fc.weight
    network(IMAGES).sum().backward()


def test_user_code_may_return_a_wrapped_network(tmp_path):
    path = tmp_path / "net.py"
    path.write_text(f"{USER_CODE}\ndef parallel():\n    return nn.DataParallel(small(3))\n")
    assert "network.0" in run_command(f"inspect {path}:parallel")


@SCRIPTS
@pytest.mark.parametrize("frozen", [False, True])
def test_a_torchscript_teacher_gives_its_logits(few_images, tmp_path, frozen):
    plain = SmallNet(width=16).eval()
    script = torch.jit.script(plain)
    teachers = {"plain": plain, "script": torch.jit.freeze(script) if frozen else script}
    runs = {
        name: distill_few(few_images, tmp_path / name, teacher=teacher, method="kd", epochs=1)
        for name, teacher in teachers.items()
    }
    top1 = [run.summary["teacher_top1"] for run in runs.values()]
    assert top1[0] == top1[1]
    weights = [run.student.fc.weight for run in runs.values()]
    torch.testing.assert_close(*weights, rtol=0, atol=1e-3)


@SCRIPTS
@pytest.mark.parametrize("method", ["cktf+kd", "crd"])
def test_features_inside_torchscript_cannot_be_read(few_images, tmp_path, method):
    teacher = torch.jit.script(SmallNet(width=16))
    with pytest.raises(TapError, match=r"SmallNet is a TorchScript module.*such as kd"):
        distill_few(few_images, tmp_path / "run", teacher=teacher, method=method)
    part = nn.Sequential(torch.jit.script(SmallNet()), nn.Linear(10, 10))
    with pytest.raises(TapError, match="Sequential holds a TorchScript module"):
        inspect(part)
    with pytest.raises(TapError, match="SmallNet is a TorchScript module"):
        cktf.probe(teacher, labeled=few_images[0], test=few_images[1])


@SCRIPTS
def test_students_that_cannot_be_trained_or_saved(few_images, tmp_path):
    student = torch.jit.script(SmallNet())
    with pytest.raises(ModelError, match="SmallNet is a TorchScript module"):
        distill_few(few_images, tmp_path / "run", student=student, method="kd")
    with pytest.raises(ModelError, match="get_extra_state gives '_extra_state' as a function"):
        distill_few(few_images, tmp_path / "run", student=Counting(lambda: 1), method="kd")
    assert not (tmp_path / "run").exists()


class Counting(SmallNet):
    """A network with a state of its own, which is no tensor."""

    def __init__(self, state):
        super().__init__()
        self.state = state

    def get_extra_state(self):
        return self.state

    def set_extra_state(self, state):
        self.state = state


def test_extra_state_is_saved_and_loaded(few_images, tmp_path):
    student = Counting({"calls": [1, 2.5], "scale": torch.ones(2)})
    run = distill_few(
        few_images, tmp_path / "run", student=student, method="kd",
        overrides={"data.validation": 0.2},
    )  # fmt: skip
    path, loaded = run.folder / "student.safetensors", Counting(None)
    load_weights(loaded, path)
    assert loaded.state["calls"] == [1, 2.5]
    assert torch.equal(loaded.state["scale"], torch.ones(2))
    assert torch.equal(loaded.fc.weight, run.student.fc.weight)
    with pytest.raises(CheckpointError, match="_extra_state"):
        load_weights(SmallNet(), path)
    state = load_file(path) | {"_extra_state": torch.zeros(9, dtype=torch.uint8)}
    save_file(state, tmp_path / "damaged.safetensors")
    with pytest.raises(CheckpointError, match="extra state that cannot be loaded"):
        load_weights(loaded, tmp_path / "damaged.safetensors")


@pytest.mark.parametrize("channels", [1, 3])
def test_a_network_of_contiguous_maps(channels):
    """Loaders give channels-last images, also of one channel."""
    network, images = flattening(channels), torch.rand(2, channels, 32, 32)
    images = images.contiguous(memory_format=torch.channels_last)
    runtime = start_runtime(RuntimeConfig(device="cpu", channels_last=True))
    with runtime.on_device(network), pytest.raises(RuntimeError, match="view size"):
        network(images)
    fit_memory_format(network, images)
    assert needs_contiguous_images(network)
    runtime.to_device(network)
    assert network(images).shape == (2, 10)
    other = SmallNet(channels=channels)
    fit_memory_format(other, images)
    assert not needs_contiguous_images(other)


@SCRIPTS
@pytest.mark.parametrize("channels_last", [True, False])
def test_networks_of_contiguous_maps_are_distilled(few_images, tmp_path, channels_last):
    run = distill_few(
        few_images, tmp_path / "run", teacher=torch.jit.script(Flattening()),
        student=flattening(), method="kd", epochs=1,
        overrides={"runtime.channels_last": channels_last},
    )  # fmt: skip
    log = (run.folder / "log.txt").read_text()
    assert log.count("fails on channels-last images") == 2
    assert "runtime.channels_last=false" in log


class Flattening(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3, 4, 1), nn.Linear(4 * 8 * 8, 10)

    def forward(self, x):
        return self.fc(self.conv(x).view(len(x), -1))


def test_a_run_of_contiguous_maps_is_evaluated_and_exported(few_images, tmp_path):
    path = tmp_path / "net.py"
    path.write_text(
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.conv, self.fc = nn.Conv2d(3, 4, 3, 4, 1), nn.Linear(256, 10)\n"
        "    def forward(self, x):\n"
        "        return self.fc(self.conv(x).view(x.shape[0], -1))\n"
    )
    out, small = tmp_path / "run", "--epochs 1 --set data.per_class=4 --set data.batch_size=8"
    run_command(f"train --model {path}:Net --data fashion-mini --out {out} {small}")
    assert "top-1" in run_command(f"evaluate {out} --trust-code")
    pytest.importorskip("onnxruntime")
    assert "100.00" in run_command(f"export {out} --trust-code")


def test_probe_of_contiguous_maps(few_images):
    train, test = few_images
    pytest.importorskip("sklearn")
    network = flattening()
    cktf.probe(network, labeled=train, test=test, runtime={"device": "cpu"})


@pytest.mark.parametrize(
    ("network", "message"),
    [(SmallNet().half(), r"float16 weights, and images are float32.*network\.float\(\)"),
     (SmallNet().double(), "float64 weights, and images are float32"),
     (CustomNet(lambda net, x: {}["scale"], fc=nn.Linear(1, 1)),
      r"Check .*test_user_network.py, line \d+, which raised this KeyError"),
     (CustomNet(lambda net, x, mask: x, fc=nn.Linear(1, 1)), r"called as network\(images\)"),
     (torch.export.export(SmallNet().eval(), (IMAGES,)).module(), "program of torch.export"),
     (SmallNet(channels=5), "Check channels and size")],
)  # fmt: skip
def test_the_cause_of_a_failure_is_named(network, message):
    with pytest.raises(DataError, match=message):
        inspect(network)


def test_a_network_that_cannot_be_copied():
    network = SmallNet()
    network.last = network.fc(torch.rand(1, 16))
    with pytest.raises(ModelError, match=r"copy\.deepcopy fails on SmallNet: Only Tensors"):
        copy_network(network)


@SCRIPTS
def test_a_torchscript_teacher_of_user_code(tmp_path):
    """The images are normalized for it by the data's statistics, as for any module of a file."""
    path, out = tmp_path / "net.py", tmp_path / "run"
    path.write_text(
        f"import torch\n{USER_CODE}\ndef script():\n    return torch.jit.script(small(10))\n"
    )
    line = f"distill --teacher {path}:script --student resnet8 --method kd --data fashion-mini"
    run_command(f"{line} --out {out} --epochs 1 --set data.per_class=4 --set data.batch_size=8")
    assert json.loads((out / "summary.json").read_text())["teacher_parameters"] == 162


@pytest.mark.parametrize(
    ("network", "message"),
    [(SmallNet, r"given the class SmallNet\. Make one: SmallNet\(\.\.\.\)"),
     (lambda images: images, "given a function. Wrap what it computes in one"),
     (SimpleNamespace(student=SmallNet()), r"Give its \.student, or its \.folder"),
     (torch.export.export(SmallNet().eval(), (IMAGES,)), "the Python module that the program")],
)  # fmt: skip
@pytest.mark.parametrize("role", ["teacher", "student"])
def test_what_is_no_network(few_images, tmp_path, network, message, role):
    with pytest.raises(RecipeError, match=f"{role}: a network is a torch.nn.Module; .*{message}"):
        distill_few(few_images, tmp_path / "run", method="kd", **{role: network})


@pytest.mark.parametrize(
    ("shape", "advice"), [((16, 16, 3), r"permute\(2, 0, 1\)"), ((1, 16, 16), "are gray")]
)
def test_images_whose_channels_a_network_does_not_take(shape, advice):
    with (
        pytest.raises(DataError, match=advice),
        explain_rejected_images(network := SmallNet(), images := torch.zeros(2, *shape)),
    ):
        network(images)


def test_one_network_that_trains_is_no_student(tmp_path):
    data = torch.utils.data.TensorDataset(torch.rand(16, 3, 16, 16), torch.arange(16) % 4)
    frozen = SmallNet().requires_grad_(False)
    for network, error in ((SmallNet().half(), DataError), (frozen, ModelError)):
        with pytest.raises(error) as caught:
            cktf.teach(
                network, train=data, epochs=1, out=tmp_path / "run",
                overrides={"data.batch_size": 8},
            )  # fmt: skip
        assert "network SmallNet" in str(caught.value) or "A network has" in str(caught.value)
        assert "student" not in str(caught.value)


def test_lazy_layers_and_weights_without_values(few_images, tmp_path):
    student = SmallNet()
    student.fc = nn.LazyLinear(10)
    run = distill_few(few_images, tmp_path / "run", student=student, method="kd", epochs=1)
    assert run.student.fc.weight.shape == (10, 16)
    for role in ("teacher", "student"):
        networks = {role: SmallNet().to("meta")}
        with pytest.raises(DataError, match=f"The {role} SmallNet .*device meta have no values"):
            distill_few(few_images, tmp_path / role, method="kd", **networks)
    lazy = SmallNet()
    lazy.fc, lazy.a[0] = nn.LazyLinear(10), nn.Conv2d(5, 8, 3)
    with pytest.raises(DataError, match="Check channels and size"):
        distill_few(few_images, tmp_path / "lazy", teacher=lazy, method="kd")


@pytest.mark.parametrize("setting", ["dtype", "device"])
def test_defaults_of_the_users_process(few_images, tmp_path, setting):
    networks, value = {"student": SmallNet(), "teacher": SmallNet(width=16)}, torch.float64
    plain = distill_few(few_images, tmp_path / "plain", epochs=1, **copy.deepcopy(networks))
    set_default, before = getattr(torch, f"set_default_{setting}"), torch.float32
    if setting == "device":
        value, before = "meta", None
    set_default(value)
    try:
        run = distill_few(few_images, tmp_path / "run", epochs=1, **networks)
        assert str(getattr(torch, f"get_default_{setting}")()) == str(value)
    finally:
        set_default(before)
    assert_equal_runs(run, plain)


def test_results_are_shown_in_a_line(few_images, tmp_path):
    run = distill_few(few_images, tmp_path / "run", method="kd", epochs=1)
    assert repr(run) == (
        f"Run(folder={str(run.folder)!r}, student='SmallNet', test_top1={run.summary['test_top1']})"
    )
    assert "stem=[2, 16, 32, 32]" in repr(inspect("resnet8"))
    assert repr(few_images[0]) == "ImageSet(name='data', images=[200, 32, 32, 3], classes=10)"
