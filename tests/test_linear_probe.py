"""Linear probes of features: the classifier, the label subsets, and what a probe leaves alone."""

import json
import random

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from small_runs import SmallNet, TwoClassifiers, copy_state, equal_weights, run_command
from torch.utils.data import DataLoader, TensorDataset

import cktf
from cktf.data import sample_per_class
from cktf.data.cifar_classes import CIFAR10
from cktf.engine import RuntimeConfig, start_runtime
from cktf.errors import DataError, RecipeError
from cktf.models import Normalized, create, load_network, save_network
from cktf.recipes import build_test_loader, select_samples
from cktf.workflows import prepare
from cktf.workflows.classifier import EmbeddedImages
from cktf.workflows.linear_probe import (
    choose_label_subsets,
    embed_images,
    fit_classifier,
)


def gaussian_classes(count, classes, seed):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    centers = torch.randn(classes, 6, generator=torch.Generator().manual_seed(9))
    noise = torch.randn(count, 6, generator=generator)
    # Features of very different sizes, one of them constant.
    features = (centers[labels] + noise) * torch.tensor([1, 100, 0.01, 1, 5, 1])
    return EmbeddedImages(torch.cat([features, torch.ones(count, 1)], 1), labels)


@pytest.mark.parametrize("classes", [2, 5])
def test_classifier_is_logistic_regression(classes):
    data, test = gaussian_classes(200, classes, 0), gaussian_classes(300, classes, 1)
    classifier = fit_classifier(data)
    scaler = StandardScaler().fit(data.features.double().numpy())
    model = LogisticRegression(C=classifier.strength, max_iter=1000)
    model.fit(scaler.transform(data.features.double().numpy()), data.labels.numpy())
    expected = model.predict(scaler.transform(test.features.double().numpy()))
    logits = test.features @ classifier.weight.T + classifier.bias
    assert float((logits.argmax(1).numpy() == expected).mean()) > 0.99
    assert classifier.accuracy(test) == pytest.approx(
        100 * (expected == test.labels.numpy()).mean(), abs=1
    )


def test_classifier_needs_one_label_of_each_class():
    one = gaussian_classes(5, 5, 0)
    assert fit_classifier(one).accuracy(one) == 100
    with pytest.raises(DataError, match="of every class; given"):
        fit_classifier(EmbeddedImages(one.features[1:], one.labels[1:]))


def test_smaller_label_subsets_are_within_larger_ones():
    labels = torch.arange(60) % 3
    one, five, twenty = choose_label_subsets(labels, [5, 1, 20], draws=3, seed=0)
    assert [s.labels_per_class for s in (one, five, twenty)] == [1, 5, 20]
    assert (len(one.draws), len(five.draws), len(twenty.draws)) == (3, 3, 1)
    for small, large in zip(one.draws, five.draws, strict=True):
        assert set(small.tolist()) < set(large.tolist())
        assert labels[large].bincount().tolist() == [5, 5, 5]
    with pytest.raises(DataError, match="21 images of each class were requested"):
        choose_label_subsets(labels, [21], 1, 0)
    # Neighboring seeds are as independent as others, and the first draw is that of a training.
    draws = [d for seed in range(3) for d in choose_label_subsets(labels, [5], 3, seed)[0].draws]
    assert len({tuple(draw.tolist()) for draw in draws}) == 9
    assert torch.equal(draws[3], sample_per_class(labels, 5, 1))


def test_probe_changes_neither_network_nor_generators(images):
    network = create("resnet8", 10).train()
    network(torch.rand(2, 3, 32, 32)).sum().backward()
    before, modes = copy_state(network), [m.training for m in network.modules()]

    def list_tensors():
        gradients = (p.grad for p in network.parameters())
        return [*network.parameters(), *gradients, *network.buffers()]

    def draw():
        return [random.random(), np.random.rand(), float(torch.rand(1))]

    def seed():
        random.seed(3), np.random.seed(3), torch.manual_seed(3)

    tensors = list_tensors()
    storages = [(t.data_ptr(), t.stride()) for t in tensors]
    seed()
    expected = draw()
    seed()
    result = cktf.probe(
        network, labeled=images[0], test=images[1], labels_per_class=[5, 20], draws=2
    )
    assert draw() == expected
    assert [(t.data_ptr(), t.stride()) for t in list_tensors()] == storages
    assert all(t is u for t, u in zip(tensors, list_tensors(), strict=True))
    assert equal_weights(before, copy_state(network))
    assert modes == [m.training for m in network.modules()]
    assert [len(point) for point in result.top1] == [2, 2]
    assert result.final == pytest.approx(sum(result.top1[1]) / 2)
    # Even random features tell ten kinds of clothes better than chance.
    assert result.final > 20


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"runtime": {"precison": "float32"}}, RecipeError, "Did you mean 'precision'"),
        ({"runtime": {"precision": "float16"}}, RecipeError, "float16"),
        ({"runtime": {"device": "gpu"}}, RecipeError, "runtime.device"),
        ({"labeled": lambda data: data.without_labels()}, DataError, "labels"),
        ({"labeled": lambda data: DataLoader(data, 64)}, RecipeError,
         "labeled: give the data set, not a loader"),
        ({"labeled": lambda data: TensorDataset(torch.rand(9, 3, 28, 28), torch.arange(9) % 3 - 1),
          "labels_per_class": [1]}, DataError, "from 0; given -1 for 3 of 9 images"),
    ],
)  # fmt: skip
def test_mistakes_of_a_probe_in_python(images, change, error, message):
    labeled = change.get("labeled", lambda data: data)(images[0])
    with pytest.raises(error, match=message):
        cktf.probe(create("resnet8", 10), **(change | {"labeled": labeled, "test": images[1]}))


def test_samples_are_indexed_by_plain_integers():
    samples = select_samples({0: "a", 2: "c"}, torch.tensor([2, 0]))
    assert [samples[0], samples[1]] == ["c", "a"]


def test_embedding_of_a_named_module(images):
    loader, network = build_test_loader(images[1]), TwoClassifiers()
    runtime = start_runtime(RuntimeConfig())
    assert embed_images(network, loader, runtime).features.shape == (500, 10)
    assert embed_images(network, loader, runtime, "fc:input").features.shape == (500, 16)


# The command line


@pytest.fixture
def probe_line(teacher_dir, cifar_dir):
    """A command that probes the run in `teacher_dir`."""
    return f"probe {teacher_dir} --labeled cifar10 --data-dir {cifar_dir}"


def test_probe_in_closed_form(probe_line, teacher_dir):
    before = (teacher_dir / "student.safetensors").read_bytes()
    assert "all" in run_command(probe_line)
    assert "curve.png" in run_command(f"{probe_line} --labels-per-class 1,3 --draws 2")
    summary = json.loads((teacher_dir / "probe" / "summary.json").read_text())
    assert [p["labels_per_class"] for p in summary["points"]] == [1, 3]
    assert (teacher_dir / "student.safetensors").read_bytes() == before


CLASSIFIER = {"network.fc.weight", "network.fc.bias"}


@pytest.mark.parametrize(("mode", "out"), [("--sgd", "probe-sgd"), ("--finetune", "finetuned")])
def test_sgd_trains_the_classifier_and_finetuning_everything(probe_line, teacher_dir, mode, out):
    run_command(f"{probe_line} {mode} --epochs 2 --set data.batch_size=16")
    before, after = (
        load_network(path / "student.safetensors")[0].state_dict()
        for path in (teacher_dir, teacher_dir / out)
    )
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == (CLASSIFIER if mode == "--sgd" else set(before) - {"mean", "std"})


@pytest.mark.parametrize("mode", ["", "--sgd", "--finetune"])
def test_a_probe_is_at_the_size_of_training(cifar_dir, tmp_path, monkeypatch, mode):
    """As cktf evaluate is; --set data.image_size asks for another."""
    network = Normalized(create("resnet8", 10), [0.5] * 3, [0.25] * 3)
    path = tmp_path / "student.safetensors"
    save_network(
        network, path, name="resnet8", classes=CIFAR10, dataset="cifar10",
        images=torch.rand(2, 3, 24, 24),
    )  # fmt: skip
    sizes = []

    def record_call(recipe, *_, **__):
        sizes.append(recipe.data.image_size)
        raise RecipeError(["enough"])

    monkeypatch.setattr("cktf.workflows.run_recipe", record_call)
    monkeypatch.setattr("cktf.workflows.probe_run", record_call)
    line = f"probe {path} --labeled cifar10 --data-dir {cifar_dir} {mode}"
    for more in ("", " --set data.image_size=40"):
        run_command(line + more, exit_code=2)
    assert sizes == [24, 40]


@pytest.mark.parametrize("mode", ["--sgd", "--finetune"])
def test_a_probe_starts_with_a_new_classifier(probe_line, teacher_dir, monkeypatch, mode):
    """Even where the network's classifier has the same classes."""
    states = []

    def record_start(recipe, *_, **__):
        states.append(prepare(recipe, teacher_dir / "none")[1].student.state_dict())
        raise RecipeError(["enough"])

    monkeypatch.setattr("cktf.workflows.run_recipe", record_start)
    run_command(f"{probe_line} --epochs 1 {mode}", exit_code=2)
    before = load_network(teacher_dir / "student.safetensors")[0].state_dict()
    assert {name for name in before if not torch.equal(before[name], states[0][name])} == CLASSIFIER


MISTAKES = {
    "": "labeled: is needed",
    "--labeled cifar1": "Did you mean 'cifar10'?",
    "--labeled cifar10 --sgd --finetune": "give one of them",
    "--labeled cifar10 --sgd --draws 3": "Leave out --sgd for a curve",
    "--labeled cifar10 --labels-per-class 1,x": "given '1,x'",
    "--labeled cifar10 --labels-per-class 9999": "9999 images of each class were requested",
    "--labeled cifar10 --epochs 3": "add --sgd or --finetune",
}


@pytest.mark.parametrize(("options", "words"), MISTAKES.items(), ids=MISTAKES)
def test_mistakes_of_the_command(teacher_dir, cifar_dir, options, words):
    line = f"probe {teacher_dir} {options} --data-dir {cifar_dir}"
    assert words in run_command(line, exit_code=2)
    assert [p.name for p in teacher_dir.iterdir()] == ["student.safetensors"]


def test_a_probe_is_independent_of_the_users_defaults(few_images, users_default):
    labeled, test = few_images
    with torch.device("cpu"):
        network = SmallNet().float()
    with torch.inference_mode():
        result = cktf.probe(network, labeled=labeled, test=test, labels_per_class=[2], draws=1)
    assert result.test_images == 200
