"""Linear probes: the accuracy of a linear classifier on a network's frozen features.

The features are computed once, in eval mode and without gradient. The classifier is a multinomial
logistic regression, whose regularization is chosen by cross-validation on the labeled images alone.
"""

import statistics
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from cktf.data import (
    ImageSet,
    Loader,
    abbreviate,
    derive_seed,
    describe_class,
    get_labels,
    sample_per_class,
)
from cktf.engine import RunFolder, Runtime, default_tensors, seeded, start_runtime
from cktf.errors import DataError, RecipeError, install_command
from cktf.models import prepare_user_network
from cktf.recipes import (
    CUSTOM,
    TrainRecipe,
    build_data,
    build_test_loader,
    check_recipe,
    load_teacher,
    parse_recipe,
    select_samples,
)
from cktf.taps import Tap, eval_mode, fit_memory_format
from cktf.workflows.classifier import EmbeddedImages, LinearClassifier
from cktf.workflows.inspection import explain_rejected_images, find_feature_paths
from cktf.workflows.label_curve import CURVE, draw_curve
from cktf.workflows.user_objects import find_map_style_problems

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression

# Candidates for the inverse strength of the regularization, on features of unit variance.
_STRENGTHS = tuple(10.0**k for k in range(-4, 3))
_FOLDS = 5
# With fewer labels of a class than this, no cross-validation is possible: use the default strength.
_MIN_FOR_FOLDS, _DEFAULT_STRENGTH = 2, 0.1


@torch.no_grad()
def embed_images(
    network: nn.Module, loader: Loader, runtime: Runtime, embedding: str | None = None
) -> EmbeddedImages:
    """Compute the embedding of every image of a loader, in its order.

    Args:
        network: from images to logits; its device and mode are restored.
        loader: labeled batches, neither shuffled nor augmented.
        runtime: device, precision and seed.
        embedding: path of the classifier's input, if the user names one.

    Raises:
        DataError: images without labels.
        TapError: the classifier's input cannot be found.
    """
    device = runtime.device
    features, labels = [], []
    with ExitStack() as stack, seeded(runtime.seed, device), eval_mode(network):
        tap: Tap | None = None
        for batch in loader.epoch(0, device=device):
            if batch.labels is None:
                raise DataError("A probe needs labels, and these images have none.")
            if tap is None:
                images = batch.images[:2].cpu()
                with explain_rejected_images(network, images):
                    fit_memory_format(network, images)
                    stack.enter_context(runtime.on_device(network))
                    paths = find_feature_paths(network, images, embedding=embedding)
                tap = Tap(network, paths, ["embedding"])
            with runtime.autocast():
                embedded = tap(batch.images).embedding
            assert embedded is not None and batch.labels is not None
            features.append(embedded.float().cpu())
            labels.append(batch.labels.cpu())
    return EmbeddedImages(torch.cat(features), torch.cat(labels))


def fit_classifier(data: EmbeddedImages, seed: int = 0) -> LinearClassifier:
    """Fit a logistic regression; choose its regularization by cross-validation within the data.

    Args:
        data: labeled features, which are scaled to unit variance for the fit.
        seed: of the folds.

    Raises:
        DataError: a single class.
    """
    check_probe_labels(data.labels)
    mean, std = data.features.mean(0), data.features.std(0, unbiased=False)
    # A constant feature gets weight 0.
    scale = torch.where(std > 0, 1 / std.clamp_min(1e-12), 0)
    scaled = ((data.features - mean) * scale).numpy()
    model = _fit_logistic_regression(scaled, data.labels, seed)
    weight = torch.from_numpy(model.coef_).float()
    bias = torch.from_numpy(model.intercept_).float()
    if len(weight) == 1:
        # For two classes scikit-learn gives the second's weights only.
        weight, bias = torch.cat([-weight, weight]) / 2, torch.cat([-bias, bias]) / 2
    weight = weight * scale
    return LinearClassifier(weight, bias - weight @ mean, float(model.C))


def check_probe_labels(labels: Tensor, classes: Sequence[str] | None = None) -> None:
    """Check that a classifier can be fitted on these labels [N].

    Args:
        labels: [N] int64.
        classes: names of the classes, for messages.

    Raises:
        DataError: a single class, one without images, or a label below 0.
    """
    if below := int((labels < 0).sum()):
        raise DataError(
            f"A label is the number of its class, from 0; given {int(labels.min())} for {below} of "
            f"{len(labels)} images. Leave out images without labels, and number the others."
        )
    counts = labels.bincount()
    if len(counts) < 2 or not bool(counts.all()):
        given = [f"{n:,} of {describe_class(c, classes)}" for c, n in enumerate(counts.tolist())]
        raise DataError(
            "A classifier needs images of two classes or more, and of every class; given "
            f"{abbreviate(given)}. Add images, or leave out classes."
        )


def check_probe_dependencies(curve: bool) -> None:
    """Check that the libraries of probes are installed.

    Args:
        curve: whether a curve will be drawn.

    Raises:
        RecipeError: scikit-learn or matplotlib is missing.
    """
    for module, name in (("sklearn", "scikit-learn"), ("matplotlib", "matplotlib")):
        if (curve or module == "sklearn") and find_spec(module) is None:
            raise RecipeError([f"A probe needs {name}: {install_command('transfer')}."])


def _fit_logistic_regression(features: Any, labels: Tensor, seed: int) -> "LogisticRegression":
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, StratifiedKFold

    fewest = int(labels.bincount().min())
    with warnings.catch_warnings():
        # The weakest regularization does not converge on separable data, and loses.
        warnings.simplefilter("ignore", ConvergenceWarning)
        if fewest < _MIN_FOR_FOLDS:
            model = LogisticRegression(C=_DEFAULT_STRENGTH, max_iter=500)
            return model.fit(features, labels.numpy())
        folds = StratifiedKFold(min(_FOLDS, fewest), shuffle=True, random_state=seed)
        model = LogisticRegression(max_iter=500)
        search = GridSearchCV(model, {"C": list(_STRENGTHS)}, cv=folds)
        return search.fit(features, labels.numpy()).best_estimator_


@dataclass(frozen=True)
class ProbeResult:
    """The accuracies of linear probes of one network.

    Attributes:
        labels: the number of labels per class at each point of the curve; None for all.
        top1: the accuracies in per cent at each point, one for each draw of labels.
        classifier: of the last point's first draw.
        test_images: the number of test images.
    """

    labels: list[int | None]
    top1: list[list[float]]
    classifier: LinearClassifier = field(repr=False)
    test_images: int

    @property
    def final(self) -> float:
        """Mean accuracy at the last point, in per cent."""
        return statistics.fmean(self.top1[-1])

    def points(self) -> list[dict[str, Any]]:
        """The points for a record: labels per class, accuracies, mean and standard deviation."""
        return [
            {
                "labels_per_class": count,
                "top1": top1,
                "mean": statistics.fmean(top1),
                "sd": statistics.stdev(top1) if len(top1) > 1 else None,
            }
            for count, top1 in zip(self.labels, self.top1, strict=True)
        ]


@dataclass(frozen=True)
class LabelSubset:
    """The labeled images of one point of a curve.

    Attributes:
        labels_per_class: None for all labels.
        draws: indices of the labeled images in each random draw; a single draw of all images.
    """

    labels_per_class: int | None
    draws: list[Tensor]


def choose_label_subsets(
    labels: Tensor,
    per_class: Sequence[int],
    draws: int,
    seed: int,
    classes: Sequence[str] | None = None,
) -> list[LabelSubset]:
    """Draw labeled images for each point of a curve; a draw's small subsets are in its large ones.

    Args:
        labels: [N] int64.
        per_class: numbers of labels per class; empty for one point with all labels.
        draws: random draws at each point; no two seeds share a draw.
        seed: of the first draw, which equals that of `data.per_class`; the others derive from it.
        classes: names of the classes, for messages.

    Raises:
        DataError: a class with fewer images than that.
    """
    if not per_class:
        return [LabelSubset(None, [torch.arange(len(labels))])]
    counts, subsets = labels.bincount(), []
    for count in sorted(set(per_class)):
        times = 1 if bool((counts == count).all()) else draws
        seeds = [seed, *(derive_seed(seed, draw) for draw in range(1, times))]
        indices = [sample_per_class(labels, count, draw_seed, classes) for draw_seed in seeds]
        subsets.append(LabelSubset(count, indices))
    return subsets


def probe_network(
    network: nn.Module,
    labeled: Any,
    test: Loader,
    subsets: Sequence[LabelSubset],
    runtime: Runtime,
    *,
    embedding: str | None = None,
    workers: int = 0,
) -> ProbeResult:
    """Fit a classifier of a network's features on each subset of the labels, and test it.

    Args:
        network: from images to logits; it is left unchanged.
        labeled: map-style data set of `(image, label)`; only the images of `subsets` are read.
        test: labeled batches of the test images, neither shuffled nor augmented.
        subsets: the labeled images of each point of the curve.
        runtime: device, precision and seed (cross-validation).
        embedding: path of the classifier's input, if the user names one.
        workers: processes that read `labeled`.

    Raises:
        TapError: the classifier's input cannot be found.
    """
    indices = torch.unique(torch.cat([draw for subset in subsets for draw in subset.draws]))
    train = build_test_loader(select_samples(labeled, indices), workers)
    train_images, test_images = (
        embed_images(network, loader, runtime, embedding) for loader in (train, test)
    )
    classifiers = [
        [
            fit_classifier(train_images.take(torch.searchsorted(indices, draw)), runtime.seed)
            for draw in subset.draws
        ]
        for subset in subsets
    ]
    top1 = [[classifier.accuracy(test_images) for classifier in point] for point in classifiers]
    labels = [subset.labels_per_class for subset in subsets]
    return ProbeResult(labels, top1, classifiers[-1][0], len(test_images.labels))


@default_tensors()
@torch.inference_mode(False)
def probe(
    network: nn.Module,
    *,
    labeled: Any,
    test: Any,
    labels_per_class: Sequence[int] = (),
    draws: int = 5,
    seed: int = 0,
    runtime: Mapping[str, Any] | None = None,
) -> ProbeResult:
    """Measure the accuracy of a linear classifier on a network's features.

    The network and the caller's random generators are left unchanged.

    Args:
        network: from images to logits.
        labeled: map-style data set of `(image, label)` to fit the classifier on.
        test: map-style data set of `(image, label)` to test it on.
        labels_per_class: numbers of labels, each a point of a curve; empty for all labels.
        draws: random draws of labels at each point.
        seed: of the draws and of the cross-validation.
        runtime: `device`, `precision` and `channels_last`; by default those of a recipe.

    Raises:
        CktfError: a mistake in `runtime`, unsuitable data sets, images without labels, too few of a
            class, features that cannot be found.
    """
    check_probe_dependencies(curve=False)
    fields = {"kind": "train", "model": CUSTOM, "seed": seed, "runtime": dict(runtime or {})}
    probe_runtime = start_runtime(parse_recipe(fields).runtime, seed)
    if problems := [
        *find_map_style_problems("labeled", labeled),
        *find_map_style_problems("test", test),
    ]:
        raise RecipeError(problems)
    # A user's data set may draw random numbers when a sample is read.
    with seeded(seed, probe_runtime.device):
        labels = get_labels(labeled)
    classes = labeled.classes if isinstance(labeled, ImageSet) else None
    check_probe_labels(labels, classes)
    subsets = choose_label_subsets(labels, labels_per_class, draws, seed, classes)
    loader = build_test_loader(test)
    return probe_network(prepare_user_network(network), labeled, loader, subsets, probe_runtime)


@default_tensors()
@torch.inference_mode(False)
def probe_run(
    recipe: TrainRecipe,
    labels_per_class: Sequence[int],
    draws: int,
    out: Path,
    *,
    trust_code: bool = False,
) -> ProbeResult:
    """Probe the network and the data that a recipe names, and write the result to a folder.

    Args:
        recipe: names the network as `model`, the data, the seed and the runtime.
        labels_per_class: numbers of labels, each a point of a curve; empty for all labels.
        draws: random draws of labels at each point.
        out: a folder for `summary.json` and the plot.
        trust_code: whether code that weights name may run.

    Raises:
        RecipeError: all mistakes in the recipe.
    """
    problems = check_recipe(recipe)
    with problems.collect("out"):
        RunFolder(out).check(resume=True)
    with problems.collect():
        check_probe_dependencies(curve=len(labels_per_class) > 1)
    problems.raise_if_any()
    data = build_data(recipe.data.model_copy(update={"batch_size": 2}), recipe.seed)
    network = load_teacher(recipe.model, None, data.raw_train, trust_code=trust_code).network
    result = probe(
        network,
        labeled=data.raw_train,
        test=data.raw_test,
        labels_per_class=labels_per_class,
        draws=draws,
        seed=recipe.seed,
        runtime=recipe.runtime.model_dump(),
    )
    summary = {
        "network": recipe.model, "dataset": data.name, "seed": recipe.seed,
        "test_top1": result.final, "test_images": result.test_images, "points": result.points(),
    }  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    if len(result.labels) > 1:
        draw_curve({"features": result.points()}, {}, out / CURVE)
    RunFolder(out).write_summary(summary)
    return result
