"""Checkpoints that are damaged, cannot be written, or are not what they seem."""

import errno
import hashlib
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import zipfile
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from small_runs import SmallNet, after_each_step, assert_equal_runs, read_metrics
from unsafe_pickle import MakesFolder

from cktf.engine import Callback, RunFolder, run_folder
from cktf.engine.checkpoints import Checkpoints
from cktf.errors import CheckpointError, RunFolderError, TrainingError

OFTEN = {"checkpoint.minutes": 1e-9}


@pytest.fixture
def saved(tmp_path):
    """Two checkpoints, the warnings about them, and the path of the newest."""
    warnings = []
    checkpoints = Checkpoints(tmp_path, warnings.append)
    for number in (1, 2):
        torch.manual_seed(number)
        state = {"number": number, "weights": torch.randn(20, 10), "more": {"a": [1, 2.5, None]}}
        checkpoints.save(state, f"{number}")
    return checkpoints, warnings, checkpoints.paths[-1]


def test_the_last_two_are_kept(saved, tmp_path):
    checkpoints, _, _ = saved
    checkpoints.save({"number": 3}, "3")
    assert [p.name for p in checkpoints.paths] == ["checkpoint-2.pt", "checkpoint-3.pt"]
    assert len(list(tmp_path.iterdir())) == 4
    assert checkpoints.newest() == {"number": 3}


def test_a_flipped_bit_is_seen_wherever_it_is(saved):
    """In headers, names, pickle, numbers and the archive's directory: every 16th byte."""
    checkpoints, warnings, newest = saved
    whole = newest.read_bytes()
    for offset in range(0, len(whole), 16):
        warnings.clear()
        damaged = bytearray(whole)
        damaged[offset] ^= 1 << offset % 8
        newest.write_bytes(damaged)
        assert checkpoints.newest()["number"] == 1
        assert "checkpoint-2.pt is damaged" in warnings[0]
        assert "trying the one before" in warnings[0]
    newest.write_bytes(whole)
    assert checkpoints.newest()["number"] == 2


def test_a_flipped_bit_in_a_manifest_never_gives_another_state(saved):
    checkpoints, _, newest = saved
    manifest, good = newest.with_suffix(".json"), torch.load(newest, weights_only=True)
    whole, refused = manifest.read_bytes(), 0
    for offset in range(len(whole)):
        damaged = bytearray(whole)
        damaged[offset] ^= 1 << offset % 8
        manifest.write_bytes(damaged)
        state = checkpoints.newest()
        if state["number"] == 2:  # white space
            assert torch.equal(state["weights"], good["weights"])
        else:
            refused += 1
    assert refused > 0.8 * len(whole)


def test_a_file_cut_short_is_seen_at_any_length(saved):
    checkpoints, warnings, newest = saved
    for path in (newest, newest.with_suffix(".json")):
        whole = path.read_bytes()
        for length in range(0, len(whole) - 1, max(1, len(whole) // 40)):
            path.write_bytes(whole[:length])
            assert checkpoints.newest()["number"] == 1
        path.write_bytes(whole)
    assert warnings


def test_one_without_its_file_or_its_manifest(saved):
    checkpoints, warnings, newest = saved
    newest.with_suffix(".json").rename(newest.with_suffix(".aside"))
    assert checkpoints.newest()["number"] == 1
    assert not warnings  # it was never finished
    newest.with_suffix(".aside").rename(newest.with_suffix(".json"))
    newest.unlink()
    assert checkpoints.newest()["number"] == 1
    assert "damaged" in warnings[0]


def test_a_damaged_one_is_replaced_when_training_comes_there_again(saved):
    checkpoints, _, newest = saved
    newest.write_bytes(b"x")
    checkpoints.save({"number": 20}, "2")
    assert checkpoints.newest() == {"number": 20}
    newest.write_bytes(b"x")
    checkpoints.save({"number": 15}, "1b")
    assert [p.name for p in checkpoints.paths] == ["checkpoint-1.pt", "checkpoint-1b.pt"]


@contextmanager
def memory_left(megabytes: int):
    """No more than so much, beside what is held."""
    if sys.platform != "linux":
        pytest.skip("no limit of memory")
    import resource

    status = Path("/proc/self/status").read_text()
    held = int(status.split("VmData:")[1].split()[0]) << 10
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (held + (megabytes << 20), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def test_banks_larger_than_memory_are_read_from_the_file(tmp_path):
    checkpoints = Checkpoints(tmp_path, print)
    bank = torch.arange(1 << 24).float()  # 64 MB
    checkpoints.save({"objective": {"bank": bank}, "place": [1, 2]}, "1")
    there = torch.zeros_like(bank)
    before = checkpoints.paths[0].read_bytes()
    with memory_left(32):
        state = checkpoints.newest()
        assert str(tmp_path) in Path("/proc/self/maps").read_text()
        there.copy_(state["objective"]["bank"])
    assert state["place"] == [1, 2]
    assert torch.equal(there, bank)
    assert checkpoints.paths[0].read_bytes() == before


def test_what_others_keep_of_a_checkpoint_does_not_depend_on_its_file(saved):
    checkpoints, _, newest = saved
    state = checkpoints.newest()
    weights = state["weights"].clone()
    with newest.open("r+b") as file:
        file.write(bytes(newest.stat().st_size))
    assert torch.equal(state["weights"], weights)


def not_mapped(*args, **named):
    raise RuntimeError("unable to mmap 9 bytes from file <x>: Cannot allocate memory (12)")


def not_allocated(*args, **named):
    return torch.empty(1 << 60, dtype=torch.uint8)


def not_known(*args, **named):
    raise MemoryError


@pytest.mark.parametrize("load", [not_mapped, not_allocated, not_known])
def test_too_little_memory_is_no_damage(saved, monkeypatch, load):
    checkpoints, warnings, newest = saved
    monkeypatch.setattr("cktf.engine.checkpoints.torch.load", load)
    with pytest.raises(TrainingError, match=f"too little memory .*{newest.name} .*undamaged"):
        checkpoints.newest()
    assert not warnings


def write_manifest(path):
    """Write the manifest that fits a file."""
    entry = {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    path.with_suffix(".json").write_text(json.dumps({"files": {path.name: entry}}))


@pytest.mark.parametrize("plain", [False, True])
def test_a_checkpoint_runs_no_code(saved, tmp_path, plain):
    checkpoints, warnings, newest = saved
    evil = {"number": 2, "weights": MakesFolder(tmp_path / "opened")}
    if plain:
        newest.write_bytes(pickle.dumps(evil))
    else:
        torch.save(evil, newest)
    write_manifest(newest)
    assert checkpoints.newest()["number"] == 1
    assert warnings
    assert not (tmp_path / "opened").exists()


def test_a_compressed_checkpoint_is_not_unpacked(saved, tmp_path):
    checkpoints, warnings, newest = saved
    with zipfile.ZipFile(newest) as old:
        parts = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(newest, "w", zipfile.ZIP_DEFLATED) as new:
        for name, content in parts.items():
            new.writestr(name, content)
    write_manifest(newest)
    assert checkpoints.newest()["number"] == 1
    assert "compressed" in warnings[0]


def test_room_is_asked_for_what_is_not_there_yet(tmp_path, monkeypatch):
    run, free = RunFolder(tmp_path), SimpleNamespace(free=3 << 20)
    monkeypatch.setattr(run_folder.shutil, "disk_usage", lambda _: free)
    run.create(checkpoint_mb=1)
    for number in (1, 2):
        run.checkpoints.save({"number": number, "weights": torch.zeros(1 << 18)}, f"{number}")
    free.free = 3 << 19
    run.create(checkpoint_mb=1)
    # The next is written before the older one goes.
    free.free = 1 << 19
    with pytest.raises(RunFolderError, match="checkpoints take 1 MB more"):
        run.create(checkpoint_mb=1)


@pytest.mark.parametrize("function", ["os.fsync", "_Writer.write"])
def test_a_failed_save_leaves_the_others(saved, monkeypatch, tmp_path, function):
    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")

    checkpoints, _, _ = saved
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    monkeypatch.setattr(f"cktf.engine.checkpoints.{function}", fail)
    with pytest.raises(OSError, match=r"put/output|enforce"):
        checkpoints.save({"number": 3, "weights": torch.zeros(1000)}, "3")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


# Whole runs


# The run goes on without TensorBoard, whose thread fails to write.
ignore_tracker_thread = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnhandledThreadExceptionWarning"
)


@contextmanager
def tmpfs(path: Path, megabytes: int):
    path.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "none", path], capture_output=True
    )
    if made.returncode:
        pytest.skip(f"no tmpfs without root: {made.stderr.decode().strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", path], check=True)


def fill_up(path: Path):
    """Write until the file system is full."""
    with suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def at_steps(monkeypatch, actions):
    """Call `actions[n]` after the n-th step of a run."""
    calls = []

    def count(trainer):
        calls.append(1)
        actions.get(len(calls), lambda: None)()

    after_each_step(monkeypatch, count)


def names_in(run_dir):
    return [p.name for p in Checkpoints(run_dir / "checkpoints", print).paths]


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="Linux tells what is mapped")
def test_a_resumed_run_unmaps_its_checkpoint(small_run, interrupted_run, monkeypatch):
    """As long as a checkpoint is mapped, its file takes room on the disk."""
    interrupted_run(3, method="cktf+kd")
    mapped = []

    def look():
        mapped.append("checkpoint-" in Path("/proc/self/maps").read_text())

    at_steps(monkeypatch, dict.fromkeys(range(1, 8), look))
    small_run(method="cktf+kd", resume=True)
    assert mapped == [False] * 7


@ignore_tracker_thread
def test_a_full_disk(small_run, tmp_path, monkeypatch, capsys):
    """ENOSPC from a real file system, while training, and room again before its end."""
    whole = small_run("whole", overrides=OFTEN)
    with tmpfs(tmp_path / "disk", 2) as disk:
        run_dir, ballast, names = disk / "run", disk / "ballast", []

        def fill():
            fill_up(ballast)
            names.append(names_in(run_dir))

        def free():
            names.append(names_in(run_dir))
            ballast.unlink()

        monkeypatch.setattr("cktf.engine.checkpointing._RETRY_SECONDS", 1e-9)
        at_steps(monkeypatch, {4: fill, 8: free})
        run = small_run("disk/run", overrides=OFTEN)
        assert names[0] == names[1]
        assert len(names[0]) == 2
        assert_equal_runs(whole, run)
        log = (run_dir / "log.txt").read_text()
        assert "could not be written (No space left on device)" in log
        assert "could be written again" in log
        assert "metrics.jsonl could not be written" in capsys.readouterr().err
        assert Checkpoints(run_dir / "checkpoints", print).newest()["position"] == [2, 0]


@ignore_tracker_thread
def test_a_full_disk_at_the_end_is_waited_for(small_run, tmp_path, monkeypatch):
    with tmpfs(tmp_path / "disk", 2) as disk:
        ballast = disk / "ballast"
        monkeypatch.setattr(run_folder.time, "sleep", lambda _: ballast.unlink())
        at_steps(monkeypatch, {10: lambda: fill_up(ballast)})
        assert small_run("disk/run").summary["epochs"] == 2
        assert RunFolder(disk / "run").finished
        assert [row["epoch"] for row in read_metrics(disk / "run")] == [1, 2]
        assert "the student could not be written" in (disk / "run" / "log.txt").read_text()


@ignore_tracker_thread
def test_a_folder_that_may_not_be_written(small_run, tmp_path, monkeypatch):
    """EACCES: the folder loses its permission, and root its privilege, while training."""
    whole = small_run("whole", overrides=OFTEN)
    run_dir, names = tmp_path / "run", []
    folder, root = run_dir / "checkpoints", os.geteuid() == 0

    def forbid():
        folder.chmod(0o555)
        if root:
            os.seteuid(65534)
        with pytest.raises(PermissionError):
            (folder / "probe").touch()

    def allow():
        if root:
            os.seteuid(0)
        names.append(names_in(run_dir))
        folder.chmod(0o755)

    for path in (tmp_path, *list(tmp_path.parents)[:2]):
        path.chmod(0o755)
    monkeypatch.setattr("cktf.engine.checkpointing._RETRY_SECONDS", 1e-9)
    at_steps(monkeypatch, {4: forbid, 7: allow})
    try:
        run = small_run(overrides=OFTEN)
    finally:
        if root:
            os.seteuid(0)
    assert names == [["checkpoint-000000-000000002.pt", "checkpoint-000000-000000003.pt"]]
    assert_equal_runs(whole, run)
    assert "Permission denied" in (run_dir / "log.txt").read_text()


def test_a_damaged_checkpoint_costs_only_its_steps(small_run, interrupted_run, tmp_path, capsys):
    whole = small_run("whole")
    interrupted_run(7, overrides=OFTEN)
    newest = max((tmp_path / "run" / "checkpoints").glob("*.pt"))
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 4
    newest.write_bytes(content)
    run = small_run(resume=True, overrides=OFTEN)
    assert "its content is not what was written" in capsys.readouterr().err
    assert_equal_runs(whole, run)


def test_a_checkpoint_of_another_version_or_network(small_run, interrupted_run, tmp_path):
    interrupted_run(3)
    shutil.copytree(tmp_path / "run", tmp_path / "other")
    path = max((tmp_path / "run" / "checkpoints").glob("*.pt"))
    state = torch.load(path, weights_only=True)
    torch.save(state | {"version": 99}, path)
    write_manifest(path)
    with pytest.raises(CheckpointError, match="of version 99, not"):
        small_run(resume=True)
    with pytest.raises(CheckpointError, match="belongs to another run"):
        small_run("other", student=SmallNet(width=12), resume=True)


class Clock(Callback):
    """The clock of checkpoints, which each step moves on by 20 seconds."""

    def __init__(self, monkeypatch):
        self.seconds = 0.0
        clock = SimpleNamespace(monotonic=lambda: self.seconds)
        monkeypatch.setattr("cktf.engine.checkpointing.time", clock)

    def on_step_end(self, trainer):
        self.seconds += 20


def saved_positions(run):
    """What log.txt says: epochs and steps of every checkpoint that was saved."""
    log = (run.folder / "log.txt").read_text()
    return [tuple(map(int, at)) for at in re.findall(r"saved after (\d+) epochs and (\d+) st", log)]


@pytest.mark.parametrize(
    ("every", "expected"),
    [
        ({"minutes": 1, "epochs": 0}, [(0, 3), (1, 1), (1, 4), (2, 2), (2, 5), (3, 0)]),
        ({"minutes": 0, "epochs": 2}, [(2, 0), (3, 0)]),
        ({"minutes": 0, "epochs": 0}, [(3, 0)]),
        ({"minutes": 0, "epochs": 0, "init_epochs": 2}, [(2, 0), (5, 0)]),
    ],
)
def test_when_a_run_is_saved(small_run, monkeypatch, every, expected):
    """By the clock, every few epochs, and at the end of a phase; a step takes 20 seconds."""
    clock = Clock(monkeypatch)
    fields = {name: value for name, value in every.items() if name == "init_epochs"}
    overrides = fields | {f"checkpoint.{n}": v for n, v in every.items() if n not in fields}
    method = "ab+ce" if fields else "ce"
    run = small_run(method=method, epochs=3, overrides=overrides, callbacks=[clock])
    assert saved_positions(run) == expected


@pytest.mark.parametrize("minutes", [0, 5])
def test_a_failed_save_is_tried_again_after_a_minute(small_run, monkeypatch, minutes):
    save, calls = Checkpoints.save, []

    def fail_first(self, state, name):
        calls.append(name)
        if len(calls) < 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(self, state, name)

    monkeypatch.setattr(Checkpoints, "save", fail_first)
    overrides = {"checkpoint.epochs": 1, "checkpoint.minutes": minutes}
    run = small_run(method="ce", overrides=overrides, callbacks=[Clock(monkeypatch)])
    at = ["000001-000000000", "000001-000000003", "000002-000000000"]
    assert calls == at
    assert saved_positions(run) == [(2, 0)]
