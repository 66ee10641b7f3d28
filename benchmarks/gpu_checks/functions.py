"""Every function of `cktf.functional` on the device, against the CPU in float64."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from cktf import functional
from cktf.functional.batch_centering import subtract_batch_mean
from cktf.functional.module_vector import ModuleNorm, module_vector
from gpu_checks.findings import Findings
from gpu_checks.modes import equal_signs, float64, without_tf32

# KDSVD's gradient divides by the gaps between singular values.
LOSS_TOLERANCE, GRADIENT_TOLERANCE, KDSVD_TOLERANCE = 1e-4, 1e-3, 1e-2
CLASSES, DIM, TEMPERATURE = 10, 64, 0.1
# A function of the leaves that have a gradient, with its constants bound.
Case = tuple[Callable[..., Tensor], list[Tensor]]


def check_functions(findings: Findings) -> None:
    """Losses within 1e-4, gradients within 1e-3, relative, for each batch size."""
    with without_tf32():
        for batch in (64, 1024) if findings.is_cuda else (16, 48):
            for name in findings.timed(function_names()):
                with findings.case(f"{name}, B={batch}"):
                    compare_function(findings, name, batch)


def function_names() -> list[str]:
    """Names of all cases."""
    return sorted(_cases(2))


def compare_function(findings: Findings, name: str, batch: int) -> None:
    """Compare one function and its gradients."""
    function, leaves = _cases(batch)[name]()
    with equal_signs():
        found = _evaluate(function, leaves, findings.device, torch.float32)
    if name == "module_vector, batch":
        # Its backward pass is its own, and converts to float32 out of reach of `float64`.
        function = partial(_unit_vector, **function.keywords)  # type: ignore[attr-defined]
    with float64(), equal_signs():
        expected = _evaluate(function, leaves, torch.device("cpu"), torch.float64)
    findings.compare("loss", found[0], expected[0], LOSS_TOLERANCE)
    for a, b in zip(found[1:], expected[1:], strict=True):
        tolerance = KDSVD_TOLERANCE if name == "kdsvd_loss" else GRADIENT_TOLERANCE
        findings.compare("gradient", a, b, tolerance)


def _unit_vector(maps: Tensor, channels: int, grid: tuple[int, int], norm: str) -> Tensor:
    """`module_vector` with the norm `batch`, by its definition."""
    return module_vector(maps / maps.square().sum(0).sqrt(), channels, grid, "none")


def _evaluate(
    function: Callable[..., Tensor], leaves: list[Tensor], device: torch.device, dtype: torch.dtype
) -> list[Tensor]:
    """The value of a case and its gradients, on a device and in a type."""
    moved = [leaf.to(device, dtype, copy=True).requires_grad_() for leaf in leaves]
    bound = function
    if isinstance(function, partial):
        constants = _map_tensors(function.keywords, lambda t: _convert(t, device, dtype))
        bound = partial(function.func, **constants)
    value = bound(*moved)
    # A vector or a map: any fixed weights make a scalar of it.
    weights = torch.linspace(0.5, 1.5, value.numel(), device=device, dtype=dtype)
    scalar = (value.to(dtype) * weights.view_as(value)).sum()
    # `torch.autograd.grad` would leave the mode of float64 for the backward pass.
    torch.autograd.backward(scalar)
    return [scalar.detach(), *(leaf.grad for leaf in moved if leaf.grad is not None)]


def _convert(tensor: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    return tensor.to(device, dtype) if tensor.is_floating_point() else tensor.to(device)


def _map_tensors(value: Any, convert: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return convert(value)
    if isinstance(value, dict):
        return {k: _map_tensors(v, convert) for k, v in value.items()}
    return [_map_tensors(v, convert) for v in value] if isinstance(value, list) else value


def _maps(batch: int, seed: int, *shapes: tuple[int, int]) -> list[Tensor]:
    """Maps [B, C, S, S] in channels-last order, whose channels differ in size as in a network."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for channels, side in shapes:
        scale = 0.8 ** torch.arange(float(channels)).view(-1, 1, 1)
        drawn = torch.randn(batch, channels, side, side, generator=generator)
        found.append((drawn * scale).contiguous(memory_format=torch.channels_last))
    return found


def _cases(batch: int) -> dict[str, Callable[[], Case]]:
    """What builds each case, by name, in float32 on the CPU."""
    return {**_map_cases(batch), **_vector_cases(batch), **dict(_contrast_cases(batch))}


def _map_cases(batch: int) -> dict[str, Callable[[], Case]]:
    """Functions of maps: of all stages, or of the middle one."""
    shapes = ((16, 16), (32, 8), (64, 4))
    students, teachers = partial(_maps, batch, 1, *shapes), partial(_maps, batch, 2, *shapes)

    def of_stages(function: Callable[..., Tensor]) -> Callable[[], Case]:
        def run(*student: Tensor, teacher: list[Tensor]) -> Tensor:
            return function(list(student), teacher)

        return lambda: (partial(run, teacher=teachers()), students())

    def of_stage(function: Callable[..., Tensor], **options: Any) -> Callable[[], Case]:
        return lambda: (partial(function, **options), students()[1:2])

    def vid(mean: Tensor, log_scale: Tensor, teacher: Tensor) -> Tensor:
        return functional.vid_loss(mean, teacher, log_scale)

    middle = teachers()[1]
    cases: dict[str, Callable[[], Case]] = {
        "vid_loss": lambda: (
            partial(vid, teacher=middle), [students()[1], torch.linspace(-1, 1, 32)]
        ),
        "fitnet_loss": of_stage(functional.fitnet_loss, teacher_map=middle),
        "sp_loss": of_stage(functional.sp_loss, teacher_map=middle),
        "ft_loss": of_stage(functional.ft_loss, teacher_factor=middle),
    }  # fmt: skip
    for name in ("ab_loss", "at_loss", "fsp_loss", "kdsvd_loss", "nst_loss"):
        cases[name] = of_stages(getattr(functional, name))
    for norm in get_args(ModuleNorm):
        vector = of_stage(module_vector, channels=40, grid=(2, 2), norm=norm)
        cases[f"module_vector, {norm}"] = vector
    return cases


def _vector_cases(batch: int) -> dict[str, Callable[[], Case]]:
    """Functions of logits and embeddings."""
    student, teacher = _vectors(batch)
    return {
        "cc_loss": lambda: (functional.cc_loss, [student / 8, teacher / 8]),
        "kd_loss": lambda: (partial(functional.kd_loss, teacher_logits=teacher), [student]),
        "pkt_loss": lambda: (partial(functional.pkt_loss, teacher_embedding=teacher), [student]),
        "rkd_loss": lambda: (partial(functional.rkd_loss, teacher_embedding=teacher), [student]),
        "subtract_batch_mean": lambda: (subtract_batch_mean, [student]),
    }


def _vectors(batch: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(batch, DIM, generator=generator), torch.randn(
        batch, DIM, generator=generator
    )


def _contrast_cases(batch: int) -> Iterator[tuple[str, Callable[[], Case]]]:
    """Both critics, sampled and over all rows, with and without labels."""
    size, negatives = max(200, 10 * batch), max(50, 2 * batch)
    generator = torch.Generator().manual_seed(4)
    bank = F.normalize(torch.randn(size, DIM, generator=generator), dim=1)
    index = torch.randperm(size, generator=generator)[:batch]
    labels = torch.randint(CLASSES, (size,), generator=generator)
    drawn = torch.randint(size, (batch, negatives), generator=generator)
    anchor = F.normalize(bank[index] + 0.2 * torch.randn(batch, DIM, generator=generator), dim=1)
    sampled = {"bank": bank, "contrast_index": torch.cat([index[:, None], drawn], 1)}
    everything = {"bank": bank, "index": index, "negatives": negatives}
    labeled = {**everything, "labels": labels[index], "bank_labels": labels}
    for critic, more in (("nce", {"normalizer": 1e4}), ("infonce", {})):
        for form, name, given in (
            ("sampled", f"{critic}_loss", sampled),
            ("all", f"{critic}_loss_all", everything),
            ("labels", f"{critic}_loss_all", labeled),
        ):
            function = partial(getattr(functional, name), temperature=TEMPERATURE, **given, **more)
            yield f"{name}, {form}", lambda function=function: (function, [anchor])  # type: ignore[misc]
