"""Export a finished run's network, and measure size, latency and accuracy."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from cktf import __version__
from cktf.data import FOLDER_PREFIX, HUB_PREFIX, Loader
from cktf.engine import Accuracy, check_output_file, default_tensors
from cktf.engine import evaluate as accuracy_of
from cktf.errors import DataError, RunFolderError
from cktf.export.network import OnnxNetwork, require_onnx, write_int8, write_onnx
from cktf.models import Normalized, read_metadata
from cktf.recipes import CUSTOM, build_test_loader, load_run_network, load_split
from cktf.taps import fit_memory_format
from cktf.user_paths import expand_user_path
from cktf.workflows import load_test_section
from cktf.workflows.analysis import evenly_spaced_indices, measure_latency_ms
from cktf.workflows.inspection import explain_rejected_images
from cktf.workflows.unfinished import find_student_weights

# Training images that determine the ranges of int8 activations.
_CALIBRATION_IMAGES = 1024
_TRACED_IMAGES = 8
# A file is warned of if it classifies fewer images as PyTorch does, in per cent, or if it takes
# this many times as long as the float32 file, since latencies vary from run to run.
_MIN_AGREEMENT, _MAX_SLOWDOWN = 95.0, 1.1
# How a photograph becomes an input image.
_PREPARATION = "upright, the center cut to a square, scaled bilinearly, divided by 255"


@dataclass(frozen=True)
class ExportedNetwork:
    """A network in one format, and its measurements.

    Attributes:
        form: `PyTorch`, `ONNX` or `ONNX int8`.
        path: the file.
        latency_ms: median for one image at a time, on the CPU.
        accuracy: on the test images; None without the run's data.
        agreement: per cent of the test images that it classifies as PyTorch does.
        missing_reason: why the data is missing; empty if it is not.
        warnings: what speaks against using the file, a sentence each.
    """

    form: str
    path: Path
    latency_ms: float
    accuracy: Accuracy | None = None
    agreement: float | None = None
    missing_reason: str = ""
    warnings: tuple[str, ...] = ()

    @property
    def megabytes(self) -> float:
        """Size of the file, in 10^6 bytes."""
        return self.path.stat().st_size / 1e6

    @property
    def disagrees(self) -> bool:
        """Whether it classifies more than one in twenty test images unlike PyTorch does."""
        return self.agreement is not None and self.agreement < _MIN_AGREEMENT

    def with_warnings(self, float32: "ExportedNetwork") -> "ExportedNetwork":
        """Compare with the float32 file, and say what speaks against this one."""
        warnings = []
        if self.disagrees:
            warnings.append(
                f"The {self.form} file classifies {100 - (self.agreement or 0):.1f} % of the test "
                f"images unlike PyTorch does, more than {100 - _MIN_AGREEMENT:g} %. Use "
                f"{float32.path}, or train longer: classes that are hardly told apart change first."
            )
        if self.latency_ms > _MAX_SLOWDOWN * float32.latency_ms:
            warnings.append(
                f"The {self.form} file is {self.latency_ms / float32.latency_ms:.1f} times slower "
                "than the float32 file on this CPU. Measure it where it is to run."
            )
        return replace(self, warnings=tuple(warnings))


@default_tensors()
@torch.inference_mode(False)
def export_run(
    run: str | Path,
    out: str | Path | None = None,
    *,
    int8: bool = False,
    data_dir: str | None = None,
    network: nn.Module | str | None = None,
    opset: int | None = None,
    image_size: int | None = None,
    trust_code: bool = False,
) -> list[ExportedNetwork]:
    """Write the network of a finished run as an ONNX file, and test it on the run's test images.

    Args:
        run: a run folder. Of an unfinished run, the student of its last checkpoint is written.
        out: the file; by default `student.onnx` in the run folder. The int8 file is beside it and
            ends in `.int8.onnx`.
        int8: also write an int8 file, calibrated on training images.
        data_dir: folder of the data set, if it is no longer where the run says. Without the data
            the file is checked on random images only.
        network: of a run that was made in Python: a module, which takes the run's weights, or
            `FILE.py:FUNCTION`, which builds it.
        opset: version of the ONNX operators; by default PyTorch's.
        image_size: side of the file's images in pixels; by default that of training.
        trust_code: whether the user's own code that builds the network may run.

    Returns:
        The network in PyTorch, then each file.

    Raises:
        CktfError: there is no finished run, requested data is missing, ONNX cannot express the
            network, or a library is missing.
    """
    require_onnx()
    run = expand_user_path(run)
    out = run / "student.onnx" if out is None else expand_user_path(out)
    check_output_file(out, ".onnx")
    _, section = load_test_section(run, data_dir=data_dir)
    if image_size is not None:
        section = section.model_copy(update={"image_size": image_size})
    if section.name == CUSTOM and int8:
        raise RunFolderError(
            f"{run} was trained on a data set made in Python, and int8 needs its images. Leave "
            "--int8 away, or call cktf.export.write_int8 where the data set is."
        )
    test, missing_reason = None, ""
    if section.name != CUSTOM:
        try:
            test = load_split(section, "test")
        except DataError as error:
            missing_reason = str(error)
    if missing_reason and (int8 or data_dir):
        raise DataError(missing_reason)
    loader = None if test is None else build_test_loader(test, section.workers)
    classes = None if test is None else tuple(test.classes)
    weights = find_student_weights(run.absolute(), trust_code=trust_code)
    loaded = load_run_network(weights, classes, network, trust_code=trust_code)
    network = loaded.network.eval()
    info = read_metadata(weights)
    if loader is not None:
        images = next(loader.epoch(0)).images[:_TRACED_IMAGES]
    elif isinstance(size := info.get("image_size"), list):
        # Files of earlier versions do not say the channels.
        usual = network.mean.shape[1] if isinstance(network, Normalized) else 3
        channels = info.get("channels", usual)
        assert isinstance(channels, int)
        generator = torch.Generator().manual_seed(0)
        size = size if image_size is None else [image_size, image_size]
        images = torch.rand(_TRACED_IMAGES, channels, *size, generator=generator)
    else:
        raise RunFolderError("The weights file has no image size. Save the network again.")
    with explain_rejected_images(network, images):
        fit_memory_format(network, images)
    channels, height, width = images.shape[1:]
    values = "in [0, 1]" if isinstance(network, Normalized) else "as the network was trained on"
    metadata = {
        "cktf": __version__,
        "network": str(info["network"]),
        "trained_on": str(info["dataset"]),
        "classes": json.dumps(info["classes"]),
        "images": f"float32 [batch, {channels}, {height}, {width}] {values}",
    }
    if section.name.partition(":")[0] in (FOLDER_PREFIX, HUB_PREFIX):
        metadata["preparation"] = _PREPARATION
    write_onnx(network, images, out, metadata, opset)
    files = {"ONNX": out}
    if int8:
        files["ONNX int8"] = out.with_suffix(".int8.onnx")
        train = load_split(section, "train")
        indices = evenly_spaced_indices(len(train), _CALIBRATION_IMAGES)
        # A folder of images is sorted by class, and each batch needs the ranges of all classes.
        mixed = torch.randperm(len(indices), generator=torch.Generator().manual_seed(0))
        batches = build_test_loader(train.subset(indices[mixed])).epoch(0)
        write_int8(out, files["ONNX int8"], (batch.images for batch in batches))
    latency = measure_latency_ms(network, images[:1])
    original = ExportedNetwork("PyTorch", weights, latency, missing_reason=missing_reason)
    exports = [_measure(form, path, network, images, loader) for form, path in files.items()]
    return [original, *(export.with_warnings(exports[0]) for export in exports)]


@torch.no_grad()
def _measure(
    form: str, path: Path, network: nn.Module, images: Tensor, loader: Loader | None
) -> ExportedNetwork:
    """Compare a file with the network that it was written from."""
    exported = OnnxNetwork(path)
    latency = measure_latency_ms(exported, images[:1])
    if loader is None:
        return ExportedNetwork(form, path, latency)
    agreeing = 0

    def forward(images: Tensor) -> Tensor:
        nonlocal agreeing
        logits = exported(images)
        agreeing += int((logits.argmax(dim=1) == network(images).argmax(dim=1)).sum())
        return logits

    classes = exported(images).shape[1]
    accuracy = accuracy_of(forward, loader, classes, torch.device("cpu"))
    return ExportedNetwork(form, path, latency, accuracy, 100 * agreeing / accuracy.samples)
