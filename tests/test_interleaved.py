"""Students that take turns with one teacher end as they would alone."""

import json
import os
import pickle
import signal

import pytest
import torch
from safetensors.torch import load_file
from small_runs import equal_weights, read_metrics, stop_after_steps, student_weights

import cktf
from cktf.batch import Batch
from cktf.data import DatasetLoader, MemoryLoader
from cktf.engine import Trainer
from cktf.errors import Interrupted, RecipeError
from cktf.objectives import CRD
from cktf.recipes import parse_recipe
from cktf.taps import SharedTap, Tap
from cktf.workflows import distill_interleaved, run_recipe

# The first two draw numbers; the last two read no more than logits, and nothing.
METHODS = {
    "cktf+kd": {"cktf": {"negatives": 16}}, "at+crd+ab": {"crd": {"negatives": 24}},
    "kd": {}, "ce": {},
}  # fmt: skip


def parameters(network):
    return sum(p.numel() for p in network.parameters())


def recipe(teacher, data, method, options, **more):
    return parse_recipe(
        {
            "kind": "distill", "teacher": str(teacher), "student": "resnet8", "method": method,
            "options": options, "epochs": 2, "init_epochs": 1,
            "data": {"name": "cifar10", "dir": data}, **more,
        }
    )  # fmt: skip


@pytest.fixture
def teacher(cifar_dir, tmp_path):
    run = cktf.teach(
        "resnet14", train="cifar10", epochs=1, out=tmp_path / "teacher", show=False,
        overrides={"data.dir": cifar_dir},
    )  # fmt: skip
    return run.folder


def test_together_as_alone(teacher, cifar_dir, tmp_path, monkeypatch):
    calls = []
    call = Tap.__call__

    def counted(self, images):
        calls.append(self.model)
        return call(self, images)

    recipes = {m: recipe(teacher, cifar_dir, m, options) for m, options in METHODS.items()}
    for method, given in recipes.items():
        run_recipe(given, tmp_path / "alone" / method, show=False)
    monkeypatch.setattr(Tap, "__call__", counted)
    evaluate, evaluated = Trainer.evaluate, []

    def record_call(self, network, *given):
        evaluated.append(parameters(network))
        return evaluate(self, network, *given)

    monkeypatch.setattr(Trainer, "evaluate", record_call)
    runs = distill_interleaved([(r, tmp_path / "together" / m) for m, r in recipes.items()])
    for method, run in zip(METHODS, runs, strict=True):
        alone = tmp_path / "alone" / method
        weights = [load_file(f / "student.safetensors") for f in (alone, run.folder)]
        assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
        rows = [[row["terms"] for row in read_metrics(f)] for f in (alone, run.folder)]
        assert rows[0] == rows[1]
        summary = json.loads((alone / "summary.json").read_text())
        assert summary["teacher_top1"] == run.summary["teacher_top1"]
        assert (summary["interleaved"], run.summary["interleaved"]) == (False, True)
    teachers = [
        model for model in calls if parameters(model) == runs[0].summary["teacher_parameters"]
    ]
    assert evaluated.count(runs[0].summary["teacher_parameters"]) == 1
    # Each run tries it once, and the three that read it rehearse with it; then it sees every batch
    # of the three passes of the longest once, but for the first, which was the last rehearsal's.
    assert len(teachers) == 4 + 3 + 3 * (300 // 64) - 1


def test_runs_that_are_done_are_taken_as_they_are(teacher, cifar_dir, tmp_path):
    jobs = [(recipe(teacher, cifar_dir, m, {}), tmp_path / m) for m in ("kd", "at")]
    first = distill_interleaved(jobs[:1])
    both = distill_interleaved(jobs)
    assert both[0].summary == first[0].summary
    assert both[1].summary["method"] == "at"


def test_students_of_other_batches_are_refused(teacher, cifar_dir, tmp_path):
    jobs = [
        (recipe(teacher, cifar_dir, "kd", {}, seed=seed), tmp_path / str(seed)) for seed in (0, 1)
    ]
    with pytest.raises(RecipeError, match="seed: students are trained together"):
        distill_interleaved(jobs)


@pytest.mark.parametrize(
    "field", [{"teacher_size": 64}, {"teacher_taps": ["layer1"]}, {"teacher_embedding": "fc:input"}]
)
def test_students_of_another_view_of_the_teacher_are_refused(field, tmp_path):
    """It would give them what their recipe does not say."""
    jobs = [(recipe("t", "d", "kd", {}, **more), tmp_path) for more in ({}, field)]
    with pytest.raises(RecipeError, match=f"{next(iter(field))}: students are trained together"):
        distill_interleaved(jobs)


def test_a_shared_tap_runs_once_for_batches_of_one_source(monkeypatch):
    """Images are not compared, which on a GPU would wait for all queued work."""
    monkeypatch.setattr(torch, "equal", None)
    network = cktf.models.create("resnet8", 10).eval()
    shared = SharedTap(network)
    with pytest.raises(RuntimeError, match="before the first use"):
        shared(torch.rand(2, 3, 32, 32))
    shared.add_reader(network.feature_paths, ["embedding"]).add_reader(
        network.feature_paths, ["stages"]
    )
    images = torch.rand(2, 3, 32, 32)

    def of(source, images=images):
        batch = Batch(images, None, torch.arange(2), source=source)
        return shared.extract(batch.to(torch.device("cpu")))

    first = of((1, 0))
    assert first.embedding is not None
    assert len(first.stages) == 3
    assert of((1, 0), images.clone()) is first
    assert of((1, 1)) is not first
    assert of(None) is not of(None)


def test_batches_of_one_source_have_the_same_images(few_images, images):
    """Only where the data set does not draw images itself, as a user's own may."""
    first = images[1].subset(torch.arange(20))
    loaders = [MemoryLoader(data, 10, train=True, augment=True) for data in (first, few_images[0])]
    (batch,), (again,) = list(loaders[0].epoch(1))[1:], loaders[0].epoch(1, start=1)
    assert again.source == batch.source
    assert torch.equal(again.images, batch.images)
    sources = [batch.source for loader in loaders for n in (1, 2) for batch in loader.epoch(n)]
    assert len(set(sources)) == len(sources)
    # A copy of a batch is none of the whole data set.
    assert len(pickle.dumps(batch)) < 2 * batch.images.nbytes
    own = DatasetLoader([(image, 0) for image, _ in first], 10, train=True)
    assert all(batch.source is None for batch in own.epoch(1))


def test_students_share_the_images_in_memory(teacher, cifar_dir, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "cktf.workflows.interleaved.fit_interleaved", lambda trainers, _: seen.extend(trainers)
    )
    jobs = [(recipe(teacher, cifar_dir, name, {}), tmp_path / name) for name in ("kd", "at")]
    with pytest.raises(KeyError):  # no run has finished
        distill_interleaved(jobs)
    first, second = seen
    assert first.train is second.train
    assert first.test is second.test


def test_a_signal_stops_and_saves_all(teacher, cifar_dir, tmp_path, monkeypatch):
    jobs = {
        place: [(recipe(teacher, cifar_dir, m, {}), tmp_path / place / m) for m in ("kd", "at")]
        for place in ("whole", "cut")
    }
    whole = distill_interleaved(jobs["whole"])
    with monkeypatch.context() as patch:
        # In the second run's third step.
        stop_after_steps(patch, 6)
        with pytest.raises(Interrupted):
            distill_interleaved(jobs["cut"])
    for _, folder in jobs["cut"]:
        assert len(list((folder / "checkpoints").glob("*.pt"))) == 1
    for a, b in zip(whole, distill_interleaved(jobs["cut"]), strict=True):
        weights = [load_file(run.folder / "student.safetensors") for run in (a, b)]
        assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_signal_while_memories_are_filled_saves_nothing(
    teacher, cifar_dir, tmp_path, monkeypatch
):
    """Half-filled memories are filled again, as in a run that was never stopped."""
    contrast = {"negatives": 16, "init": "forward", "memory": "queue", "queue_size": 128}
    methods = {"crd": {"crd": contrast}, "kd": {}}
    jobs = {
        name: [
            (recipe(teacher, cifar_dir, method, options), tmp_path / name / method)
            for method, options in methods.items()
        ]
        for name in ("whole", "cut")
    }
    whole = distill_interleaved(jobs["whole"])
    with monkeypatch.context() as patch:
        fill = CRD.fill

        def fill_and_stop(self, *arguments):
            os.kill(os.getpid(), signal.SIGTERM)
            fill(self, *arguments)

        patch.setattr(CRD, "fill", fill_and_stop)
        with pytest.raises(Interrupted):
            distill_interleaved(jobs["cut"])
    for _, folder in jobs["cut"]:
        assert not list((folder / "checkpoints").glob("*.pt"))
    for a, b in zip(whole, distill_interleaved(jobs["cut"]), strict=True):
        assert equal_weights(student_weights(a), student_weights(b))
