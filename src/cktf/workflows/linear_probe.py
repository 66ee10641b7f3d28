"""Linear probes: what a network's features are worth, by a linear classifier on them.

The features are computed once, in eval mode and without gradient, so that they are frozen to the
last buffer; the classifier is a multinomial logistic regression, whose regularization is chosen by
cross-validation on the labeled images alone.
"""

import statistics
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from cktf.data import Loader, derive_seed, sample_per_class
from cktf.engine import RunFolder, Training, autocast, device_of, on_device, seeded
from cktf.errors import DataError, RecipeError
from cktf.recipes import (
    CUSTOM,
    TrainRecipe,
    build_data,
    build_test_loader,
    check_recipe,
    load_teacher,
    parse_recipe,
)
from cktf.taps import Tap, eval_mode
from cktf.workflows.classifier import EmbeddedImages, LinearClassifier
from cktf.workflows.inspection import find_feature_paths
from cktf.workflows.label_curve import CURVE, check_plots, draw_curve
from cktf.workflows.train import plain
from cktf.workflows.user_objects import check_map_style

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression

# Inverse strengths of the regularization that are tried, on features of unit variance.
_STRENGTHS = tuple(10.0**k for k in range(-4, 3))
_FOLDS = 5
# Labels of a class are too few for cross-validation below this; the strength is then this one.
_FEWEST, _UNTRIED = 2, 0.1


@torch.no_grad()
def embed_images(
    network: nn.Module,
    loader: Loader,
    training: Training | None = None,
    embedding: str | None = None,
) -> EmbeddedImages:
    """The embedding of every image of a loader, in its order; the network stays as it is.

    Args:
        network: from images to logits.
        loader: labeled batches, neither shuffled nor augmented.
        training: precision and device; by default those that are fastest here.
        embedding: the path of what the classifier reads, where the user gives one.

    Raises:
        DataError: images without labels.
        TapError: what the classifier reads cannot be found.
    """
    training = training or Training(epochs=1)
    device = device_of(training)
    features, labels = [], []
    with on_device(network, training, device), seeded(training.seed, device), eval_mode(network):
        tap: Tap | None = None
        for batch in loader.epoch(0):
            if batch.labels is None:
                raise DataError("A probe needs labels, and these images have none.")
            batch = batch.to(device)
            if tap is None:
                paths = find_feature_paths(network, batch.images[:2], embedding=embedding)
                tap = Tap(network, paths, ["embedding"])
            with autocast(training.precision, device):
                found = tap(batch.images).embedding
            assert found is not None
            features.append(found.float().cpu())
            assert batch.labels is not None
            labels.append(batch.labels.cpu())
    return EmbeddedImages(torch.cat(features), torch.cat(labels))


def fit_classifier(data: EmbeddedImages, seed: int = 0) -> LinearClassifier:
    """The logistic regression that generalizes best, by cross-validation within the data.

    Args:
        data: labeled features; features are brought to unit variance inside.
        seed: of the folds.

    Raises:
        DataError: a single class.
        RecipeError: scikit-learn is not installed.
    """
    check_classes(data.labels)
    fewest = int(data.labels.bincount().min())
    mean, std = data.features.mean(0), data.features.std(0, unbiased=False)
    # A feature that never changes tells nothing.
    scale = torch.where(std > 0, 1 / std.clamp_min(1e-12), 0)
    scaled = ((data.features - mean) * scale).numpy()
    model, strength = _regression(scaled, data.labels.numpy(), fewest, seed)
    weight = torch.from_numpy(model.coef_).float()
    bias = torch.from_numpy(model.intercept_).float()
    if len(weight) == 1:
        # Of two classes it has the second's side only.
        weight, bias = torch.cat([-weight, weight]) / 2, torch.cat([-bias, bias]) / 2
    weight = weight * scale
    return LinearClassifier(weight, bias - weight @ mean, strength)


def check_classes(labels: Tensor) -> None:
    """Raise unless a classifier can be fitted on these labels [N].

    Raises:
        DataError: a single class, one without images, or a label below 0.
    """
    if below := int((labels < 0).sum()):
        raise DataError(
            f"A label is the number of its class, from 0; given {int(labels.min())} for {below} of "
            f"{len(labels)} images. Leave out images that have no label, and number the others."
        )
    counts = labels.bincount()
    if len(counts) < 2 or not bool(counts.all()):
        raise DataError(
            "A classifier needs images of two classes or more, and of every class; given "
            f"{counts.tolist()} images of class 0, 1, … Add images, or leave out classes."
        )


def check_probes(curve: bool) -> None:
    """Raise unless what probes are made with is installed.

    Args:
        curve: whether there are several points, which are drawn.

    Raises:
        RecipeError: scikit-learn or matplotlib is not.
    """
    try:
        import sklearn  # noqa: F401
    except ImportError as error:
        raise RecipeError(["A probe needs scikit-learn: pip install 'cktf[transfer]'."]) from error
    if curve:
        check_plots()


def _regression(
    features: Any, labels: Any, fewest: int, seed: int
) -> tuple["LogisticRegression", float]:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, StratifiedKFold

    with warnings.catch_warnings():
        # At the weakest regularization it goes on for ever on separable data, and loses.
        warnings.simplefilter("ignore", ConvergenceWarning)
        if fewest < _FEWEST:
            return LogisticRegression(C=_UNTRIED, max_iter=500).fit(features, labels), _UNTRIED
        folds = StratifiedKFold(min(_FOLDS, fewest), shuffle=True, random_state=seed)
        model = LogisticRegression(max_iter=500)
        search = GridSearchCV(model, {"C": list(_STRENGTHS)}, cv=folds)
        search.fit(features, labels)
    return search.best_estimator_, float(search.best_params_["C"])


@dataclass(frozen=True)
class ProbeResult:
    """What probes of a network's features came to.

    Attributes:
        labels: of each class, in each point; None for all.
        top1: in per cent, for each point one of each draw.
        classifier: of the last point's first draw.
        test_images: how many it was tested on.
    """

    labels: list[int | None]
    top1: list[list[float]]
    classifier: LinearClassifier
    test_images: int

    @property
    def final(self) -> float:
        """Mean over the draws of the last point, in per cent."""
        return statistics.fmean(self.top1[-1])

    def points(self) -> list[dict[str, Any]]:
        """For the record: labels a class, each draw's accuracy, mean and spread."""
        return [
            {
                "labels_per_class": count,
                "top1": found,
                "mean": statistics.fmean(found),
                "sd": statistics.stdev(found) if len(found) > 1 else None,
            }
            for count, found in zip(self.labels, self.top1, strict=True)
        ]


@dataclass(frozen=True)
class LabelSubset:
    """Labels of one point of a curve.

    Attributes:
        labels: of each class; None for all.
        draws: positions of the labeled images, for each random choice; one where all are taken.
    """

    labels: int | None
    draws: list[Tensor]


def choose_label_subsets(
    labels: Tensor, per_class: Sequence[int], draws: int, seed: int
) -> list[LabelSubset]:
    """Labels for each point of a curve; a draw's smaller choices are within its larger ones.

    Args:
        labels: [N] int64.
        per_class: numbers of labels of each class; empty for one point, of all labels.
        draws: random choices at each point, of which no two seeds have any in common.
        seed: of the first draw, which is that of `data.per_class`; the others follow from it.

    Raises:
        DataError: a class with fewer images than asked for.
    """
    if not per_class:
        return [LabelSubset(None, [torch.arange(len(labels))])]
    counts, found = labels.bincount(), []
    for count in sorted(set(per_class)):
        times = 1 if bool((counts == count).all()) else draws
        seeds = [seed, *(derive_seed(seed, draw) for draw in range(1, times))]
        chosen = [sample_per_class(labels, count, own) for own in seeds]
        found.append(LabelSubset(count, chosen))
    return found


def probe_features(
    labeled: EmbeddedImages, test: EmbeddedImages, choices: Sequence[LabelSubset], seed: int = 0
) -> ProbeResult:
    """Fit and test classifiers on few labels and on more.

    Args:
        labeled: features to fit on.
        test: features to test on.
        choices: which of the labels, for each point of the curve.
        seed: of the cross-validation.
    """
    fitted = [
        [fit_classifier(labeled.take(draw), seed) for draw in choice.draws] for choice in choices
    ]
    top1 = [[classifier.accuracy(test) for classifier in point] for point in fitted]
    return ProbeResult([choice.labels for choice in choices], top1, fitted[-1][0], len(test.labels))


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
    """Measure what a network's features are worth; it is left as it is, to the last buffer.

    So is the state of the caller's random generators.

    Args:
        network: from images to logits.
        labeled: map-style data set of `(image, label)` to fit a linear classifier on.
        test: likewise, to test it on.
        labels_per_class: numbers of labels, each a point of a curve; empty for all labels.
        draws: random choices of labels at each point.
        seed: of the choices and of the cross-validation.
        runtime: `device`, `precision` and `channels_last`, where not the defaults.

    Raises:
        CktfError: a mistake in `runtime`, no data sets, images without labels, too few of a class,
            features that cannot be found.
    """
    check_probes(curve=False)
    fields = {"kind": "train", "model": CUSTOM, "seed": seed, "runtime": dict(runtime or {})}
    training = parse_recipe(fields).training()
    if problems := [*check_map_style("labeled", labeled), *check_map_style("test", test)]:
        raise RecipeError(problems)
    network, _ = plain(network)
    fitted, tested = (
        embed_images(network, build_test_loader(data), training) for data in (labeled, test)
    )
    check_classes(fitted.labels)
    choices = choose_label_subsets(fitted.labels, labels_per_class, draws, seed)
    return probe_features(fitted, tested, choices, seed)


def probe_run(
    recipe: TrainRecipe,
    labels_per_class: Sequence[int],
    draws: int,
    out: Path,
    *,
    trust_code: bool = False,
) -> ProbeResult:
    """Probe the network that a recipe goes on from, on the data that it names.

    Args:
        recipe: of training a classifier on frozen features, which is not done here.
        labels_per_class: numbers of labels, each a point of a curve; empty for all labels.
        draws: random choices of labels at each point.
        out: a folder for `summary.json` and the plot.
        trust_code: whether code that weights name may run.

    Raises:
        RecipeError: everything that is wrong with it.
    """
    problems = check_recipe(recipe)
    with problems.collect("out"):
        RunFolder(out).check(resume=True)
    with problems.collect():
        check_probes(curve=len(labels_per_class) > 1)
    problems.raise_if_any()
    data = build_data(recipe.data.model_copy(update={"batch_size": 2}), recipe.seed)
    network = load_teacher(recipe.model, None, data.raw_train, trust_code=trust_code).network
    runtime = {n: getattr(recipe.runtime, n) for n in ("device", "precision", "channels_last")}
    found = probe(
        network, labeled=data.raw_train, test=data.raw_test, labels_per_class=labels_per_class,
        draws=draws, seed=recipe.seed, runtime=runtime,
    )  # fmt: skip
    summary = {
        "network": recipe.model, "dataset": data.name, "seed": recipe.seed,
        "test_top1": found.final, "test_images": found.test_images, "points": found.points(),
    }  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    if len(found.labels) > 1:
        draw_curve({"features": found.points()}, {}, out / CURVE)
    RunFolder(out).write_summary(summary)
    return found
