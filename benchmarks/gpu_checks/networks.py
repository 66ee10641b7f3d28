"""Networks on the device against the CPU, in both precisions and memory formats; evaluation."""

import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

import cktf
from cktf.data import MemoryLoader, load_dataset
from cktf.engine import evaluate
from cktf.models import create
from gpu_checks.findings import Findings
from gpu_checks.modes import without_tf32

NETWORKS = ("resnet20", "resnet8x4", "wrn_16_2", "vgg8", "MobileNetV2", "ShuffleV1")
TRAINED = "resnet20"
FLOAT32, BFLOAT16 = torch.float32, torch.bfloat16
ERROR_TOLERANCE = {FLOAT32: 1e-3, BFLOAT16: 5e-2}
# A rounding of bfloat16 decides between classes that are nearly as likely.
LEAST_AGREEMENT = {FLOAT32: 99.5, BFLOAT16: 97.0}


def check_networks(findings: Findings) -> None:
    """Logits of random networks; then the classes that a trained one predicts."""
    images = torch.rand(32, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with without_tf32():
        for name in findings.timed(NETWORKS if findings.is_cuda else NETWORKS[::2]):
            torch.manual_seed(0)
            network = create(name, 10).eval()
            expected = _logits(network, images, torch.device("cpu"), FLOAT32, False)
            for dtype in ERROR_TOLERANCE:
                for last in (False, True):
                    with findings.case(f"{name}, {dtype}{', channels-last' if last else ''}"):
                        found = _logits(network, images, findings.device, dtype, last)
                        kind = f"logits in {str(dtype).removeprefix('torch.')}"
                        findings.compare(kind, found, expected, ERROR_TOLERANCE[dtype])
        _check_trained(findings)


@torch.no_grad()
def _logits(
    network: nn.Module, images: Tensor, device: torch.device, dtype: torch.dtype, last: bool
) -> Tensor:
    order = torch.channels_last if last else torch.contiguous_format
    network = network.to(device, memory_format=order)  # type: ignore[call-overload]
    with torch.autocast(device.type, dtype=BFLOAT16, enabled=dtype == BFLOAT16):
        logits: Tensor = network(images.to(device, memory_format=order))
    return logits.float().cpu()


def _check_trained(findings: Findings) -> None:
    """Train a network on the device for an epoch; compare its predictions and its accuracy."""
    overrides = {"runtime.device": findings.device.type, "runtime.track": "none"}
    if not findings.is_cuda:
        overrides["data.per_class"] = 64  # type: ignore[assignment]
    with findings.case("trained network"), tempfile.TemporaryDirectory() as folder:
        network = cktf.teach(
            TRAINED, train="fashion-mini", epochs=1, out=Path(folder) / "run", overrides=overrides,
            show=False,
        ).student  # fmt: skip
        data = load_dataset("fashion-mini", None, "test")
        few = data.subset(torch.arange(0, len(data), 5))
        loader = MemoryLoader(few, 200, train=False)  # type: ignore[arg-type]
        computed = [("cpu", FLOAT32), *((findings.device.type, d) for d in LEAST_AGREEMENT)]
        predictions = {
            (kind, dtype): torch.cat([
                _logits(network, batch.images, torch.device(kind), dtype, True).argmax(1)
                for batch in loader.epoch(0)
            ])
            for kind, dtype in computed
        }  # fmt: skip
        for dtype, least in LEAST_AGREEMENT.items():
            same = predictions[findings.device.type, dtype] == predictions["cpu", FLOAT32]
            agreement = 100 * float(same.float().mean())
            name = str(dtype).removeprefix("torch.")
            findings.figures[f"agreement in {name} %"] = round(agreement, 2)
            findings.require(agreement >= least, f"{name}: {agreement:.2f} % of classes agree")
        _compare_accuracy(findings, network, loader)


def _compare_accuracy(findings: Findings, network: nn.Module, loader: MemoryLoader) -> None:
    """Top-1 by `evaluate` on both devices."""
    accuracies = [
        evaluate(network.to(device), loader, 10, device).top1
        for device in (torch.device("cpu"), findings.device)
    ]
    findings.figures["top-1 on CPU and device"] = accuracies
    findings.require(abs(accuracies[0] - accuracies[1]) <= 0.5, f"top-1 {accuracies}")
