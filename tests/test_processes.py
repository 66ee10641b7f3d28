"""Two real processes with batch B against one with batch 2B."""

import tempfile
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from cktf.objectives import CKTF
from cktf.taps import Features

pytestmark = pytest.mark.slow

B, N, WORLD, STEPS = 6, 50, 2, 3
CHOICES = {
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


def features(count: int, channels: int, generator: torch.Generator) -> Features:
    def normal(*shape: int) -> Tensor:
        return torch.randn(count, *shape, generator=generator).requires_grad_()

    stages = (normal(channels, 8, 8), normal(2 * channels, 4, 4))
    embedding, logits = normal(2 * channels), normal(3)
    # Blocks of one stage may differ in width.
    blocks = tuple((normal(channels - 1, *s.shape[-2:]), s) for s in stages)
    return Features(
        stem=normal(4, 8, 8), stages=stages, embedding=embedding, logits=logits, blocks=blocks
    )


def part(whole: Features, rank: int, world: int) -> Features:
    """The rank's share of a batch, as leaves of its own."""

    def cut(t: Tensor) -> Tensor:
        return t.detach().chunk(world)[rank].clone().requires_grad_()

    return Features(
        stem=cut(whole.stem), stages=tuple(cut(s) for s in whole.stages),
        embedding=cut(whole.embedding), logits=cut(whole.logits),
        blocks=tuple(tuple(cut(b) for b in stage) for stage in whole.blocks),
    )  # fmt: skip


def run(choice: str, rank: int, world: int) -> dict[str, Tensor]:
    """Three steps of CKTF on the rank's share: losses, gradients and state."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    example = torch.Generator().manual_seed(1)
    objective = CKTF(
        features(4, 4, example), features(4, 6, example), N,
        module_norm="batch", labels=torch.arange(N) % 5, embedding_dim=8, **CHOICES[choice],
    )  # fmt: skip
    found: dict[str, Tensor] = {}
    for step in range(STEPS):
        objective.begin_epoch(step + 1)
        generator = torch.Generator().manual_seed(10 + step)
        student, teacher = (features(B, c, generator) for c in (4, 6))
        index = torch.randperm(N, generator=generator)[:B]
        others = torch.randint(N, (B, 20), generator=generator)
        contrast = torch.cat([index.unsqueeze(1), others], 1) if choice == "given" else None
        own, other = part(student, rank, world), part(teacher, rank, world)
        torch.manual_seed(step)
        objective.zero_grad()
        loss = objective.loss(
            own, other, index.chunk(world)[rank],
            None if contrast is None else contrast.chunk(world)[rank],
        ).total  # fmt: skip
        loss.backward()
        objective.after_step()
        # As DistributedDataParallel does: mean of losses, mean of parameters' gradients.
        found[f"loss{step}"] = mean(loss.detach())
        for name, parameter in objective.named_parameters():
            found[f"{name}{step}"] = mean(parameter.grad)
        for name, tensor in {"stem": own.stem, "stage": own.stages[0]}.items():
            found[f"{name}{step}"] = gathered(tensor.grad) / world
    return found | {n: t.clone() for n, t in objective.state_dict().items()}


def mean(value: Tensor) -> Tensor:
    if dist.is_initialized():
        value = value.clone()
        dist.all_reduce(value)
        value /= WORLD
    return value


def gathered(value: Tensor) -> Tensor:
    if not dist.is_initialized():
        return value
    parts = [torch.empty_like(value) for _ in range(WORLD)]
    dist.all_gather(parts, value)
    return torch.cat(parts)


def worker(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=WORLD)
    for choice in CHOICES:
        torch.save(run(choice, rank, WORLD), f"{folder}/{choice}-{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def together():
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(worker, (folder,), nprocs=WORLD)
        yield {
            choice: [torch.load(Path(folder) / f"{choice}-{rank}.pt") for rank in range(WORLD)]
            for choice in CHOICES
        }


@pytest.mark.parametrize("choice", CHOICES)
def test_two_processes_are_one_with_the_whole_batch(together, choice):
    alone = run(choice, 0, 1)
    for found in together[choice]:
        assert found.keys() == alone.keys()
        for name, value in alone.items():
            torch.testing.assert_close(found[name], value, rtol=2e-4, atol=2e-6, msg=name)
