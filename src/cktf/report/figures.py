"""Figures as Plotly reads them. Colors in `--name` are the page's, light or dark."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, Literal

import torch
from torch import Tensor

from cktf.report.groups import Group, alone
from cktf.report.styles import TEACHER, Look, look
from cktf.workflows.analysis import Analysis, NetworkOutputs
from cktf.workflows.similarity import (
    accuracy_by_class,
    linear_cka,
    logit_correlations,
    measure_calibration,
)

Figure = dict[str, Any]
_REFERENCE = "--muted"
# Classes that are shown one by one, and in pairs.
_BARS, _PAIRED = 30, 100


def plain(text: object) -> str:
    """Text that Plotly shows as it is: it reads some HTML.

    >>> plain("<script>")
    '&lt;script&gt;'
    """
    return escape(str(text), quote=False)


def figure(
    traces: Sequence[Mapping[str, Any]], title: str, x: str = "", y: str = "", **layout: Any
) -> Figure:
    """Traces with their axes, and a title for those who do not see it."""
    axes = {
        "xaxis": {"title": {"text": plain(x)}, **layout.pop("xaxis", {})},
        "yaxis": {"title": {"text": plain(y)}, **layout.pop("yaxis", {})},
    }
    return {"data": list(traces), "layout": {**axes, **layout}, "title": title}


def _line(x: Sequence[Any], y: Sequence[Any], name: str, own: Look, **more: Any) -> Figure:
    return {
        "type": "scatter", "mode": "lines+markers", "x": list(x), "y": list(y),
        "name": plain(name), "line": {"color": own.color, "width": 2, "dash": own.dash},
        "marker": own.marker(6), **more,
    }  # fmt: skip


def _level(
    y: float, name: str, shade: str, dash: str, end: Literal["left", "right"]
) -> tuple[Figure, Figure]:
    """A line across, and what it is called at one of its ends."""
    shape = {
        "type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": y, "y1": y,
        "line": {"color": shade, "dash": dash, "width": 1.5},
    }  # fmt: skip
    note = {
        "xref": "paper", "x": 0.005 if end == "left" else 0.995, "y": y, "text": plain(name),
        "xanchor": end, "yanchor": "bottom", "showarrow": False,
        "font": {"color": shade, "size": 12},
    }  # fmt: skip
    return shape, note


def _whole(traces: Sequence[Figure]) -> Figure:
    """An axis of epochs: whole numbers."""
    longest = max(len(trace["x"]) for trace in traces)
    return {"dtick": 1} if longest <= 12 else {"tickformat": "d"}


def names_of(groups: Sequence[Group]) -> list[tuple[Analysis, str]]:
    """Every run with a name that sets it apart."""
    return [
        (run, group.name if len(group.runs) == 1 else f"{group.name}, seed {run.summary['seed']}")
        for group in groups
        for run in group.runs
    ]


def accuracy_curves(groups: Sequence[Group]) -> Figure | None:
    """Test accuracy after each epoch, with the teacher and the student alone as levels."""
    traces, levels = [], []
    for number, group in enumerate(groups):
        for place, run in enumerate(group.runs):
            rows = [row for row in run.rows if row.get("test_top1") is not None]
            if rows:
                x, y = [r["epoch"] for r in rows], [r["test_top1"] for r in rows]
                traces.append(
                    _line(x, y, group.name, look(number), legendgroup=group.name,
                          showlegend=place == 0,
                          hovertemplate=f"{plain(group.name)}, seed {run.summary['seed']}<br>"
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
    for name, top1 in sorted(teachers):
        levels.append(_level(top1, f"teacher {name} {top1:.2f} %", TEACHER.color, "dash", "left"))
    reference = alone(groups) if len(groups) > 1 else None
    if reference is not None:
        name = f"{reference.name} {reference.top1:.2f} %"
        # Both may be as accurate, and their names stay apart.
        levels.append(_level(reference.top1, name, _REFERENCE, "dot", "right"))
    return figure(
        traces, "Accuracy on the test images, epoch by epoch", "epoch", "top-1, %",
        shapes=[shape for shape, _ in levels], annotations=[note for _, note in levels], height=400,
        xaxis=_whole(traces),
    )  # fmt: skip


def loss_curves(groups: Sequence[Group]) -> list[tuple[str, Figure]]:
    """Each term of the losses, epoch by epoch, as it is before its weight."""
    terms: dict[str, list[Figure]] = {}
    for number, group in enumerate(groups):
        for place, run in enumerate(group.runs):
            curves: dict[str, tuple[list[int], list[float]]] = {}
            for step, row in enumerate(run.rows, 1):
                for term, value in row["terms"].items():
                    x, y = curves.setdefault(term, ([], []))
                    x.append(step)
                    y.append(value)
            for term, (x, y) in curves.items():
                hover = "%{x}: %{y:.4g}<extra>" + plain(group.name) + "</extra>"
                terms.setdefault(term, []).append(
                    _line(x, y, group.name, look(number), legendgroup=group.name,
                          showlegend=place == 0, hovertemplate=hover)
                )  # fmt: skip
    return [
        (
            term,
            figure(
                traces,
                f"Loss term {term}",
                "pass",
                "",
                showlegend=False,
                height=230,
                xaxis=_whole(traces),
            ),
        )
        for term, traces in terms.items()
    ]


def frontiers(groups: Sequence[Group]) -> list[tuple[str, Figure]]:
    """Accuracy against three costs; on the frontier nothing is both cheaper and more accurate."""
    # Teachers of one network are told apart by their accuracies.
    points: dict[tuple[str, float], tuple[NetworkOutputs, float, Look]] = {}
    for number, group in enumerate(groups):
        run = group.runs[0]
        # Of a transfer, whose teacher knows other classes, a probe on its features.
        top1 = run.summary.get("teacher_probe_top1") or run.summary.get("teacher_top1")
        if run.teacher is not None and top1 is not None:
            points[f"{run.teacher.name} (teacher)", top1] = run.teacher, top1, TEACHER
        if run.student is not None:
            name = f"{run.student.name} {group.how}"
            points[name, group.top1] = run.student, group.top1, look(number)
    if not points:
        return []
    device = next(iter(points.values()))[0].device
    costs: dict[str, dict[tuple[str, float], float]] = {
        "parameters": {name: seen.parameters for name, (seen, _, _) in points.items()},
        "multiply-adds for one image": {name: seen.macs for name, (seen, _, _) in points.items()},
        f"latency on {device}, ms for one image": {
            name: seen.latency_ms for name, (seen, _, _) in points.items()
        },
    }
    return [(cost, _frontier(points, cost, values)) for cost, values in costs.items()]


def _frontier(
    points: Mapping[tuple[str, float], tuple[NetworkOutputs, float, Look]],
    cost: str,
    values: Mapping[tuple[str, float], float],
) -> Figure:
    best: list[tuple[str, float]] = []
    for name in sorted(points, key=lambda n: (values[n], -points[n][1])):
        if not best or points[name][1] > points[best[-1]][1]:
            best.append(name)
    line = {
        "type": "scatter", "mode": "lines", "x": [values[n] for n in best],
        "y": [points[n][1] for n in best], "line": {"color": _REFERENCE, "dash": "dot", "width": 1},
        "hoverinfo": "skip", "name": "frontier",
    }  # fmt: skip
    # A thousandth of a millisecond is none; a thousand parameters are 1k.
    form = "s" if max(values.values()) >= 1000 else "g"
    dots = {
        "type": "scatter", "mode": "markers", "x": [values[n] for n in points],
        "y": [top1 for _, top1, _ in points.values()], "text": [plain(name) for name, _ in points],
        "marker": {
            "color": [own.color for _, _, own in points.values()],
            "symbol": [own.symbol for _, _, own in points.values()], "size": 11,
        },
        "hovertemplate": "%{text}<br>%{y:.2f} %<br>"
        f"%{{x:,.3~{form}}} {plain(cost)}<extra></extra>",
    }  # fmt: skip
    wide = max(values.values()) > 20 * min(values.values())
    return figure(
        [line, dots], f"Accuracy against {cost}", cost, "top-1, %", showlegend=False, height=290,
        xaxis={"type": "log"} if wide else {"rangemode": "tozero", "nticks": 5},
    )  # fmt: skip


def class_accuracies(groups: Sequence[Group]) -> Figure | None:
    """Of every class: a dot for the teacher and for each method; the classes that differ most."""
    first = next((g.runs[0] for g in groups if g.runs[0].student is not None), None)
    if first is None or first.labels is None:
        return None
    count = len(first.classes)
    lines: list[tuple[str, Look, Tensor]] = []
    taught = next((g.runs[0] for g in groups if _teaches(g.runs[0], first.classes)), None)
    if taught is not None and taught.teacher is not None and taught.labels is not None:
        teacher = accuracy_by_class(taught.teacher.predicted, taught.labels, count)
        lines.append((f"teacher {taught.teacher.name}", TEACHER, teacher))
    for number, group in enumerate(groups):
        found = [
            accuracy_by_class(run.student.predicted, run.labels, count)
            for run in group.runs
            if run.student is not None and run.labels is not None and run.classes == first.classes
        ]
        if found:
            lines.append((group.name, look(number), torch.stack(found).mean(dim=0)))
    values = torch.stack([accuracy for _, _, accuracy in lines])
    spread = torch.nan_to_num(values.amax(dim=0) - values.amin(dim=0), nan=-1.0)
    chosen = spread.argsort(descending=True, stable=True)[:_BARS]
    # Of a class without images nothing is known.
    chosen = chosen[spread[chosen] >= 0]
    # In the order of the teacher's accuracy, or of the only line there is.
    chosen = chosen[values[0][chosen].argsort(stable=True)]
    classes = [plain(first.classes[c]) for c in chosen.tolist()]
    bars = {
        "type": "bar", "orientation": "h", "y": classes,
        "base": values.amin(dim=0)[chosen].tolist(), "x": spread[chosen].tolist(),
        "marker": {"color": "--line"}, "width": 0.14,
        "hoverinfo": "skip", "showlegend": False,
    }  # fmt: skip
    traces = [bars] + [
        {
            "type": "scatter", "mode": "markers", "name": plain(name), "y": classes,
            "x": accuracy[chosen].tolist(), "marker": own.marker(10),
            "hovertemplate": "%{y}: %{x:.1f} %<extra>" + plain(name) + "</extra>",
        }
        for name, own, accuracy in lines
    ]  # fmt: skip
    return figure(
        traces, "Accuracy of each class", "accuracy, %", height=130 + 26 * len(classes),
        yaxis={"automargin": True, "type": "category"}, barmode="overlay",
    )  # fmt: skip


def _teaches(run: Analysis, classes: Sequence[str]) -> bool:
    """Whether a run's teacher knows these classes."""
    return run.teacher_knows_classes and tuple(run.classes) == tuple(classes)


def calibrations(groups: Sequence[Group]) -> tuple[Figure, list[tuple[str, float]]] | None:
    """Accuracy against confidence, and the expected calibration error of each network."""
    networks: list[tuple[str, Look, NetworkOutputs, Tensor]] = []
    for number, group in enumerate(groups):
        run = group.runs[0]
        if run.student is not None and run.labels is not None:
            networks.append((group.name, look(number), run.student, run.labels))
            teacher = run.teacher if run.teacher_knows_classes else None
            if teacher is not None and all(seen is not teacher for _, _, seen, _ in networks):
                networks.append((f"teacher {teacher.name}", TEACHER, teacher, run.labels))
    if not networks:
        return None
    exact = {
        "type": "scatter", "mode": "lines", "x": [0, 1], "y": [0, 1], "hoverinfo": "skip",
        "line": {"color": _REFERENCE, "dash": "dot", "width": 1}, "name": "calibrated",
    }  # fmt: skip
    traces, errors = [exact], []
    for name, own, seen, labels in networks:
        found = measure_calibration(seen.probabilities, labels)
        errors.append((name, found.error))
        traces.append(
            _line(found.confidence, found.accuracy, name, own, customdata=found.count,
                  hovertemplate="confidence %{x:.2f}, right %{y:.1%}<br>%{customdata:,} images"
                  f"<extra>{plain(name)}</extra>")
        )  # fmt: skip
    drawn = figure(
        traces, "Share of right answers against confidence", "confidence", "share that is right",
        height=380, xaxis={"range": [0, 1.02]}, yaxis={"range": [0, 1.02]},
    )  # fmt: skip
    return drawn, errors


def _heat(
    values: Tensor, x: Sequence[str], y: Sequence[str], title: str, height: int, **more: Any
) -> Figure:
    digits = {"texttemplate": "%{z:.2f}"} if values.numel() <= 64 else {}
    trace = {
        "type": "heatmap", "z": values.tolist(), "x": [plain(v) for v in x],
        "y": [plain(v) for v in y], "hovertemplate": "%{y} · %{x}: %{z:.3f}<extra></extra>",
        "colorbar": {"thickness": 8, "outlinewidth": 0},
        "xgap": 1, "ygap": 1, **digits, **more,
    }  # fmt: skip
    if values.numel() > 900:
        trace |= {"xgap": 0, "ygap": 0}
    axis = {"automargin": True, "type": "category", "showgrid": False}
    return figure(
        [trace], title, height=height, xaxis={**axis, "tickangle": -45},
        yaxis={**axis, "autorange": "reversed"},
    )  # fmt: skip


def similarities(run: Analysis) -> Figure | None:
    """Linear CKA between every tap of the teacher and of the student."""
    if run.student is None or run.teacher is None:
        return None
    student, teacher = run.student.features, run.teacher.features
    values = torch.tensor([[linear_cka(s, t) for t in teacher.values()] for s in student.values()])
    drawn = _heat(
        values, list(teacher), list(student), "Linear CKA of student and teacher", 320,
        zmin=0, zmax=1, colorscale="--sequential", showscale=False,
    )  # fmt: skip
    drawn["layout"]["xaxis"]["title"] = {"text": "teacher"}
    drawn["layout"]["yaxis"]["title"] = {"text": "student"}
    return drawn


def correlation_difference(run: Analysis) -> Figure | None:
    """Difference of the correlations of logits between classes, teacher less student.

    Of many classes those that differ most, in their order: a page cannot hold every pair.
    """
    if not run.teacher_knows_classes or run.student is None or run.teacher is None:
        return None
    values = logit_correlations(run.teacher.logits) - logit_correlations(run.student.logits)
    chosen = values.abs().sum(dim=1).argsort(descending=True, stable=True)[:_PAIRED].sort().values
    classes = [run.classes[number] for number in chosen.tolist()]
    drawn = _heat(
        values[chosen][:, chosen].float(), classes, classes, "Difference of logit correlations",
        330, colorscale="--diverging",
    )  # fmt: skip
    drawn["caption"] = f"mean absolute difference {values.abs().mean():.3f}"
    if len(classes) < len(values):
        drawn["caption"] += f" of {len(values):,} classes; the {_PAIRED} that differ most"
    return drawn


def class_color(number: int, classes: int) -> str:
    """Around the circle of hues; every second class is darker."""
    return f"hsl({number * 360 / classes:.0f}, 62%, {46 + 14 * (number % 2)}%)"


def scatter_of(points: Tensor, labels: Tensor, classes: Sequence[str], title: str) -> Figure:
    """Embeddings in the plane, a color for each class."""
    traces = []
    for number in torch.unique(labels).tolist():
        own = points[labels == number]
        traces.append(
            {
                "type": "scatter", "mode": "markers", "name": plain(classes[number]),
                "x": own[:, 0].tolist(), "y": own[:, 1].tolist(),
                "marker": {"color": class_color(number, len(classes)), "size": 5},
                "hovertemplate": plain(classes[number]) + "<extra></extra>",
            }
        )  # fmt: skip
    bare = {
        "showticklabels": False, "showgrid": False, "zeroline": False, "ticks": "",
        "showline": False,
    }  # fmt: skip
    return figure(
        traces, title, height=330, xaxis=bare, yaxis={**bare, "scaleanchor": "x"},
        showlegend=False, margin={"l": 4, "r": 4, "t": 4, "b": 4},
    )  # fmt: skip
