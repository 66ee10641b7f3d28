"""Compare two checkouts of cktf: do they train the same student, bit for bit?

    git worktree add --detach /somewhere/before 23f5da9
    python tools/engine_parity.py /somewhere/before .

Each case trains twenty steps (of the main phase; methods with an initialization phase train twenty
more before it) on fashion-mini in a process of its own for each checkout, through the public API,
and hashes the student's parameters and buffers. Exits with 1 where any pair differs. Weights are
given wherever the two checkouts have different defaults.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

BETA_THETA = {"beta": 0.8, "theta": 0.1}
CASES: dict[str, dict[str, Any]] = {
    "kd": {"method": "ce:0.1+kd:0.9"},
    "at+sp": {"method": "at+sp"},
    "fitnet, staged": {"method": "fitnet", "options": {"fitnet": {"staged": True}}},
    "ab, phase": {"method": "ab"},
    "fsp, phase": {"method": "fsp"},
    "ft, phase": {"method": "ft"},
    "vid+rkd+pkt": {"method": "vid+rkd+pkt"},
    "nst+cc": {"method": "nst+cc"},
    "crd, bank, sampled": {
        "method": "crd",
        "options": {"crd": {"negatives": 256, "estimator": "sampled"}},
    },
    "crd, queue": {
        "method": "crd+kd",
        "options": {"crd": {"memory": "queue", "queue_size": 512, "negatives": 256}},
    },
    "cktf, bank, shared": {
        "method": "cktf+kd",
        "options": {"cktf": {**BETA_THETA, "negatives": 256, "estimator": "shared"}},
    },
    "cktf, bank, all, filled": {
        "method": "cktf",
        "options": {"cktf": {**BETA_THETA, "estimator": "all", "init": "forward"}},
    },
    "cktf, batch, InfoNCE": {
        "method": "cktf+kd",
        "options": {"cktf": {**BETA_THETA, "memory": "batch", "critic": "infonce"}},
    },
    "cktf, added to AT": {
        "method": "cktf:0.8+at",
        "options": {"cktf": {"negatives": 256}},
    },
    "cktf, bfloat16, skipping": {
        "method": "cktf+kd",
        "options": {"cktf": {**BETA_THETA, "negatives": 256}},
        "overrides": {"runtime.precision": "bfloat16", "runtime.on_nonfinite": "skip"},
    },
    "validation, multistep, clip": {
        "method": "ce:0.1+kd:0.9",
        "overrides": {
            "data.validation": 0.2, "data.per_class": 160, "schedule.name": "multistep",
            "optimizer.clip": 1.0,
        },
    },
    "alone": {"method": "ce"},
    "transfer": {
        "method": "cktf",
        "options": {
            "cktf": {"beta": 1.0, "theta": 0.04, "temperature": 0.07, "negatives": 256}
        },
    },
}  # fmt: skip
STEPS, BATCH, CLASSES = 20, 64, 10


def train_case(name: str, out: Path) -> str:
    """Train one case with the cktf that this process imports; the hash of its student."""
    import torch

    import cktf

    case = CASES[name]
    torch.manual_seed(1)
    teacher = cktf.models.create("resnet14", num_classes=CLASSES)
    overrides: dict[str, Any] = {
        "data.per_class": STEPS * BATCH // CLASSES,
        "data.batch_size": BATCH,
        "runtime.track": "none",
        **case.get("overrides", {}),
    }
    settings: dict[str, Any] = {
        "method": case["method"],
        "options": case.get("options", {}),
        "epochs": 1,
        "out": out,
        "show": False,
    }
    if name == "transfer":
        torch.manual_seed(2)
        student = cktf.models.create("resnet8", num_classes=CLASSES)
        # Images are chosen by class only where there are labels.
        del overrides["data.per_class"]
        overrides |= {"labeled.per_class": 20, "scratch_epochs": 1, "draws": 1}
        done = cktf.transfer(
            teacher, student, unlabeled="fashion-mini", overrides=overrides, **settings
        )
        network = done.student
    else:
        run = cktf.distill(
            teacher, "resnet8", train="fashion-mini", overrides=overrides, **settings
        )
        network = run.student
    digest = hashlib.sha256()
    for key, tensor in sorted(network.state_dict().items()):
        digest.update(key.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def in_checkout(checkout: Path, name: str) -> str:
    """The hash of a case, trained by the package of a checkout."""
    environment = os.environ | {
        "PYTHONPATH": str(checkout.resolve() / "src"),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, __file__, "--case", name, "--out", f"{out}/run"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{checkout}: {name} failed:\n{done.stderr[-3000:]}")
    return str(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """Compare, and print a line for each case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkouts", nargs="*", type=Path)
    parser.add_argument("--only", default="", help="cases whose name holds this text")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.case:
        print(json.dumps(train_case(given.case, given.out)))
        return
    before, after = given.checkouts
    differing = 0
    for name in CASES:
        if given.only in name:
            hashes = [in_checkout(checkout, name) for checkout in (before, after)]
            equal = hashes[0] == hashes[1]
            differing += not equal
            verdict = "equal    " if equal else "DIFFERENT"
            print(f"{verdict} {hashes[0][:16]} {hashes[1][:16]} {name}", flush=True)
    raise SystemExit(1 if differing else 0)


if __name__ == "__main__":
    main()
