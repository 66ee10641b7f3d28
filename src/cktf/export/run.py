"""A finished run's network as ONNX files: how large, how fast, how right."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from cktf import __version__
from cktf.data import FOLDER_PREFIX, HUB_PREFIX, Images, ImageSet, Loader
from cktf.engine import Accuracy
from cktf.engine import evaluate as accuracy_of
from cktf.errors import DataError, RunFolderError
from cktf.export.network import OnnxNetwork, require_onnx, write_int8, write_onnx
from cktf.models import Normalized, read_metadata
from cktf.recipes import (
    CUSTOM,
    DataConfig,
    build_test_loader,
    find_weights_file,
    load_split,
    load_teacher,
)
from cktf.user_paths import expand_user_path
from cktf.workflows import load_test_section
from cktf.workflows.analysis import evenly_spaced_indices, measure_latency_ms

# Training images on which ranges of activations are found.
_CALIBRATION = 512
_TRACED = 8
# How photographs of any size become images.
_PREPARED = "upright, the center cut to a square, scaled bilinearly, divided by 255"


@dataclass(frozen=True)
class ExportedNetwork:
    """A network in one form, and what it does.

    Attributes:
        form: `PyTorch`, `ONNX` or `ONNX int8`.
        path: the file.
        latency_ms: median for one image at a time, on the CPU.
        accuracy: on the test images; None where the run's data is not at hand.
        agreement: per cent of them of which it says the class that PyTorch does.
        missing: why the data is not at hand, where it was looked for.
    """

    form: str
    path: Path
    latency_ms: float
    accuracy: Accuracy | None = None
    agreement: float | None = None
    missing: str = ""

    @property
    def megabytes(self) -> float:
        """Size of the file, in 10^6 bytes."""
        return self.path.stat().st_size / 1e6


def export_run(
    run: str | Path,
    out: str | Path | None = None,
    *,
    int8: bool = False,
    data_dir: str | None = None,
    trust_code: bool = False,
) -> list[ExportedNetwork]:
    """Write the network of a finished run as an ONNX file, and try it on the run's test images.

    Args:
        run: a run folder.
        out: the file; by default `student.onnx` in the run folder. That of int8 is beside it, and
            ends in `.int8.onnx`.
        int8: whether to write an int8 form too; its ranges are found on training images.
        data_dir: folder of the data set, where the run names one that is not there. Without the
            data the file is tried on random images alone.
        trust_code: whether the user's own code, by which the network is built, may run.

    Returns:
        The network as it is in the run folder, and each file.

    Raises:
        CktfError: no finished run, data that is missing and was asked for, a network that has no
            form in ONNX, or libraries that are not installed.
    """
    require_onnx()
    run = expand_user_path(run)
    out = run / "student.onnx" if out is None else expand_user_path(out)
    _, section = load_test_section(run, data_dir=data_dir)
    if section.name == CUSTOM and int8:
        raise RunFolderError(
            f"{run} was trained on a data set made in Python, and int8 needs images of it. Leave "
            "--int8 away, or write it there with cktf.export.write_int8."
        )
    test, missing = _test_images(section)
    if missing and (int8 or data_dir):
        raise DataError(missing)
    loader = None if test is None else build_test_loader(test, section.workers)
    classes = None if test is None else tuple(test.classes)
    network = load_teacher(str(run.absolute()), classes, trust_code=trust_code).network.eval()
    weights = find_weights_file(str(run.absolute()))
    about = read_metadata(weights)
    images = _some(network, about) if loader is None else next(loader.epoch(0)).images[:_TRACED]
    photographs = section.name.partition(":")[0] in (FOLDER_PREFIX, HUB_PREFIX)
    write_onnx(network, images, out, _metadata(about, images, photographs))
    files = {"ONNX": out}
    if int8:
        files["ONNX int8"] = out.with_suffix(".int8.onnx")
        write_int8(out, files["ONNX int8"], _calibration(load_split(section, "train")))
    found = [
        ExportedNetwork(
            "PyTorch", weights, measure_latency_ms(network, images[:1]), missing=missing
        )
    ]
    for form, path in files.items():
        found.append(_tried(form, path, network, images, loader))
    return found


def _test_images(section: DataConfig) -> tuple[ImageSet[Images] | None, str]:
    """A run's test images, or None and why there are none."""
    if section.name == CUSTOM:
        return None, ""
    try:
        return load_split(section, "test"), ""
    except DataError as error:
        return None, str(error)


def _some(network: nn.Module, about: dict[str, object]) -> Tensor:
    """Images of no data set, of the size that a network was trained on."""
    size = about.get("image_size")
    if not isinstance(size, list):
        raise RunFolderError("Its weights do not say how large the images are. Save them anew.")
    channels = network.mean.shape[1] if isinstance(network, Normalized) else 3
    return torch.rand(_TRACED, channels, *size, generator=torch.Generator().manual_seed(0))


def _metadata(about: dict[str, object], images: Tensor, photographs: bool) -> dict[str, str]:
    """What who finds the file needs to know."""
    channels, height, width = images.shape[1:]
    return {
        "cktf": __version__,
        "network": str(about["network"]),
        "trained_on": str(about["dataset"]),
        "classes": json.dumps(about["classes"]),
        "images": f"float32 [batch, {channels}, {height}, {width}] in [0, 1]",
        **({"preparation": _PREPARED} if photographs else {}),
    }


def _calibration(train: ImageSet[Images]) -> Iterator[Tensor]:
    """Training images that lie evenly over the set, as they are."""
    chosen = train.subset(evenly_spaced_indices(len(train), _CALIBRATION))
    return (batch.images for batch in build_test_loader(chosen).epoch(0))


@torch.no_grad()
def _tried(
    form: str, path: Path, network: nn.Module, images: Tensor, loader: Loader | None
) -> ExportedNetwork:
    """A file's network beside the one that it was written from."""
    written = OnnxNetwork(path)
    latency = measure_latency_ms(written, images[:1])
    if loader is None:
        return ExportedNetwork(form, path, latency)
    same = 0

    def forward(images: Tensor) -> Tensor:
        nonlocal same
        logits = written(images)
        same += int((logits.argmax(dim=1) == network(images).argmax(dim=1)).sum())
        return logits

    classes = written(images).shape[1]
    accuracy = accuracy_of(forward, loader, classes, torch.device("cpu"))
    return ExportedNetwork(form, path, latency, accuracy, 100 * same / accuracy.samples)
