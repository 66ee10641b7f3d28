"""CKTF in two processes with gloo against one with the whole batch, with tensors of one device."""

import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from cktf.objectives import CKTF
from cktf.taps import Features
from gpu_checks.findings import Findings
from gpu_checks.modes import CPUDraws, without_tf32
from gpu_checks.objectives import map_features

B, N, WORLD, STEPS = 6, 50, 2, 3
# Gradients of biases before `center` are 0 but for rounding.
TOLERANCE, LEAST = 5e-4, 1e-2
CHOICES: dict[str, dict[str, Any]] = {
    "given": {"negatives": 20},
    "all": {"estimator": "all", "negatives": 20},
    "shared": {"estimator": "shared", "negatives": 20, "critic": "infonce"},
    "queue": {"memory": "queue", "queue_size": 30, "negatives": 20},
    "batch": {"memory": "batch"},
    "batch-infonce": {"memory": "batch", "critic": "infonce"},
    "centered": {"memory": "queue", "queue_size": 30, "negatives": 20, "center": True},
    "random": {"memory": "batch", "match": "random"},
    "smallest": {"memory": "batch", "match": "smallest"},
    "renormalized": {"estimator": "all", "negatives": 20, "renormalize": (2, 3)},
}


def _features(count: int, channels: int, generator: torch.Generator) -> Features:
    def normal(*shape: int) -> Tensor:
        return torch.randn(count, *shape, generator=generator).requires_grad_()

    stages = (normal(channels, 8, 8), normal(2 * channels, 4, 4))
    embedding, logits = normal(2 * channels), normal(3)
    # Blocks of one stage may differ in width.
    blocks = tuple((normal(channels - 1, *s.shape[-2:]), s) for s in stages)
    return Features(
        stem=normal(4, 8, 8), stages=stages, embedding=embedding, logits=logits, blocks=blocks
    )


def part(whole: Features, rank: int, world: int, device: torch.device) -> Features:
    """The rank's share of a batch on a device, as leaves of its own."""
    return map_features(
        whole, lambda t: t.detach().chunk(world)[rank].clone().to(device).requires_grad_()
    )


def run(choice: str, rank: int, world: int, device: torch.device) -> dict[str, Tensor]:
    """Three steps of CKTF on the rank's share: losses, gradients and state, on the CPU."""
    with CPUDraws(), without_tf32():
        return {name: value.cpu() for name, value in _steps(choice, rank, world, device).items()}


def _steps(choice: str, rank: int, world: int, device: torch.device) -> dict[str, Tensor]:
    torch.manual_seed(0)
    example = torch.Generator().manual_seed(1)
    objective = CKTF(
        _features(4, 4, example), _features(4, 6, example), N,
        module_norm="batch", labels=torch.arange(N) % 5, embedding_dim=8, **CHOICES[choice],
    ).to(device)  # fmt: skip
    found: dict[str, Tensor] = {}
    for step in range(STEPS):
        objective.begin_epoch(step + 1)
        generator = torch.Generator().manual_seed(10 + step)
        student, teacher = (_features(B, c, generator) for c in (4, 6))
        index = torch.randperm(N, generator=generator)[:B]
        others = torch.randint(N, (B, 20), generator=generator)
        contrast = torch.cat([index.unsqueeze(1), others], 1) if choice == "given" else None
        own, other = (part(whole, rank, world, device) for whole in (student, teacher))
        torch.manual_seed(step)
        objective.zero_grad()
        loss = objective.loss(
            own, other, index.chunk(world)[rank].to(device),
            None if contrast is None else contrast.chunk(world)[rank].to(device),
        ).total  # fmt: skip
        torch.autograd.backward(loss)
        objective.after_step()
        # As DistributedDataParallel does: mean of losses, mean of parameters' gradients.
        found[f"loss{step}"] = _mean(loss.detach())
        for name, parameter in objective.named_parameters():
            assert parameter.grad is not None
            found[f"{name}{step}"] = _mean(parameter.grad)
        for name, tensor in {"stem": own.stem, "stage": own.stages[0]}.items():
            assert tensor is not None
            assert tensor.grad is not None
            found[f"{name}{step}"] = _gathered(tensor.grad) / world
    return found | {n: t.clone() for n, t in objective.state_dict().items()}


def _mean(value: Tensor) -> Tensor:
    if dist.is_initialized():
        value = value.clone()
        dist.all_reduce(value)
        value /= WORLD
    return value


def _gathered(value: Tensor) -> Tensor:
    if not dist.is_initialized():
        return value
    parts = [torch.empty_like(value) for _ in range(WORLD)]
    dist.all_gather(parts, value)
    return torch.cat(parts)


def _worker(rank: int, folder: str, device: torch.device) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=WORLD)
    for choice in CHOICES:
        torch.save(run(choice, rank, WORLD, device), f"{folder}/{choice}-{rank}.pt")
    dist.destroy_process_group()


def run_ranks(device: torch.device) -> dict[str, list[dict[str, Tensor]]]:
    """What each rank found in each case, all on one device."""
    with tempfile.TemporaryDirectory() as folder:
        spawn(_worker, (folder, device), nprocs=WORLD)  # type: ignore[no-untyped-call]
        return {
            choice: [torch.load(Path(folder) / f"{choice}-{rank}.pt") for rank in range(WORLD)]
            for choice in CHOICES
        }


def check_processes(findings: Findings) -> None:
    """Losses, gradients and state of both ranks are those of one process with the whole batch."""
    found: dict[str, list[dict[str, Tensor]]] = {}
    with findings.case("two processes"):
        found = run_ranks(findings.device)
    for choice, ranks in found.items():
        with findings.case(choice):
            alone = run(choice, 0, 1, findings.device)
            for rank in ranks:
                findings.require(rank.keys() == alone.keys(), "unlike names")
                for name, value in alone.items():
                    kind = "loss" if name.startswith("loss") else "gradient or state"
                    findings.compare(kind, rank[name], value, TOLERANCE, LEAST)
