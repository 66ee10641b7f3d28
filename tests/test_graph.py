"""The training step as a CUDA graph, with a stand-in for the graph itself where there is no GPU."""

import contextlib
import random

import pytest
import torch
from small_runs import OPTIONS, SmallNet, equal_weights, read_untimed_metrics, student_weights

import cktf
from cktf.engine import graph
from cktf.engine.config import RuntimeConfig, TrainingConfig
from cktf.engine.trainer import Trainer
from cktf.errors import TrainingError
from cktf.objectives import CKTF
from cktf.objectives.base import Objective
from cktf.recipes import parse_recipe
from cktf.workflows import run_recipe

CASES = {
    "kd": ("kd", None),
    "shared": ("cktf+kd", {"cktf": {"negatives": 32, "estimator": "shared"}}),
    "queue": ("cktf+kd", {"cktf": {"negatives": 32, "memory": "queue", "queue_size": 96}}),
    "staged": ("fitnet+kd", {"fitnet": {"staged": True}}),
}


class RepeatedStep:
    """Stands for a graph: computes the captured step on the memory that it was captured with."""

    def __init__(self, take_step, inputs):
        self.take_step, self.inputs = take_step, inputs
        self.numbers, self.replays = torch.empty(0), 0

    def replay(self):
        numbers = self.take_step(*self.inputs)
        self.numbers.resize_(numbers.shape).copy_(numbers)
        self.replays += 1


@pytest.fixture
def captured(monkeypatch):
    """Let runs on the CPU take the way of a GPU; the list of all graphs that were captured."""
    graphs, start_epoch = [], Trainer.start_epoch

    def capture(take_step, inputs):
        graphs.append(RepeatedStep(take_step, inputs))
        return graphs[-1], graphs[-1].numbers

    def as_on_a_gpu(self, number):
        self._check_every_step = False
        start_epoch(self, number)

    monkeypatch.setattr(graph, "_capture", capture)
    monkeypatch.setattr(graph, "_side_stream", contextlib.nullcontext)
    # On the CPU the negatives are drawn there.
    monkeypatch.setattr(graph, "_cpu_random_state", lambda: random.getstate())
    monkeypatch.setattr(Trainer, "start_epoch", as_on_a_gpu)
    monkeypatch.setattr(graph, "find_graph_obstacle", lambda *args: "")
    return graphs


@pytest.mark.parametrize(("method", "options"), CASES.values(), ids=CASES)
def test_a_run_with_a_graph_equals_one_without(small_run, captured, monkeypatch, method, options):
    overrides = {"init_epochs": 1} if method.startswith("fitnet") else {}
    run = small_run("graph", method=method, options=options, overrides=overrides)
    # Three steps of a phase are taken without it.
    phases = 2 if method.startswith("fitnet") else 1
    assert [g.replays for g in captured] == [2, 7][2 - phases :]
    monkeypatch.setattr(graph, "find_graph_obstacle", lambda *args: "none on a CPU")
    plain = small_run("plain", method=method, options=options, overrides=overrides)
    assert read_untimed_metrics(run.folder) == read_untimed_metrics(plain.folder)
    assert equal_weights(student_weights(run), student_weights(plain))


def test_a_cached_teacher_is_an_input_of_the_graph(captured, teacher_dir, cifar_dir, tmp_path):
    fields = {
        "kind": "distill", "teacher": str(teacher_dir), "student": "resnet8", "epochs": 2,
        "method": "kd+crd", "options": {"crd": {"negatives": 8, "estimator": "all"}},
        "teacher_cache": str(tmp_path / "cache"), "runtime": {"precision": "float32"},
        "data": {"name": "cifar10", "dir": cifar_dir, "views": 1, "batch_size": 8},
    }  # fmt: skip
    run_recipe(parse_recipe(fields), tmp_path / "run", show=False)
    batch, teacher = captured[0].inputs
    assert captured[0].replays
    assert teacher.logits.shape == (len(batch), 10)


def test_the_graph_is_captured_anew_when_the_step_changes(small_run, captured):
    class Freeze(cktf.Callback):
        def on_epoch_end(self, trainer, row):
            trainer.student.a.requires_grad_(trainer.epoch != 1)

    run = small_run(epochs=3, callbacks=[Freeze()])
    assert [g.replays for g in captured] == [2, 2, 2]
    assert "captured anew" in (run.folder / "log.txt").read_text()


class DrawsOnTheCPU(SmallNet):
    def forward(self, x):
        return super().forward(x) * (1.0 if random.random() < 2 else 0.0)


def test_a_step_that_draws_on_the_cpu_has_no_graph(small_run, captured):
    run = small_run(student=DrawsOnTheCPU())
    assert not captured
    assert "draws random numbers on the CPU" in (run.folder / "log.txt").read_text()


def test_a_step_that_cannot_be_captured_is_taken_kernel_by_kernel(small_run, captured, monkeypatch):
    def fail(take_step, inputs):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(graph, "_capture", fail)
    run = small_run()
    assert "is no CUDA graph: operation not permitted when" in (run.folder / "log.txt").read_text()
    assert len(read_untimed_metrics(run.folder)) == 2


def test_a_graph_that_is_required_and_not_possible_is_an_error(small_run):
    with pytest.raises(TrainingError, match=r"runtime.graph is on, .*: the device is no CUDA GPU"):
        small_run(overrides={"runtime.graph": "on"})


class _Step:
    def __init__(self, objective):
        self.objective = objective


class OwnObjective(Objective):
    def forward(self, student, teacher, batch):
        raise NotImplementedError


def obstacle(objective, **runtime):
    config = TrainingConfig(runtime=RuntimeConfig(**runtime))
    return graph.find_graph_obstacle(config, _Step(objective), torch.device("cuda"))


def test_obstacles_are_named(student):
    features = cktf.taps.Tap.infer(student, torch.rand(2, 3, 32, 32))(torch.rand(2, 3, 32, 32))

    def cktf_with(**options):
        return CKTF(features, features, 100, **OPTIONS["cktf"], **options)

    assert obstacle(cktf_with()) == ""
    assert "skip reads the loss" in obstacle(cktf_with(), on_nonfinite="skip")
    assert obstacle(cktf_with(), graph="off") == "runtime.graph is off"
    assert obstacle(cktf_with(renormalize=(2,))).startswith("CKTF with these options")
    assert obstacle(cktf_with(bank_device="host", estimator="shared"))
    assert obstacle(OwnObjective()).startswith("OwnObjective with these options")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("method", ["kd", "sampled", "all", "shared", "queue", "batch", "staged"])
def test_a_graph_on_a_gpu_takes_the_same_steps(small_run, method):
    memory = {"negatives": 32, "memory": method} if method in ("queue", "batch") else {}
    memory = memory | ({"queue_size": 96} if method == "queue" else {})
    estimator = {"negatives": 32, "estimator": method}
    name, options = CASES.get(method, ("cktf+kd", {"cktf": memory or estimator}))
    runs = [
        small_run(
            switch,
            method=name,
            options=options,
            overrides={"runtime.graph": switch, "runtime.deterministic": True},
        )
        for switch in ("on", "off")
    ]
    rows = [read_untimed_metrics(run.folder) for run in runs]
    assert rows[0] == rows[1]
    assert equal_weights(*map(student_weights, runs))
