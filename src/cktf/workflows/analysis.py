"""What a finished run's student and its teacher do on the test images, side by side."""

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cktf.data import FOLDER_PREFIX, ImageSet
from cktf.engine import RunFolder, autocast, device_of, synchronized_time, to_device
from cktf.errors import CktfError, RunFolderError
from cktf.models import is_cktf_weights_file, read_metadata, short_sha256
from cktf.recipes import (
    CUSTOM,
    DistillRecipe,
    Recipe,
    TrainRecipe,
    TransferRecipe,
    build_test_loader,
    find_recipe,
    find_weights_file,
    is_weights_path,
    load_split,
    load_teacher,
    parse_any_recipe,
    read_recipe,
    refuse_code,
    set_input_size,
)
from cktf.taps import Tap, eval_mode
from cktf.workflows.evaluation import load_test_section
from cktf.workflows.inspection import inspect
from cktf.workflows.teacher_ref import check_teacher_ref

# Maps are compared at this many places of a side: linear CKA is of all units together.
_GRID = 4
_TIMED, _WARM_UP = 30, 5
# What of a data section says nothing of the images of a test set.
_OF_TRAINING = {"augment", "batch_size", "per_class", "validation", "views", "workers"}
# Paths of the stages and of the embedding, where the recipe names them.
_Named = tuple[Sequence[str], str | None]


@dataclass(frozen=True)
class NetworkOutputs:
    """One network on the test images.

    Attributes:
        name: of the network.
        parameters: how many.
        macs: multiplications and additions for one image.
        latency_ms: median for one image at a time, on `device`.
        device: where that was measured.
        logits: [N, classes].
        embedding: [N, D]; None for a network whose features are not found.
        features: at each tap [M, units], of M images that lie evenly over the set.
        classes: names of those that its logits are of, where they are known.
    """

    name: str
    parameters: int
    macs: int
    latency_ms: float
    device: str
    logits: Tensor
    embedding: Tensor | None
    features: Mapping[str, Tensor] = field(repr=False)
    classes: Sequence[str] | None = None

    @property
    def probabilities(self) -> Tensor:
        """[N, classes]."""
        return self.logits.softmax(dim=1)

    @property
    def predicted(self) -> Tensor:
        """[N]."""
        return self.logits.argmax(dim=1)


@dataclass(frozen=True)
class Analysis:
    """A run, and what its networks do on the test images.

    Attributes:
        folder: of the run.
        recipe: its fields.
        summary: what it came to.
        rows: a row for each epoch.
        classes: their names.
        labels: [N] of the test images.
        images: the test images as they are stored.
        student, teacher: on them; None where there is none, or where it cannot be loaded.
        missing: why something is not there; empty where nothing is missing.
        data_dir: where the images are by now, if not where the recipe has them.
    """

    folder: Path
    recipe: Mapping[str, Any]
    summary: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]
    classes: Sequence[str] = ()
    labels: Tensor | None = None
    images: Any = None
    student: NetworkOutputs | None = None
    teacher: NetworkOutputs | None = None
    missing: str = ""
    data_dir: str | None = None

    @property
    def teacher_knows_classes(self) -> bool:
        """Whether the teacher's logits are of the student's classes, as far as is known.

        As many classes may be others, or the same in another order.
        """
        if self.teacher is None or self.student is None:
            return False
        told = self.teacher.classes
        same = told is None or tuple(told) == tuple(self.classes)
        return same and self.teacher.logits.shape == self.student.logits.shape

    @property
    def test_data_name(self) -> str:
        """The data set of the test images, which a transfer does not learn from."""
        section = self.recipe.get("labeled" if self.recipe["kind"] == "transfer" else "data") or {}
        named: str = section.get("test") or self.summary.get("labeled") or self.summary["dataset"]
        # Every folder of images is a data set of its own.
        place = self.data_dir or section.get("dir")
        return f"{named}:{place}" if named == FOLDER_PREFIX and place else named


def read_run(folder: Path, data_dir: str | None = None) -> Analysis:
    """What a run's folder says, without its networks.

    Args:
        folder: of the run.
        data_dir: where its images are by now; None where its recipe has them.

    Raises:
        RunFolderError: no finished run there.
    """
    run = RunFolder(folder)
    fields = read_recipe(find_recipe(folder))
    if not run.finished:
        raise RunFolderError(f"{folder} holds no finished run. Continue it first.")
    # A transfer's epochs are those of the run inside it.
    rows = run.rows() or RunFolder(folder / "student").rows()
    summary = json.loads(run.summary.read_text())
    return Analysis(folder, fields, summary, rows, data_dir=data_dir)


class RunAnalyzer:
    """Analyses runs; what several have in common is done once.

    Args:
        images: at most so many test images are classified.
        compared: so many of them at most for what compares every pair of images.
        data_dir: folder of the data set, where the runs name another.
        trust_code: whether code by which networks are built may run.
    """

    def __init__(
        self,
        images: int = 10_000,
        compared: int = 1000,
        data_dir: str | None = None,
        trust_code: bool = False,
    ) -> None:
        self.images, self.compared, self.data_dir = images, compared, data_dir
        self.trust_code = trust_code
        self._data: dict[str, ImageSet[Any]] = {}
        self._seen: dict[tuple[str, str], NetworkOutputs] = {}
        self._latency: dict[tuple[object, ...], float] = {}

    def analyze(self, folder: Path) -> Analysis:
        """One run, and its networks; RunFolderError for no finished run there."""
        plain = read_run(folder, self.data_dir)
        try:
            return self._with_networks(plain)
        except CktfError as error:
            return replace(plain, missing=str(error))

    def _with_networks(self, plain: Analysis) -> Analysis:
        recipe = parse_any_recipe(plain.recipe)
        _, section = load_test_section(plain.folder, data_dir=self.data_dir)
        if section.name == CUSTOM:
            raise RunFolderError("The data set was made in Python, and cannot be read again here.")
        key = section.model_dump_json(exclude=_OF_TRAINING)
        if key not in self._data:
            test = load_split(section, "test")
            self._data[key] = test.subset(evenly_spaced_indices(len(test), self.images))
        test, classes = self._data[key], tuple(self._data[key].classes)
        student = load_teacher(
            str(plain.folder.absolute()), classes, trust_code=self.trust_code
        ).network
        named: _Named = ((), None)
        if not isinstance(recipe, TrainRecipe):
            named = recipe.student_taps, recipe.student_embedding
        seen = self._see(student, plain.summary["student"], test, recipe, named)
        teacher = None
        missing = ""
        if not isinstance(recipe, TrainRecipe):
            try:
                if not self.trust_code:
                    refuse_code({"teacher": recipe.teacher}, find_recipe(plain.folder))
                check_teacher_ref(recipe, plain.folder)
                teacher = self._teacher(recipe, key, test)
            except CktfError as error:
                missing = f"The teacher cannot be loaded: {error}"
        return replace(
            plain, classes=classes, labels=test.labels, images=test.images, student=seen,
            teacher=teacher, missing=missing,
        )  # fmt: skip

    def _teacher(
        self, recipe: DistillRecipe | TransferRecipe, data: str, test: Any
    ) -> NetworkOutputs:
        # All that decides what is seen of it: runs may read the same weights in several ways.
        named = recipe.teacher_taps, recipe.teacher_embedding
        lines = recipe.teacher, recipe.teacher_weights
        weights = [identify_weights(line) for line in lines if line]
        computes = [recipe.runtime.precision, recipe.runtime.channels_last]
        how = json.dumps([recipe.teacher_size, named, weights, *computes])
        if (how, data) not in self._seen:
            if recipe.teacher == CUSTOM:
                raise RunFolderError("it was made in Python.")
            found = load_teacher(
                recipe.teacher, None, test, recipe.teacher_weights, trust_code=self.trust_code
            )
            network = set_input_size(found.network, recipe.teacher_size)
            seen = self._see(network, found.name, test, recipe, named)
            self._seen[how, data] = replace(seen, classes=_classes_of(recipe))
        return self._seen[how, data]

    @torch.no_grad()
    def _see(
        self,
        network: nn.Module,
        name: str,
        test: Any,
        recipe: Recipe | TransferRecipe,
        named: _Named,
    ) -> NetworkOutputs:
        training = recipe.training()
        if not torch.cuda.is_available():
            training = replace(training, device="cpu")
        device = device_of(training)
        loader = build_test_loader(test)
        example = next(iter(loader.epoch(0))).images[:2]
        channels, height, width = example.shape[1:]
        stages, embedding = named
        looked = inspect(network, (channels, height, width), stages=stages, embedding=embedding)
        to_device(network, training, device)
        there = {n for n in ("stem", "stages", "embedding") if getattr(looked.paths, n)}
        tap = Tap(network, looked.paths, there)
        logits, embeddings, maps = [], [], []
        compared, seen = evenly_spaced_indices(len(test), self.compared), 0
        with eval_mode(network):
            for batch in loader.epoch(0):
                with autocast(training.precision, device):
                    features = tap(batch.images.to(device))
                logits.append(features.logits.float().cpu())
                if features.embedding is not None:
                    embeddings.append(features.embedding.float().cpu())
                inside = (compared >= seen) & (compared < seen + len(batch))
                maps.append(_pooled(features, compared[inside] - seen))
                seen += len(batch)
            together = torch.cat(logits)
            if together.softmax(dim=1).isnan().any():
                raise RunFolderError(f"{name} gives numbers that are not finite.")
            # Two networks of one kind take the same time, whatever a clock says.
            cost = looked.parameters, looked.macs
            kind = name, *cost, training.precision, training.channels_last
            if kind not in self._latency:
                with autocast(training.precision, device):
                    self._latency[kind] = measure_latency_ms(network, example[:1].to(device))
        return NetworkOutputs(
            name, *cost, self._latency[kind], str(device), together,
            torch.cat(embeddings) if embeddings else None,
            {tapped: torch.cat([part[tapped] for part in maps]) for tapped in maps[0]},
        )  # fmt: skip


def identify_weights(line: str) -> str:
    """A file of weights by what is in it, so that a copy is the same; any other line as it is."""
    if not is_weights_path(line):
        return line
    try:
        return f"sha256 {short_sha256(find_weights_file(line))}"
    except (CktfError, OSError):
        return line


def _classes_of(recipe: DistillRecipe | TransferRecipe) -> tuple[str, ...] | None:
    """Names of a teacher's classes, where its file says and a data set has given them."""
    line = recipe.teacher_weights or recipe.teacher
    if not is_weights_path(line) or not is_cktf_weights_file(find_weights_file(line)):
        return None
    described = read_metadata(find_weights_file(line))
    told = described["classes"]
    return tuple(told) if isinstance(told, list) and described["dataset"] != CUSTOM else None


def evenly_spaced_indices(size: int, count: int) -> Tensor:
    """Positions of so many images, or of all, evenly over a set: [min(count, size)], rising.

    A set that is sorted by class is met in all its classes.

    >>> evenly_spaced_indices(10, 4), evenly_spaced_indices(3, 4)
    (tensor([0, 3, 6, 9]), tensor([0, 1, 2]))
    """
    count = min(count, size)
    return torch.arange(count) * (size - 1) // max(1, count - 1)


def _pooled(features: Any, chosen: Tensor) -> dict[str, Tensor]:
    """Every tap of some images as rows [M, units]."""
    found: dict[str, Tensor] = {}
    maps = {"stem": features.stem} | {
        f"stage {number}": stage for number, stage in enumerate(features.stages, 1)
    }
    chosen = chosen.to(features.logits.device)
    for name, value in maps.items():
        if value is not None:
            size = (min(_GRID, value.shape[2]), min(_GRID, value.shape[3]))
            pooled = F.adaptive_avg_pool2d(value[chosen].float(), size)
            found[name] = pooled.flatten(1).cpu()
    if features.embedding is not None:
        found["embedding"] = features.embedding[chosen].float().cpu()
    found["logits"] = features.logits[chosen].float().cpu()
    return found


@torch.no_grad()
def measure_latency_ms(network: Callable[[Tensor], Tensor], image: Tensor) -> float:
    """Median milliseconds for one image [1, C, H, W]."""
    times = []
    for _ in range(_WARM_UP + _TIMED):
        start = synchronized_time(image.device)
        network(image)
        times.append(synchronized_time(image.device) - start)
    return 1e3 * statistics.median(times[_WARM_UP:])


def find_disagreements(student: NetworkOutputs, teacher: NetworkOutputs, count: int) -> Tensor:
    """Positions of images on which two networks choose different classes, the furthest apart first.

    How far apart is the total variation between their probabilities.
    """
    apart = (student.probabilities - teacher.probabilities).abs().sum(dim=1) / 2
    apart[student.predicted == teacher.predicted] = -1
    order = apart.argsort(descending=True, stable=True)[:count]
    return order[apart[order] > 0]
