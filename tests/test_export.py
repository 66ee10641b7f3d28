"""ONNX files: what ONNX Runtime computes from them, beside the network they were written from."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from image_files import write_colored_images
from PIL import Image
from small_runs import CustomNet, SmallNet, run_command
from torch import nn

import cktf
from cktf.data import load_dataset
from cktf.data.image_decoding import decode_image, resize_and_center_crop, to_uint8_tensor
from cktf.errors import DataError, ModelError, RecipeError, RunFolderError
from cktf.export import ExportedNetwork, export_run, write_int8, write_onnx
from cktf.export import network as files
from cktf.models import Normalized

ROOT = Path(__file__).parents[1]


def run_onnx(path, images):
    """Logits by ONNX Runtime alone."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    parts = [session.run(["logits"], {"images": p.numpy()})[0] for p in images.split(500)]
    return torch.cat([torch.from_numpy(part) for part in parts])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return cktf.teach(
        "resnet8", train="fashion-mini", epochs=2, out=tmp_path_factory.mktemp("run") / "a",
        overrides={"data.per_class": 200}, show=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def exported(run):
    return run_command(f"export {run.folder} --int8")


@pytest.mark.parametrize(("name", "form"), [("student", "ONNX"), ("student.int8", "ONNX int8")])
def test_export_and_check_on_test_images(run, exported, name, form):
    path = run.folder / f"{name}.onnx"
    onnx.checker.check_model(str(path))
    test = load_dataset("fashion-mini", None, "test")
    images = test.images.permute(0, 3, 1, 2).float() / 255
    logits = run_onnx(path, images)
    with torch.no_grad():
        expected = torch.cat([run.student.eval()(part) for part in images.split(500)])
    if form == "ONNX":
        assert torch.allclose(logits, expected, atol=1e-4)
    else:
        assert (logits - expected).abs().mean() < 0.1 * expected.abs().mean()
    top1 = 100 * float((logits.argmax(1) == test.labels).float().mean())
    agreement = 100 * float((logits.argmax(1) == expected.argmax(1)).float().mean())
    row = next(line for line in exported.splitlines() if line.startswith(f"  {form}   "))
    megabytes, _, *shares = row.removeprefix(f"  {form}").split()
    assert megabytes == f"{path.stat().st_size / 1e6:.2f}"
    assert [float(share) for share in shares] == pytest.approx([top1, agreement], abs=0.011)
    assert f"{form}: {path}" in exported.replace("\n", "")
    model = onnx.load(path)
    metadata = {prop.key: prop.value for prop in model.metadata_props}
    assert metadata["network"] == "resnet8"
    assert json.loads(metadata["classes"])[:2] == ["T-shirt/top", "Trouser"]
    assert metadata["images"] == "float32 [batch, 3, 32, 32] in [0, 1]"
    # This data set is padded, and has no photographs.
    assert "preparation" not in metadata
    if form == "ONNX int8":
        assert path.stat().st_size < (run.folder / "student.onnx").stat().st_size / 2
        operations = [node.op_type for node in model.graph.node]
        assert operations.count("Conv") == 9
        # The first layer computes in float32, the others in int8; the logits are not rounded.
        assert operations.count("QuantizeLinear") >= 8
        by_output = {name: node for node in model.graph.node for name in node.output}
        assert by_output["logits"].op_type == "Gemm"
        constants = {tensor.name: tensor for tensor in model.graph.initializer}
        zeros = [n.input[2] for n in model.graph.node if n.op_type == "QuantizeLinear"]
        assert {constants[name].data_type for name in zeros} == {onnx.TensorProto.UINT8}


@pytest.mark.slow
def test_the_code_of_the_docs_runs(tmp_path, monkeypatch, capsys):
    """Its code, on photos that lie on their side, gives what PyTorch does."""
    names = "ant", "bee", "cat"
    write_colored_images(tmp_path / "data", names, {"train": 8, "test": 4}, side=16)
    monkeypatch.chdir(tmp_path)
    run = cktf.teach(
        "resnet8", train="imagefolder:data", epochs=2, out="runs/student", show=False,
        overrides={"data.batch_size": 8},
    )  # fmt: skip
    written = export_run(run.folder)[1].path
    (told,) = (p for p in onnx.load(written).metadata_props if p.key == "preparation")
    assert told.value.startswith("upright, the center")
    page = (ROOT / "docs" / "export.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.S)
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in names:
        held_out = sorted((tmp_path / "data" / "test" / name).iterdir())[0]
        Image.open(held_out).resize((30, 20)).save("photo.jpg", exif=exif, quality=100)
        known: dict[str, Any] = {}
        exec(code, known)
        photo = resize_and_center_crop(decode_image(Image.open("photo.jpg")), 32)
        pixels = to_uint8_tensor(photo).permute(2, 0, 1) / 255
        with torch.no_grad():
            expected = run.student.eval()(pixels[None])
        assert torch.allclose(torch.from_numpy(known["logits"]), expected, atol=0.02)
        assert capsys.readouterr().out.split() == [names[int(expected.argmax())]]


@pytest.mark.slow
def test_the_file_includes_normalization_and_resizing(tmp_path):
    """The user's network is for images of one size, and reshapes the batch."""
    torch.manual_seed(0)
    resized = CustomNet(
        lambda net, x: net.linear(net.convolution(x).relu().reshape(x.shape[0], -1)),
        convolution=nn.Conv2d(3, 4, 3), linear=nn.Linear(4 * 36, 5),
    )  # fmt: skip
    network = Normalized(resized, (0.4, 0.5, 0.6), (0.2, 0.3, 0.1), size=8)
    network.train()
    write_onnx(network, torch.rand(2, 3, 20, 12), tmp_path / "a.onnx", {"note": "a user's"})
    assert network.training
    for count in (1, 5):
        images = torch.rand(count, 3, 20, 12)
        with torch.no_grad():
            assert torch.allclose(run_onnx(tmp_path / "a.onnx", images), network(images), atol=1e-5)
    (note,) = onnx.load(tmp_path / "a.onnx").metadata_props
    assert (note.key, note.value) == ("note", "a user's")


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (lambda _, x: x.mean((2, 3)) + torch.rand_like(x[:, :, 0, 0]), "would not compute"),
        (lambda _, x: x.mean((2, 3)) if x.sum() > 0 else x.amax((2, 3)), "cannot write CustomNet"),
        (lambda _, x: x.reshape(4, 3, -1).mean(2), "differ by up to inf"),
    ],
    ids=["random", "branches", "one batch size"],
)
def test_a_network_that_onnx_cannot_hold_is_refused(tmp_path, forward, message):
    path = tmp_path / "a.onnx"
    path.write_text("earlier")
    with pytest.raises(ModelError, match=message):
        write_onnx(CustomNet(forward), torch.rand(4, 3, 8, 8), path)
    assert path.read_text() == "earlier"
    assert [p.name for p in tmp_path.iterdir()] == ["a.onnx"]


@pytest.mark.slow
def test_opset_size_and_folder_of_the_file(run, tmp_path):
    path = tmp_path / "new" / "folder" / "a.onnx"
    run_command(f"export {run.folder} --out {path} --opset 20 --image-size 48")
    model = onnx.load(path)
    assert [entry.version for entry in model.opset_import if not entry.domain] == [20]
    images = torch.rand(3, 3, 48, 48)
    with torch.no_grad():
        assert torch.allclose(run_onnx(path, images), run.student.eval()(images), atol=1e-4)
    metadata = {prop.key: prop.value for prop in model.metadata_props}
    assert metadata["images"] == "float32 [batch, 3, 48, 48] in [0, 1]"
    with pytest.raises(RecipeError, match=r"opset 9 is none that this PyTorch writes.*Take 18"):
        write_onnx(run.student, images, tmp_path / "b.onnx", opset=9)
    assert not (tmp_path / "b.onnx").exists()


def test_int8_ranges_leave_outliers_out(tmp_path):
    """One image in 160 is a hundred times brighter, and may not take the steps of the others."""
    torch.manual_seed(0)
    network = CustomNet(
        lambda net, x: net.linear(net.b(net.a(x).relu()).relu().mean((2, 3))),
        a=nn.Conv2d(3, 8, 3), b=nn.Conv2d(8, 8, 3), linear=nn.Linear(8, 4),
    )  # fmt: skip
    images = torch.rand(640, 3, 12, 12)
    write_onnx(network, images[:2], tmp_path / "a.onnx")
    outliers = images.clone()
    outliers[::160] *= 100
    for name, calibration in (("plain", images), ("outliers", outliers)):
        write_int8(tmp_path / "a.onnx", tmp_path / f"{name}.onnx", iter(calibration.split(320)))
    logits = [run_onnx(tmp_path / f"{name}.onnx", images) for name in ("a", "plain", "outliers")]
    errors = [float((other - logits[0]).std()) for other in logits[1:]]
    # With the range of all images, the error is twelve times as large.
    assert errors[1] < 5 * errors[0]


def test_a_poor_int8_file_is_warned_of(run, exported, tmp_path, monkeypatch):
    assert "unlike PyTorch" not in exported
    float32 = ExportedNetwork("ONNX", tmp_path / "a.onnx", 2.0, agreement=100.0)
    slow = ExportedNetwork("ONNX int8", tmp_path / "b.onnx", 3.0, agreement=94.9)
    assert float32.with_warnings(float32).warnings == ()
    unlike, slower = slow.with_warnings(float32).warnings
    assert "5.1 % of the test images unlike PyTorch does" in unlike
    assert f"Use {tmp_path / 'a.onnx'}" in unlike
    assert "1.5 times slower than the float32 file" in slower
    assert replace(slow, latency_ms=2.1, agreement=95.0).with_warnings(float32).warnings == ()
    (tmp_path / "b.onnx").write_bytes(b"")
    listed = [slow.with_warnings(float32)]
    monkeypatch.setattr("cktf.export.export_run", lambda *_, **__: listed)
    assert f"! {unlike}" in run_command(f"export {tmp_path}", exit_code=1)
    listed[:] = [replace(slow, agreement=99.0).with_warnings(float32)]
    assert f"! {slower}" in run_command(f"export {tmp_path}")


def test_errors_of_int8(run, exported, tmp_path):
    source, path = run.folder / "student.onnx", tmp_path / "int8.onnx"
    with pytest.raises(ModelError, match=r"cannot write .* in int8"):
        write_int8(source, path, iter([]))

    def broken():
        yield torch.rand(2, 3, 32, 32)
        raise DataError("a picture that is broken")

    with pytest.raises(DataError, match="a picture that is broken"):
        write_int8(source, path, broken())
    assert not path.exists()


@pytest.mark.slow
def test_export_without_the_data_set(tmp_path):
    images = [(torch.rand(3, 16, 16), i % 3) for i in range(64)]
    network = cktf.models.create("resnet8", num_classes=3)
    made = cktf.teach(network, train=images, epochs=1, out=tmp_path / "a", show=False)
    original, written = export_run(made.folder, tmp_path / "b.onnx", data_dir="anywhere")
    assert (original.form, written.path, written.accuracy) == ("PyTorch", tmp_path / "b.onnx", None)
    assert run_onnx(written.path, torch.rand(3, 3, 16, 16)).shape == (3, 3)
    with pytest.raises(RunFolderError, match="Leave --int8 away"):
        export_run(made.folder, int8=True)


@pytest.mark.slow
def test_a_student_without_labels_knows_its_teachers_classes(tmp_path):
    """It is tried on the labels that it did not read, and written where they are not at hand."""
    names = "ant", "bee", "cat"
    write_colored_images(tmp_path / "data", names, {"train": 8, "test": 4}, side=16)
    data, small = f"imagefolder:{tmp_path / 'data'}", {"data.batch_size": 8}
    teacher = cktf.teach(
        "resnet8", train=data, epochs=1, out=tmp_path / "teacher", overrides=small, show=False
    )
    run = cktf.distill(
        teacher.folder, "resnet8", train=data, method="kd", epochs=1, out=tmp_path / "run",
        overrides=small | {"data.labels": False}, show=False,
    )  # fmt: skip
    original, written = export_run(run.folder)
    assert written.accuracy.top1 == cktf.evaluate(run.folder)[0].top1
    assert json.loads(onnx.load(written.path).metadata_props[3].value) == ["ant", "bee", "cat"]
    (tmp_path / "data").rename(tmp_path / "moved")
    assert export_run(run.folder, data_dir=tmp_path / "moved")[1].accuracy == written.accuracy
    original, written = export_run(run.folder)
    assert written.accuracy is None
    assert str(tmp_path / "data") in original.missing_reason
    for asked in ({"int8": True}, {"data_dir": str(tmp_path)}):
        with pytest.raises(DataError, match="imagefolder"):
            export_run(run.folder, **asked)


def test_errors_of_missing_runs_and_libraries(tmp_path, monkeypatch):
    assert str(tmp_path) in run_command(f"export {tmp_path}", exit_code=2).replace("\n", "")
    monkeypatch.setattr(files, "_LIBRARIES", ("onnx", "no_such_library"))
    with pytest.raises(RecipeError, match=r"needs no_such_library.*pip install .*\[export\]'"):
        export_run(tmp_path)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_channels_of_ones_own_images(tmp_path, users_default, channels):
    """Of a student that does not normalize, and whatever the user's default type and device."""
    with torch.device("cpu"):
        student = SmallNet(classes=3, channels=channels).float()
        images = [(torch.rand(channels, 16, 16).float(), i % 3) for i in range(64)]
    run = cktf.teach(student, train=images, epochs=1, out=tmp_path / "run", show=False)
    _, file = export_run(run.folder, network=student)
    size = onnx.load(file.path).graph.input[0].type.tensor_type.shape.dim[1].dim_value
    assert size == channels
