"""Write the report: figures, tables and pictures in one HTML file that needs no network."""

import base64
import io
import json
import math
import warnings
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from cktf import __version__
from cktf.engine import announce, check_output_file
from cktf.errors import RecipeError, install_command
from cktf.files import write_atomically
from cktf.recipes import find_recipe
from cktf.report import figures
from cktf.report.headline import (
    UNCERTAINTY,
    build_headline,
    compare_groups,
    compare_to_teacher,
    compression_ratio,
)
from cktf.report.run_groups import (
    RunGroup,
    check_same_test_images,
    find_baseline,
    find_runs,
    group_runs,
)
from cktf.report.styles import group_style
from cktf.user_paths import expand_user_path
from cktf.workflows.analysis import (
    Analysis,
    NetworkOutputs,
    RunAnalyzer,
    evenly_spaced_indices,
    find_disagreements,
    read_run,
)

_MAX_MB = 8
# Images in a t-SNE plot, whose time grows faster than their number.
_TSNE_IMAGES = 800
# Groups of which representations, embeddings and disagreements are shown.
_MAX_DETAILED, _MAX_DISAGREEMENTS = 6, 3
_THUMBNAILS, _THUMBNAIL_PIXELS = 24, 96
# Classes in a legend.
_MAX_LEGEND = 20


def write_report(
    runs: Sequence[Path],
    out: Path,
    *,
    images: int = 10_000,
    data_dir: str | None = None,
    network: str | None = None,
    trust_code: bool = False,
    show: bool = True,
) -> Path:
    """Write a report of one run, or a comparison of several.

    Args:
        runs: run folders, or a folder of them, such as that of `cktf bench`.
        out: the HTML file.
        images: the largest number of test images to classify.
        data_dir: folder of the data set, if it is no longer where the runs say.
        network: `FILE.py:FUNCTION` that builds the network of the runs that were made in Python.
        trust_code: whether the users' own code that builds networks may run.
        show: whether to show progress.

    Returns:
        The file.

    Raises:
        CktfError: a folder that holds no finished run, runs that were tested on different images,
            an `out` that is a folder or another kind of file, or a library that is not installed.
    """
    try:
        import jinja2
        import sklearn  # noqa: F401
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise RecipeError([f"A report needs {error.name}: {install_command('report')}."]) from error
    check_output_file(out, ".html")
    folders, unfinished = find_runs(list(map(expand_user_path, runs)))
    for folder in unfinished:
        announce(f"left out, since it is unfinished: {folder}", show)
    check_same_test_images([read_run(folder, data_dir) for folder in folders])
    analyst = RunAnalyzer(images, data_dir=data_dir, network=network, trust_code=trust_code)
    analyses = []
    for folder in folders:
        announce(f"reading {folder}", show)
        analyses.append(analyst.analyze(folder))
    announce("drawing", show)
    page = _Page(group_runs(analyses))
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(_read_asset("page.html"))
    html = template.render(
        page=page, style=_read_asset("style.css"), script=_read_asset("draw.js"),
        # No tag inside the script may end it.
        plotly=get_plotlyjs().replace("</script", r"<\/script"),
        figures=_to_json(page.figures), version=__version__, uncertainty=UNCERTAINTY,
    )  # fmt: skip
    content = html.encode()
    if len(content) > _MAX_MB * 2**20:
        raise RecipeError(
            [f"The report would have {len(content) / 2**20:.1f} MB. Give fewer runs."]
        )
    out = expand_user_path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, content)
    return out


def _read_asset(name: str) -> str:
    return files("cktf.report").joinpath("assets", name).read_text(encoding="utf-8")


def _to_json(value: object) -> str:
    """JSON that is safe inside a script element."""
    text = json.dumps(_round_numbers(value), separators=(",", ":"), allow_nan=False)
    return text.replace("<", r"\u003c").replace(">", r"\u003e").replace("&", r"\u0026")


def _round_numbers(value: Any) -> Any:
    """Round to five digits, and replace infinities and NaN by null."""
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _round_numbers(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_round_numbers(inner) for inner in value]
    return value


class _Page:
    """The content of the template; figures by the id of the element that shows them."""

    def __init__(self, groups: list[RunGroup]) -> None:
        self.groups = groups
        self.figures: dict[str, figures.Figure] = {}
        self.headline = build_headline(groups)
        self.title = " · ".join(dict.fromkeys(group.name for group in groups[:4]))
        self.summary = groups[0].runs[0].summary
        self.baseline = find_baseline(groups)
        self.several_students = len({group.student for group in groups}) > 1
        self.test_data_name = groups[0].runs[0].test_data_name
        self.facts = self._facts()
        self.rows = self._rows()
        self.missing_reasons = sorted(
            {r.missing_reason for g in groups for r in g.runs if r.missing_reason}
        )
        run = groups[0].runs[0]
        total = run.summary["test_images"]
        count = len(run.images) if run.student else total
        self.notes = []
        if count < total:
            self.notes.append(
                f"Figures by class and by image are of {count:,} of the {total:,} test images."
            )
        if any(len(group.runs) > 1 for group in groups):
            self.notes.append(
                "Disagreements, representations, embeddings and calibration are those of each "
                "method's first seed."
            )
        self.warnings = [note for group in groups for note in group.notes]
        self.accuracy = self._add("accuracy", figures.accuracy_curves(groups))
        self.losses = self._add_all("loss", figures.loss_curves(groups))
        self.costs = self._add_all("cost", figures.accuracy_by_network_cost(groups))
        self.classes = self._add("classes", figures.class_accuracies(groups))
        confusion = figures.confusion(groups[0].runs[0])
        self.confusion_caption = confusion.pop("caption") if confusion else ""
        self.confusion = self._add("confusion", confusion)
        calibration = figures.calibration_curves(groups)
        self.calibration = self._add("calibration", calibration[0] if calibration else None)
        self.calibration_errors = calibration[1] if calibration else []
        # The best groups, each by its first run.
        self.detailed = [(g, g.runs[0]) for g in groups if g.runs[0].student][:_MAX_DETAILED]
        self.disagreements = self._disagreements()
        self.similarity = self._add_all(
            "cka", [(group.name, figures.cka_heatmap(run)) for group, run in self.detailed]
        )
        self.correlation = self._correlations()
        self.legend: list[tuple[str, str]] = []
        self.embeddings = self._embeddings()
        self.recipes = [
            (
                group.name + (f", seed {run.summary['seed']}" if len(group.runs) > 1 else ""),
                find_recipe(run.folder).read_text(encoding="utf-8"),
                _environment(run),
            )
            for group in groups
            for run in group.runs
        ]

    def _add(self, name: str, figure: figures.Figure | None) -> str:
        """Add a figure and return its element's id; empty if there is no figure."""
        if figure is None:
            return ""
        element_id = f"plot-{name}"
        self.figures[element_id] = figure
        return element_id

    def _add_all(
        self, name: str, titled: Sequence[tuple[str, figures.Figure | None]]
    ) -> list[tuple[str, str]]:
        """Add titled figures and return the titles and ids of those that exist."""
        ids = [(title, self._add(f"{name}-{i}", plot)) for i, (title, plot) in enumerate(titled)]
        return [(title, element_id) for title, element_id in ids if element_id]

    def _facts(self) -> list[tuple[str, str, str]]:
        """The numbers at the top: name, value, and a remark."""
        best, s = self.groups[0], self.summary
        remark = ", ".join(filter(None, (best.plus_minus.strip(), best.name)))
        facts = [("top-1", f"{best.top1:.2f} %", remark)]
        if (gap := compare_to_teacher(best)) is not None:
            remark = f"{gap.plus_minus} points{gap.basis_note(best)}, {s['teacher']}".strip()
            facts.append(("to the teacher", f"{gap.points:+.2f}", remark))
        if self.baseline is not None and self.baseline is not best:
            gain = compare_groups(best, self.baseline)
            remark = f"{gain.plus_minus} points{gain.basis_note(best)}".strip()
            facts.append(("over the student alone", f"{gain.points:+.2f}", remark))
        if ratio := compression_ratio(best.runs[0]):
            remark = f"{s['student_parameters']:,} parameters"
            facts.append(("compression", f"{ratio:.1f}×", remark))
        return [(name, value.replace("-", "−"), remark) for name, value, remark in facts]

    def _rows(self) -> list[dict[str, Any]]:
        """The table of all groups, each compared with the best of its student."""
        rows, best_of = [], dict[str, RunGroup]()
        for number, group in enumerate(self.groups):
            best = best_of.setdefault(group.student, group)
            run, s = group.runs[0], group.runs[0].summary
            gap = ""
            if group is not best:
                difference = compare_groups(group, best)
                gap = f"{difference}{difference.basis_note(best)}".replace("-", "−")
            rows.append(
                {
                    "style": group_style(number), "name": group.name,
                    "seeds": str(len(group.runs)), "top1": f"{group.top1:.2f}{group.plus_minus}",
                    "gap": gap, "parameters": f"{s['student_parameters']:,}",
                    "macs": f"{run.student.macs / 1e6:,.1f} M" if run.student else "",
                    "latency": f"{run.student.latency_ms:.2f} ms" if run.student else "",
                    "seconds": "in turn" if _is_interleaved(s) else f"{s['seconds']:,.0f}",
                }
            )  # fmt: skip
        return rows

    def _disagreements(self) -> list[tuple[str, list[dict[str, Any]], int]]:
        """For each method the images of the largest disagreements, and their total number."""
        count = _THUMBNAILS if len(self.detailed) == 1 else _THUMBNAILS // 2
        disagreements = []
        for group, run in self.detailed[:_MAX_DISAGREEMENTS]:
            if run.teacher_knows_classes and run.student and run.teacher:
                indices = find_disagreements(run.student, run.teacher, count).tolist()
                pictures = [_picture(run, run.student, run.teacher, index) for index in indices]
                total = int((run.student.predicted != run.teacher.predicted).sum())
                disagreements.append((group.name, pictures, total))
        return disagreements

    def _correlations(self) -> list[tuple[str, str]]:
        """The heatmaps of all methods, on one scale of colors."""
        titled, limit = [], 1e-3
        for group, run in self.detailed:
            if (figure := figures.correlation_difference(run)) is not None:
                values = torch.tensor(figure["data"][0]["z"], dtype=torch.float64)
                limit = max(limit, float(values.abs().max()))
                titled.append((f"{group.name}: {figure.pop('caption')}", figure))
        for _, figure in titled:
            figure["data"][0] |= {"zmin": -limit, "zmax": limit}
        return self._add_all("correlation", titled)

    def _embeddings(self) -> list[tuple[str, str]]:
        """t-SNE of each teacher, then of each student, on the same images."""
        networks: list[tuple[str, NetworkOutputs, Analysis]] = []
        for group, run in self.detailed:
            teacher, known = run.teacher, [outputs for _, outputs, _ in networks]
            if teacher is not None and all(teacher is not outputs for outputs in known):
                networks.append((f"teacher {teacher.name}", teacher, run))
            if run.student is not None:
                networks.append((group.name, run.student, run))
        titled = []
        for name, outputs, run in networks:
            if outputs.embedding is not None and run.labels is not None:
                indices = evenly_spaced_indices(len(run.labels), _TSNE_IMAGES)
                points, labels = _tsne(outputs.embedding[indices]), run.labels[indices]
                title = f"t-SNE of the embedding: {name}"
                titled.append((name, figures.embedding_scatter(points, labels, run.classes, title)))
        classes = self.detailed[0][1].classes if titled else ()
        count = len(classes)
        if count <= _MAX_LEGEND:
            self.legend = [(c, figures.class_color(i, count)) for i, c in enumerate(classes)]
        return self._add_all("embedding", titled)


def _picture(
    run: Analysis, student: NetworkOutputs, teacher: NetworkOutputs, index: int
) -> dict[str, Any]:
    """A test image, its class, and each network's choice with its confidence in per cent."""
    from PIL import Image

    assert run.labels is not None
    label, by_student, by_teacher = (
        int(values[index]) for values in (run.labels, student.predicted, teacher.predicted)
    )
    correct = "student" if by_student == label else "teacher" if by_teacher == label else "neither"
    array = run.images[index].numpy()
    picture = Image.fromarray(array.squeeze(-1) if array.shape[-1] == 1 else array)
    picture.thumbnail((_THUMBNAIL_PIXELS, _THUMBNAIL_PIXELS))
    png = io.BytesIO()
    picture.save(png, "PNG", optimize=True)
    return {
        "data": f"data:image/png;base64,{base64.b64encode(png.getvalue()).decode()}",
        "label": run.classes[label],
        "path": run.image_names[index], "file": Path(run.image_names[index]).name,
        "student": run.classes[by_student], "teacher": run.classes[by_teacher],
        "student_confidence": 100 * float(student.probabilities[index, by_student]),
        "teacher_confidence": 100 * float(teacher.probabilities[index, by_teacher]),
        "correct": correct,
    }  # fmt: skip


def _tsne(rows: Tensor) -> Tensor:
    """t-SNE of rows [N, D] -> [N, 2], deterministic; zeros where it is undefined."""
    from sklearn.manifold import TSNE

    # The PCA that initializes it divides by the spread: scikit-learn crashes without any.
    if len(rows) < 4 or not rows.isfinite().all() or (rows == rows[0]).all():
        return torch.zeros(len(rows), 2)
    if rows.shape[1] == 1:
        rows = F.pad(rows, (0, 1))
    tsne = TSNE(perplexity=min(30.0, (len(rows) - 1) / 3), init="pca", random_state=0)
    with warnings.catch_warnings():
        # About constant features.
        warnings.simplefilter("ignore", RuntimeWarning)
        return torch.from_numpy(tsne.fit_transform(rows.numpy()))


def _is_interleaved(summary: Mapping[str, Any]) -> bool:
    # Summaries of older runs say `took_turns`.
    return bool(summary.get("interleaved", summary.get("took_turns")))


def _environment(run: Analysis) -> list[tuple[str, str]]:
    """Where and how fast a run was trained."""
    s = run.summary
    versions = ", ".join(f"{name} {value}" for name, value in s["versions"].items())
    rows = [("folder", str(run.folder)), ("device", s["device"]), ("versions", versions)]
    if not _is_interleaved(s):
        rows.append(("seconds of training", f"{s['seconds']:,.0f}"))
        rows.append(("images per second", f"{s['images_per_second']:,.0f}"))
    return [*rows, ("peak memory, MiB", f"{s['peak_memory_mb']:,.0f}")]
