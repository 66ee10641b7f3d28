"""Tables and plots of docs/transfer.md, from what the benchmarks kept in results/transfer.

python benchmarks/transfer_page.py
"""

import json
import statistics
import textwrap
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from measure import table

from cktf.workflows import draw_curve

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results" / "transfer"
PAGE = ROOT / "docs" / "transfer.md"
TITLES = {
    "inside": "Within CIFAR-10: wrn_16_2 of six classes, resnet8 on the other four",
    "imagenet-resnet20": "From ImageNet to CIFAR-10: EfficientNet-Lite0 at 96 px, resnet20 at 32",
    "imagenet-MobileNetV2": "The same with MobileNetV2",
}
_ORDER = ("teacher", "cktf", "cktf+kd", "crd", "kd")
_LAST = ("scratch", "floor")
_PLOTTED = ("teacher", "cktf", "crd", "kd", "floor")
_MARKS = "<!-- made by benchmarks/transfer_page.py -->", "<!-- end -->"

Cells = Mapping[str, Sequence[Mapping[str, Any]]]


def read(study: str) -> Cells:
    """The cells of a study that are done, each with its seeds, in the order of the table."""
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for path in sorted(RESULTS.glob(f"{study}-*-seed*.json")):
        cell = json.loads(path.read_text())
        found[cell["cell"]].append(cell)
    middle = sorted(set(found) - set(_ORDER) - set(_LAST))
    return {name: found[name] for name in (*_ORDER, *middle, *_LAST) if name in found}


def curve(seeds: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Points of a cell: mean over its seeds, and the spread over them, or over draws of one."""
    points = []
    for same in zip(*(cell["points"] for cell in seeds), strict=True):
        means = [point["mean"] for point in same]
        spread = statistics.stdev(means) if len(means) > 1 else same[0]["sd"]
        count, mean = same[0]["labels_per_class"], statistics.fmean(means)
        points.append({"labels_per_class": count, "mean": mean, "sd": spread})
    return points


def rows_of(cells: Cells) -> str:
    """A table: a row for each cell, a column for each number of labels."""
    counts = next(curve(s) for s in cells.values() if s[0]["points"])
    header = ["", "seeds", *(f"{point['labels_per_class']} a class" for point in counts)]
    rows = []
    for name, seeds in cells.items():
        points = curve(seeds)
        if not points:
            top1 = [cell["top1"] for cell in seeds]
            points = [{"mean": None, "sd": None}] * (len(counts) - 1)
            sd = statistics.stdev(top1) if len(top1) > 1 else None
            points.append({"mean": statistics.fmean(top1), "sd": sd})
        rows.append([name, len(seeds), *map(_shown, points)])
    return table(header, rows)


def _shown(point: Mapping[str, Any]) -> str:
    if point["mean"] is None:
        return ""
    return f"{point['mean']:.2f}" + ("" if point["sd"] is None else f" ± {point['sd']:.2f}")


def timings() -> str:
    """What a teacher cache costs and saves, if it was measured."""
    path = RESULTS / "teacher-cache.json"
    if not path.is_file():
        return ""
    found = json.loads(path.read_text())
    rows = [[what, f"{cost['cpu_seconds']:.1f}"] for what, cost in found["epochs"].items()]
    head = table(["an epoch", "CPU seconds"], rows)
    disk = f"{found['bytes'] / 1e6:,.1f} MB for a view of {found['images']:,} images"
    text = textwrap.fill(f"{found['setting']} On disk: {disk}.", 100)
    return f"{head}\n\n{text}"


def write_page() -> None:
    """Put the tables and the plots into docs."""
    parts = []
    matplotlib.rcParams["svg.hashsalt"] = "cktf"
    for study, title in TITLES.items():
        cells = read(study)
        if not any(seeds[0]["points"] for seeds in cells.values()):
            continue
        levels = {n: statistics.fmean(c["top1"] for c in cells[n]) for n in _LAST[:1] if n in cells}
        plot = PAGE.with_name(f"transfer-{study}.svg")
        draw_curve({n: curve(cells[n]) for n in _PLOTTED if n in cells}, levels, plot)
        parts.append(f"### {title}\n\n{rows_of(cells)}\n\n![label curve]({plot.name})")
    if cost := timings():
        parts.append(f"### What the teacher cache saves\n\n{cost}")
    text = "\n\n".join(parts)
    before, _, rest = PAGE.read_text().partition(_MARKS[0])
    after = rest.partition(_MARKS[1])[2]
    PAGE.write_text(f"{before}{_MARKS[0]}\n\n{text}\n\n{_MARKS[1]}{after}")


if __name__ == "__main__":
    write_page()
