"""Pages that are made from the code are the code's."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cktf.bench import compare, csv_rows, latex, markdown, published
from cktf.objectives import METHODS, parse

ROOT = Path(__file__).parents[1]

MAKERS = (
    "tools/method_pages.py",
    "tools/readme_results.py",
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
def test_kept_tables_are_those_of_their_cells(matrix):
    folder = ROOT / "results" / matrix
    compared = compare(folder)
    for form, write in (("md", markdown), ("csv", csv_rows), ("tex", latex)):
        assert (folder / f"table.{form}").read_text() == write(compared), f"cktf table {folder}"


def test_published_figures():
    """Counts of the two tables, and the paper's own rows."""
    rows = published()
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
