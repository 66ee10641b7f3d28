"""Every command that trains, measures or writes a network, in processes of their own."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from cktf.data import load_dataset
from cktf.models import Normalized, create, save_network
from gpu_checks.findings import Findings

MOST_SECONDS = 100.0
# A teacher with random weights, of the classes of fashion-mini.
TEACHER, STUDENT = "resnet20", "resnet8"
SMALL = ("--set", "data.batch_size=32", "--set", "data.per_class=40")


def cktf(*arguments: str | Path) -> str:
    """Run a command of cktf; its output. RuntimeError with the end of it where that fails."""
    command = [sys.executable, "-m", "cktf", *map(str, arguments)]
    done = subprocess.run(
        command, env=_environment(), capture_output=True, text=True, timeout=MOST_SECONDS
    )
    if done.returncode:
        output = (done.stdout + done.stderr).strip()
        raise RuntimeError(f"cktf {arguments[0]} ended with {done.returncode}: {output[-900:]}")
    return done.stdout + done.stderr


def _environment() -> Mapping[str, str]:
    # Other checks use the cores too.
    return {"OMP_NUM_THREADS": "4"} | os.environ | {"COLUMNS": "200"}


def save_teacher(folder: Path) -> Path:
    """Write a run folder with a random network for fashion-mini."""
    folder.mkdir(parents=True)
    data = load_dataset("fashion-mini", None, "test")
    torch.manual_seed(0)
    network = Normalized(create(TEACHER, len(data.classes)), data.mean, data.std)
    path = folder / "student.safetensors"
    save_network(network, path, name=TEACHER, classes=data.classes, dataset=data.name)
    return folder


def check_twenty_steps(findings: Findings) -> None:
    """Twenty steps by the command line: a finite loss, and the device in the summary."""
    with findings.case("cktf train"), tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        cktf(
            "train", "--model", STUDENT, "--epochs", "1", "--device", findings.device.type,
            "--set", "data.per_class=128", "--track", "none", "--out", out,
        )  # fmt: skip
        summary = json.loads((out / "summary.json").read_text())
        (row,) = (json.loads(text) for text in (out / "metrics.jsonl").read_text().splitlines())
        findings.require(0 < row["loss"] < 100, f"loss {row['loss']}")
        findings.require(
            findings.is_cuda != summary["device"].startswith("cpu"), f"device {summary['device']}"
        )
        findings.figures |= {name: summary[name] for name in ("device", "precision")}


def check_commands(findings: Findings) -> None:
    """Each command ends with status 0; the export is checked by itself, against ONNX Runtime."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        data = "fashion-mini" if findings.is_cuda else str(_write_photos(root / "photos"))
        common = ("--epochs", "1", "--device", findings.device.type, "--track", "none")
        teacher, student, cached = root / "teacher", root / "student", root / "cached"
        pair = ("--teacher", teacher, "--student", STUDENT)
        contrast = ("--set", "options.cktf.negatives=64")
        of_cache = ("--method", "kd", "--teacher-cache", f"views=2,dir={root / 'cache'}")
        transferred = ("--unlabeled", data, "--labels-per-class", "4", "--draws", "1")
        commands: dict[str, tuple[str | Path, ...]] = {
            "train": ("train", "--model", TEACHER, "--data", data, *common, "--out", teacher),
            "distill": ("distill", *pair, "--data", data, *contrast, *common, "--out", student),
            "evaluate": ("evaluate", student),
            "teacher cache": (
                "distill", *pair, "--data", data, *of_cache, *common, "--out", cached,
            ),
            "transfer": (
                "transfer", *pair, *transferred, "--method", "cktf", *contrast, *common,
                "--scratch-epochs", "1", "--out", root / "transfer",
            ),
            "report": ("report", teacher, student, "--images", "100"),
            "export": ("export", student),
        }  # fmt: skip
        needs = {"report": ("plotly", "jinja2"), "export": ("onnx", "onnxruntime", "onnxscript")}
        for name in findings.timed(commands):
            if missing := [p for p in needs.get(name, ()) if find_spec(p) is None]:
                findings.left_out.append(f"{name}: {', '.join(missing)} not installed")
                continue
            with findings.case(name):
                began = time.monotonic()
                cktf(*commands[name])
                findings.figures[f"{name} s"] = round(time.monotonic() - began, 1)


def _write_photos(folder: Path) -> Path:
    """Write few images of fashion-mini as an image folder."""
    for split, every in (("train", 25), ("test", 100)):
        data = load_dataset("fashion-mini", None, split)
        for position in range(0, len(data), every):
            path = folder / split / str(int(data.labels[position])) / f"{position}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(data.images[position].squeeze(-1).numpy()).save(path)
    return folder


def check_resumed_runs(findings: Findings) -> None:
    """A deterministic run that was stopped or killed ends as one that was not, bit for bit."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        teacher = save_teacher(root / "teacher")
        arguments = (
            "distill", "--teacher", teacher, "--student", STUDENT, "--epochs", "2",
            "--deterministic", "--set", "options.cktf.negatives=256", "--set",
            "checkpoint.minutes=0.003", "--device", findings.device.type, "--track", "none",
            *(() if findings.is_cuda else SMALL),
        )  # fmt: skip
        with findings.case("whole run"):
            cktf(*arguments, "--out", root / "whole")
        for number in findings.timed((signal.SIGTERM, signal.SIGKILL), lambda s: s.name):
            with findings.case(number.name):
                out = root / number.name
                stopped = _stop(arguments, out, number)
                findings.figures[f"{number.name} after"] = stopped
                findings.require(not (out / "summary.json").exists(), "it ended before the signal")
                cktf(*arguments, "--out", out, "--resume", "auto")
                different = unequal_tensors(
                    load_file(root / "whole" / "student.safetensors"),
                    load_file(out / "student.safetensors"),
                )
                findings.require(not different, f"{len(different)} unequal: {different[:3]}")


def _stop(arguments: tuple[str | Path, ...], out: Path, number: signal.Signals) -> str:
    """Start a run and send it a signal after its first checkpoint, whose name is returned."""
    command = [sys.executable, "-m", "cktf", *map(str, arguments), "--out", str(out)]
    with subprocess.Popen(
        command, env=_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        until = time.monotonic() + MOST_SECONDS
        saved: list[Path] = []
        while not saved and process.poll() is None and time.monotonic() < until:
            time.sleep(0.02)
            saved = list((out / "checkpoints").glob("*.json"))
        process.send_signal(number)
        process.wait(MOST_SECONDS)
    return saved[0].stem if saved else "no checkpoint"


def unequal_tensors(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> list[str]:
    """Names of tensors that differ in any bit, or that only one of the two has."""
    common = a.keys() & b.keys()
    return sorted({*(a.keys() ^ b.keys()), *(k for k in common if not torch.equal(a[k], b[k]))})
