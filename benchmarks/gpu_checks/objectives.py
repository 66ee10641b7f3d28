"""Every objective and phase on the device against the CPU: losses, gradients, memories, Z."""

import itertools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, cast, get_args

import torch
from torch import Tensor

from cktf.batch import Batch
from cktf.data import ImageSet, MemoryLoader, load_dataset
from cktf.functional.module_vector import ModuleNorm
from cktf.models import create
from cktf.objectives import METHODS, BuildContext, Objective, compose
from cktf.objectives.cktf import Match
from cktf.taps import Features, Tap
from gpu_checks.findings import LEAST_NORM, Findings
from gpu_checks.modes import CPUDraws, equal_signs, without_tf32

# KDSVD's gradient divides by the gaps between singular values.
TOLERANCE, BFLOAT16_TOLERANCE, KDSVD_TOLERANCE = 5e-4, 3e-2, 1e-2
STEPS, BATCH, SIZE, CLASSES = 3, 32, 400, 10
NETWORKS, EQUAL_WIDTHS = ("resnet8", "wrn_16_2"), ("wrn_16_1", "resnet20")
EVERYTHING = ("stem", "stages", "blocks", "preacts", "embedding")
FOLDER = "folder"
# Memories with their estimators.
MEMORIES: tuple[dict[str, Any], ...] = (
    {"estimator": "sampled"},
    {"estimator": "all"},
    {"estimator": "shared"},
    {"memory": "queue", "queue_size": 128, "estimator": "all"},
    {"memory": "queue", "queue_size": 128, "estimator": "shared"},
    {"memory": "batch"},
)
CRITICS, STORAGES = ("nce", "infonce"), ("float32", "bfloat16")


@dataclass(frozen=True)
class Case:
    """A method and its options."""

    method: str
    options: dict[str, Any]

    def __str__(self) -> str:
        told = ", ".join(f"{k}={v}" for k, v in self.options.items())
        return f"{self.method}{f' ({told})' if told else ''}"


def cases() -> list[Case]:
    """All methods; then every option of CKTF, first in few combinations and at last in all."""
    found = [Case(method, {}) for method in METHODS if method not in ("crd", "cktf")]
    found += [Case(m, memory) for m in ("crd", "cktf") for memory in MEMORIES]
    found += [Case("fitnet", {"staged": True}), Case("kdsvd", {"rank": 2})]
    options: list[dict[str, Any]] = [
        {**memory, "critic": critic, "storage": storage, "center": center}
        for memory, critic, storage, center in itertools.product(
            MEMORIES, CRITICS, STORAGES, (False, True)
        )
    ]
    options += [
        {"match": match, "module_norm": norm}
        for match, norm in itertools.product(get_args(Match), get_args(ModuleNorm))
    ]
    options += [
        {"estimator": "shared", "bank_device": place, "critic": critic, "storage": storage}
        for place, critic, storage in itertools.product(("host", FOLDER), CRITICS, STORAGES)
    ]
    options += [{**memory, "init": "forward"} for memory in MEMORIES[:5]]
    options += [{**memory, "renormalize": (1, 2)} for memory in MEMORIES]
    options += [
        {**memory, "critic": critic, "storage": storage, "match": match, "module_norm": norm}
        for memory, critic, storage, match, norm in itertools.product(
            MEMORIES, CRITICS, STORAGES, get_args(Match), get_args(ModuleNorm)
        )
    ]
    return found + [Case("cktf", chosen) for chosen in options]


def check_objectives(findings: Findings) -> None:
    """Three steps with the CPU's draws: all within 5e-4, and within 3e-2 for bfloat16 rows."""
    chosen = cases() if findings.is_cuda else cases()[::8]
    with without_tf32():
        for case in findings.timed(chosen):
            with findings.case(str(case)):
                compare_objective(findings, case)


def compare_objective(findings: Findings, case: Case) -> None:
    """Compare the steps of one objective, and of each of its phases, with those of the CPU."""
    tolerance = KDSVD_TOLERANCE if case.method == "kdsvd" else TOLERANCE
    if case.options.get("storage") == "bfloat16":
        tolerance = BFLOAT16_TOLERANCE
    with tempfile.TemporaryDirectory() as folder, equal_signs():
        expected, found = (
            _train(case, device, folder) for device in (torch.device("cpu"), findings.device)
        )
    # 0 but for rounding: gradients of biases before `center`; means of what a BatchNorm gives.
    shares = {"gradient": 1e-2 if case.options.get("center") else 1e-4, "state": 1e-4}
    least = dict.fromkeys({kind for kind, _ in expected}, LEAST_NORM)
    for kind, value in expected:
        if kind in shares and value.is_floating_point():
            least[kind] = max(least[kind], shares[kind] * float(value.norm()))
    for (kind, a), (_, b) in zip(found, expected, strict=True):
        findings.compare(kind, a, b, tolerance, least[kind])


def _train(case: Case, device: torch.device, folder: str) -> list[tuple[str, Tensor]]:
    """Losses, gradients and the final state of an objective and its phases."""
    options = dict(case.options)
    if options.get("bank_device") == FOLDER:
        options["bank_device"] = folder
    if case.method in ("crd", "cktf"):
        options = {"negatives": 100, "embedding_dim": 32} | options
    batches, labels = feature_batches(*(EQUAL_WIDTHS if case.method == "fsp" else NETWORKS))
    torch.manual_seed(0)
    student, teacher, _ = batches[0]
    context = BuildContext(student, teacher, SIZE, labels)
    whole = compose(case.method, context, {case.method: options} if options else {}).train()
    parts: list[Objective] = [*(phase.objective for phase in whole.phases()), whole]
    whole.to(device)
    if whole.fill_samples:
        with torch.no_grad():
            for s, t, batch in batches:
                whole.fill(_move(s, device), _move(t, device), batch.to(device))
    torch.manual_seed(1)
    with CPUDraws():
        found = [entry for part in parts for entry in _steps(part, batches, device)]
    return found + [(_kind(k), v) for k, v in whole.state_dict().items()]


def _kind(name: str) -> str:
    """What an entry of the state is compared as."""
    for kind in ("normalizer", "bank"):
        if name.endswith(kind):
            return kind
    return "state"


def _steps(
    objective: Objective, batches: Sequence[tuple[Features, Features, Batch]], device: torch.device
) -> Iterator[tuple[str, Tensor]]:
    """Train an objective's own parameters; yield each loss, and its gradients."""
    parameters = list(objective.parameters())
    optimizer = torch.optim.SGD(parameters or [torch.zeros(1)], lr=0.01, momentum=0.9)
    for number, (student, teacher, batch) in enumerate(batches[:STEPS], start=1):
        objective.begin_epoch(number)
        leaves = _move(student, device, leaf=True)
        loss = objective(leaves, _move(teacher, device), batch.to(device))
        loss.total.backward()
        yield "loss", loss.total.detach().cpu()
        for gradient in (t.grad for t in [*_tensors(leaves), *parameters]):
            if gradient is not None:
                # A copy: the optimizer's step must not change it.
                yield "gradient", gradient.detach().cpu().clone()
        optimizer.step()
        objective.after_step()
        optimizer.zero_grad(set_to_none=True)


@cache
def feature_batches(
    student: str, teacher: str
) -> tuple[list[tuple[Features, Features, Batch]], Tensor]:
    """Features of two random networks for batches of fashion-mini, and the labels of all images."""
    full = load_dataset("fashion-mini", None, "train")
    chosen = torch.arange(0, len(full), len(full) // SIZE)[:SIZE]
    data = cast("ImageSet[Tensor]", full.subset(chosen))
    torch.manual_seed(0)
    taps = [Tap(create(name, CLASSES).train(), needs=EVERYTHING) for name in (student, teacher)]
    batches = itertools.islice(MemoryLoader(data, BATCH, train=True).epoch(1), STEPS)
    with torch.no_grad():
        found = [(*(tap(batch.images) for tap in taps), batch) for batch in batches]
    return found, data.labels  # type: ignore[return-value]


def map_features(features: Features, convert: Callable[[Tensor], Tensor]) -> Features:
    """Features with every tensor converted."""

    def walk(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(walk, value))
        return convert(value) if isinstance(value, Tensor) else value

    return Features(**{name: walk(value) for name, value in vars(features).items()})


def _move(features: Features, device: torch.device, *, leaf: bool = False) -> Features:
    """Copies of the features on a device; as leaves that get a gradient, if asked for."""
    return map_features(features, lambda t: t.detach().clone().to(device).requires_grad_(leaf))


def _tensors(features: Features) -> list[Tensor]:
    found: list[Tensor] = []
    map_features(features, lambda t: found.append(t) or t)  # type: ignore[func-returns-value]
    return found
