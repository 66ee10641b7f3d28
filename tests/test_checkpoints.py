"""Checkpoints that are damaged, cannot be written, or are not what they seem."""

import errno
import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from small_runs import (
    SmallNet,
    after_each_step,
    distill_few,
    equal_weights,
    read_untimed_metrics,
    stop_after_steps,
    student_weights,
)
from unsafe_pickle import MakesFolder

import cktf
from cktf.engine import RunFolder, checkpoints, run_folder
from cktf.engine.checkpoints import Checkpoints
from cktf.errors import CheckpointError, Interrupted, RunFolderError, TrainingError

OFTEN = {"checkpoint.minutes": 1e-9}


@pytest.fixture
def two(tmp_path):
    """Two checkpoints, what is said of them, and their files."""
    said = []
    kept = Checkpoints(tmp_path, said.append)
    for number in (1, 2):
        torch.manual_seed(number)
        state = {"number": number, "weights": torch.randn(20, 10), "more": {"a": [1, 2.5, None]}}
        kept.save(state, f"{number}")
    return kept, said, kept.present[-1]


def test_the_last_two_are_kept(two, tmp_path):
    kept, _, _ = two
    kept.save({"number": 3}, "3")
    assert [p.name for p in kept.present] == ["checkpoint-2.pt", "checkpoint-3.pt"]
    assert len(list(tmp_path.iterdir())) == 4
    assert kept.newest() == {"number": 3}


def test_a_manifest_holds_size_and_hash(two):
    _, _, newest = two
    told = json.loads(newest.with_suffix(".json").read_text())["files"][newest.name]
    content = newest.read_bytes()
    assert told == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def test_a_flipped_bit_is_seen_wherever_it_is(two):
    """In headers, names, pickle, numbers and the archive's directory: every 16th byte."""
    kept, said, newest = two
    whole = newest.read_bytes()
    for place in range(0, len(whole), 16):
        said.clear()
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        newest.write_bytes(damaged)
        assert kept.newest()["number"] == 1
        assert "checkpoint-2.pt is damaged" in said[0]
        assert "trying the one before" in said[0]
    newest.write_bytes(whole)
    assert kept.newest()["number"] == 2


def test_a_flipped_bit_in_a_manifest_never_gives_another_state(two):
    kept, _, newest = two
    manifest, good = newest.with_suffix(".json"), torch.load(newest, weights_only=True)
    whole, passed_over = manifest.read_bytes(), 0
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        manifest.write_bytes(damaged)
        state = kept.newest()
        if state["number"] == 2:  # white space
            assert torch.equal(state["weights"], good["weights"])
        else:
            passed_over += 1
    assert passed_over > 0.8 * len(whole)


def test_a_file_cut_short_is_seen_at_any_length(two):
    kept, said, newest = two
    for path in (newest, newest.with_suffix(".json")):
        whole = path.read_bytes()
        for length in range(0, len(whole) - 1, max(1, len(whole) // 40)):
            path.write_bytes(whole[:length])
            assert kept.newest()["number"] == 1
        path.write_bytes(whole)
    assert said


def test_one_without_its_file_or_its_manifest(two):
    kept, said, newest = two
    newest.with_suffix(".json").rename(newest.with_suffix(".aside"))
    assert kept.newest()["number"] == 1
    assert not said  # it was never finished
    newest.with_suffix(".aside").rename(newest.with_suffix(".json"))
    newest.unlink()
    assert kept.newest()["number"] == 1
    assert "damaged" in said[0]


def test_a_damaged_one_is_replaced_when_training_comes_there_again(two):
    kept, _, newest = two
    newest.write_bytes(b"x")
    kept.save({"number": 20}, "2")
    assert kept.newest() == {"number": 20}
    newest.write_bytes(b"x")
    kept.save({"number": 15}, "1b")
    assert [p.name for p in kept.present] == ["checkpoint-1.pt", "checkpoint-1b.pt"]


def test_all_damaged(two):
    kept, _, _ = two
    for path in kept.present:
        path.write_bytes(b"")
    with pytest.raises(RunFolderError, match="None of the checkpoints"):
        kept.newest()


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
    kept = Checkpoints(tmp_path, print)
    bank = torch.arange(1 << 24).float()  # 64 MB
    kept.save({"objective": {"bank": bank}, "place": [1, 2]}, "1")
    there = torch.zeros_like(bank)
    before = kept.present[0].read_bytes()
    with memory_left(32):
        state = kept.newest()
        assert str(tmp_path) in Path("/proc/self/maps").read_text()
        there.copy_(state["objective"]["bank"])
    assert state["place"] == [1, 2]
    assert torch.equal(there, bank)
    assert kept.present[0].read_bytes() == before


def test_what_others_keep_of_a_checkpoint_does_not_depend_on_its_file(two):
    kept, _, newest = two
    state = kept.newest()
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
def test_too_little_memory_is_no_damage(two, monkeypatch, load):
    kept, said, newest = two
    monkeypatch.setattr(checkpoints.torch, "load", load)
    with pytest.raises(
        TrainingError, match=f"too little memory to load .*{newest.name} .*, undamaged"
    ):
        kept.newest()
    assert not said


def vouch(path):
    """A manifest that says that all is well."""
    told = {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    path.with_suffix(".json").write_text(json.dumps({"files": {path.name: told}}))


@pytest.mark.parametrize("plain", [False, True])
def test_a_checkpoint_runs_no_code(two, tmp_path, plain):
    kept, said, newest = two
    evil = {"number": 2, "weights": MakesFolder(tmp_path / "opened")}
    if plain:
        newest.write_bytes(pickle.dumps(evil))
    else:
        torch.save(evil, newest)
    vouch(newest)
    assert kept.newest()["number"] == 1
    assert said
    assert not (tmp_path / "opened").exists()


def test_a_compressed_checkpoint_is_not_unpacked(two, tmp_path):
    kept, said, newest = two
    with zipfile.ZipFile(newest) as old:
        parts = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(newest, "w", zipfile.ZIP_DEFLATED) as new:
        for name, content in parts.items():
            new.writestr(name, content)
    vouch(newest)
    assert kept.newest()["number"] == 1
    assert "compressed" in said[0]


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


def test_a_failed_save_leaves_the_others(two, monkeypatch, tmp_path):
    kept, _, _ = two
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    for failing in ("fsync", "write"):
        with monkeypatch.context() as patch:
            broken = OSError(errno.EIO, "Input/output error")

            def fail(*args, broken=broken):
                raise broken

            if failing == "fsync":
                patch.setattr(checkpoints.os, "fsync", fail)
            else:
                patch.setattr(checkpoints._Writer, "write", fail)
            with pytest.raises(OSError, match=r"put/output|enforce"):
                kept.save({"number": 3, "weights": torch.zeros(1000)}, "3")
        assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


# Whole runs


# TensorBoard, where it is installed, writes from a thread of its own, and is left out by the run.
alone = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")


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
    """Do something after steps of a run, counted from 1."""
    done = []

    def count(trainer):
        done.append(1)
        actions.get(len(done), lambda: None)()

    after_each_step(monkeypatch, count)


def kept_in(folder):
    return [p.name for p in Checkpoints(folder / "checkpoints", print).present]


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="Linux tells what is mapped")
def test_a_run_that_goes_on_lets_go_of_where_it_came_from(few_images, tmp_path, monkeypatch):
    """As long as a checkpoint is mapped, its file takes room on the disk."""
    with monkeypatch.context() as patched:
        stop_after_steps(patched, 3)
        with pytest.raises(Interrupted):
            distill_few(few_images, tmp_path / "run")
    mapped = []

    def look():
        mapped.append("checkpoint-" in Path("/proc/self/maps").read_text())

    at_steps(monkeypatch, dict.fromkeys(range(1, 8), look))
    distill_few(few_images, tmp_path / "run", resume=True)
    assert mapped == [False] * 7


@alone
def test_a_full_disk(few_images, tmp_path, monkeypatch, capsys):
    """ENOSPC from a real file system, while training, and room again before its end."""
    whole = distill_few(few_images, tmp_path / "whole", method="kd", overrides=OFTEN)
    with tmpfs(tmp_path / "disk", 2) as disk:
        run, ballast, seen = disk / "run", disk / "ballast", []

        def fill():
            fill_up(ballast)
            seen.append(kept_in(run))

        def free():
            seen.append(kept_in(run))
            ballast.unlink()

        monkeypatch.setattr("cktf.engine.checkpointing._RETRY_SECONDS", 0.0)
        at_steps(monkeypatch, {4: fill, 8: free})
        done = distill_few(few_images, run, method="kd", overrides=OFTEN)
        assert seen[0] == seen[1]
        assert len(seen[0]) == 2
        assert equal_weights(student_weights(whole), student_weights(done))
        assert read_untimed_metrics(whole.folder) == read_untimed_metrics(run)
        log = (run / "log.txt").read_text()
        assert "could not be written (No space left on device)" in log
        assert "could be written again" in log
        assert "metrics.jsonl could not be written" in capsys.readouterr().err
        kept = Checkpoints(run / "checkpoints", print)
        assert kept.newest()["position"] == [2, 0]


@alone
def test_a_full_disk_at_the_end_is_waited_for(few_images, tmp_path, monkeypatch):
    with tmpfs(tmp_path / "disk", 2) as disk:
        ballast = disk / "ballast"

        monkeypatch.setattr(run_folder.time, "sleep", lambda _: ballast.unlink())
        at_steps(monkeypatch, {10: lambda: fill_up(ballast)})
        done = distill_few(few_images, disk / "run", method="kd")
        assert RunFolder(disk / "run").finished
        assert done.summary["epochs"] == 2
        assert "the student could not be written" in (disk / "run" / "log.txt").read_text()


@alone
def test_a_folder_that_may_not_be_written(few_images, tmp_path, monkeypatch):
    """EACCES: the folder loses its permission, and root its privilege, while training."""
    whole = distill_few(few_images, tmp_path / "whole", method="kd", overrides=OFTEN)
    run, seen = tmp_path / "run", []
    folder, root = run / "checkpoints", os.geteuid() == 0

    def forbid():
        folder.chmod(0o555)
        if root:
            os.seteuid(65534)
        with pytest.raises(PermissionError):
            (folder / "probe").touch()

    def allow():
        if root:
            os.seteuid(0)
        seen.append(kept_in(run))
        folder.chmod(0o755)

    for path in (tmp_path, *list(tmp_path.parents)[:2]):
        path.chmod(0o755)
    monkeypatch.setattr("cktf.engine.checkpointing._RETRY_SECONDS", 0.0)
    at_steps(monkeypatch, {4: forbid, 7: allow})
    try:
        done = distill_few(few_images, run, method="kd", overrides=OFTEN)
    finally:
        if root:
            os.seteuid(0)
    assert seen == [["checkpoint-000000-000000002.pt", "checkpoint-000000-000000003.pt"]]
    assert equal_weights(student_weights(whole), student_weights(done))
    assert read_untimed_metrics(whole.folder) == read_untimed_metrics(run)
    assert "Permission denied" in (run / "log.txt").read_text()


def test_a_damaged_checkpoint_costs_only_its_steps(few_images, tmp_path, monkeypatch, capsys):
    whole = distill_few(few_images, tmp_path / "whole", method="kd")
    with monkeypatch.context() as patch:
        stop_after_steps(patch, 7)
        with pytest.raises(Interrupted):
            distill_few(few_images, tmp_path / "run", method="kd", overrides=OFTEN)
    newest = max((tmp_path / "run" / "checkpoints").glob("*.pt"))
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 4
    newest.write_bytes(content)
    done = distill_few(few_images, tmp_path / "run", method="kd", resume=True, overrides=OFTEN)
    assert "its content is not what was written" in capsys.readouterr().err
    assert equal_weights(student_weights(whole), student_weights(done))
    assert read_untimed_metrics(whole.folder) == read_untimed_metrics(done.folder)


def test_a_checkpoint_of_another_version_or_network(few_images, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after_steps(patch, 3)
        with pytest.raises(Interrupted):
            distill_few(few_images, tmp_path / "run", method="kd")
    shutil.copytree(tmp_path / "run", tmp_path / "other")
    path = max((tmp_path / "run" / "checkpoints").glob("*.pt"))
    state = torch.load(path, weights_only=True)
    torch.save(state | {"version": 99}, path)
    vouch(path)
    with pytest.raises(CheckpointError, match="of version 99, not"):
        distill_few(few_images, tmp_path / "run", method="kd", resume=True)
    torch.manual_seed(0)
    with pytest.raises(CheckpointError, match="belongs to another run"):
        cktf.distill(
            SmallNet(width=16), SmallNet(width=12), train=few_images[0], test=few_images[1],
            method="kd", epochs=2, out=tmp_path / "other", resume=True, show=False,
            overrides={"data.batch_size": 40},
        )  # fmt: skip
