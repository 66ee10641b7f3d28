"""Put a report together: figures, tables and pictures in one HTML file that needs no network."""

import base64
import io
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from cktf import __version__
from cktf.engine import announce
from cktf.errors import RecipeError
from cktf.files import write_atomically
from cktf.recipes import find_recipe
from cktf.report import figures
from cktf.report.answer import UNCERTAINTY, Gap, answer, compression, gap, teacher_gap
from cktf.report.groups import Group, alone, grouped, refuse_unlike
from cktf.report.styles import look
from cktf.user_paths import expand_user_path
from cktf.workflows.analysis import (
    Analysis,
    NetworkOutputs,
    RunAnalyzer,
    evenly_spaced_indices,
    find_disagreements,
    read_run,
)

LARGEST_MB = 8
# Images for t-SNE, which takes a time that grows faster than they; runs that are looked at closely.
_EMBEDDED, _CLOSELY = 800, 6
_THUMBNAILS, _SIDE = 24, 96
# Classes that a legend names.
_NAMED = 20


@dataclass(frozen=True)
class Picture:
    """A test image on which the networks disagree."""

    data: str
    truth: str
    student: str
    teacher: str
    student_confidence: float
    teacher_confidence: float
    right: str


def write_report(
    runs: Sequence[Path],
    out: Path,
    *,
    images: int = 10_000,
    data_dir: str | None = None,
    trust_code: bool = False,
    show: bool = True,
) -> Path:
    """Write a report of one run, or of several beside each other.

    Args:
        runs: run folders.
        out: the HTML file.
        images: at most so many test images are classified.
        data_dir: folder of the data set, where the runs name one that is not there.
        trust_code: whether the users' own code, by which networks are built, may run.
        show: whether progress is shown.

    Returns:
        The file.

    Raises:
        CktfError: a folder that holds no finished run, runs that were tested on different images,
            or a library that is not installed.
    """
    try:
        import jinja2
        import plotly  # noqa: F401
        import sklearn  # noqa: F401
    except ImportError as error:
        raise RecipeError(
            [f"A report needs {error.name}, which is not here: pip install 'cktf[report]'."]
        ) from error
    folders = list(map(expand_user_path, runs))
    refuse_unlike([read_run(folder, data_dir) for folder in folders])
    analyst = RunAnalyzer(images, data_dir=data_dir, trust_code=trust_code)
    found = []
    for folder in folders:
        announce(f"reading {folder}", show)
        found.append(analyst.analyze(folder))
    groups = grouped(found)
    announce("drawing", show)
    page = _Page(groups)
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(_text("page.html"))
    html = template.render(
        page=page, style=_text("style.css"), script=_text("draw.js"), plotly=_plotly(),
        figures=_json(page.figures), version=__version__, uncertainty=UNCERTAINTY,
    )  # fmt: skip
    content = html.encode()
    if len(content) > LARGEST_MB * 2**20:
        raise RecipeError(
            [f"The report would be of {len(content) / 2**20:.1f} MB. Give fewer runs at a time."]
        )
    out = expand_user_path(out)
    write_atomically(out, content)
    return out


def _text(name: str) -> str:
    return files("cktf.report").joinpath("assets", name).read_text(encoding="utf-8")


def _plotly() -> str:
    """Plotly's own script, safe inside a page."""
    from plotly.offline import get_plotlyjs

    script: str = get_plotlyjs()
    return script.replace("</script", r"<\/script")


def _json(value: object) -> str:
    """JSON that can stand in a page: nothing in it ends a script."""
    text = json.dumps(_tidy(value), separators=(",", ":"), allow_nan=False)
    return text.replace("<", r"\u003c").replace(">", r"\u003e").replace("&", r"\u0026")


def _tidy(value: Any) -> Any:
    """Five digits are enough for a picture; what is no number is left out of it."""
    if isinstance(value, float):
        return float(f"{value:.5g}") if value == value and abs(value) != float("inf") else None
    if isinstance(value, dict):
        return {name: _tidy(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_tidy(inner) for inner in value]
    return value


class _Page:
    """What the template shows.

    Attributes:
        figures: by the id of their place.
    """

    def __init__(self, groups: list[Group]) -> None:
        self.groups = groups
        self.figures: dict[str, figures.Figure] = {}
        self.answer = answer(groups)
        self.title = " · ".join(dict.fromkeys(f"{g.name}" for g in groups[:4]))
        self.summary = groups[0].runs[0].summary
        self.alone = alone(groups)
        self.several_students = len({group.student for group in groups}) > 1
        self.test_data_name = groups[0].runs[0].test_data_name
        self.facts = self._facts()
        self.rows = self._rows()
        self.missing = sorted({r.missing for g in groups for r in g.runs if r.missing})
        self.notes = [note for group in groups for note in group.notes]
        self.looked_at = _looked_at(groups)
        self.accuracy = self._place("accuracy", figures.accuracy_curves(groups))
        self.losses = self._several("loss", figures.loss_curves(groups))
        self.frontiers = self._several("cost", figures.frontiers(groups))
        self.classes = self._place("classes", figures.class_accuracies(groups))
        calibrated = figures.calibrations(groups)
        self.calibration = self._place("calibration", calibrated[0] if calibrated else None)
        self.errors = calibrated[1] if calibrated else []
        # One run of each group, the best first.
        self.closely = [(g, g.runs[0]) for g in groups if g.runs[0].student][:_CLOSELY]
        self.disagreements = self._disagreements()
        self.similarity = self._several(
            "cka", [(g.name, figures.similarities(run)) for g, run in self.closely]
        )
        self.correlation = self._correlations()
        self.legend: list[tuple[str, str]] = []
        self.embeddings = self._embeddings()
        self.recipes = [
            (name, find_recipe(run.folder).read_text(encoding="utf-8"), _environment(run))
            for run, name in figures.names_of(groups)
        ]

    def _place(self, name: str, drawn: figures.Figure | None) -> str:
        """The id of a figure's place; empty where there is nothing to draw."""
        if drawn is None:
            return ""
        place = f"plot-{name}"
        self.figures[place] = drawn
        return place

    def _several(
        self, name: str, drawn: Sequence[tuple[str, figures.Figure | None]]
    ) -> list[tuple[str, str]]:
        places = [
            (title, self._place(f"{name}-{number}", one))
            for number, (title, one) in enumerate(drawn)
        ]
        return [(title, place) for title, place in places if place]

    def _facts(self) -> list[tuple[str, str, str]]:
        """The numbers that are looked for first: what, value, and a word on it."""
        best, s = self.groups[0], self.summary
        word = ", ".join(filter(None, (best.plus_minus.strip(), best.name)))
        facts = [("top-1", f"{best.top1:.2f} %", word)]
        behind = teacher_gap(best)
        if behind is not None:
            word = f"{behind.plus_minus} points{behind.unlike(best)}, {s['teacher']}".strip()
            facts.append(("to the teacher", f"{behind.points:+.2f}", word))
        if self.alone is not None and self.alone is not best:
            gained = gap(best, self.alone)
            word = f"{gained.plus_minus} points{gained.unlike(best)}".strip()
            facts.append(("over the student alone", f"{gained.points:+.2f}", word))
        if ratio := compression(best.runs[0]):
            word = f"{s['student_parameters']:,} parameters"
            facts.append(("compression", f"{ratio:.1f}×", word))
        return [(what, value.replace("-", "−"), word) for what, value, word in facts]

    def _rows(self) -> list[dict[str, Any]]:
        """The table of all groups, each beside the best of its student."""
        rows, first = [], dict[str, Group]()
        for number, group in enumerate(self.groups):
            best = first.setdefault(group.student, group)
            run, s = group.runs[0], group.runs[0].summary
            rows.append(
                {
                    "look": look(number), "name": group.name,
                    "seeds": str(len(group.runs)), "top1": f"{group.top1:.2f}{group.plus_minus}",
                    "gap": "" if group is best else _told(gap(group, best), best),
                    "parameters": f"{s['student_parameters']:,}",
                    "macs": f"{run.student.macs / 1e6:,.1f} M" if run.student else "",
                    "latency": f"{run.student.latency_ms:.2f} ms" if run.student else "",
                    "seconds": "in turn" if _is_interleaved(s) else f"{s['seconds']:,.0f}",
                }
            )  # fmt: skip
        return rows

    def _disagreements(self) -> list[tuple[str, list[Picture], int]]:
        """For each method the images on which student and teacher disagree most, and how many."""
        each = _THUMBNAILS if len(self.closely) == 1 else _THUMBNAILS // 2
        found = []
        for group, run in self.closely[:3]:
            if run.teacher_knows_classes and run.student and run.teacher:
                pictures = [
                    _picture(run, run.student, run.teacher, position)
                    for position in find_disagreements(run.student, run.teacher, each).tolist()
                ]
                apart = int((run.student.predicted != run.teacher.predicted).sum())
                found.append((group.name, pictures, apart))
        return found

    def _correlations(self) -> list[tuple[str, str]]:
        drawn = [(g.name, figures.correlation_difference(run)) for g, run in self.closely]
        there = [(name, one) for name, one in drawn if one is not None]
        largest = max((max(map(max, one["data"][0]["z"])) for _, one in there), default=0.0)
        smallest = min((min(map(min, one["data"][0]["z"])) for _, one in there), default=0.0)
        limit = max(largest, -smallest, 1e-3)
        titled = []
        for name, one in there:
            one["data"][0] |= {"zmin": -limit, "zmax": limit}
            titled.append((f"{name}: {one.pop('caption')}", one))
        return self._several("correlation", titled)

    def _embeddings(self) -> list[tuple[str, str]]:
        """t-SNE of each teacher, then of each student, on the same images."""
        networks: list[tuple[str, NetworkOutputs, Analysis]] = []
        for group, run in self.closely:
            if run.teacher is not None and all(seen is not run.teacher for _, seen, _ in networks):
                networks.append((f"teacher {run.teacher.name}", run.teacher, run))
            if run.student is not None:
                networks.append((group.name, run.student, run))
        drawn = []
        for name, seen, run in networks:
            if seen.embedding is not None and run.labels is not None:
                chosen = evenly_spaced_indices(len(run.labels), _EMBEDDED)
                points = _plane(seen.embedding[chosen])
                title = f"t-SNE of the embedding: {name}"
                one = figures.scatter_of(points, run.labels[chosen], run.classes, title)
                drawn.append((name, one))
        classes = self.closely[0][1].classes if drawn else ()
        if len(classes) <= _NAMED:
            self.legend = [
                (name, figures.class_color(number, len(classes)))
                for number, name in enumerate(classes)
            ]
        return self._several("embedding", drawn)


def _told(found: Gap, best: Group) -> str:
    return f"{found}{found.unlike(best)}".replace("-", "−")


def _looked_at(groups: Sequence[Group]) -> list[str]:
    """What is looked at closely, where that is not all there is."""
    told, run = [], groups[0].runs[0]
    whole = run.summary["test_images"]
    seen = len(run.images) if run.student else whole
    if seen < whole:
        told.append(
            f"Networks are looked at, from class to class and image by image, on {seen:,} of the "
            f"{whole:,} test images."
        )
    if any(len(group.runs) > 1 for group in groups):
        told.append(
            "Of several seeds of a method, disagreements, representations, embeddings and "
            "calibration are shown of the first."
        )
    return told


def _picture(
    run: Analysis, student: NetworkOutputs, teacher: NetworkOutputs, position: int
) -> Picture:
    assert run.labels is not None
    truth, own, other = (
        int(values[position]) for values in (run.labels, student.predicted, teacher.predicted)
    )
    right = "student" if own == truth else "teacher" if other == truth else "neither"
    return Picture(
        _png(run.images[position]),
        run.classes[truth],
        run.classes[own],
        run.classes[other],
        100 * float(student.probabilities[position, own]),
        100 * float(teacher.probabilities[position, other]),
        right,
    )


def _png(pixels: Tensor) -> str:
    """An image [H, W, C] as a data URI, of at most so many pixels a side."""
    from PIL import Image

    array = pixels.numpy()
    picture = Image.fromarray(array.squeeze(-1) if array.shape[-1] == 1 else array)
    picture.thumbnail((_SIDE, _SIDE))
    out = io.BytesIO()
    picture.save(out, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"


def _plane(rows: Tensor) -> Tensor:
    """t-SNE of rows [N, D] -> [N, 2], the same for the same rows."""
    from sklearn.manifold import TSNE

    # A start by PCA divides by the spread: where there is none, scikit-learn ends the process.
    if len(rows) < 4 or not rows.isfinite().all() or (rows == rows[0]).all():
        return torch.zeros(len(rows), 2)
    if rows.shape[1] == 1:
        rows = F.pad(rows, (0, 1))
    tsne = TSNE(perplexity=min(30.0, (len(rows) - 1) / 3), init="pca", random_state=0)
    with warnings.catch_warnings():
        # Of features that are all alike.
        warnings.simplefilter("ignore", RuntimeWarning)
        return torch.from_numpy(tsne.fit_transform(rows.numpy()))


def _is_interleaved(summary: Mapping[str, Any]) -> bool:
    # Summaries of older runs say `took_turns`.
    return bool(summary.get("interleaved", summary.get("took_turns")))


def _environment(run: Analysis) -> list[tuple[str, str]]:
    """What a run was trained with."""
    s = run.summary
    versions = ", ".join(f"{name} {value}" for name, value in s["versions"].items())
    told = [("folder", str(run.folder)), ("device", s["device"]), ("versions", versions)]
    if not _is_interleaved(s):
        told.append(("seconds of training", f"{s['seconds']:,.0f}"))
        told.append(("images per second", f"{s['images_per_second']:,.0f}"))
    return [*told, ("peak memory, MiB", f"{s['peak_memory_mb']:,.0f}")]
