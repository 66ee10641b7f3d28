"""Pages made from code and results are up to date, and the code on pages runs."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from cktf.bench import compare, csv_rows, markdown, published_accuracies
from cktf.engine import RunFolder
from cktf.objectives import METHODS, parse

ROOT = Path(__file__).parents[1]

MAKERS = (
    "tools/method_pages.py",
    "tools/results_page.py",
    "tools/reliability_page.py",
    "benchmarks/page.py",
    "benchmarks/transfer_page.py",
)


# One process for all, so that PyTorch is imported once.
RUN_MAKERS = """
import runpy, sys
for path in sys.argv[1:]:
    sys.argv, sys.path[0] = [path], path.rpartition("/")[0]
    runpy.run_path(path, run_name="__main__")
"""


def test_pages_say_what_is_in_results(tmp_path):
    """The commands, run on a copy of the project, leave every page as it is."""
    for part in ("README.md", "docs", "results", "tools", "benchmarks"):
        copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
        copy(ROOT / part, tmp_path / part)
    subprocess.run([sys.executable, "-c", RUN_MAKERS, *MAKERS], cwd=tmp_path, check=True)
    pages = sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*.md"))
    assert Path("README.md") in pages
    for page in pages:
        expected = (tmp_path / page).read_text()
        assert (ROOT / page).read_text() == expected, f"run one of python {', '.join(MAKERS)}"


@pytest.mark.parametrize("matrix", [p.parent.name for p in ROOT.glob("results/*/matrix.yaml")])
def test_committed_tables_are_those_of_their_cells(matrix):
    folder = ROOT / "results" / matrix
    compared = compare(folder)
    for form, write in (("md", markdown), ("csv", csv_rows)):
        assert (folder / f"table.{form}").read_text() == write(compared), f"cktf table {folder}"


def test_code_blocks_of_the_loop_page_run(tmp_path, monkeypatch):
    """All blocks in order, as they stand."""
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "loop.md").read_text(), re.S)
    torch.manual_seed(0)
    names: dict[str, Any] = {}
    for block in blocks:
        exec(block, names)
    scores = [row["validation_top1"] for row in RunFolder(Path("runs/early")).rows()]
    stopped = len(scores) - 1 - scores.index(max(scores)) >= 2
    assert stopped or len(scores) == 4
    assert names["loss"].total.isfinite()
    assert set(names["loss"].terms) >= {"ce", "cktf", "kd"}
    momentum = names["optimizer"].state_dict()["state"][0]["momentum_buffer"]
    assert momentum.isfinite().all()
    assert momentum.any()
    # `after_step` sets it.
    assert names["objective"].terms["cktf"].pairs[0].student_normalizer > 0


def test_functions_of_the_design_page_exist():
    page = (ROOT / "docs" / "design.md").read_text()
    places = re.findall(r"`(\w[\w/]*\.py): ([\w.]+)`", page)
    assert len(places) > 20
    for file, name in places:
        source = (ROOT / "src" / "cktf" / file).read_text()
        for part in name.split("."):
            assert re.search(rf"^ *(def|class) {part}\b", source, re.M), f"{file}: {name}"


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
