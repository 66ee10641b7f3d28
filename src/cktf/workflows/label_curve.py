"""The plot of accuracy over the number of labels."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

CURVE = "curve.png"


def draw_curve(
    points: Mapping[str, Sequence[Mapping[str, Any]]], levels: Mapping[str, float], path: Path
) -> None:
    """Draw accuracy over labels per class, a line with error bars for each network.

    Args:
        points: the points of each line, as `ProbeResult.points` gives them.
        levels: accuracies with the most labels, each drawn as a mark.
        path: a file in a format of matplotlib, such as .png or .svg.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    # Without pyplot no window opens, and the user's figures are untouched.
    FigureCanvasAgg(figure)
    axis = figure.add_subplot()
    counts: list[int] = []
    for name, line in points.items():
        counts = [point["labels_per_class"] for point in line]
        means, spread = [p["mean"] for p in line], [p["sd"] or 0.0 for p in line]
        axis.errorbar(counts, means, spread, fmt="o-", markersize=4, capsize=3, label=name)
    for name, level in levels.items():
        axis.plot(counts[-1:], [level], "k*", markersize=9, label=name)
    axis.set_xscale("log")
    axis.set_xticks(counts, [str(count) for count in counts])
    axis.xaxis.minorticks_off()
    axis.set_xlabel("labels of each class")
    axis.set_ylabel("top-1 on the test images, %")
    axis.grid(alpha=0.3)
    axis.legend(loc="best")
    # No date: the same figure gives the same file.
    figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)
