"""Negatives that are drawn on the device: never of the anchor's class, and all others alike."""

import math

import torch
from torch import Tensor

from cktf.contrast import ContrastConfig, NegativeSampler, build_memory
from cktf.functional.contrast import Candidates
from gpu_checks.findings import Findings

SIZE, CLASSES, BATCH = 1_000, 10, 64
LEAST_P = 1e-3


def check_sampler(findings: Findings) -> None:
    """Draws with and without labels, and those that a batch shares."""
    torch.manual_seed(0)
    draws = 1 << (14 if findings.is_cuda else 12)
    labels = torch.arange(SIZE) % CLASSES
    index = torch.randperm(SIZE)[:BATCH].to(findings.device)
    for name, given in (("labels", labels), ("no labels", None)):
        with findings.case(name):
            sampler = NegativeSampler(SIZE, given).to(findings.device)
            drawn = sampler.draw(index, draws).cpu()
            ids = torch.arange(SIZE) if given is None else given
            own = ids[drawn] == ids[index.cpu()][:, None]
            findings.require(not own.any(), f"{int(own.sum())} draws of the anchor's own class")
            _require_uniform(findings, name, drawn, ids, index.cpu())
    with findings.case("shared"):
        config = ContrastConfig(negatives=draws * BATCH, estimator="shared")
        memory = build_memory(config, SIZE, labels, 1).to(findings.device)
        draw = memory.draw(index)
        assert draw.key_index is not None
        assert isinstance(draw.negatives, Candidates)
        counts = draw.key_index.cpu().bincount(minlength=SIZE).double()
        _require_p(findings, "shared", counts, torch.full((SIZE,), counts.sum().item() / SIZE))


def _require_uniform(
    findings: Findings, name: str, drawn: Tensor, ids: Tensor, index: Tensor
) -> None:
    """Each row is expected as often as its share of every anchor's negatives says."""
    others = (ids != ids[index][:, None]).double()
    expected = (drawn.shape[1] * others / others.sum(1, keepdim=True)).sum(0)
    _require_p(findings, name, drawn.flatten().bincount(minlength=SIZE).double(), expected)


def _require_p(findings: Findings, name: str, counts: Tensor, expected: Tensor) -> None:
    p = chi_square_p(counts, expected.double())
    findings.figures[f"p, {name}"] = round(p, 4)
    findings.require(p > LEAST_P, f"chi-square p = {p:.2g}")


def chi_square_p(counts: Tensor, expected: Tensor) -> float:
    """P of counts that are as far from the expected or farther, by Wilson and Hilferty's cube."""
    degrees = len(counts) - 1
    statistic = float(((counts - expected).square() / expected).sum())
    spread = 2 / (9 * degrees)
    z = ((statistic / degrees) ** (1 / 3) - (1 - spread)) / math.sqrt(spread)
    return 0.5 * math.erfc(z / math.sqrt(2))
