"""Matrices: cells and their recipes, processes that share a folder, kills, and failures."""

import csv
import errno
import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import pytest
import timm
import torch
import yaml
from small_runs import stop_after_steps
from typer.testing import CliRunner

from cktf.bench import (
    Bench,
    Cost,
    all_results,
    cells_of,
    compare,
    costs_in,
    csv_rows,
    keep_costs,
    make_matrix,
    markdown,
    published,
    read_matrix,
    run_bench,
    runner,
    shipped,
)
from cktf.bench.cost import _measure
from cktf.bench.results import Reusable, completed, keep_teacher, result_key, weights_of
from cktf.bench.runner import prepare_bench
from cktf.bench.tables import as_published
from cktf.cli.main import app
from cktf.engine import Trainer
from cktf.errors import Interrupted, RecipeError, RunFolderError, TrainingError
from cktf.models import Normalized, create, save_network
from cktf.recipes import parse_recipe, parse_transfer_recipe, result_fields, to_yaml

ROOT = Path(__file__).parents[1]
WEIGHTS = "results/cifar10-wrn_16_2.safetensors"
CLASSES = ["Bag", "Sneaker"]
TINY = {
    "name": "tiny",
    "data": {"name": "fashion-mini", "per_class": 16, "classes": CLASSES, "batch_size": 8},
    "recipe": {"epochs": 2, "optimizer": {"lr": 0.02}, "checkpoint": {"epochs": 1}},
    "pairs": ["resnet14:resnet8"],
    "methods": {"alone": "ce", "KD": "kd", "CKTF": "cktf"},
    "options": {"cktf": {"negatives": 8}},
    "seeds": [0, 1],
    "baseline": "KD",
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A teacher of two classes."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    save_network(
        create("resnet14", 2), path, name="resnet14", classes=CLASSES, dataset="fashion-mini"
    )
    return path


def bench(out, weights=None, **more):
    matrix = make_matrix(TINY | more.pop("matrix", {}))
    cells = cells_of(matrix, weights={"resnet14": str(weights)} if weights else None)
    return Bench(matrix, cells, out, out / "results", show=False, **more)


def values(place):
    return {(r.method, r.seed): r.top1_by_epoch for r in all_results(place / "results")}


@pytest.fixture(scope="module")
def done(tmp_path_factory, weights):
    """The matrix in one go, each cell alone."""
    out = tmp_path_factory.mktemp("done")
    assert run_bench(bench(out, weights)) == []
    return out


def test_cells_are_recipes(weights):
    cells = bench(Path("x"), weights).cells
    assert [(c.method, c.seed) for c in cells] == [
        (m, s) for s in (0, 1) for m in ("alone", "KD", "CKTF")
    ]
    recipe = cells[-1].recipe(taught=True)
    assert (recipe.teacher, recipe.teacher_weights) == (str(weights), None)
    assert recipe.method == "cktf"
    assert recipe.options == {"cktf": {"negatives": 8}}
    assert (recipe.seed, recipe.optimizer.lr, recipe.data.batch_size) == (1, 0.02, 8)
    assert cells[0].recipe().options == {}


@pytest.mark.parametrize("name", shipped())
def test_shipped_matrices_follow_the_protocol(name):
    matrix = read_matrix(name)
    cells = cells_of(matrix, "/data")
    assert matrix.name == name
    assert matrix.seeds == [0, 1, 2]
    recipes = [cell.recipe() for cell in cells]
    if not name.startswith("paper-"):
        wanted = "ce, kd, kd:1, fitnet, at, sp, cc, vid, rkd, pkt, nst, crd, crd+kd, cktf, cktf+kd"
        assert ", ".join(m.method for m in matrix.methods.values()) == wanted
        assert {r.runtime.precision for r in recipes} == {"bfloat16"}
        assert {r.epochs for r in recipes} == {8}
        return
    for recipe in recipes + [cell.teacher.recipe for cell in cells]:
        assert (recipe.epochs, recipe.data.batch_size, recipe.optimizer.lr) == (240, 64, 0.05)
        assert (recipe.schedule.name, recipe.schedule.gamma) == ("multistep", 0.1)
        assert [m * 240 for m in recipe.schedule.milestones] == [150, 180, 210]
        assert (recipe.optimizer.momentum, recipe.optimizer.weight_decay) == (0.9, 5e-4)
    tau = 0.1 if "cifar100" in name or "table2" in name else 0.07
    for recipe in recipes:
        for term in {"crd", "cktf"} & set(recipe.method.split("+")):
            assert recipe.options[term]["temperature"] == tau


def test_table_one_has_every_published_entry():
    """And no other: FSP where it is published, by the same method strings."""
    for name in ("cifar100", "tiny-imagenet"):
        cells = cells_of(read_matrix(f"paper-table1-{name}"), "/data")
        ours = {(*cell.column, as_published(cell.recipe().method)) for cell in cells}
        theirs = {(p.dataset, p.pair, p.method) for p in published() if p.dataset == name}
        assert ours == {row for row in theirs if row[2] != "teacher"}


def test_figure_two_transfers_without_labels():
    cells = cells_of(read_matrix("paper-figure2"), "/data")
    recipe, teacher = cells[0].recipe(), cells[0].teacher.recipe
    assert not recipe.data.labels
    assert recipe.labeled.name == recipe.data.name == "stl10"
    assert (teacher.data.name, teacher.data.labels) == ("tiny-imagenet", True)
    assert (teacher.data.image_size, recipe.data.image_size) == (None, 64)


@pytest.mark.parametrize("pair", ["vgg19-vgg19", "vgg19-vgg8", "ResNet18-ResNet18"])
def test_figure_two_is_what_its_recipes_say(pair):
    """Beside the recipes of single transfers there is no second protocol."""

    def fields(name, make):
        text = files("cktf.recipes").joinpath("paper", f"{name}.yaml").read_text()
        return result_fields(make(yaml.safe_load(text)))

    cells = cells_of(read_matrix("paper-figure2"), "/data")
    cell = next(c for c in cells if c.column[1].replace(":", "-") == pair and c.method == "CKTF")
    ours, theirs = result_fields(cell.recipe()), fields(f"transfer-{pair}", parse_transfer_recipe)
    for recipe in (ours, theirs):
        del recipe["teacher"]
    assert ours == theirs
    teacher = fields(f"transfer-teacher-{pair.partition('-')[0]}", parse_recipe)
    assert result_fields(cell.teacher.recipe) == teacher


@pytest.mark.slow
def test_transfers_are_cells_too(weights, tmp_path):
    matrix = {
        "kind": "transfer", "data": {"name": "fashion-mini", "classes": CLASSES},
        "methods": {"CRD": "crd:1"}, "options": {"crd": {"negatives": 8}}, "seeds": [0],
        "recipe": {"epochs": 1, "scratch_epochs": 1, "labels_per_class": [4], "draws": 1},
        "teachers": {"resnet14": {"weights": str(weights)}}, "baseline": None,
    }  # fmt: skip
    assert run_bench(bench(tmp_path, weights, matrix=matrix)) == []
    (result,) = all_results(tmp_path / "results")
    assert result.recipe["kind"] == "transfer"
    assert result.top1 == result.summary["student_probe_top1"]
    assert "fashion-mini" in str(compare(tmp_path).columns)


def test_mistakes_come_at_once():
    wrong = TINY | {"methods": {"KD": "kdd", "b": "at"}, "options": {}}
    with pytest.raises(RecipeError, match="'kdd'"):
        cells_of(make_matrix(wrong))
    with pytest.raises(RecipeError, match="Did you mean 'pairs'") as caught:
        make_matrix({**TINY, "pars": [], "seeds": [-1]})
    assert len(caught.value.problems) == 2
    bad = TINY | {"recipe": {"epochs": 2, "optimizer": {}}, "pairs": ["resnet14:resnet9"]}
    with pytest.raises(RecipeError, match="optimizer"):
        cells_of(make_matrix(bad))
    with pytest.raises(RecipeError, match="Did you mean 'cpu-cifar10'"):
        read_matrix("cpu-cifar")
    with pytest.raises(RecipeError, match="no pair has it"):
        cells_of(make_matrix(TINY), weights={"resnet20": "x"})
    twice = {"vgg8": {"network": "resnet14"}, "vgg8*": {"network": "resnet20"}}
    pairs = {"teachers": twice, "pairs": ["vgg8:resnet8", "vgg8*:resnet8"], "methods": ["kd"]}
    with pytest.raises(RecipeError, match=r"teachers.vgg8\*: it and vgg8 have one name"):
        cells_of(make_matrix(TINY | pairs | {"baseline": None}))
    with pytest.raises(RecipeError, match="Did you mean 'cktf'"):
        cells_of(make_matrix(TINY | {"options": {"cktff": {"negatives": 8}}}))
    with pytest.raises(RecipeError, match="Set kind: transfer"):
        cells_of(make_matrix(TINY | {"data": TINY["data"] | {"labels": False}}))
    again = {"teacher": "resnet14", "student": "resnet8", "recipe": {"optimizer.lr": 0.02}}
    with pytest.raises(RecipeError, match="pairs: resnet14:resnet8 is listed twice"):
        make_matrix(TINY | {"pairs": ["resnet14:resnet8", again]})
    with pytest.raises(RecipeError, match="seeds: 1 is listed twice"):
        make_matrix(TINY | {"seeds": [1, 0, 1]})
    with pytest.raises(RecipeError, match=r"kd.* KD.* have one name for files"):
        cells_of(make_matrix(TINY | {"methods": {"KD": "kd", "kd": "kd:2"}}))
    long = {"methods": {"m" * 220: "kd"}, "baseline": None}
    with pytest.raises(RecipeError, match="too long for the name of a file"):
        cells_of(make_matrix(TINY | long))
    for name in ("seed", "method", "student", "kind"):
        with pytest.raises(RecipeError, match=f"--set {name}: the matrix says it"):
            cells_of(make_matrix(TINY), settings={name: "x"})
    with pytest.raises(RecipeError, match="Did you mean 'cktf'"):
        cells_of(make_matrix(TINY), settings={"options.cktff.negatives": 8})


def test_options_of_recipes_and_settings_count():
    """Over those of the matrix and of a method, for the terms that a method has."""

    def options(fields, **settings):
        cells = cells_of(make_matrix(TINY | fields), settings=settings)
        return {cell.method: cell.recipe().options for cell in cells}

    theta = {"recipe": {"options": {"cktf": {"theta": 0.5}}}}
    assert options(theta)["CKTF"] == {"cktf": {"negatives": 8, "theta": 0.5}}
    found = options({}, **{"options.cktf.negatives": 4})
    assert found == {"alone": {}, "KD": {}, "CKTF": {"cktf": {"negatives": 4}}}


@pytest.mark.slow
def test_a_users_own_networks(tmp_path):
    """Of a file: trained where it is trusted, and the table knows them by their names."""
    (tmp_path / "mine.py").write_text(
        "from cktf.models import create\n\n\n"
        "def net(num_classes):\n    return create('resnet8', num_classes)\n"
    )
    line = f"{tmp_path}/mine.py:net"
    fields = {
        "teachers": {"T": {"network": line, "recipe": {"epochs": 1}}}, "pairs": [f"T:{line}"],
        "methods": {"KD": "kd", "AT": "at"}, "seeds": [0],
    }  # fmt: skip
    plan = bench(tmp_path / "out", matrix=fields, together=2, trust_code=True)
    assert run_bench(plan) == []
    table = compare(tmp_path / "out")
    assert [(c.teacher, c.student) for c in table.columns] == [("T", line)]
    assert "Unfinished" not in csv_rows(table) + markdown(table)


def test_what_is_done_is_neither_failed_nor_half_a_file(done, weights, tmp_path):
    shutil.copytree(done, tmp_path / "out")
    plan = bench(tmp_path / "out", weights)
    first, second = plan.cells[:2]
    plan.failure(first.slug).write_text("an earlier failure\n")
    plan.result_file(second).write_bytes(b"")
    assert not plan.done(second)
    assert run_bench(plan) == []
    assert values(plan.out) == values(done)


def test_other_weights_of_a_teacher_are_refused_where_all_is_done(done, tmp_path):
    torch.manual_seed(1)
    path = tmp_path / "other.safetensors"
    save_network(
        create("resnet14", 2), path, name="resnet14", classes=CLASSES, dataset="fashion-mini"
    )
    with pytest.raises(RunFolderError, match="resnet14: its weights"):
        run_bench(bench(done, path))


def test_nobody_waits_for_a_teacher_while_there_is_other_work(weights, tmp_path):
    teachers = {name: {"network": "resnet14", "weights": str(weights)} for name in "AB"}
    plan = bench(
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
            while not plan.done(of_b) and time.monotonic() < deadline:
                time.sleep(0.05)
            order.append((plan.done(of_a), plan.done(of_b)))

    held = threading.Event()
    thread = threading.Thread(target=another_process)
    thread.start()
    held.wait()
    assert run_bench(plan) == []
    thread.join()
    assert order == [(False, True)]
    assert plan.done(of_a)


@pytest.mark.slow
def test_turns_give_what_single_runs_give(done, weights, tmp_path):
    """With a shard for each seed; what is done is not done again."""
    for number in (1, 2):
        half = bench(tmp_path, weights, together=3, shard=(number, 2))
        assert len(half.groups()) == 1
        assert run_bench(half) == []
    assert values(tmp_path) == values(done)
    assert {r.together for r in all_results(tmp_path / "results")} == {3}
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("cells/*/*")}
    assert run_bench(bench(tmp_path, weights)) == []
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.glob("cells/*/*")}


@pytest.mark.parametrize("of", [2, 3, 4])
def test_shards_share_every_method(weights, tmp_path, of):
    """As many shards as methods would otherwise each have one of them, on a machine of its own."""
    plans = [
        bench(tmp_path, weights, matrix={"seeds": list(range(8))}, shard=(n, of))
        for n in range(1, of + 1)
    ]
    shares = [[cell for group in plan.groups() for cell in group] for plan in plans]
    assert sorted(len(share) for share in shares) == [24 // of] * of
    assert {c.slug for share in shares for c in share} == {c.slug for c in plans[0].cells}
    assert all({cell.method for cell in share} == {"alone", "KD", "CKTF"} for share in shares)
    assert all([c.seed for c in share] == sorted(c.seed for c in share) for share in shares)


def test_what_another_shard_left_is_not_this_one_s_failure(done, weights, tmp_path):
    shutil.copytree(done / "results", tmp_path / "results")
    first, second = (bench(tmp_path, weights, shard=(n, 2)) for n in (1, 2))
    (theirs,) = second.groups()[0]
    second.result_file(theirs).unlink()
    second.failure(theirs.slug).parent.mkdir()
    second.failure(theirs.slug).write_text("long ago")
    assert run_bench(first) == []


def test_a_matrix_that_is_stopped_between_cells_can_be_continued(weights, tmp_path, monkeypatch):
    def stopped(*_):
        raise KeyboardInterrupt("Stopped by SIGTERM.")

    monkeypatch.setattr(runner, "_do", stopped)
    with pytest.raises(Interrupted, match=r"Stopped by SIGTERM\."):
        run_bench(bench(tmp_path, weights))


@pytest.mark.slow
def test_a_table_to_choose_by_is_of_held_out_images(weights, tmp_path):
    data = TINY["data"] | {"validation": 0.25}
    with pytest.raises(RecipeError, match="held_out: no images are"):
        bench(tmp_path, weights, matrix={"held_out": True})
    plan = bench(
        tmp_path, weights, matrix={"held_out": True, "data": data, "methods": {"KD": "kd"}}
    )
    assert run_bench(plan) == []
    table = compare(tmp_path)
    (entry,) = table.entries.values()
    found = {r.seed: r.summary["validation_top1"] for r in all_results(tmp_path / "results")}
    assert entry.values == found
    assert list(table.teachers.values()) == [None]
    assert "accuracy on held-out training images, of the epoch" in table.conditions
    assert "test images" not in table.conditions


def test_choices_of_the_contrastive_engine_are_made_on_held_out_images():
    matrix = read_matrix(ROOT / "benchmarks" / "cifar10-held-out.yaml")
    cells = cells_of(matrix, "data")
    assert matrix.held_out
    assert {cell.recipe().data.validation for cell in cells} == {0.1}
    assert {cell.teacher.recipe.data.validation for cell in cells} == {0.1}


def test_what_is_left_takes_turns(done, weights, tmp_path):
    """However many cells that are done lie between."""
    plan = bench(tmp_path, weights, matrix={"seeds": [0]}, together=2)
    plan.results.mkdir()
    middle = plan.result_file(plan.cells[1])
    shutil.copy(done / "results" / middle.name, middle)
    assert run_bench(plan) == []
    together = {r.method: r.together for r in all_results(plan.results)}
    assert together == {"alone": 2, "KD": 1, "CKTF": 2}
    assert values(tmp_path).items() <= values(done).items()


def test_turns_are_taken_by_students_of_one_view_of_the_teacher(weights):
    methods = {"KD": "kd", "AT": "at", "KD 64": {"method": "kd", "recipe": {"teacher_size": 64}}}
    plan = bench(Path("x"), weights, together=4, matrix={"methods": methods, "seeds": [0]})
    assert [[c.method for c in group] for group in plan.groups()] == [["KD", "AT"], ["KD 64"]]


def start(matrix, out, *arguments):
    command = [sys.executable, "-m", "cktf", "bench", str(matrix), "--out", str(out), *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.fixture
def written(weights, tmp_path):
    path = tmp_path / "tiny.yaml"
    teachers = {"resnet14": {"weights": str(weights)}}
    path.write_text(yaml.safe_dump(TINY | {"teachers": teachers}, sort_keys=False))
    return path


@pytest.mark.slow
def test_two_shards_in_two_processes_give_the_table_of_one(done, written, tmp_path):
    shards = [start(written, tmp_path / "shared", "--shard", f"{n}/2") for n in (1, 2)]
    for shard in shards:
        output = shard.communicate(timeout=300)[0]
        assert shard.returncode == 0, output
    tables = [csv_rows(compare(out)) for out in (done, tmp_path / "shared")]
    columns = ["method", "n", "mean", "sd", "difference", "low", "high", "by_seed"]
    rows = [[{c: r[c] for c in columns} for r in csv.DictReader(t.splitlines())] for t in tables]
    assert rows[0] == rows[1]
    assert len(rows[0]) == 3


def test_processes_that_die_are_told(weights, tmp_path, monkeypatch):
    class Dead:
        exitcode = -9

        def __init__(self, **_):
            pass

        def start(self):
            pass

        join = start

    monkeypatch.setattr("multiprocessing.context.SpawnContext.Process", Dead)
    with pytest.raises(TrainingError, match=r"1 of 2 \(exit code -9\), 2 of 2"):
        run_bench(bench(tmp_path, weights), jobs=2)
    with pytest.raises(RunFolderError, match="--reuse /nowhere: there is no such folder"):
        run_bench(bench(tmp_path, weights, reuse=[Path("/nowhere")]), jobs=2)


@pytest.mark.slow
def test_sigterm_reaches_the_processes(done, written, tmp_path):
    """They save and end; the same command goes on to the same results."""
    parent = start(written, tmp_path / "out", "--jobs", "2")
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("out/cells/*/log.txt")) and time.monotonic() < deadline:
        time.sleep(0.05)
    parent.terminate()
    output = parent.communicate(timeout=120)[0]
    assert parent.returncode == 75, output
    assert "Stopped by SIGTERM; saved. Continue with the same command again." in output
    # The pipe has ended, so that no process of theirs holds it any more.
    again = start(written, tmp_path / "out", "--jobs", "2")
    output = again.communicate(timeout=300)[0]
    assert again.returncode == 0, output
    assert values(tmp_path / "out") == values(done)


def test_a_copy_that_fails_is_one_failed_cell(done, weights, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copytree", full)
    # The runs, not what is known of them: those are copied.
    reuse = [done / "cells"]
    failed = run_bench(bench(tmp_path, weights, reuse=reuse, matrix={"seeds": [0]}))
    assert len(failed) == 3
    assert "No space left" in (tmp_path / "failures" / f"{failed[0]}.txt").read_text()


def test_students_of_two_teachers_are_told(done, tmp_path):
    """By the table, whatever put them there; as by a copy of results from elsewhere."""
    shutil.copytree(done / "results", tmp_path / "results")
    assert "several teachers" not in markdown(compare(tmp_path / "results"))
    path = min((tmp_path / "results").glob("*CKTF*.json"))
    kept = json.loads(path.read_text())
    kept["recipe"]["teacher"] = "sha256 of another"
    path.write_text(json.dumps(kept))
    assert "On resnet14 → resnet8, students had several teachers" in markdown(compare(tmp_path))


def test_two_that_keep_a_teacher_at_once_have_one(tmp_path):
    """One of them is refused, also where their folders have nothing but results in common."""
    path, together = tmp_path / "teacher.json", threading.Barrier(8)

    def keep(number):
        together.wait()
        keep_teacher(path, {"weights": f"sha256 {number}"})

    with ThreadPoolExecutor(8) as threads:
        kept = [threads.submit(keep, number) for number in range(8)]
    refused = [one.exception() for one in kept if one.exception()]
    assert len(refused) == 7
    assert all(isinstance(error, RunFolderError) for error in refused)


def test_a_teacher_that_is_elsewhere_is_asked_for_at_once(tmp_path, monkeypatch):
    """Not trained again, and refused then, for it has other weights."""
    first = bench(tmp_path)
    kept = {"weights": "sha256 of another", "recipe": None}
    keep_teacher(first.teacher_file(first.cells[0].teacher), kept)
    monkeypatch.setattr("cktf.bench.runner.run_recipe", None)
    with pytest.raises(RunFolderError, match="--teacher resnet14=FILE, or choose other --results"):
        run_bench(first)


def test_a_file_system_without_locks(weights, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert run_bench(bench(tmp_path, weights, matrix=ONE)) == []


def test_files_that_cannot_be_taken_over_are_told(done, tmp_path, weights, capsys):
    """A result of another version, and half a note, among those that can."""
    shutil.copytree(done / "results", tmp_path / "old")
    path = min((tmp_path / "old").glob("*CKTF*.json"))
    kept = json.loads(path.read_text())
    kept["recipe"]["data.of_another_version"] = 1
    path.write_text(json.dumps(kept))
    half = tmp_path / "old" / "half"
    shutil.copytree(min((done / "cells").iterdir()), half)
    (half / "teacher.json").write_bytes(b"")
    assert run_bench(bench(tmp_path / "new", weights, reuse=[tmp_path / "old"])) == []
    told = "".join(capsys.readouterr().err.split())
    assert f"nottakenover:{path}:data.of_another_version:" in told
    assert f"nottakenover:{half / 'summary.json'}:Expectingvalue" in told


@pytest.mark.parametrize("folders", [1, 2])
def test_many_may_begin_at_once(weights, tmp_path, folders):
    """In one folder, or in folders of their own with results in one."""
    plan = bench(tmp_path, weights)
    plans = [replace(plan, out=tmp_path / str(number)) for number in range(folders)]
    with ThreadPoolExecutor(8) as threads:
        for begun in [threads.submit(prepare_bench, plan) for plan in plans * (100 // folders)]:
            begun.result()
    assert [path.name for path in plan.results.iterdir()] == ["matrix.yaml"]


def test_what_cannot_be_written_is_named(weights, tmp_path):
    (tmp_path / "file").touch()
    plan = bench(tmp_path / "out", weights)
    with pytest.raises(RunFolderError, match=r"file/results cannot .* another --results"):
        prepare_bench(replace(plan, results=tmp_path / "file" / "results"))
    with pytest.raises(RunFolderError, match=r"file/out cannot .* another --out"):
        prepare_bench(replace(plan, out=tmp_path / "file" / "out"))


@pytest.mark.slow
def test_killed_and_continued(done, weights, written, tmp_path):
    """SIGKILL in the middle of a cell, with others done and not begun."""
    out = tmp_path / "killed"
    process = start(written, out)
    deadline = time.monotonic() + 240
    while not any((out / "cells").glob("*KD*/checkpoints/*.pt")):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    left = len(list((out / "results").glob("*seed*.json")))
    assert 1 <= left < 6
    assert run_bench(bench(out, weights)) == []
    assert values(out) == values(done)


@pytest.mark.slow
def test_a_failure_is_recorded_and_the_rest_goes_on(weights, tmp_path):
    """FSP refuses networks of unequal widths; its companions in turn are done all the same."""
    methods = {"alone": "ce", "FSP": "fsp", "KD": "kd"}
    pairs = ["resnet14:resnet8x4"]
    failing = bench(
        tmp_path, weights, together=3, matrix={"methods": methods, "pairs": pairs, "seeds": [0]}
    )
    (name,) = run_bench(failing)
    assert "FSP" in name
    assert "16" in failing.failure(name).read_text()
    assert "Traceback" not in failing.failure(name).read_text()
    assert {method for method, _ in values(tmp_path)} == {"alone", "KD"}


def test_a_teacher_is_trained_once(tmp_path):
    more = {"teachers": {"resnet14": {"recipe": {"epochs": 1}}}, "seeds": [0]}
    assert run_bench(bench(tmp_path, matrix=more | {"methods": {"KD": "kd", "alone": "ce"}})) == []
    (folder,) = (tmp_path / "teachers").iterdir()
    record = json.loads((tmp_path / "results" / f"{folder.name}.json").read_text())
    sources = {r.recipe["teacher"] for r in all_results(tmp_path / "results")}
    assert sources == {record["weights"]}
    assert record["summary"]["epochs"] == 1
    longer = more | {"teachers": {"resnet14": {"recipe": {"epochs": 2}}}}
    with pytest.raises(RunFolderError, match=r"teachers of other recipes(?s:.*)epochs"):
        run_bench(bench(tmp_path, matrix=longer))


def test_finished_runs_are_taken_over(done, weights, tmp_path, monkeypatch):
    """Run folders or results alone, if recipe and teacher are the same."""

    def refuse(*_, **__):
        raise AssertionError("trained")

    monkeypatch.setattr("cktf.bench.runner.run_recipe", refuse)
    for name, source in (("runs", done / "cells"), ("results", done / "results")):
        taking = bench(tmp_path / name, weights, reuse=[source])
        assert run_bench(taking) == []
        assert values(tmp_path / name) == values(done)
    other = {"recipe": TINY["recipe"] | {"epochs": 1}}
    assert run_bench(bench(tmp_path / "other", weights, reuse=[done], matrix=other))


ONE = {"methods": {"KD": "kd"}, "seeds": [0]}


def test_weights_that_do_not_say_whose_they_are(tmp_path):
    """The matrix names their network, to train and to take over."""
    torch.manual_seed(0)
    torch.save(timm.create_model("test_resnet", num_classes=2).state_dict(), tmp_path / "big.pth")
    big = {"network": "timm:test_resnet", "weights": str(tmp_path / "big.pth")}
    matrix = ONE | {"teachers": {"big": big}, "pairs": ["big:resnet8"], "baseline": None}
    assert run_bench(bench(tmp_path / "a", matrix=matrix)) == []
    (result,) = all_results(tmp_path / "a" / "results")
    assert (result.pair, result.summary["teacher"]) == ("big:resnet8", "timm:test_resnet")
    again = bench(tmp_path / "b", matrix=matrix, reuse=[tmp_path / "a" / "cells"])
    shutil.rmtree(tmp_path / "a" / "results")
    assert run_bench(again) == []
    assert not (tmp_path / "b" / "cells" / again.cells[0].slug / "checkpoints").exists()


def test_weights_of_another_network_are_refused(weights):
    """A column would be called by a network that did not teach."""
    for teachers in (
        {"resnet20": {"weights": str(weights)}},
        {"resnet20": {"weights": str(weights), "network": "resnet20"}},
    ):
        pairs = {"teachers": teachers, "pairs": ["resnet20:resnet8"]}
        with pytest.raises(RecipeError, match=r"holds a resnet14, .* called resnet20"):
            cells_of(make_matrix(TINY | pairs))
    named = {"teachers": {"mine": {"weights": str(weights)}}, "pairs": ["mine:resnet8"]}
    assert not cells_of(make_matrix(TINY | named))[0].teacher.apart


def test_costs_are_of_networks_at_their_sizes(monkeypatch):
    seen = []
    forward = Normalized.forward

    def record_call(self, images):
        seen.append(self.input_shape(images.shape)[-1])
        return forward(self, images)

    monkeypatch.setattr(Normalized, "forward", record_call)
    sizes = {"recipe": TINY["recipe"] | {"teacher_size": 40, "student_size": 24}}
    _measure(bench(Path("x"), matrix=ONE | sizes).cells[0].recipe(), "resnet14")
    assert set(seen) == {24, 40}


def test_students_of_an_earlier_teacher_are_not_stamped_with_a_later_one(done, weights, tmp_path):
    """Neither where they lie, nor taken over, after another file was put at its path."""
    path = tmp_path / "teacher.safetensors"
    path.write_bytes(weights.read_bytes())
    plan = bench(tmp_path / "a", path, matrix=ONE)
    assert run_bench(plan) == []
    shutil.rmtree(plan.results)
    torch.manual_seed(1)
    save_network(
        create("resnet14", 2), path, name="resnet14", classes=CLASSES, dataset="fashion-mini"
    )
    (name,) = run_bench(bench(tmp_path / "a", path, matrix=ONE))
    assert "differs in: the teacher's weights" in plan.failure(name).read_text()
    taken = Reusable([plan.out / "cells"])
    assert taken.find(plan.cells[0], weights_of(path)) is None
    assert taken.find(plan.cells[0], weights_of(weights)) == plan.folder(plan.cells[0])


def test_a_half_trained_cell_goes_on_where_its_folder_and_teacher_are_now(
    done, weights, tmp_path, monkeypatch
):
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    (first / "t.safetensors").write_bytes(weights.read_bytes())
    with monkeypatch.context() as patch:
        # In the second of two epochs of four steps.
        stop_after_steps(patch, 5)
        with pytest.raises(Interrupted):
            run_bench(bench(first / "out", first / "t.safetensors", matrix=ONE))
    first.rename(second)
    moved = bench(second / "out", second / "t.safetensors", matrix=ONE)
    assert run_bench(moved) == []
    assert values(moved.out)["KD", 0] == values(done)["KD", 0]
    assert (
        "continued after 1 epochs and 1 steps"
        in (moved.folder(moved.cells[0]) / "log.txt").read_text()
    )


def test_results_of_another_recipe_are_refused(done, weights):
    other = {"recipe": TINY["recipe"] | {"epochs": 1}}
    with pytest.raises(RunFolderError, match="epochs"):
        run_bench(bench(done, weights, matrix=other))


def test_a_kept_recipe_knows_its_fields_later(done, weights):
    """A field that recipes get some day has its default in results of before."""
    result = all_results(done / "results")[0]
    cell = next(c for c in bench(done, weights).cells if (c.method, c.seed) == ("CKTF", 0))
    assert (result.method, result.seed) == ("CKTF", 0)
    older = {k: v for k, v in result.recipe.items() if k != "data.skip_broken"}
    sha = result.recipe["teacher"].removeprefix("sha256 ")
    assert completed(older) == result_key(cell.recipe(), sha)


def test_command_line(done, written, tmp_path):
    run = CliRunner().invoke
    out = tmp_path / "planned"
    planned = run(app, ["bench", str(written), "--out", str(out), "--seeds", "0", "--dry-run",
                        "--methods", "KD"])  # fmt: skip
    assert planned.exit_code == 0, planned.output
    assert "1 cells, 1 teachers: about" in planned.output
    assert "ms a step" in planned.output
    assert not out.exists()
    shown = run(app, ["table", str(done)])
    assert shown.exit_code == 0
    assert shown.output == (done / "results" / "table.md").read_text()
    for line, message in (
        (["bench", "cpu-cifar", "--out", "x"], "cpu-cifar10"),
        (["bench", str(written), "--out", "x", "--shard", "3/2"], "I from 1 to N"),
        (["bench", str(written), "--out", "x", "--methods", "KDD"], "Did you mean 'KD'"),
        (["bench", "cpu-cifar10", "--out", "x", "--data-dir", ".", "--methods", "KD (1, 1),KDD"],
         "the matrix has no KDD"),
        (["bench", str(written), "--out", "x", "--seeds", "9"], "no 9"),
        (["bench", str(written), "--out", "x", "--pairs", "a:b"], "resnet14:resnet8"),
        (["bench", "cpu-cifar10", "--out", "x"], "--data-dir"),
        (["table", str(tmp_path)], "no results"),
        (["table", str(done), "--baseline", "AT"], "no result has it"),
    ):  # fmt: skip
        failed = run(app, line)
        assert failed.exit_code == 2
        assert message in failed.output


@pytest.mark.parametrize("method", ["ab", "ft"])
def test_costs_are_of_the_main_stage(monkeypatch, method):
    """Hours count the first stage too: an epoch of four steps before two."""
    stages, step = set(), Trainer.train_step

    def record_call(self):
        stages.add(self.phase.name)
        return step(self)

    monkeypatch.setattr(Trainer, "train_step", record_call)
    methods = {"methods": {"A": method}, "options": {}, "baseline": None}
    cost = _measure(bench(Path("x"), matrix=methods).cells[0].recipe(), "resnet14")
    assert stages == {"train"}
    assert cost.hours == pytest.approx(3 * 4 * cost.step_seconds / 3600)


def test_costs_are_kept_one_by_one(written, tmp_path, monkeypatch):
    """A measurement that fails is told and tried once; one that is stopped loses none before."""
    tried = []

    def measure(cell):
        tried.append(cell.method)
        if cell.method == "CKTF":
            raise KeyboardInterrupt
        if cell.method == "KD":
            raise TrainingError("too little memory")
        return Cost(0.01, 100.0, 1.0, "a machine")

    monkeypatch.setattr("cktf.bench.measure", measure)
    out = tmp_path / "out"
    line = ["bench", str(written), "--out", str(out), "--costs"]
    CliRunner().invoke(app, line)
    assert list(costs_in(out / "results")) == ["fashion-mini|resnet14:resnet8|alone"]
    told = CliRunner().invoke(app, [*line, "--methods", "alone,KD"])
    assert "! KD: too little memory" in told.output
    assert tried == ["alone", "KD", "CKTF", "alone", "KD"]


@pytest.mark.parametrize("name", ["cifar10-choices", "cifar10-combinations"])
def test_matrices_of_benchmarks_share_cells(name):
    """What they compare with is trained for `cpu-cifar10` too, by the very same recipes."""

    def known(matrix):
        cells = cells_of(read_matrix(matrix), "/data", {"wrn_16_2": str(ROOT / WEIGHTS)})
        return {json.dumps(result_fields(cell.recipe()), sort_keys=True) for cell in cells}

    ours, shared = known(ROOT / "benchmarks" / f"{name}.yaml"), known("cpu-cifar10")
    assert len(ours & shared) >= 9
    assert ours - shared


def test_the_matrix_of_cold_starts():
    """Short runs and long ones of each seed, which differ in how the banks begin alone."""
    matrix = read_matrix(ROOT / "benchmarks" / "cifar10-cold-start.yaml")
    recipes = [
        cell.recipe() for cell in cells_of(matrix, "/data", {"wrn_16_2": str(ROOT / WEIGHTS)})
    ]
    options = [recipe.options["cktf"] for recipe in recipes]
    begins = [(None, None), ("forward", None), (None, [2, 4])]
    assert [
        (r.seed, r.epochs, (o.get("init"), o.get("renormalize")))
        for r, o in zip(recipes, options, strict=True)
    ] == [(seed, epochs, begin) for seed in range(3) for epochs in (8, 30) for begin in begins]
    assert {recipe.data.per_class for recipe in recipes} == {500}


def test_committed_results_are_of_the_shipped_matrix():
    """By recipe and by the teacher's weights; and nothing in them is of one machine's folders."""
    place = ROOT / "results" / "cpu-cifar10"
    found = all_results(place)
    cells = cells_of(read_matrix("cpu-cifar10"), "/data", {"wrn_16_2": str(ROOT / WEIGHTS)})
    known = {(cell.pair, cell.method, cell.seed): cell for cell in cells}
    assert found
    for result in found:
        cell = known[result.pair, result.method, result.seed]
        own = cell.teacher.weights
        teacher = json.loads((place / f"{cell.teacher.slug}.json").read_text())["weights"]
        assert own is None or teacher == f"sha256 {weights_of(own)}"
        expected = result_key(cell.recipe(), teacher.removeprefix("sha256 "))
        assert completed(result.recipe) == expected
        assert result.top1_by_epoch[-1:] == [result.top1] or "not kept" in result.note
        assert not re.search(r'"/\w', (place / f"{cell.slug}.json").read_text())


# What a matrix takes, before it is trained


def told(matrix, out, *line):
    """What `cktf bench` prints."""
    shown = CliRunner().invoke(app, ["bench", str(matrix), "--out", str(out), *line])
    assert shown.exit_code == 0, shown.output
    return shown.output


@pytest.fixture
def measured(monkeypatch):
    """Networks that were measured, of whom nothing is: a step takes 0.1 s, an epoch four."""
    found = []

    def apart(recipe, teacher):
        found.append(teacher)
        return Cost(0.1, 100.0, 0.0, "a machine", 4).for_recipe(recipe)

    monkeypatch.setattr("cktf.bench.cost._apart", apart)
    return found


def test_a_run_of_two_steps_is_measured():
    data = TINY["data"] | {"batch_size": 32}
    cost = _measure(bench(Path("x"), matrix={"data": data} | ONE).cells[0].recipe(), "resnet14")
    assert cost.batches == 1
    assert cost.step_seconds > 0
    assert cost.hours == pytest.approx(2 * cost.step_seconds / 3600)


def test_one_that_cannot_be_measured_is_not_the_others_end(written, tmp_path, monkeypatch):
    def measure(cell):
        if cell.method == "KD":
            raise ValueError("no median")
        return Cost(0.01, 100.0, 1.0, "a machine")

    monkeypatch.setattr("cktf.bench.measure", measure)
    output = told(written, tmp_path / "out", "--dry-run", "--seeds", "0")
    assert "about 2.0 h one by one, and 1 that could not be measured" in output
    assert "! KD: ValueError: no median" in output


def test_hours_are_of_the_recipe_in_hand(written, tmp_path, measured):
    """What is kept is a step, and only while a step is the same."""
    line = written, tmp_path / "out", "--methods", "KD", "--seeds", "0"
    assert "KD, seed 0: 0.00 h (100 ms" in told(*line, "--costs")
    assert "KD, seed 0: 0.22 h (100 ms" in told(*line, "--dry-run", "--set", "epochs=2000")
    assert len(measured) == 1
    told(*line, "--dry-run", "--set", "data.batch_size=4")
    assert len(measured) == 2


def test_what_is_done_takes_no_hours(done, written, tmp_path, measured):
    output = told(written, done, "--dry-run")
    assert "CKTF, seed 1: done\n6 cells (6 done), 1 teachers: about 0.0 h one by one\n" in output
    assert not measured
    # A table shows what a step of it takes all the same.
    long = "--set", "epochs=200000"
    shutil.copytree(done, tmp_path / "out")
    output = told(written, tmp_path / "out", "--costs", "--methods", "KD", *long)
    assert "KD, seed 0: done (100 ms a step, 100 MiB)\n" in output
    assert "2 cells (2 done), 1 teachers: about 0.0 h" in output
    # And where training would be refused, it is at once.
    shown = CliRunner().invoke(app, ["bench", str(written), "--out", str(done), "--dry-run", *long])
    assert shown.exit_code == 2
    assert "holds results of other recipes than the matrix's; they differ in" in shown.output


def test_a_teacher_that_is_trained_here_takes_no_hours(tmp_path, measured):
    path, matrix = tmp_path / "tiny.yaml", TINY | {"recipe": {"epochs": 20000}}
    path.write_text(yaml.safe_dump(matrix))
    line = path, tmp_path / "out", "--methods", "KD", "--seeds", "0", "--dry-run"
    assert "teacher resnet14 on fashion-mini: 2.22 h" in told(*line)
    folder = tmp_path / "out" / "teachers" / "teacher-fashion-mini-resnet14"
    folder.mkdir(parents=True)
    for name in ("summary.json", "student.safetensors"):
        (folder / name).touch()
    teacher = cells_of(make_matrix(matrix))[0].teacher
    (folder / "recipe.yaml").write_text(to_yaml(teacher.recipe))
    output = told(*line)
    assert "teacher resnet14 on fashion-mini: trained already" in output
    assert "1 cells, 1 teachers: about 2.2 h" in output


@pytest.mark.parametrize(("epochs", "steps"), [(3, 3), (None, 200)])
def test_costs_count_training_from_scratch(epochs, steps):
    """Eight labels are one batch; by default it takes as many steps, but at most 200 epochs."""
    matrix = {
        "kind": "transfer", "data": {"name": "fashion-mini", "classes": CLASSES},
        "methods": {"CRD": "crd:1"}, "options": {"crd": {"negatives": 8}}, "seeds": [0],
        "recipe": {"epochs": 40, "scratch_epochs": epochs, "labels_per_class": [4]},
        "baseline": None,
    }  # fmt: skip
    cost = _measure(bench(Path("x"), matrix=matrix).cells[0].recipe(), "resnet14")
    assert cost.scratch_batches == 1
    assert 40 * cost.batches > 200
    assert cost.hours == pytest.approx((40 * cost.batches + steps) * cost.step_seconds / 3600)


def test_costs_of_many_processes_are_all_kept(tmp_path):
    def keep(number):
        keep_costs({f"{number}": Cost(0.1, 1.0, 1.0, "a machine")}, tmp_path)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(keep, range(64)))
    assert len(costs_in(tmp_path)) == 64


def test_measuring_leaves_the_cache_alone(tmp_path):
    recipe = TINY["recipe"] | {"teacher_cache": str(tmp_path / "cache"), "data.views": 2}
    _measure(bench(Path("x"), matrix={"recipe": recipe} | ONE).cells[0].recipe(), "resnet14")
    assert not list(tmp_path.iterdir())
