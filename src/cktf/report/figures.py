"""Figures as Plotly reads them. Colors that begin with `--` are CSS variables of the page."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import torch
from torch import Tensor

from cktf.report.run_groups import RunGroup, find_baseline
from cktf.report.styles import TEACHER_STYLE, PlotStyle, group_style
from cktf.workflows.analysis import Analysis, NetworkOutputs
from cktf.workflows.similarity import (
    accuracy_by_class,
    linear_cka,
    logit_correlations,
    measure_calibration,
)

Figure = dict[str, Any]
_REFERENCE_COLOR = "--muted"
# The most classes shown one by one, and in pairs.
_MAX_CLASSES, _MAX_PAIRED = 30, 100


def escape_text(text: object) -> str:
    """Text that Plotly shows unchanged: it interprets some HTML.

    >>> escape_text("<script>")
    '&lt;script&gt;'
    """
    return escape(str(text), quote=False)


def build_figure(
    traces: Sequence[Mapping[str, Any]], title: str, x: str = "", y: str = "", **layout: Any
) -> Figure:
    """Traces with axis titles, and a figure title for screen readers."""
    axes = {
        "xaxis": {"title": {"text": escape_text(x)}, **layout.pop("xaxis", {})},
        "yaxis": {"title": {"text": escape_text(y)}, **layout.pop("yaxis", {})},
    }
    return {"data": list(traces), "layout": {**axes, **layout}, "title": title}


def _line_trace(
    x: Sequence[Any], y: Sequence[Any], name: str, style: PlotStyle, **options: Any
) -> Figure:
    return {
        "type": "scatter", "mode": "lines+markers", "x": list(x), "y": list(y),
        "name": escape_text(name), "line": {"color": style.color, "width": 2, "dash": style.dash},
        "marker": style.marker(6), **options,
    }  # fmt: skip


def _horizontal_line_trace(
    y: float, name: str, color: str, dash: str, end: str
) -> tuple[Figure, Figure]:
    """A line across the figure, and its name at the `left` or `right` end."""
    shape = {
        "type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": y, "y1": y,
        "line": {"color": color, "dash": dash, "width": 1.5},
    }  # fmt: skip
    note = {
        "xref": "paper", "x": 0.005 if end == "left" else 0.995, "y": y, "text": escape_text(name),
        "xanchor": end, "yanchor": "bottom", "showarrow": False,
        "font": {"color": color, "size": 12},
    }  # fmt: skip
    return shape, note


def _epoch_axis(traces: Sequence[Figure]) -> Figure:
    """Whole numbers only."""
    longest = max(len(trace["x"]) for trace in traces)
    return {"dtick": 1} if longest <= 12 else {"tickformat": "d"}


def accuracy_curves(groups: Sequence[RunGroup]) -> Figure | None:
    """Test accuracy after each epoch, with lines for the teachers and the student alone."""
    traces = []
    for number, group in enumerate(groups):
        for index, run in enumerate(group.runs):
            rows = [row for row in run.rows if row.get("test_top1") is not None]
            if rows:
                x, y = [r["epoch"] for r in rows], [r["test_top1"] for r in rows]
                traces.append(
                    _line_trace(x, y, group.name, group_style(number), legendgroup=group.name,
                          showlegend=index == 0,
                          hovertemplate=f"{escape_text(group.name)}, seed {run.summary['seed']}<br>"
                          "epoch %{x}: %{y:.2f} %<extra></extra>")
                )  # fmt: skip
    if not traces:
        return None
    teachers = {
        (run.summary["teacher"], run.summary["teacher_top1"])
        for group in groups
        for run in group.runs
        if run.summary.get("teacher_top1") is not None
    }
    color = TEACHER_STYLE.color
    lines = [
        _horizontal_line_trace(top1, f"teacher {name} {top1:.2f} %", color, "dash", "left")
        for name, top1 in sorted(teachers)
    ]
    baseline = find_baseline(groups) if len(groups) > 1 else None
    if baseline is not None:
        # At the other end, since both may be equally accurate.
        name = f"{baseline.name} {baseline.top1:.2f} %"
        lines.append(_horizontal_line_trace(baseline.top1, name, _REFERENCE_COLOR, "dot", "right"))
    return build_figure(
        traces, "Accuracy on the test images, epoch by epoch", "epoch", "top-1, %",
        shapes=[shape for shape, _ in lines], annotations=[note for _, note in lines], height=400,
        xaxis=_epoch_axis(traces),
    )  # fmt: skip


def loss_curves(groups: Sequence[RunGroup]) -> list[tuple[str, Figure]]:
    """Each term of the losses before its weight, epoch by epoch."""
    traces: dict[str, list[Figure]] = {}
    for number, group in enumerate(groups):
        for index, run in enumerate(group.runs):
            for term in dict.fromkeys(term for row in run.rows for term in row["terms"]):
                steps = [i for i, row in enumerate(run.rows, 1) if term in row["terms"]]
                values = [run.rows[i - 1]["terms"][term] for i in steps]
                hover = "%{x}: %{y:.4g}<extra>" + escape_text(group.name) + "</extra>"
                traces.setdefault(term, []).append(
                    _line_trace(steps, values, group.name, group_style(number),
                          legendgroup=group.name,
                          showlegend=index == 0, hovertemplate=hover)
                )  # fmt: skip
    return [
        (
            term,
            build_figure(
                lines, f"Loss term {term}", "epoch, all phases", showlegend=False, height=230,
                xaxis=_epoch_axis(lines),
            ),
        )
        for term, lines in traces.items()
    ]  # fmt: skip


def accuracy_by_network_cost(groups: Sequence[RunGroup]) -> list[tuple[str, Figure]]:
    """Accuracy against each of three costs, with the Pareto frontier."""
    # The accuracy tells teachers of one network apart.
    points: dict[tuple[str, float], tuple[NetworkOutputs, PlotStyle]] = {}
    for number, group in enumerate(groups):
        run = group.runs[0]
        # A transfer's teacher knows other classes, and is represented by a probe.
        top1 = run.summary.get("teacher_probe_top1") or run.summary.get("teacher_top1")
        if run.teacher is not None and top1 is not None:
            points[f"{run.teacher.name} (teacher)", top1] = run.teacher, TEACHER_STYLE
        if run.student is not None:
            name = f"{run.student.name} {group.method}"
            points[name, group.top1] = run.student, group_style(number)
    if not points:
        return []
    networks = [network for network, _ in points.values()]
    costs = {
        "parameters": [float(network.parameters) for network in networks],
        "multiply-adds for one image": [float(network.macs) for network in networks],
        f"latency on {networks[0].device}, ms for one image": [n.latency_ms for n in networks],
    }
    top1s = [top1 for _, top1 in points]
    styles = [style for _, style in points.values()]
    figures = []
    for cost, values in costs.items():
        frontier: list[tuple[float, float]] = []
        for value, top1 in sorted(zip(values, top1s, strict=True), key=lambda p: (p[0], -p[1])):
            if not frontier or top1 > frontier[-1][1]:
                frontier.append((value, top1))
        line = {
            "type": "scatter", "mode": "lines", "x": [value for value, _ in frontier],
            "y": [top1 for _, top1 in frontier], "hoverinfo": "skip", "name": "frontier",
            "line": {"color": _REFERENCE_COLOR, "dash": "dot", "width": 1},
        }  # fmt: skip
        # SI prefixes for thousands of parameters, none for fractions of a millisecond.
        form = "s" if max(values) >= 1000 else "g"
        dots = {
            "type": "scatter", "mode": "markers", "x": values, "y": top1s,
            "text": [escape_text(name) for name, _ in points],
            "marker": {
                "color": [style.color for style in styles],
                "symbol": [style.symbol for style in styles], "size": 11,
            },
            "hovertemplate": "%{text}<br>%{y:.2f} %<br>"
            f"%{{x:,.3~{form}}} {escape_text(cost)}<extra></extra>",
        }  # fmt: skip
        is_wide = max(values) > 20 * min(values)
        figure = build_figure(
            [line, dots], f"Accuracy against {cost}", cost, "top-1, %", showlegend=False,
            height=290, xaxis={"type": "log"} if is_wide else {"rangemode": "tozero", "nticks": 5},
        )  # fmt: skip
        figures.append((cost, figure))
    return figures


def class_accuracies(groups: Sequence[RunGroup]) -> Figure | None:
    """The teacher's and each method's accuracy of the classes in which they differ most."""
    first = next((g.runs[0] for g in groups if g.runs[0].student is not None), None)
    if first is None or first.labels is None:
        return None
    classes = tuple(first.classes)
    teachers: list[tuple[str, PlotStyle, Tensor]] = []
    lines: list[tuple[str, PlotStyle, Tensor]] = []
    for number, group in enumerate(groups):
        students = []
        for run in group.runs:
            if tuple(run.classes) != classes or run.labels is None or run.student is None:
                continue
            students.append(accuracy_by_class(run.student.predicted, run.labels, len(classes)))
            if run.teacher is not None and run.teacher_knows_classes and not teachers:
                accuracy = accuracy_by_class(run.teacher.predicted, run.labels, len(classes))
                teachers.append((f"teacher {run.teacher.name}", TEACHER_STYLE, accuracy))
        if students:
            lines.append((group.name, group_style(number), torch.stack(students).mean(dim=0)))
    lines = teachers + lines
    values = torch.stack([accuracy for _, _, accuracy in lines])
    # Classes without images have no accuracy.
    spread = torch.nan_to_num(values.amax(dim=0) - values.amin(dim=0), nan=-1.0)
    indices = spread.argsort(descending=True, stable=True)[:_MAX_CLASSES]
    indices = indices[spread[indices] >= 0]
    # In the order of the first line, the teacher's if there is one.
    indices = indices[values[0][indices].argsort(stable=True)]
    labels = [escape_text(classes[c]) for c in indices.tolist()]
    bars = {
        "type": "bar", "orientation": "h", "y": labels,
        "base": values.amin(dim=0)[indices].tolist(), "x": spread[indices].tolist(),
        "marker": {"color": "--line"}, "width": 0.14,
        "hoverinfo": "skip", "showlegend": False,
    }  # fmt: skip
    traces = [bars] + [
        {
            "type": "scatter", "mode": "markers", "name": escape_text(name), "y": labels,
            "x": accuracy[indices].tolist(), "marker": style.marker(10),
            "hovertemplate": "%{y}: %{x:.1f} %<extra>" + escape_text(name) + "</extra>",
        }
        for name, style, accuracy in lines
    ]  # fmt: skip
    return build_figure(
        traces, "Accuracy of each class", "accuracy, %", height=130 + 26 * len(labels),
        yaxis={"automargin": True, "type": "category"}, barmode="overlay",
    )  # fmt: skip


def confusion(run: Analysis) -> Figure | None:
    """How often the student takes images of each class for each other one.

    Of many classes, the pairs that it confuses most.
    """
    if run.student is None or run.labels is None:
        return None
    count = len(run.classes)
    pairs = run.labels * count + run.student.predicted
    counts = torch.bincount(pairs, minlength=count**2).view(count, count).float()
    shares = 100 * counts / counts.sum(dim=1, keepdim=True).clamp(min=1)
    if count <= _MAX_CLASSES:
        figure = _heatmap(
            shares, run.classes, run.classes, "Confusion matrix of the student",
            max(330, 130 + 22 * count), zmin=0, zmax=100, colorscale="--sequential",
            hovertemplate="%{y} taken for %{x}: %{z:.1f} %<extra></extra>",
            **({"texttemplate": "%{z:.0f}"} if count <= 20 else {}),
        )  # fmt: skip
        figure["layout"]["xaxis"]["title"] = {"text": "the student's class"}
        figure["layout"]["yaxis"]["title"] = {"text": "true class"}
        figure["caption"] = "Of the images of each true class, the per cent in each class."
        return figure
    confused = counts.fill_diagonal_(0).flatten()
    order = confused.argsort(descending=True, stable=True)[:_MAX_CLASSES]
    order = order[confused[order] > 0].flip(0)
    names = [
        escape_text(f"{run.classes[pair // count]} → {run.classes[pair % count]}")
        for pair in order.tolist()
    ]
    bars = {
        "type": "bar", "orientation": "h", "y": names, "x": confused[order].tolist(),
        "customdata": shares.flatten()[order].tolist(), "marker": {"color": "--accent"},
        "hovertemplate": "%{y}: %{x} images, %{customdata:.1f} % of the class<extra></extra>",
    }  # fmt: skip
    figure = build_figure(
        [bars], "The classes that the student confuses most", "images",
        height=130 + 22 * len(names), yaxis={"automargin": True, "type": "category"},
    )  # fmt: skip
    figure["caption"] = "The classes that the student confuses most: true class → its class."
    return figure


def calibration_curves(
    groups: Sequence[RunGroup],
) -> tuple[Figure, list[tuple[str, float]]] | None:
    """Accuracy against confidence, and each network's expected calibration error in points."""
    networks: list[tuple[str, PlotStyle, NetworkOutputs, Tensor]] = []
    for number, group in enumerate(groups):
        run = group.runs[0]
        if run.student is not None and run.labels is not None:
            networks.append((group.name, group_style(number), run.student, run.labels))
            teacher = run.teacher if run.teacher_knows_classes else None
            if teacher is not None and all(other is not teacher for _, _, other, _ in networks):
                networks.append((f"teacher {teacher.name}", TEACHER_STYLE, teacher, run.labels))
    if not networks:
        return None
    diagonal = {
        "type": "scatter", "mode": "lines", "x": [0, 1], "y": [0, 1], "hoverinfo": "skip",
        "line": {"color": _REFERENCE_COLOR, "dash": "dot", "width": 1}, "name": "calibrated",
    }  # fmt: skip
    traces, errors = [diagonal], []
    for name, style, outputs, labels in networks:
        calibration = measure_calibration(outputs.probabilities, labels)
        errors.append((name, calibration.error))
        traces.append(
            _line_trace(calibration.confidence, calibration.accuracy, name, style,
                  customdata=calibration.count,
                  hovertemplate="confidence %{x:.2f}, right %{y:.1%}<br>%{customdata:,} images"
                  f"<extra>{escape_text(name)}</extra>")
        )  # fmt: skip
    figure = build_figure(
        traces, "Share of right answers against confidence", "confidence", "share that is right",
        height=380, xaxis={"range": [0, 1.02]}, yaxis={"range": [0, 1.02]},
    )  # fmt: skip
    return figure, errors


def _heatmap(
    values: Tensor, x: Sequence[str], y: Sequence[str], title: str, height: int, **options: Any
) -> Figure:
    gap = 0 if values.numel() > 900 else 1
    trace = {
        "type": "heatmap", "z": values.tolist(), "x": [escape_text(v) for v in x],
        "y": [escape_text(v) for v in y], "hovertemplate": "%{y} · %{x}: %{z:.3f}<extra></extra>",
        "colorbar": {"thickness": 8, "outlinewidth": 0}, "xgap": gap, "ygap": gap,
        **({"texttemplate": "%{z:.2f}"} if values.numel() <= 64 else {}), **options,
    }  # fmt: skip
    axis = {"automargin": True, "type": "category", "showgrid": False}
    return build_figure(
        [trace], title, height=height, xaxis={**axis, "tickangle": -45},
        yaxis={**axis, "autorange": "reversed"},
    )  # fmt: skip


def cka_heatmap(run: Analysis) -> Figure | None:
    """Linear CKA between every tap of the teacher and of the student."""
    if run.student is None or run.teacher is None:
        return None
    student, teacher = run.student.features, run.teacher.features
    values = torch.tensor([[linear_cka(s, t) for t in teacher.values()] for s in student.values()])
    figure = _heatmap(
        values, list(teacher), list(student), "Linear CKA of student and teacher", 320,
        zmin=0, zmax=1, colorscale="--sequential", showscale=False,
    )  # fmt: skip
    figure["layout"]["xaxis"]["title"] = {"text": "teacher"}
    figure["layout"]["yaxis"]["title"] = {"text": "student"}
    return figure


def correlation_difference(run: Analysis) -> Figure | None:
    """The teacher's correlations of logits between classes minus the student's.

    Of many classes only those that differ most, in their order, to keep the page small.
    """
    if not run.teacher_knows_classes or run.student is None or run.teacher is None:
        return None
    values = logit_correlations(run.teacher.logits) - logit_correlations(run.student.logits)
    order = values.abs().sum(dim=1).argsort(descending=True, stable=True)
    indices = order[:_MAX_PAIRED].sort().values
    classes = [run.classes[number] for number in indices.tolist()]
    figure = _heatmap(
        values[indices][:, indices].float(), classes, classes, "Difference of logit correlations",
        330, colorscale="--diverging",
    )  # fmt: skip
    figure["caption"] = f"mean absolute difference {values.abs().mean():.3f}"
    if len(classes) < len(values):
        figure["caption"] += f" of {len(values):,} classes; the {_MAX_PAIRED} that differ most"
    return figure


def class_color(number: int, classes: int) -> str:
    """Hues around the color circle; every second class is darker."""
    return f"hsl({number * 360 / classes:.0f}, 62%, {46 + 14 * (number % 2)}%)"


def embedding_scatter(points: Tensor, labels: Tensor, classes: Sequence[str], title: str) -> Figure:
    """Embeddings in the plane, a color for each class."""
    traces = [
        {
            "type": "scatter", "mode": "markers", "name": escape_text(classes[number]),
            "x": points[labels == number, 0].tolist(), "y": points[labels == number, 1].tolist(),
            "marker": {"color": class_color(number, len(classes)), "size": 5},
            "hovertemplate": escape_text(classes[number]) + "<extra></extra>",
        }
        for number in torch.unique(labels).tolist()
    ]  # fmt: skip
    bare = {
        "showticklabels": False, "showgrid": False, "zeroline": False, "ticks": "",
        "showline": False,
    }  # fmt: skip
    return build_figure(
        traces, title, height=330, xaxis=bare, yaxis={**bare, "scaleanchor": "x"},
        showlegend=False, margin={"l": 4, "r": 4, "t": 4, "b": 4},
    )  # fmt: skip
