"""Costs of cells, and the hours that `cktf bench --dry-run` estimates from them."""

import multiprocessing
import shutil
import sys
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml
from small_matrix import ONE_CELL, TINY, TRANSFER, make_bench
from typer.testing import CliRunner

from cktf.bench import Cost, build_cells, make_matrix, measure_cell, read_costs, save_costs
from cktf.bench.cost import _measure
from cktf.cli.main import app
from cktf.engine import Trainer
from cktf.errors import TrainingError
from cktf.models import Normalized
from cktf.recipes import to_yaml


def measure(matrix):
    """Measure the first cell of a matrix in this process."""
    return _measure(make_bench(Path("x"), matrix=matrix).cells[0].recipe(), "resnet14")


def output_of(matrix, out, *options):
    shown = CliRunner().invoke(app, ["bench", str(matrix), "--out", str(out), *options])
    assert shown.exit_code == 0, shown.output
    return shown.output


def test_networks_are_measured_at_their_sizes(monkeypatch):
    sizes = set()
    forward = Normalized.forward

    def record_call(self, images):
        sizes.add(self.resized_shape(images.shape)[-1])
        return forward(self, images)

    monkeypatch.setattr(Normalized, "forward", record_call)
    recipe = TINY["recipe"] | {"teacher_size": 40, "student_size": 24}
    measure(ONE_CELL | {"recipe": recipe})
    assert sizes == {24, 40}


@pytest.mark.parametrize("method", ["ab", "ft"])
def test_the_main_stage_is_measured(monkeypatch, method):
    """Hours count the initialization too: an epoch of four steps before two."""
    stages, step = set(), Trainer.train_step

    def record_call(self):
        stages.add(self.phase.name)
        return step(self)

    monkeypatch.setattr(Trainer, "train_step", record_call)
    cost = measure({"methods": {"A": method}, "options": {}, "baseline": None})
    assert stages == {"train"}
    assert cost.hours == pytest.approx(3 * 4 * cost.step_seconds / 3600)


def test_a_run_of_two_steps_is_measured():
    cost = measure({"data": TINY["data"] | {"batch_size": 32}} | ONE_CELL)
    assert cost.batches == 1
    assert cost.step_seconds > 0
    assert cost.hours == pytest.approx(2 * cost.step_seconds / 3600)


@pytest.mark.parametrize(("epochs", "steps"), [(3, 3), (None, 200)])
def test_costs_count_training_from_scratch(epochs, steps):
    """Eight labels are one batch; by default it takes as many steps, but at most 200 epochs."""
    recipe = {"epochs": 40, "scratch_epochs": epochs, "labels_per_class": [4]}
    cost = measure(TRANSFER | {"recipe": recipe})
    assert cost.scratch_batches == 1
    assert 40 * cost.batches > 200
    assert cost.hours == pytest.approx((40 * cost.batches + steps) * cost.step_seconds / 3600)


def test_measuring_leaves_the_cache_alone(tmp_path):
    recipe = TINY["recipe"] | {"teacher_cache": str(tmp_path / "cache"), "data.views": 2}
    measure({"recipe": recipe} | ONE_CELL)
    assert not list(tmp_path.iterdir())


def test_costs_of_many_processes_are_all_saved(tmp_path):
    def save(number):
        save_costs({f"{number}": Cost(0.1, 1.0, 1.0, "a machine")}, tmp_path)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(save, range(64)))
    assert len(read_costs(tmp_path)) == 64


def test_costs_are_saved_one_by_one(tiny_yaml, tmp_path, monkeypatch):
    """A measurement that fails is reported and tried once; one that is stopped loses no other."""
    measured, errors = [], [TrainingError("too little memory"), ValueError("no median")]

    def measure_cell(cell):
        measured.append(cell.method)
        if cell.method == "CKTF":
            raise KeyboardInterrupt
        if cell.method == "KD":
            raise errors[0]
        return Cost(0.01, 100.0, 1.0, "a machine")

    monkeypatch.setattr("cktf.bench.measure_cell", measure_cell)
    out = tmp_path / "out"
    CliRunner().invoke(app, ["bench", str(tiny_yaml), "--out", str(out), "--costs"])
    assert list(read_costs(out / "results")) == ["fashion-mini|resnet14:resnet8|alone"]
    output = output_of(tiny_yaml, out, "--costs", "--methods", "alone,KD")
    assert "! KD: too little memory" in output
    assert measured == ["alone", "KD", "CKTF", "alone", "KD"]
    errors.reverse()
    options = "--dry-run", "--seeds", "0", "--methods", "alone,KD"
    output = output_of(tiny_yaml, tmp_path / "other", *options)
    assert "about 1.0 h one by one, and 1 that could not be measured" in output
    assert "! KD: ValueError: no median" in output


@pytest.fixture
def measured(monkeypatch):
    """Teachers of the cells that were measured; a step takes 0.1 s, an epoch four."""
    teachers = []

    def measure_in_process(recipe, teacher):
        teachers.append(teacher)
        return Cost(0.1, 100.0, 0.0, "a machine", 4).for_recipe(recipe)

    monkeypatch.setattr("cktf.bench.cost._measure_in_process", measure_in_process)
    return teachers


def test_hours_are_of_the_present_recipe(tiny_yaml, tmp_path, measured):
    """A saved cost is used while the time of a step is the same."""
    cell = tiny_yaml, tmp_path / "out", "--methods", "KD", "--seeds", "0"
    assert "KD, seed 0: 0.00 h (100 ms" in output_of(*cell, "--costs")
    assert "KD, seed 0: 0.22 h (100 ms" in output_of(*cell, "--dry-run", "--set", "epochs=2000")
    assert len(measured) == 1
    output_of(*cell, "--dry-run", "--set", "data.batch_size=4")
    assert len(measured) == 2


def test_finished_cells_take_no_hours(finished, tiny_yaml, tmp_path, measured):
    output = output_of(tiny_yaml, finished, "--dry-run")
    assert "CKTF, seed 1: done\n6 cells (6 done), 1 teachers: about 0.0 h one by one\n" in output
    assert not measured
    # --costs measures them for the table.
    longer = "--set", "epochs=200000"
    shutil.copytree(finished, tmp_path / "out")
    output = output_of(tiny_yaml, tmp_path / "out", "--costs", "--methods", "KD", *longer)
    assert "KD, seed 0: done (100 ms a step, 100 MiB)\n" in output
    assert "2 cells (2 done), 1 teachers: about 0.0 h" in output
    # --dry-run refuses what training would refuse.
    command = ["bench", str(tiny_yaml), "--out", str(finished), "--dry-run", *longer]
    shown = CliRunner().invoke(app, command)
    assert shown.exit_code == 2
    assert "holds results of other recipes than the matrix's; they differ in" in shown.output


def test_a_trained_teacher_takes_no_hours(tmp_path, measured):
    path, matrix = tmp_path / "tiny.yaml", TINY | {"recipe": {"epochs": 20000}}
    path.write_text(yaml.safe_dump(matrix))
    cell = path, tmp_path / "out", "--methods", "KD", "--seeds", "0", "--dry-run"
    assert "teacher resnet14 on fashion-mini: 2.22 h" in output_of(*cell)
    folder = tmp_path / "out" / "teachers" / "teacher-fashion-mini-resnet14"
    folder.mkdir(parents=True)
    for name in ("summary.json", "student.safetensors"):
        (folder / name).touch()
    teacher = build_cells(make_matrix(matrix))[0].teacher
    (folder / "recipe.yaml").write_text(to_yaml(teacher.recipe))
    output = output_of(*cell)
    assert "teacher resnet14 on fashion-mini: trained already" in output
    assert "1 cells, 1 teachers: about 2.2 h" in output


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="forks are measured on Linux alone")
def test_a_fork_has_the_memory_of_a_process_of_its_own():
    """Libraries that the fork shares with its parent count too."""
    cell = build_cells(make_matrix(TINY))[0]
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        alone = pool.submit(_measure, cell.recipe(), cell.teacher.network).result()
    assert measure_cell(cell).peak_memory_mb == pytest.approx(alone.peak_memory_mb, rel=0.1)
