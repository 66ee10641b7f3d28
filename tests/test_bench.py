"""Training of matrices: processes that share a folder, kills, failures, and runs taken over."""

import csv
import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from small_matrix import ONE_CELL, TINY, TRANSFER, accuracies, make_bench, save_teacher
from small_runs import stop_after_steps
from typer.testing import CliRunner

from cktf.bench import compare, csv_rows, markdown, read_results, run_bench, runner
from cktf.bench.results import (
    Reusable,
    fill_defaults,
    result_key,
    save_teacher_record,
    weights_fingerprint,
)
from cktf.bench.runner import prepare_bench
from cktf.cli.main import app
from cktf.errors import Interrupted, RunFolderError, TrainingError


def start(matrix, out, *arguments):
    command = [sys.executable, "-m", "cktf", "bench", str(matrix), "--out", str(out), *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.mark.slow
def test_transfers_are_cells_too(teacher_weights, tmp_path):
    recipe = {"epochs": 1, "scratch_epochs": 1, "labels_per_class": [4], "draws": 1}
    assert run_bench(make_bench(tmp_path, teacher_weights, TRANSFER | {"recipe": recipe})) == []
    (result,) = read_results(tmp_path / "results")
    assert result.recipe["kind"] == "transfer"
    assert result.top1 == result.summary["student_probe_top1"]
    assert "fashion-mini" in str(compare(tmp_path).columns)


@pytest.mark.slow
def test_networks_from_a_file(tmp_path):
    """Of a file: trained where it is trusted, and the table knows them by their names."""
    (tmp_path / "own.py").write_text(
        "from cktf.models import create\n\n\n"
        "def net(num_classes):\n    return create('resnet8', num_classes)\n"
    )
    line = f"{tmp_path}/own.py:net"
    fields = {
        "teachers": {"T": {"network": line, "recipe": {"epochs": 1}}}, "pairs": [f"T:{line}"],
        "methods": {"KD": "kd", "AT": "at"}, "seeds": [0],
    }  # fmt: skip
    plan = make_bench(tmp_path / "out", matrix=fields, interleaved=2, trust_code=True)
    assert run_bench(plan) == []
    table = compare(tmp_path / "out")
    assert [(c.teacher, c.student) for c in table.columns] == [("T", line)]
    assert "Unfinished" not in csv_rows(table) + markdown(table)


@pytest.mark.slow
def test_old_failures_and_damaged_results_are_redone(finished, teacher_weights, tmp_path):
    shutil.copytree(finished, tmp_path / "out")
    plan = make_bench(tmp_path / "out", teacher_weights)
    first, second = plan.cells[:2]
    plan.failure_file(first.slug).write_text("an earlier failure\n")
    plan.result_file(second).write_bytes(b"")
    assert not plan.is_done(second)
    assert run_bench(plan) == []
    assert accuracies(plan.out) == accuracies(finished)


def test_other_weights_of_a_teacher_are_refused(finished, tmp_path):
    torch.manual_seed(1)
    path = tmp_path / "other.safetensors"
    save_teacher(path)
    with pytest.raises(RunFolderError, match="resnet14: its weights"):
        run_bench(make_bench(finished, path))


@pytest.mark.slow
def test_other_cells_are_trained_while_a_teacher_is_locked(teacher_weights, tmp_path):
    teachers = {name: {"network": "resnet14", "weights": str(teacher_weights)} for name in "AB"}
    plan = make_bench(
        tmp_path,
        matrix={
            "teachers": teachers, "pairs": ["A:resnet8", "B:resnet8"], "methods": {"KD": "kd"},
            "seeds": [0],
        },
    )  # fmt: skip
    prepare_bench(plan)
    of_a, of_b = plan.cells
    order = []

    def another_process():
        with (plan.out / "locks" / of_a.teacher.slug).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            held.set()
            deadline = time.monotonic() + 60
            while not plan.is_done(of_b) and time.monotonic() < deadline:
                time.sleep(0.05)
            order.append((plan.is_done(of_a), plan.is_done(of_b)))

    held = threading.Event()
    thread = threading.Thread(target=another_process)
    thread.start()
    held.wait()
    assert run_bench(plan) == []
    thread.join()
    assert order == [(False, True)]
    assert plan.is_done(of_a)


@pytest.mark.slow
def test_interleaved_students_equal_single_runs(finished, teacher_weights, tmp_path):
    """With a shard for each seed; finished cells are not trained again."""
    for number in (1, 2):
        half = make_bench(tmp_path, teacher_weights, interleaved=3, shard=(number, 2))
        assert len(half.groups()) == 1
        assert run_bench(half) == []
    assert accuracies(tmp_path) == accuracies(finished)
    assert {r.interleaved for r in read_results(tmp_path / "results")} == {3}
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("cells/*/*")}
    assert run_bench(make_bench(tmp_path, teacher_weights)) == []
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.glob("cells/*/*")}


def test_failures_of_other_shards_do_not_count(finished, teacher_weights, tmp_path):
    shutil.copytree(finished / "results", tmp_path / "results")
    first, second = (make_bench(tmp_path, teacher_weights, shard=(n, 2)) for n in (1, 2))
    (theirs,) = second.groups()[0]
    second.result_file(theirs).unlink()
    second.failure_file(theirs.slug).parent.mkdir()
    second.failure_file(theirs.slug).write_text("long ago")
    assert run_bench(first) == []


def test_interrupted_between_cells(teacher_weights, tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt("Stopped by SIGTERM.")

    monkeypatch.setattr(runner, "_train_group", interrupt)
    with pytest.raises(Interrupted, match=r"Stopped by SIGTERM\."):
        run_bench(make_bench(tmp_path, teacher_weights))


@pytest.mark.slow
def test_held_out_accuracies(teacher_weights, tmp_path):
    data = TINY["data"] | {"validation": 0.25}
    plan = make_bench(
        tmp_path, teacher_weights, matrix={"held_out": True, "data": data, "methods": {"KD": "kd"}}
    )
    assert run_bench(plan) == []
    table = compare(tmp_path)
    (entry,) = table.entries.values()
    found = {r.seed: r.summary["validation_top1"] for r in read_results(tmp_path / "results")}
    assert entry.values == found
    assert list(table.teachers.values()) == [None]
    assert "accuracy on held-out training images, of the epoch" in table.conditions
    assert "test images" not in table.conditions


@pytest.mark.slow
def test_pending_cells_are_interleaved(finished, teacher_weights, tmp_path):
    """A finished cell between them takes no place."""
    plan = make_bench(tmp_path, teacher_weights, matrix={"seeds": [0]}, interleaved=2)
    plan.results.mkdir()
    middle = plan.result_file(plan.cells[1])
    shutil.copy(finished / "results" / middle.name, middle)
    assert run_bench(plan) == []
    sizes = {r.method: r.interleaved for r in read_results(plan.results)}
    assert sizes == {"alone": 2, "KD": 1, "CKTF": 2}
    assert accuracies(tmp_path).items() <= accuracies(finished).items()


@pytest.mark.slow
def test_two_shards_in_two_processes_give_the_table_of_one(finished, tiny_yaml, tmp_path):
    shards = [start(tiny_yaml, tmp_path / "shared", "--shard", f"{n}/2") for n in (1, 2)]
    for shard in shards:
        output = shard.communicate(timeout=300)[0]
        assert shard.returncode == 0, output
    tables = [csv_rows(compare(out)) for out in (finished, tmp_path / "shared")]
    columns = ["method", "n", "mean", "sd", "difference", "low", "high", "by_seed"]
    rows = [[{c: r[c] for c in columns} for r in csv.DictReader(t.splitlines())] for t in tables]
    assert rows[0] == rows[1]
    assert len(rows[0]) == 3


def test_dead_processes_are_reported(teacher_weights, tmp_path, monkeypatch):
    class Dead:
        exitcode = -9

        def __init__(self, **_):
            pass

        def start(self):
            pass

        join = start

    monkeypatch.setattr("multiprocessing.context.SpawnContext.Process", Dead)
    with pytest.raises(TrainingError, match=r"1 of 2 \(exit code -9\), 2 of 2"):
        run_bench(make_bench(tmp_path, teacher_weights), jobs=2)
    with pytest.raises(RunFolderError, match="--reuse /nowhere: there is no such folder"):
        run_bench(make_bench(tmp_path, teacher_weights, reuse=[Path("/nowhere")]), jobs=2)


@pytest.mark.slow
def test_sigterm_reaches_the_processes(finished, tiny_yaml, tmp_path):
    """They save and end; the same command goes on to the same results."""
    parent = start(tiny_yaml, tmp_path / "out", "--jobs", "2")
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("out/cells/*/log.txt")) and time.monotonic() < deadline:
        time.sleep(0.05)
    parent.terminate()
    output = parent.communicate(timeout=120)[0]
    assert parent.returncode == 75, output
    assert "Stopped by SIGTERM; saved. Continue with the same command again." in output
    # The pipe has ended, so that no process of theirs holds it any more.
    again = start(tiny_yaml, tmp_path / "out", "--jobs", "2")
    output = again.communicate(timeout=300)[0]
    assert again.returncode == 0, output
    assert accuracies(tmp_path / "out") == accuracies(finished)


def test_a_copy_that_fails_is_one_failed_cell(finished, teacher_weights, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copytree", full)
    # The runs, not what is known of them: those are copied.
    reuse = [finished / "cells"]
    failed = run_bench(make_bench(tmp_path, teacher_weights, reuse=reuse, matrix={"seeds": [0]}))
    assert len(failed) == 3
    assert "No space left" in (tmp_path / "failures" / f"{failed[0]}.txt").read_text()


def test_students_of_two_teachers_are_marked(finished, tmp_path):
    """By the table, whatever put them there; as by a copy of results from elsewhere."""
    shutil.copytree(finished / "results", tmp_path / "results")
    assert "several teachers" not in markdown(compare(tmp_path / "results"))
    path = min((tmp_path / "results").glob("*CKTF*.json"))
    fields = json.loads(path.read_text())
    fields["recipe"]["teacher"] = "sha256 of another"
    path.write_text(json.dumps(fields))
    assert "On resnet14 → resnet8, students had several teachers" in markdown(compare(tmp_path))


def test_simultaneous_teacher_records(tmp_path):
    """One of them is refused, also where their folders have nothing but results in common."""
    path, barrier = tmp_path / "teacher.json", threading.Barrier(8)

    def keep(number):
        barrier.wait()
        save_teacher_record(path, {"weights": f"sha256 {number}"})

    with ThreadPoolExecutor(8) as threads:
        kept = [threads.submit(keep, number) for number in range(8)]
    refused = [one.exception() for one in kept if one.exception()]
    assert len(refused) == 7
    assert all(isinstance(error, RunFolderError) for error in refused)


def test_a_missing_teacher_is_not_trained_again(tmp_path, monkeypatch):
    """Not trained again, and refused then, for it has other weights."""
    first = make_bench(tmp_path)
    kept = {"weights": "sha256 of another", "recipe": None}
    save_teacher_record(first.result_file(first.cells[0].teacher), kept)
    monkeypatch.setattr("cktf.bench.runner.run_recipe", None)
    with pytest.raises(RunFolderError, match="--teacher resnet14=FILE, or choose other --results"):
        run_bench(first)


def test_a_file_system_without_locks(teacher_weights, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert run_bench(make_bench(tmp_path, teacher_weights, matrix=ONE_CELL)) == []


def test_unusable_files_are_reported(finished, tmp_path, teacher_weights, capsys):
    """A result of another version, and half a note, among those that can."""
    shutil.copytree(finished / "results", tmp_path / "old")
    path = min((tmp_path / "old").glob("*CKTF*.json"))
    fields = json.loads(path.read_text())
    fields["recipe"]["data.of_another_version"] = 1
    path.write_text(json.dumps(fields))
    half = tmp_path / "old" / "half"
    shutil.copytree(min((finished / "cells").iterdir()), half)
    (half / "teacher.json").write_bytes(b"")
    assert run_bench(make_bench(tmp_path / "new", teacher_weights, reuse=[tmp_path / "old"])) == []
    output = "".join(capsys.readouterr().err.split())
    assert f"nottakenover:{path}:data.of_another_version:" in output
    assert f"nottakenover:{half / 'summary.json'}:Expectingvalue" in output


@pytest.mark.parametrize("folders", [1, 2])
def test_many_processes_start_at_once(teacher_weights, tmp_path, folders):
    """In one folder, or in folders of their own with results in one."""
    plan = make_bench(tmp_path, teacher_weights)
    plans = [replace(plan, out=tmp_path / str(number)) for number in range(folders)]
    with ThreadPoolExecutor(8) as threads:
        for begun in [threads.submit(prepare_bench, plan) for plan in plans * (100 // folders)]:
            begun.result()
    assert [path.name for path in plan.results.iterdir()] == ["matrix.yaml"]


def test_unwritable_folders_are_named(teacher_weights, tmp_path):
    (tmp_path / "file").touch()
    plan = make_bench(tmp_path / "out", teacher_weights)
    with pytest.raises(RunFolderError, match=r"file/results cannot .* another --results"):
        prepare_bench(replace(plan, results=tmp_path / "file" / "results"))
    with pytest.raises(RunFolderError, match=r"file/out cannot .* another --out"):
        prepare_bench(replace(plan, out=tmp_path / "file" / "out"))


@pytest.mark.slow
def test_killed_and_continued(finished, teacher_weights, tiny_yaml, tmp_path):
    """SIGKILL in the middle of a cell, with others finished and not begun."""
    out = tmp_path / "killed"
    process = start(tiny_yaml, out)
    deadline = time.monotonic() + 240
    while not any((out / "cells").glob("*KD*/checkpoints/*.pt")):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    left = len(list((out / "results").glob("*seed*.json")))
    assert 1 <= left < 6
    assert run_bench(make_bench(out, teacher_weights)) == []
    assert accuracies(out) == accuracies(finished)


@pytest.mark.slow
def test_a_failure_does_not_stop_the_others(teacher_weights, tmp_path):
    """FSP refuses networks of unequal widths; its companions in turn are done all the same."""
    methods = {"alone": "ce", "FSP": "fsp", "KD": "kd"}
    pairs = ["resnet14:resnet8x4"]
    failing = make_bench(
        tmp_path,
        teacher_weights,
        interleaved=3,
        matrix={"methods": methods, "pairs": pairs, "seeds": [0]},
    )
    (name,) = run_bench(failing)
    assert "FSP" in name
    assert "16" in failing.failure_file(name).read_text()
    assert "Traceback" not in failing.failure_file(name).read_text()
    assert {method for method, _ in accuracies(tmp_path)} == {"alone", "KD"}


def test_a_teacher_is_trained_once(tmp_path):
    more = {"teachers": {"resnet14": {"recipe": {"epochs": 1}}}, "seeds": [0]}
    assert (
        run_bench(make_bench(tmp_path, matrix=more | {"methods": {"KD": "kd", "alone": "ce"}}))
        == []
    )
    (folder,) = (tmp_path / "teachers").iterdir()
    record = json.loads((tmp_path / "results" / f"{folder.name}.json").read_text())
    sources = {r.recipe["teacher"] for r in read_results(tmp_path / "results")}
    assert sources == {record["weights"]}
    assert record["summary"]["epochs"] == 1
    # Recipes got these fields after a teacher was recorded elsewhere.
    for name in ("new_classifier", "optimizer.nesterov"):
        del record["recipe"][name]
    shutil.copytree(tmp_path / "results", tmp_path / "older" / "results")
    (tmp_path / "older" / "results" / f"{folder.name}.json").write_text(json.dumps(record))
    assert run_bench(make_bench(tmp_path / "older", matrix=more | {"methods": {"KD": "kd"}})) == []
    longer = more | {"teachers": {"resnet14": {"recipe": {"epochs": 2}}}}
    with pytest.raises(RunFolderError, match=r"teachers of other recipes(?s:.*)epochs"):
        run_bench(make_bench(tmp_path, matrix=longer))


def test_finished_runs_are_taken_over(finished, teacher_weights, tmp_path, monkeypatch):
    """Run folders or results alone, if recipe and teacher are the same."""

    def refuse(*_, **__):
        raise AssertionError("trained")

    monkeypatch.setattr("cktf.bench.runner.run_recipe", refuse)
    for name, source in (("runs", finished / "cells"), ("results", finished / "results")):
        taking = make_bench(tmp_path / name, teacher_weights, reuse=[source])
        assert run_bench(taking) == []
        assert accuracies(tmp_path / name) == accuracies(finished)
    other = {"recipe": TINY["recipe"] | {"epochs": 1}}
    assert run_bench(
        make_bench(tmp_path / "other", teacher_weights, reuse=[finished], matrix=other)
    )


def test_weights_without_the_name_of_their_network(tmp_path):
    """The matrix names their network, to train and to take over."""
    torch.manual_seed(0)
    torch.save(timm.create_model("test_resnet", num_classes=2).state_dict(), tmp_path / "big.pth")
    big = {"network": "timm:test_resnet", "weights": str(tmp_path / "big.pth")}
    matrix = ONE_CELL | {"teachers": {"big": big}, "pairs": ["big:resnet8"], "baseline": None}
    assert run_bench(make_bench(tmp_path / "a", matrix=matrix)) == []
    (result,) = read_results(tmp_path / "a" / "results")
    assert (result.pair, result.summary["teacher"]) == ("big:resnet8", "timm:test_resnet")
    again = make_bench(tmp_path / "b", matrix=matrix, reuse=[tmp_path / "a" / "cells"])
    shutil.rmtree(tmp_path / "a" / "results")
    assert run_bench(again) == []
    assert not (tmp_path / "b" / "cells" / again.cells[0].slug / "checkpoints").exists()


def test_students_keep_the_fingerprint_of_their_teacher(finished, teacher_weights, tmp_path):
    """Neither where they lie, nor taken over, after another file was put at its path."""
    path = tmp_path / "teacher.safetensors"
    path.write_bytes(teacher_weights.read_bytes())
    plan = make_bench(tmp_path / "a", path, matrix=ONE_CELL)
    assert run_bench(plan) == []
    shutil.rmtree(plan.results)
    torch.manual_seed(1)
    save_teacher(path)
    (name,) = run_bench(make_bench(tmp_path / "a", path, matrix=ONE_CELL))
    assert "differs in: the teacher's weights" in plan.failure_file(name).read_text()
    taken = Reusable([plan.out / "cells"])
    assert taken.find(plan.cells[0], weights_fingerprint(path)) is None
    assert taken.find(plan.cells[0], weights_fingerprint(teacher_weights)) == plan.run_dir(
        plan.cells[0]
    )


@pytest.mark.slow
def test_a_moved_cell_is_continued(finished, teacher_weights, tmp_path, monkeypatch):
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    (first / "t.safetensors").write_bytes(teacher_weights.read_bytes())
    with monkeypatch.context() as patch:
        # In the second of two epochs of four steps.
        stop_after_steps(patch, 5)
        with pytest.raises(Interrupted):
            run_bench(make_bench(first / "out", first / "t.safetensors", matrix=ONE_CELL))
    first.rename(second)
    moved = make_bench(second / "out", second / "t.safetensors", matrix=ONE_CELL)
    assert run_bench(moved) == []
    assert accuracies(moved.out)["KD", 0] == accuracies(finished)["KD", 0]
    assert (
        "continued after 1 epochs and 1 steps"
        in (moved.run_dir(moved.cells[0]) / "log.txt").read_text()
    )


def test_results_of_another_recipe_are_refused(finished, teacher_weights):
    other = {"recipe": TINY["recipe"] | {"epochs": 1}}
    with pytest.raises(RunFolderError, match="epochs"):
        run_bench(make_bench(finished, teacher_weights, matrix=other))


def test_results_get_fields_that_were_added_later(finished, teacher_weights):
    """A field that recipes get some day has its default in results of before."""
    result = read_results(finished / "results")[0]
    cell = next(
        c for c in make_bench(finished, teacher_weights).cells if (c.method, c.seed) == ("CKTF", 0)
    )
    assert (result.method, result.seed) == ("CKTF", 0)
    older = {k: v for k, v in result.recipe.items() if k != "data.skip_broken"}
    sha = result.recipe["teacher"].removeprefix("sha256 ")
    assert fill_defaults(older) == result_key(cell.recipe(), sha)


def test_command_line(finished, tiny_yaml, tmp_path):
    run = CliRunner().invoke
    out = tmp_path / "planned"
    planned = run(app, ["bench", str(tiny_yaml), "--out", str(out), "--seeds", "0", "--dry-run",
                        "--methods", "KD"])  # fmt: skip
    assert planned.exit_code == 0, planned.output
    assert "1 cells, 1 teachers: about" in planned.output
    assert "ms a step" in planned.output
    assert not out.exists()
    shown = run(app, ["table", str(finished)])
    assert shown.exit_code == 0
    assert shown.output == (finished / "results" / "table.md").read_text()
    for line, message in (
        (["bench", "cpu-cifar", "--out", "x"], "cpu-cifar10"),
        (["bench", str(tiny_yaml), "--out", "x", "--shard", "3/2"], "I from 1 to N"),
        (["bench", str(tiny_yaml), "--out", "x", "--methods", "KDD"], "Did you mean 'KD'"),
        (["bench", "cpu-cifar10", "--out", "x", "--data-dir", ".", "--methods", "KD (1, 1),KDD"],
         "the matrix has no KDD"),
        (["bench", str(tiny_yaml), "--out", "x", "--seeds", "9"], "no 9"),
        (["bench", str(tiny_yaml), "--out", "x", "--pairs", "a:b"], "resnet14:resnet8"),
        (["bench", "cpu-cifar10", "--out", "x"], "--data-dir"),
        (["table", str(tmp_path)], "no results"),
        (["table", str(finished), "--baseline", "AT"], "no result has it"),
    ):  # fmt: skip
        failed = run(app, line)
        assert failed.exit_code == 2
        assert message in failed.output
