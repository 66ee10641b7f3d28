"""Lives of a run: it is killed with SIGKILL at random instants, again and again, and goes on.

    python tests/kill_resume.py [CASE…] --kills 200 --out FILE

Every life is a process of its own, forked from this one, which has imported everything and has read
the data, so that a life takes a fraction of a second. It is killed somewhere in it: while it reads,
rehearses, trains, evaluates, saves or writes its results. A run that came to its end between two
kills is compared with one that was never stopped, bit for bit, and the next begins. Prints what was
found as JSON; exits with 1 where anything differs.
"""

import argparse
import json
import mmap
import os
import random
import signal
import struct
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate.utils import set_seed
from image_files import write_cifar10
from safetensors.torch import load_file
from small_runs import SmallNet

import cktf
from cktf.data import ImageSet, load_dataset
from cktf.engine import Trainer
from cktf.engine.checkpoints import Checkpoints
from cktf.engine.randomness import random_state, restore_random_state
from cktf.models import create, save_network
from cktf.objectives import CKTF
from cktf.recipes import parse_transfer_recipe
from cktf.taps import Features

EVERY, BATCH, EPOCHS = 25, 40, 2
# About every third step of these runs.
MINUTES = 0.03 / 60
TIMES = ("seconds", "images_per_second", "peak_memory_mb")
WORLD = 2


def image_sets() -> list[ImageSet]:
    """Few images for training and for the test."""
    sets = []
    for split in ("train", "test"):
        full = load_dataset("fashion-mini", None, split)
        # They lie by class; mixed, any part of them holds all classes.
        chosen = torch.arange(0, len(full), EVERY)
        chosen = chosen[torch.randperm(len(chosen), generator=torch.Generator().manual_seed(0))]
        sets.append(full.subset(chosen))
    return sets


def distilled(method: str, options: dict, **overrides) -> Callable[[Path], None]:
    """A case that distills between two small networks."""
    train, test = image_sets()

    def run(folder: Path) -> None:
        torch.manual_seed(0)
        cktf.distill(
            SmallNet(width=16), SmallNet(), train=train, test=test, method=method, epochs=EPOCHS,
            options=options, out=folder, resume=True, show=False,
            overrides={"data.batch_size": BATCH, "checkpoint.minutes": MINUTES} | overrides,
        )  # fmt: skip

    return run


def transferred(shop: Path) -> Callable[[Path], None]:
    """A case that transfers: distillation, training from scratch, probes."""
    from cktf.workflows import plan_transfer, run_transfer

    train, _ = image_sets()
    write_cifar10(shop, train.images, train.labels)
    torch.manual_seed(0)
    teacher = shop / "teacher.safetensors"
    names = load_dataset("cifar10", shop, "test").classes
    save_network(create("resnet8", 10), teacher, name="resnet8", classes=names, dataset="cifar10")
    fields = {
        "kind": "transfer", "teacher": str(teacher), "student": "resnet8", "epochs": 1,
        "data": {"name": "cifar10", "dir": str(shop), "batch_size": 50},
        "method": "cktf", "options": {"cktf": {"negatives": 32}}, "scratch_epochs": 1,
        "checkpoint": {"minutes": MINUTES},
    }  # fmt: skip

    def run(folder: Path) -> None:
        recipe = parse_transfer_recipe(fields)
        run_transfer(plan_transfer(recipe, folder, resume=True), show=False)

    return run


def together(folder: Path) -> None:
    """Two gloo processes with one memory: steps of CKTF's objective, saved by the first."""
    store = tempfile.mktemp(dir=folder.parent)
    ranks = [os.fork() or _rank(rank, store, folder) for rank in range(WORLD)]
    for rank in ranks:
        if os.waitpid(rank, 0)[1]:
            os.killpg(0, signal.SIGKILL)


def _rank(rank: int, store: str, folder: Path) -> int:
    try:
        _steps_of(rank, store, folder)
    except BaseException:
        traceback.print_exc()
        os._exit(3)
    os._exit(0)


def _features(count: int, channels: int, step: int) -> Features:
    generator = torch.Generator().manual_seed(100 * step + channels)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(count, *shape, generator=generator)

    stages = normal(channels, 8, 8), normal(2 * channels, 4, 4)
    return Features(
        stem=normal(4, 8, 8), stages=stages, embedding=normal(2 * channels), logits=normal(3)
    )  # fmt: skip


def _steps_of(rank: int, store: str, folder: Path, steps: int = 60, batch: int = 6) -> None:
    dist.init_process_group("gloo", f"file://{store}", rank=rank, world_size=WORLD)
    cpu = torch.device("cpu")
    set_seed(rank)
    with torch.random.fork_rng():
        torch.manual_seed(7)
        made = CKTF(
            _features(4, 4, 0), _features(4, 6, 0), 50, labels=torch.arange(50) % 5,
            embedding_dim=8, memory="queue", queue_size=30, negatives=20, estimator="shared",
        )  # fmt: skip
    optimizer = torch.optim.SGD(made.parameters(), lr=0.1, momentum=0.9)
    saved, first = Checkpoints(folder, print), 0
    folder.mkdir(exist_ok=True)
    dist.barrier()
    if (state := saved.newest()) is not None:
        made.load_state_dict(state["objective"])
        optimizer.load_state_dict(state["optimizer"])
        restore_random_state(state["random"][rank], cpu)
        first = state["step"]
    dist.barrier()
    for step in range(first, steps):
        student, teacher = (_features(batch, c, step + 1) for c in (4, 6))
        index = torch.randperm(50)[:batch]
        made.loss(student, teacher, index).total.backward()
        for parameter in made.parameters():
            dist.all_reduce(parameter.grad)
            parameter.grad /= WORLD
        optimizer.step()
        made.after_step()
        optimizer.zero_grad()
        STEPPED()
        if (step + 1) % 5 == 0:
            states: list = [None] * WORLD
            dist.all_gather_object(states, random_state(cpu))
            if rank == 0:
                kept = {"objective": made.state_dict(), "optimizer": optimizer.state_dict()}
                saved.save(kept | {"random": states, "step": step + 1}, f"{step + 1:09d}")
    dist.destroy_process_group()


class Clock:
    """When a life made its first step, in memory that its killer sees."""

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, 8)

    def __call__(self) -> None:
        if not self.first:
            self.memory[:] = struct.pack("d", time.time())

    @property
    def first(self) -> float:
        return struct.unpack("d", self.memory[:])[0]

    def reset(self) -> None:
        self.memory[:] = bytes(8)


STEPPED = Clock()


def _clocked() -> None:
    step = Trainer.train_step

    def stepped(self):
        STEPPED()
        step(self)

    Trainer.train_step = stepped


def begin(case: Callable[[Path], None], folder: Path) -> int:
    """A process, and a group of processes, that carries the case out."""
    STEPPED.reset()
    child = os.fork()
    if child:
        # Here as well: it may be killed before it has come to that.
        os.setpgid(child, child)
        return child
    try:
        os.setpgid(0, 0)
        case(folder)
    except BaseException:
        traceback.print_exc()
        os._exit(3)
    os._exit(0)


def ended(child: int, until: float) -> bool:
    """Whether a process comes to its end before an instant; it fails with the process."""
    while time.monotonic() < until:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            if status:
                raise SystemExit(f"A life ended with status {status}.")
            return True
        time.sleep(0.001)
    return False


def newest_save(folder: Path) -> float:
    """When the last checkpoint in a folder was whole."""
    times = []
    for path in folder.rglob("checkpoint-*.json"):
        try:
            times.append(path.stat().st_mtime)
        except FileNotFoundError:
            continue
    return max(times, default=0.0)


def found_in(folder: Path) -> dict[str, object]:
    """All that a finished run left, without times."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.suffix == ".safetensors":
            found[name] = load_file(path)
        elif path.name in ("metrics.jsonl", "summary.json", "points.json"):
            rows = [json.loads(line) for line in path.read_text().splitlines()] if (
                path.suffix == ".jsonl") else json.loads(path.read_text())  # fmt: skip
            found[name] = timeless(rows)
    for checkpoints in {p.parent for p in folder.rglob("checkpoint-*.pt")}:
        newest = max(checkpoints.glob("checkpoint-*.pt"))
        state = torch.load(newest, weights_only=True)
        if "rows" in state:
            state["rows"] = json.loads(state["rows"])
        found[str(newest.relative_to(folder))] = timeless(state)
    assert found
    return found


def timeless(value):
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if k not in TIMES}
    if isinstance(value, list | tuple):
        return [timeless(v) for v in value]
    return value


def differences(a, b, path: str = "") -> list[str]:
    """Where two results are not the same, bit for bit."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        # Bytes: two numbers that are not numbers are the same where their bits are.
        same = a.dtype == b.dtype and a.shape == b.shape
        same = same and a.contiguous().numpy().tobytes() == b.contiguous().numpy().tobytes()
        return [] if same else [path]
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return [d for k in a for d in differences(a[k], b[k], f"{path}/{k}")]
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        return [d for i, (x, y) in enumerate(zip(a, b, strict=True))
                for d in differences(x, y, f"{path}/{i}")]  # fmt: skip
    return [] if a == b else [path]


def kill(case: Callable[[Path], None], kills: int, seed: int, root: Path) -> dict[str, object]:
    """Kill so many lives; what was lost, and what differs from a run that was not killed."""
    began = time.monotonic()
    child = begin(case, root / "whole")
    assert ended(child, began + 300), "the run that is not killed takes too long"
    length = time.monotonic() - began
    expected = found_in(root / "whole")
    draw, number, done, lost, finished, instants = random.Random(seed), 0, 0, [], 0, []
    different: list[str] = []
    while done < kills or not finished:
        folder = root / f"run-{number}"
        began = time.monotonic()
        child = begin(case, folder)
        # Anywhere in what a run takes; some are over before they trained.
        wait = draw.uniform(0, length) if done < kills else 300.0
        if ended(child, began + wait):
            different += [f"run-{number}{d}" for d in differences(expected, found_in(folder))]
            finished, number = finished + 1, number + 1
            continue
        os.killpg(child, signal.SIGKILL)
        now = time.time()
        os.waitpid(child, 0)
        done += 1
        instants.append(round(wait, 4))
        # Only what was trained in this life can be lost by its end.
        since = max(newest_save(folder), STEPPED.first)
        lost.append(max(0.0, now - since) if STEPPED.first else 0.0)
    return {
        "kills": done,
        "runs_finished": finished,
        "different": different[:20],
        "seconds_of_a_whole_run": round(length, 3),
        "seconds_lost_mean": round(sum(lost) / len(lost), 4),
        "seconds_lost_most": round(max(lost), 4),
        "killed_before_the_first_step": sum(1 for s in lost if not s),
        "instants": instants,
    }


def case_of(name: str, root: Path) -> Callable[[Path], None]:
    """What is run, by name."""
    contrast = {"negatives": 32}
    if name == "transfer":
        return transferred(root)
    if name == "gloo":
        return together
    return {
        "cktf+kd": lambda: distilled("cktf+kd", {"cktf": contrast}),
        "init": lambda: distilled("ab+ft+kd", {}, init_epochs=1),
        "queue": lambda: distilled(
            "cktf", {"cktf": contrast | {"memory": "queue", "queue_size": 96}}
        ),
    }[name]()


CASES = ("cktf+kd", "init", "queue", "gloo", "transfer")


def main() -> None:
    """Kill one case, and print what was found."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("cases", nargs="*", default=CASES)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    _clocked()
    results = []
    for case in arguments.cases:
        with tempfile.TemporaryDirectory() as folder:
            carry_out = case_of(case, Path(folder))
            found = kill(carry_out, arguments.kills, arguments.seed, Path(folder))
        results.append({"case": case} | found)
        print(json.dumps(results[-1]), flush=True)
        if arguments.out is not None:
            arguments.out.write_text(json.dumps(results, indent=1) + "\n")
    sys.exit(any(found["different"] for found in results))


if __name__ == "__main__":
    main()
