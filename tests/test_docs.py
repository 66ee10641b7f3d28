"""Pages that are made from the code are the code's."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from cktf.bench import compare, csv_rows, markdown, published_accuracies
from cktf.models import create
from cktf.objectives import METHODS, parse

ROOT = Path(__file__).parents[1]

MAKERS = (
    "tools/method_pages.py",
    "tools/results_page.py",
    "tools/reliability_page.py",
    "benchmarks/page.py",
    "benchmarks/transfer_page.py",
)


@pytest.mark.parametrize("maker", MAKERS)
def test_pages_say_what_is_kept_in_results(tmp_path, maker):
    """Each command, run on a copy of the project, leaves every page as it is."""
    for part in ("README.md", "docs", "results", "tools", "benchmarks"):
        copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
        copy(ROOT / part, tmp_path / part)
    subprocess.run([sys.executable, maker], cwd=tmp_path, check=True)
    pages = sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*.md"))
    assert Path("README.md") in pages
    for page in pages:
        assert (tmp_path / page).read_text() == (ROOT / page).read_text(), f"run python {maker}"


@pytest.mark.parametrize("matrix", [p.parent.name for p in ROOT.glob("results/*/matrix.yaml")])
def test_committed_tables_are_those_of_their_cells(matrix):
    folder = ROOT / "results" / matrix
    compared = compare(folder)
    for form, write in (("md", markdown), ("csv", csv_rows)):
        assert (folder / f"table.{form}").read_text() == write(compared), f"cktf table {folder}"


def test_the_loop_on_its_page_trains():
    page = (ROOT / "docs" / "loop.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.S)
    torch.manual_seed(0)
    labels = torch.arange(96) % 3
    pictures = torch.randn(96, 3, 16, 16) * 0.1 + labels.view(-1, 1, 1, 1)
    names: dict[str, Any] = {"labels": labels, "images": pictures[:8]}
    names |= {role: create(n, 3) for role, n in (("student", "resnet8"), ("teacher", "resnet14"))}
    parts = torch.randperm(96).split(16)
    names["loader"] = [(pictures[i], labels[i], i) for i in parts]
    weight = names["student"].conv1.weight.detach().clone()
    exec(code, names)
    assert names["loss"].total.isfinite()
    assert set(names["loss"].terms) >= {"ce", "cktf", "kd"}
    assert not torch.equal(weight, names["student"].conv1.weight)
    assert int(names["optimizer"].state_dict()["state"][0]["momentum_buffer"].isfinite().all())


def test_published_figures():
    """Counts of the two tables, and the paper's own rows."""
    rows = published_accuracies()
    top1 = {(r.dataset, r.pair, r.method): r.top1 for r in rows}
    assert len(top1) == len(rows)
    for dataset, pairs, absent in (("cifar100", 7, 1), ("tiny-imagenet", 4, 4)):
        assert sum(r.dataset == dataset for r in rows) == pairs * 18 - absent
    assert top1["cifar100", "resnet32x4:resnet8x4", "cktf+kd"] == 75.97
    assert top1["tiny-imagenet", "ResNet50:ResNet10", "nst"] == 47.83
    named = {term for r in rows if r.method != "teacher" for term in parse(r.method)}
    compared = {
        "kd", "fitnet", "at", "sp", "cc", "vid", "rkd", "pkt", "ab", "ft", "fsp", "nst", "crd",
    }  # fmt: skip
    assert named == compared | {"ce", "cktf"}
    assert named <= set(METHODS)
    # The paper's claim: the smallest and the largest lead over another method in compression.
    leads = [
        top1[d, p, "cktf"] - value
        for (d, p, m), value in top1.items()
        if m not in {"teacher", "ce", "cktf", "cktf+kd", "crd+kd"}
    ]
    assert (round(min(leads), 2), round(max(leads), 2)) == (0.04, 11.59)
