"""Pages that are made from the code are the code's."""

import subprocess
import sys
from pathlib import Path

from cktf.bench import published
from cktf.objectives import METHODS, parse

ROOT = Path(__file__).parents[1]


def test_method_pages_are_up_to_date():
    command = [sys.executable, "tools/method_pages.py", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_readme_has_the_committed_results():
    command = [sys.executable, "tools/readme_results.py", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


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
    assert named == set(METHODS) - {"kdsvd"}
    # The paper's claim: the smallest and the largest lead over another method in compression.
    leads = [
        top1[d, p, "cktf"] - value
        for (d, p, m), value in top1.items()
        if m not in {"teacher", "ce", "cktf", "cktf+kd", "crd+kd"}
    ]
    assert (round(min(leads), 2), round(max(leads), 2)) == (0.04, 11.59)
