"""Outputs of a finished run's student and teacher on the test images."""

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
from cktf.engine import RunFolder, start_available_runtime, synchronized_time
from cktf.errors import CktfError, RunFolderError
from cktf.models import is_cktf_weights_file, is_library_network, read_metadata, short_sha256
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
    load_run_network,
    load_split,
    load_teacher,
    parse_any_recipe,
    read_recipe,
    refuse_code,
    set_input_size,
)
from cktf.taps import Features, Tap, eval_mode
from cktf.workflows.evaluation import load_test_section
from cktf.workflows.inspection import inspect
from cktf.workflows.teacher_ref import check_teacher_ref

# Maps are averaged to this many places a side before they are compared.
_GRID = 4
_TIMED, _WARM_UP = 30, 5
# Fields of a data section that do not affect its test images.
_TRAINING_FIELDS = {"augment", "batch_size", "per_class", "validation", "views", "workers"}


@dataclass(frozen=True)
class NetworkOutputs:
    """One network's outputs on the test images, and its cost.

    Attributes:
        name: of the network.
        parameters: trainable ones.
        macs: multiply-adds for one image.
        latency_ms: median for one image at a time, on `device`.
        device: where the network ran.
        logits: [N, classes].
        embedding: [N, D]; None for a network whose features are not found.
        features: for each tap rows [M, units] of M images, evenly spaced over the set.
        classes: names of the logits' classes, where they are known.
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
    """A run and its networks' outputs on the test images.

    Attributes:
        folder: of the run.
        recipe: its fields.
        summary: the fields of its summary.json.
        rows: its record, a row for each epoch.
        classes: names of the test images' classes.
        labels: [N] of the test images.
        images: the test images as they are stored.
        student, teacher: their outputs; None if there is none, or if it cannot be loaded.
        missing_reason: why an output is missing; empty if none is.
        data_dir: where the images are now, if not where the recipe says.
        image_names: files of the images, or their numbers in the test set.
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
    missing_reason: str = ""
    data_dir: str | None = None
    image_names: Sequence[str] = ()

    @property
    def teacher_knows_classes(self) -> bool:
        """Whether the teacher's logits are of the student's classes in the student's order.

        A teacher whose class names are unknown needs as many logits as the student.
        """
        if self.teacher is None or self.student is None:
            return False
        names = self.teacher.classes
        same_names = names is None or tuple(names) == tuple(self.classes)
        return same_names and self.teacher.logits.shape == self.student.logits.shape

    @property
    def test_data_name(self) -> str:
        """The data set of the test images; of a transfer the labeled one."""
        section = self.recipe.get("labeled" if self.recipe["kind"] == "transfer" else "data") or {}
        name: str = section.get("test") or self.summary.get("labeled") or self.summary["dataset"]
        # Every folder of images is its own data set.
        folder = self.data_dir or section.get("dir")
        return f"{name}:{folder}" if name == FOLDER_PREFIX and folder else name


def read_run(folder: Path, data_dir: str | None = None) -> Analysis:
    """Read a run's recipe, record and summary; RunFolderError if there is no finished run."""
    run = RunFolder(folder)
    fields = read_recipe(find_recipe(folder))
    if not run.finished:
        raise RunFolderError(f"{folder} holds no finished run. Continue it first.")
    # A transfer's epochs are those of the run inside it.
    rows = run.rows() or RunFolder(folder / "student").rows()
    summary = json.loads(run.summary.read_text())
    return Analysis(folder, fields, summary, rows, data_dir=data_dir)


class RunAnalyzer:
    """Runs the networks of finished runs on their test images; shared teachers run once.

    It classifies at most `max_images` images, and keeps features of at most `max_compared`. Without
    `data_dir`, the images are where the runs say. The spec `network` builds the networks that were
    made in Python.
    """

    def __init__(
        self,
        max_images: int = 10_000,
        max_compared: int = 1000,
        data_dir: str | None = None,
        network: str | None = None,
        trust_code: bool = False,
    ) -> None:
        self.max_images, self.max_compared = max_images, max_compared
        self.data_dir, self.network, self.trust_code = data_dir, network, trust_code
        self._data: dict[str, tuple[ImageSet[Any], list[str]]] = {}
        self._teachers: dict[str, NetworkOutputs] = {}
        self._latency: dict[tuple[object, ...], float] = {}

    def analyze(self, folder: Path) -> Analysis:
        """Analyze one run; RunFolderError if the folder holds no finished run."""
        analysis = read_run(folder, self.data_dir)
        try:
            return self._add_networks(analysis)
        except CktfError as error:
            return replace(analysis, missing_reason=str(error))

    def _add_networks(self, analysis: Analysis) -> Analysis:
        recipe = parse_any_recipe(analysis.recipe)
        _, section = load_test_section(analysis.folder, data_dir=self.data_dir)
        if section.name == CUSTOM:
            raise RunFolderError("The data set was made in Python, and cannot be read again here.")
        data_key = section.model_dump_json(exclude=_TRAINING_FIELDS)
        if data_key not in self._data:
            full = load_split(section, "test")
            indices = evenly_spaced_indices(len(full), self.max_images)
            names = [full.image_name(index) for index in indices.tolist()]
            self._data[data_key] = full.subset(indices), names
        test, image_names = self._data[data_key]
        classes = tuple(test.classes)
        folder, name = analysis.folder, analysis.summary["student"]
        spec = None if is_library_network(name) else self.network
        network = load_run_network(folder, classes, spec, trust_code=self.trust_code).network
        analysis = replace(analysis, classes=classes, labels=test.labels, images=test.images)
        analysis = replace(analysis, image_names=image_names)
        if isinstance(recipe, TrainRecipe):
            return replace(analysis, student=self._run_network(network, name, test, recipe))
        paths = recipe.student_taps, recipe.student_embedding
        student = self._run_network(network, name, test, recipe, *paths)
        analysis = replace(analysis, student=student)
        try:
            if not self.trust_code:
                refuse_code({"teacher": recipe.teacher}, find_recipe(folder))
            check_teacher_ref(recipe, folder)
            return replace(analysis, teacher=self._run_teacher(recipe, data_key, test))
        except CktfError as error:
            return replace(analysis, missing_reason=f"The teacher cannot be loaded: {error}")

    def _run_teacher(
        self, recipe: DistillRecipe | TransferRecipe, data_key: str, test: Any
    ) -> NetworkOutputs:
        # All that decides a teacher's outputs: runs may use the same weights in several ways.
        paths = recipe.teacher_taps, recipe.teacher_embedding
        weights = [identify_weights(w) for w in (recipe.teacher, recipe.teacher_weights) if w]
        runtime = [recipe.runtime.precision, recipe.runtime.channels_last]
        key = json.dumps([recipe.teacher_size, paths, weights, runtime, data_key])
        if key not in self._teachers:
            if recipe.teacher == CUSTOM:
                raise RunFolderError("it was made in Python.")
            teacher = load_teacher(
                recipe.teacher, None, test, recipe.teacher_weights, trust_code=self.trust_code
            )
            network = set_input_size(teacher.network, recipe.teacher_size)
            outputs = self._run_network(network, teacher.name, test, recipe, *paths)
            source, classes = recipe.teacher_weights or recipe.teacher, None
            if is_weights_path(source) and is_cktf_weights_file(find_weights_file(source)):
                metadata = read_metadata(find_weights_file(source))
                # Names of a data set made in Python may be numbers.
                if isinstance(metadata["classes"], list) and metadata["dataset"] != CUSTOM:
                    classes = tuple(metadata["classes"])
            self._teachers[key] = replace(outputs, classes=classes)
        return self._teachers[key]

    @torch.no_grad()
    def _run_network(
        self,
        network: nn.Module,
        name: str,
        test: Any,
        recipe: Recipe | TransferRecipe,
        stages: Sequence[str] = (),
        embedding: str | None = None,
    ) -> NetworkOutputs:
        runtime = start_available_runtime(recipe.runtime)
        device = runtime.device
        loader = build_test_loader(test)
        example = next(iter(loader.epoch(0))).images[:2]
        channels, height, width = example.shape[1:]
        inspection = inspect(network, (channels, height, width), stages=stages, embedding=embedding)
        runtime.to_device(network)
        needs = [n for n in ("stem", "stages", "embedding") if getattr(inspection.paths, n)]
        tap = Tap(network, inspection.paths, needs)
        logits, embeddings, rows = [], [], []
        compared_indices, start = evenly_spaced_indices(len(test), self.max_compared), 0
        with eval_mode(network):
            for batch in loader.epoch(0, device=device):
                with runtime.autocast():
                    features = tap(batch.images)
                logits.append(features.logits.float().cpu())
                if features.embedding is not None:
                    embeddings.append(features.embedding.float().cpu())
                in_batch = (compared_indices >= start) & (compared_indices < start + len(batch))
                rows.append(_feature_rows(features, compared_indices[in_batch] - start))
                start += len(batch)
            all_logits = torch.cat(logits)
            if all_logits.softmax(dim=1).isnan().any():
                raise RunFolderError(f"{name} gives numbers that are not finite.")
            # Networks of one kind are timed once, so that noise does not tell them apart.
            cost = inspection.parameters, inspection.macs
            kind = name, *cost, runtime.precision, runtime.channels_last
            if kind not in self._latency:
                with runtime.autocast():
                    self._latency[kind] = measure_latency_ms(network, example[:1].to(device))
        return NetworkOutputs(
            name, *cost, self._latency[kind], str(device), all_logits,
            torch.cat(embeddings) if embeddings else None,
            {tap_name: torch.cat([part[tap_name] for part in rows]) for tap_name in rows[0]},
        )  # fmt: skip


def identify_weights(source: str) -> str:
    """A weights file by its hash, so that a copy of it is the same; any other source unchanged."""
    if not is_weights_path(source):
        return source
    try:
        return f"sha256 {short_sha256(find_weights_file(source))}"
    except (CktfError, OSError):
        return source


def evenly_spaced_indices(size: int, count: int) -> Tensor:
    """Indices of `count` images, or of all, evenly spaced over a set: [min(count, size)].

    A set that is sorted by class is met in all its classes.

    >>> evenly_spaced_indices(10, 4), evenly_spaced_indices(3, 4)
    (tensor([0, 3, 6, 9]), tensor([0, 1, 2]))
    """
    count = min(count, size)
    return torch.arange(count) * (size - 1) // max(1, count - 1)


def _feature_rows(features: Features, indices: Tensor) -> dict[str, Tensor]:
    """Each tap's features of some images, as rows [M, units]; maps are averaged to a grid."""
    indices = indices.to(features.logits.device)
    values = {"stem": features.stem}
    values |= {f"stage {number}": stage for number, stage in enumerate(features.stages, 1)}
    values |= {"embedding": features.embedding, "logits": features.logits}
    rows = {name: v[indices].float() for name, v in values.items() if v is not None}
    for name, value in rows.items():
        if value.dim() == 4:
            grid = (min(_GRID, value.shape[2]), min(_GRID, value.shape[3]))
            rows[name] = F.adaptive_avg_pool2d(value, grid).flatten(1)
    return {name: value.cpu() for name, value in rows.items()}


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
    """Indices of images that two networks classify differently, the furthest apart first.

    Their distance is the total variation between their probabilities.
    """
    distance = (student.probabilities - teacher.probabilities).abs().sum(dim=1) / 2
    distance[student.predicted == teacher.predicted] = -1
    order = distance.argsort(descending=True, stable=True)[:count]
    return order[distance[order] > 0]
