"""The report: what it measures, what it says, and how a browser shows it."""

import base64
import io
import json
import os
import re
import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from image_files import write_colored_images
from PIL import Image
from small_runs import run_command

import cktf
from cktf.data import MemoryLoader, load_dataset
from cktf.errors import RecipeError, RunFolderError
from cktf.recipes import set_field
from cktf.report import write_report
from cktf.report.figures import (
    accuracy_by_network_cost,
    accuracy_curves,
    calibration_curves,
    class_accuracies,
    confusion,
    correlation_difference,
    loss_curves,
)
from cktf.report.headline import build_headline, compare_groups
from cktf.report.page import _to_json, _tsne
from cktf.report.run_groups import check_same_test_images, find_baseline, find_runs, group_runs
from cktf.report.styles import TEACHER_STYLE, group_style
from cktf.workflows import analysis
from cktf.workflows.analysis import (
    Analysis,
    NetworkOutputs,
    RunAnalyzer,
    evenly_spaced_indices,
    find_disagreements,
)
from cktf.workflows.similarity import logit_correlations

SCRIPT, IMAGE = "<script>", "<img src=x onerror=document.title=1>"
SHOTS = Path(__file__).parents[1] / "build" / "report"


def outputs(logits, **more):
    return NetworkOutputs("net", 1, 1, 1.0, "cpu", torch.tensor(logits), None, {}, **more)


def run(method, top1, seed=0, logits=None, labels=None, recipe=None, **summary):
    """A run as it is read back; `recipe` and the rest change fields of its two files."""
    summary = {
        "method": method, "student": "resnet8", "teacher": "wrn_16_2", "dataset": "cifar10",
        "epochs": 8, "seed": seed, "test_top1": top1, "teacher_top1": 90.0,
        "test_images": 10000, "test_standard_error": 0.4, "compression_ratio": 8.9,
        "student_parameters": 1,
    } | summary  # fmt: skip
    fields = {"kind": "distill", "method": method, "seed": seed}
    fields |= {name: summary[name] for name in ("teacher", "student", "epochs")}
    set_field(fields, "data.name", summary["dataset"])
    for name, value in (recipe or {}).items():
        set_field(fields, name, value)
    own = None if logits is None else outputs(logits)
    labels = None if labels is None else torch.tensor(labels)
    return Analysis(Path(method), fields, summary, [], ("a", "b"), labels, None, own)


def difference_of(*runs):
    return compare_groups(*group_runs(runs))


LOGITS = [[5.0, 0.0], [0.0, 5.0]]


def test_disagreements_are_ordered_by_distance():
    student = outputs([[5.0, 0.0], [0.1, 0.0], [0.0, 5.0], [3.0, 0.0]])
    teacher = outputs([[0.0, 5.0], [0.0, 0.1], [0.0, 1.0], [0.0, 3.0]])
    # They agree on the third, and are unsure of the second.
    assert find_disagreements(student, teacher, 10).tolist() == [0, 3, 1]
    assert find_disagreements(student, teacher, 1).tolist() == [0]


# The headline


def test_headline_over_seeds():
    runs = [run("kd", v, s) for s, v in enumerate((83.0, 83.4, 83.2))]
    runs += [run("cktf+kd", v, s) for s, v in enumerate((84.0, 84.2, 84.4))]
    runs += [run("ce", v, s) for s, v in enumerate((80.0, 80.6, 80.3))]
    groups = group_runs(runs)
    assert [g.name for g in groups] == ["CKTF+KD", "KD", "alone"]
    difference = compare_groups(groups[0], groups[1])
    assert difference.points == pytest.approx(1.0)
    # Student's t of two degrees of freedom, on differences 1.0, 0.8, 1.2.
    assert difference.half_width == pytest.approx(4.30265 * 0.2 / 3**0.5, rel=1e-4)
    assert build_headline(groups) == (
        "resnet8 CKTF+KD classifies 84.20 ± 0.12 % of 10,000 test images of cifar10, 5.80 ± 0.50 "
        "points below its teacher wrn_16_2 with 8.9 times fewer parameters; 1.00 ± 0.50 points "
        "ahead of KD; 3.90 ± 0.66 points ahead of the student alone (3 seeds)."
    )


def test_headline_over_images_of_one_seed():
    """A difference within chance is called one."""
    sure, wrong = LOGITS
    first = run("cktf", 75.0, logits=[sure, sure, sure, wrong], labels=[0] * 4)
    second = run("kd", 50.0, logits=[wrong, sure, sure, wrong], labels=[0] * 4)
    difference = difference_of(first, second)
    assert difference.half_width == pytest.approx(1.96 * 100 * 0.5 / 2)
    assert not difference.is_significant
    assert "; not told apart from KD: +25.00 points (one" in build_headline(
        group_runs([second, first])
    )
    assert difference_of(replace(first, student=None), second).half_width is None
    # Only the same images are compared.
    same, other = (run(m, 75.0, 0, LOGITS, [0, 0]) for m in ("kd", "at"))
    assert difference_of(same, other).half_width == 0
    assert difference_of(same, replace(other, labels=torch.tensor([0, 1]))).half_width is None


def test_headline_of_different_seeds():
    kd = [run("kd", 80.0 + s, s) for s in range(3)]
    more = [run("at", v, s) for s, v in ((0, 79.0), (1, 80.0), (2, 81.2), (3, 99.0))]
    groups = group_runs([*more, *kd])
    # The fourth seed was lucky, and KD has none.
    assert [g.name for g in groups] == ["KD", "AT"]
    assert groups[1].top1 > groups[0].top1
    assert "; 0.93 ± 0.29 points ahead of AT" in build_headline(groups)
    # KD's accuracy is over these three seeds too, AT's is over four.
    assert "; 0.93 ± 0.29 points (over 3 seeds) behind KD" in build_headline(groups[::-1])
    difference = compare_groups(groups[0], *group_runs([run("sp", 82.5, 2, LOGITS, [0, 0])]))
    assert (difference.points, difference.half_width) == (-0.5, None)
    assert difference_of(run("sp", 82.5, 7), *kd).half_width is None
    # One seed in common: the difference is over its images, the accuracy over three seeds.
    logits, labels = [LOGITS[0]] * 4, [0, 0, 0, 1]
    kd = [run("kd", 80.0 + s, s, logits, labels) for s in range(3)]
    at = run("at", 75.0, 0, logits, labels)
    text = build_headline(group_runs([*kd, at]))
    assert "; 5.00 ± 0.00 points (over the test images of one seed) ahead of AT" in text
    assert text.endswith("(3 seeds).")
    assert "(over" not in build_headline(group_runs([kd[0], at]))


def transferred(**more):
    """A run that learned from one data set without labels, and is tested on another."""
    made = run(
        "cktf", 61.2, dataset="tiny-imagenet", labeled="stl10", test_images=8000,
        teacher_top1=None, teacher_probe_top1=63.3, compression_ratio=1.04, **more,
    )  # fmt: skip
    labeled = {"kind": "transfer", "labeled": {"name": "stl10"}}
    return replace(made, recipe=dict(made.recipe) | labeled)


def test_headline_of_two_seeds():
    """Their interval is so wide that it is not part of the sentence."""
    runs = [run("kd", v, s) for s, v in enumerate((91.0, 90.0))]
    runs += [run("at", v, s) for s, v in enumerate((80.0, 89.0))]
    assert build_headline(group_runs(runs)) == (
        "resnet8 KD classifies 90.50 ± 0.50 % of 10,000 test images of cifar10, not told apart "
        "from its teacher wrn_16_2: +0.50 points, with 8.9 times fewer parameters; not told apart "
        "from AT: +6.00 points (2 seeds)."
    )


def test_headline_of_a_transfer():
    """Its images are those of the labeled set; unknown facts are left out."""
    assert build_headline(group_runs([transferred(test_standard_error=0.54)])) == (
        "resnet8 CKTF classifies 61.20 ± 0.54 % of 8,000 test images of stl10, 2.10 points below "
        "its teacher wrn_16_2 (one seed)."
    )
    older = transferred(test_standard_error=None)
    assert "classifies 61.20 % of 8,000" in build_headline(group_runs([older]))
    # The probe counts, not the teacher's own logits.
    both = replace(older, student=outputs(LOGITS), teacher=outputs(LOGITS))
    both = replace(both, labels=torch.tensor([0, 0]))
    assert "2.10 points below" in build_headline(group_runs([both]))
    tested = replace(older, recipe={"kind": "train", "data": {"test": "imagefolder:/other"}})
    assert tested.test_data_name == "imagefolder:/other"


# Groups


def test_accuracies_are_of_the_weights_that_a_run_kept():
    (chosen,) = group_runs([run("kd", 83.0, kept_test_top1=90.0, kept_epoch=6)])
    assert (chosen.top1, chosen.top1_by_seed) == (90.0, {0: 90.0})
    assert chosen.error == pytest.approx(100 * (0.9 * 0.1 / 10000) ** 0.5, rel=1e-3)
    (last,) = group_runs([run("kd", 83.0, kept_test_top1=83.0)])
    assert (last.top1, last.error) == (83.0, 0.4)
    assert compare_groups(chosen, last).points == pytest.approx(7.0)


def test_groups_differ_in_their_seed_alone():
    """The same method with a change is another group, named by the change."""
    slow, fast = ({"optimizer.lr": lr} for lr in (0.02, 0.1))
    runs = [run("kd", 80.0, recipe=slow), run("kd", 84.0, recipe=fast)]
    runs.append(run("kd", 85.0, seed=1, recipe=fast))
    groups = group_runs(runs)
    assert [(g.name, len(g.runs)) for g in groups] == [
        ("KD (optimizer.lr 0.1)", 2),
        ("KD (optimizer.lr 0.02)", 1),
    ]
    # The device changes nothing.
    elsewhere = run("kd", 84.0, seed=2, recipe={"runtime.device": "cuda", "data.workers": 2})
    assert len(group_runs([run("kd", 84.0), elsewhere])) == 1
    few, many = run("cktf", 80.0, recipe={"options.cktf.negatives": 64}), run("cktf", 81.0)
    assert [g.name for g in group_runs([few, many])] == [
        "CKTF (cktf.negatives default)",
        "CKTF (cktf.negatives 64)",
    ]
    recipe = {"kind": "train", "model": "resnet8", "epochs": 8, "data": {"name": "cifar10"}}
    trained = replace(run("ce", 80.0), recipe=recipe)
    longer = run("kd", 82.0, recipe={"epochs": 16, "data.batch_size": 32})
    assert {g.name for g in group_runs([trained, run("ce", 81.0), run("kd", 81.0), longer])} == {
        "alone (kind train)", "alone (kind distill)",
        "KD (epochs 8, data.batch_size 64)", "KD (epochs 16, data.batch_size 32)",
    }  # fmt: skip


def test_a_group_has_one_teacher(tmp_path):
    """Teachers are the same if their weights are, wherever these were and are now."""
    for name, content in (("one", b"1"), ("copy", b"1"), ("two", b"2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "student.safetensors").write_bytes(content)
    one, copy, two = (
        run("kd", 80.0 + seed, seed, recipe={"teacher": str(tmp_path / name)})
        for seed, name in enumerate(("one", "copy", "two"))
    )
    assert [g.name for g in group_runs([one, copy])] == ["KD"]
    names = [g.name for g in group_runs([one, copy, two])]
    assert names == ["KD (teacher two)", "KD (teacher one)"]
    # A run's note on its teacher counts more than the file at the path now.
    runs = []
    for seed, (sha256, path) in enumerate((("1", "one"), ("1", "moved"), ("2", "one"))):
        folder = tmp_path / f"run{seed}"
        folder.mkdir()
        note = {"teacher": str(tmp_path / path), "sha256": sha256}
        (folder / "teacher.json").write_text(json.dumps(note))
        made = run("kd", 80.0 + seed, seed, recipe={"teacher": str(tmp_path / path)})
        runs.append(replace(made, folder=folder))
    assert [sorted(g.top1_by_seed) for g in group_runs(runs)] == [[2], [0, 1]]


def test_a_seed_counts_once():
    first, again = run("kd", 83.0), replace(run("kd", 85.0), folder=Path("again"))
    (group,) = group_runs([first, again, run("kd", 84.0, seed=1)])
    assert group.top1_by_seed == {0: 83.0, 1: 84.0}
    assert group.top1 == 83.5
    assert group.notes == ["again has the recipe and the seed of kd and is left out."]


def test_warnings_of_runs_are_among_the_notes():
    first = run("kd", 83.0, warnings=["The loss rose."])
    again = run("kd", 84.0, seed=1, warnings=["The loss rose.", "No teacher."])
    (group,) = group_runs([first, again])
    assert group.notes == [f"{group.name}: The loss rose.", f"{group.name}: No teacher."]


def test_a_teachers_own_run_is_not_the_student_alone():
    recipe = {"kind": "train", "model": "wrn_16_2", "epochs": 8, "data": {"name": "cifar10"}}
    summary = {"student": "wrn_16_2", "teacher": None, "teacher_top1": None}
    teacher = run("ce", 90.0, seconds=1.0)
    facts = dict(teacher.summary) | summary | {"compression_ratio": None}
    teacher = replace(teacher, recipe=recipe, summary=facts)
    row = {"epoch": 1, "test_top1": 80.0}
    runs = [replace(r, rows=[row]) for r in (teacher, run("kd", 84.0), run("cktf", 85.0))]
    groups = group_runs(runs)
    assert [g.name for g in groups] == ["resnet8 CKTF", "resnet8 KD", "wrn_16_2 alone"]
    assert find_baseline(groups) is None
    assert build_headline(groups).endswith(
        "; not told apart from resnet8 KD: +1.00 points (one seed)."
    )
    notes = accuracy_curves(groups)["layout"]["annotations"]
    assert [note["text"] for note in notes] == ["teacher wrn_16_2 90.00 %"]
    groups = group_runs([*runs, replace(run("ce", 81.0), rows=[row])])
    assert find_baseline(groups).student == "resnet8"
    assert "; not told apart from the student alone: +4.00 points (one" in build_headline(groups)
    notes = accuracy_curves(groups)["layout"]["annotations"]
    assert notes[1]["text"] == "resnet8 alone 81.00 %"
    # Neither is a classifier on frozen features, nor a network that began from other weights.
    for more in ({"trains": "classifier"}, {"model": "/runs/other"}):
        trained = {"kind": "train", "model": "resnet8", "epochs": 8, **more}
        made = replace(run("ce", 81.0), recipe=trained)
        assert find_baseline(group_runs([*runs, made])) is None


def test_runs_on_other_images_are_refused():
    runs = [run("kd", 80.0), run("at", 81.0), run("sp", 60.0, dataset="cifar100")]
    with pytest.raises(RecipeError, match=r"of cifar10: kd, at; .* of cifar100: sp\. .* kd at\."):
        check_same_test_images(runs)
    check_same_test_images(runs[:2])
    # Trained on other images, and tested on the same.
    check_same_test_images([transferred(), run("ce", 80.0, dataset="stl10", test_images=8000)])
    one, two = (
        run("kd", 80.0, dataset="imagefolder", recipe={"data.dir": folder})
        for folder in ("/a", "/b")
    )
    assert len(group_runs([one, two])) == 2
    with pytest.raises(RecipeError, match="imagefolder:/a"):
        check_same_test_images([one, two])
    check_same_test_images([replace(moved, data_dir="/c") for moved in (one, two)])
    with pytest.raises(RecipeError, match="kd was not tested on labeled images"):
        check_same_test_images([run("kd", None)])


@pytest.mark.parametrize(
    ("names", "known"), [(None, True), (("a", "b"), True), (("b", "a"), False)]
)
def test_a_teacher_of_classes_in_another_order(names, known):
    both = run("kd", 80.0, logits=LOGITS, labels=[0, 1])
    teacher = replace(outputs(LOGITS), classes=names)
    assert replace(both, teacher=teacher).teacher_knows_classes is known


# Figures


def many_classes(count=1000):
    """A run and its teacher, of more classes than a page can show in pairs."""
    torch.manual_seed(0)
    logits = torch.randn(60, count)
    own = logits.clone()
    # On two classes they do not agree at all.
    own[:, [7, -100]] = torch.randn(60, 2)
    made = run("kd", 80.0, logits=own.tolist(), labels=list(range(60)))
    classes = tuple(f"class {number}" for number in range(count))
    return replace(made, classes=classes, teacher=outputs(logits.tolist()))


def test_of_many_classes_those_that_differ_most():
    analysis = many_classes()
    drawn = correlation_difference(analysis)
    (heat,) = drawn["data"]
    assert len(heat["x"]) == len(heat["y"]) == len(heat["z"]) == len(heat["z"][0]) == 100
    assert {"class 7", "class 900"} <= set(heat["x"])
    # In their order, each value at its own two classes.
    assert heat["x"] == heat["y"] == sorted(heat["x"], key=lambda name: int(name.split()[1]))
    first, second = (heat["x"].index(name) for name in ("class 7", "class 900"))
    student, teacher = (logit_correlations(n.logits) for n in (analysis.student, analysis.teacher))
    assert heat["z"][first][second] == pytest.approx(float((teacher - student)[7, 900]), abs=1e-6)
    # The mean is over all.
    mean = f"mean absolute difference {float((teacher - student).abs().mean()):.3f}"
    assert drawn["caption"] == f"{mean} of 1,000 classes; the 100 that differ most"
    assert len(_to_json(drawn)) < 2**18
    few = correlation_difference(many_classes(100))
    assert len(few["data"][0]["z"]) == 100
    assert "that differ most" not in few["caption"]


def test_confusion_matrix_of_few_classes_and_pairs_of_many():
    logits = [[5.0, 0.0], [5.0, 0.0], [5.0, 0.0], [0.0, 5.0]]
    few = run("kd", 50.0, logits=logits, labels=[0, 0, 1, 1])
    figure = confusion(few)
    (trace,) = figure["data"]
    assert trace["z"] == [[100.0, 0.0], [50.0, 50.0]]
    assert (trace["x"], trace["y"]) == (["a", "b"], ["a", "b"])
    assert confusion(replace(few, student=None)) is None
    predicted = torch.tensor([7, 7, 9, 3])
    many = replace(
        few, classes=[f"class {i}" for i in range(100)], labels=torch.tensor([5, 5, 9, 4]),
        student=outputs(torch.eye(100)[predicted].tolist()),
    )  # fmt: skip
    (trace,) = confusion(many)["data"]
    assert trace["y"] == ["class 4 → class 3", "class 5 → class 7"]
    assert trace["x"] == [1.0, 2.0]


def test_a_folder_of_runs_stands_for_its_finished_runs(tmp_path):
    cells = tmp_path / "bench" / "cells"
    for name, finished in (("a", True), ("b", False), ("c", True)):
        (cells / name / "student").mkdir(parents=True)
        for folder in (cells / name, cells / name / "student"):
            (folder / "recipe.yaml").write_text("kind: train\n")
        if finished:
            (cells / name / "summary.json").write_text("{}")
            (cells / name / "student.safetensors").write_text("")
    found = [cells / "a", cells / "c"], [cells / "b"]
    assert find_runs([tmp_path / "bench"]) == find_runs([cells]) == found
    assert find_runs([cells / "b"]) == ([cells / "b"], [])
    (cells / "a" / "summary.json").unlink()
    (cells / "c" / "summary.json").unlink()
    with pytest.raises(RunFolderError, match="holds no finished run; unfinished: a, b, c"):
        find_runs([cells])
    with pytest.raises(RunFolderError, match=r"holds no finished run\. Give run folders"):
        find_runs([tmp_path])


def test_twenty_methods_have_different_styles():
    """In every legend, and without colors among the first seven."""
    rows = [{"epoch": 1, "test_top1": 80.0, "terms": {"total": 1.0}}]
    runs = [
        replace(run("kd", 80.0 - n, 0, LOGITS, [0, 1], {"options.kd.temperature": n}), rows=rows)
        for n in range(1, 21)
    ]
    groups = group_runs([replace(one, teacher=one.student) for one in runs])
    assert len(groups) == 20
    lines = [accuracy_curves(groups), loss_curves(groups)[0][1], calibration_curves(groups)[0]]
    for drawn in lines:
        traces = [trace for trace in drawn["data"] if "marker" in trace]
        marks = [(t["line"]["color"], t["line"]["dash"], t["marker"]["symbol"]) for t in traces]
        assert len(set(marks)) == len(marks) >= 20
    dots = [t["marker"] for t in class_accuracies(groups)["data"] if t["type"] == "scatter"]
    assert len({(d["color"], d["symbol"]) for d in dots}) == len(dots) == 21
    shown = accuracy_by_network_cost(groups)[0][1]["data"][1]["marker"]
    assert len(set(zip(shown["color"], shown["symbol"], strict=True))) == 21
    assert len({group_style(number).symbol for number in range(7)}) == 7
    assert TEACHER_STYLE.symbol not in {group_style(number).symbol for number in range(100)}
    assert len({group_style(number) for number in range(300)}) == 300


def test_teachers_of_one_network_have_a_dot_each():
    runs = [run("kd", 80.0, 0, LOGITS, [0, 1], {"options.kd.temperature": n}) for n in (1, 2)]
    taught = [
        replace(one, teacher=one.student, summary=one.summary | {"teacher_top1": top1})
        for one, top1 in zip(runs, (90.0, 91.0), strict=True)
    ]
    dots = accuracy_by_network_cost(group_runs(taught))[0][1]["data"][1]
    assert sorted(dots["y"]) == [80.0, 80.0, 90.0, 91.0]
    probed = replace(transferred(), student=taught[0].student, teacher=taught[0].student)
    assert sorted(accuracy_by_network_cost(group_runs([probed]))[0][1]["data"][1]["y"]) == [
        61.2,
        63.3,
    ]


def test_the_teachers_class_accuracies_are_shown_whichever_method_is_best():
    """A class without images is left out."""
    logits = [[5.0, 0.0, 0.0], [0.0, 5.0, 0.0]]
    alone, taught = (run(m, t, 0, logits, [0, 1]) for m, t in (("ce", 90.0), ("kd", 80.0)))
    alone, taught = (replace(one, classes=("a", "b", "c")) for one in (alone, taught))
    drawn = class_accuracies(group_runs([alone, replace(taught, teacher=taught.student)]))
    assert [trace.get("name") for trace in drawn["data"]] == [None, "teacher net", "alone", "KD"]
    assert drawn["data"][0]["y"] == ["a", "b"]


@pytest.mark.parametrize(
    "rows",
    [torch.ones(10, 4), torch.rand(10, 1), torch.full((10, 4), torch.nan), torch.rand(3, 2)],
    ids=["one point", "a line", "not finite", "few"],
)
def test_tsne_of_degenerate_embeddings(rows):
    assert _tsne(rows).shape == (len(rows), 2)
    assert _tsne(rows).isfinite().all()


# Reports of runs


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A teacher and two students of classes whose names are markup."""
    folder = tmp_path_factory.mktemp("markup")
    names = SCRIPT, IMAGE, "plain & simple"
    write_colored_images(folder / "data", names, {"train": 16, "test": 12}, side=32)
    data, small = f"imagefolder:{folder / 'data'}", {"data.batch_size": 8}
    teacher = cktf.teach(
        "resnet14", train=data, epochs=1, out=folder / "teacher", overrides=small, show=False
    )
    found = [teacher.folder]
    for method in ("ce", "at+kd"):
        made = cktf.distill(
            teacher.folder, "resnet8", train=data, method=method, epochs=1, overrides=small,
            out=folder / method, show=False,
        )  # fmt: skip
        found.append(made.folder)
    return found


@pytest.fixture(scope="module")
def report(runs, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    run_command(f"report {runs[1]} {runs[2]} --out {path}")
    return path


def test_the_file_needs_no_other(report):
    text = report.read_text()
    assert len(text.encode()) < 8 * 2**20
    own = text[: text.index("<script>")] + text[text.index('<script type="application/json"') :]
    assert not re.findall(r"""(?:src|href)=["'](?!data:)""", own)
    assert not re.findall(r"url\(|@import|https?://", own)


def test_markup_in_class_names_is_escaped(report):
    """In the page by Jinja's escapes, in the figures by JSON's; only three scripts are scripts."""
    text = report.read_text()
    assert len(re.findall(r"<script", text.replace(r"<\/script", ""))) >= 3
    body = text[text.index("<body>") : text.index("<script>")]
    assert "&lt;script&gt;" in body
    assert "<img src=x" not in text
    figures = re.search(r'id="figures">(.*?)</script>', text, re.DOTALL)
    assert "<" not in figures[1]
    assert "&lt;script&gt;" in json.dumps(json.loads(figures[1]))


def test_the_figures_of_a_report(report):
    figures = read_figures(report)
    kinds = {name.removeprefix("plot-").split("-")[0] for name in figures}
    assert kinds == {
        "accuracy", "loss", "cost", "classes", "confusion", "calibration", "cka",
        "correlation", "embedding",
    }  # fmt: skip
    assert len(figures["plot-cka-0"]["data"][0]["z"]) == 6  # stem, 3 stages, embedding, logits
    assert len([name for name in figures if name.startswith("plot-embedding")]) == 3
    curves = figures["plot-accuracy"]
    assert {trace["name"] for trace in curves["data"]} == {"alone", "AT+KD"}
    assert any("teacher resnet14" in note["text"] for note in curves["layout"]["annotations"])


def test_images_have_the_names_of_their_files(runs):
    """In memory, after a choice of some of them; numbers where there are no files."""
    analysis = RunAnalyzer(max_images=7).analyze(runs[2])
    assert len(analysis.image_names) == len(analysis.images) == 7
    for name, label in zip(analysis.image_names, analysis.labels.tolist(), strict=True):
        assert Path(name).is_file()
        assert analysis.classes[label] in name
    few = load_dataset("fashion-mini", None, "test").subset(torch.tensor([3, 1]))
    assert few.image_name(1) == "image 1"


def test_images_are_evenly_spaced_over_sorted_classes(runs, tmp_path, monkeypatch):
    """Those that are classified, and those of them whose representations are compared."""
    assert evenly_spaced_indices(36, 9).tolist() == [0, 4, 8, 13, 17, 21, 26, 30, 35]
    assert torch.equal(evenly_spaced_indices(999, 2000), torch.arange(999))
    some = RunAnalyzer(max_images=9).analyze(runs[2])
    assert tuple(some.teacher.classes) == tuple(some.classes)
    assert torch.bincount(some.labels).tolist() == [3, 3, 3]
    # In several batches, which are read as they are, whatever the networks compute in.
    named = tmp_path / "run"
    shutil.copytree(runs[2], named)
    recipe = (named / "recipe.yaml").read_text().replace("precision: auto", "precision: bfloat16")
    (named / "recipe.yaml").write_text(recipe)
    monkeypatch.setattr("cktf.recipes.data._MAX_TEST_BATCH", 7)
    batches, inside = MemoryLoader.epoch, []

    def watched(self, number, **options):
        for batch in batches(self, number, **options):
            inside.append(torch.is_autocast_enabled("cpu"))
            yield batch

    monkeypatch.setattr(MemoryLoader, "epoch", watched)
    whole = RunAnalyzer(max_compared=5).analyze(named)
    assert len(inside) > 12
    assert not any(inside)
    for network in (whole.student, whole.teacher):
        assert len(network.logits) == 36
        assert torch.equal(network.features["logits"], network.logits[evenly_spaced_indices(36, 5)])
        assert {len(rows) for rows in network.features.values()} == {5}


def test_a_network_that_gives_no_numbers(runs, monkeypatch):
    load = analysis.load_teacher

    def load_broken(*args, **options):
        teacher = load(*args, **options)
        for parameter in teacher.network.parameters():
            parameter.data.fill_(torch.nan)
        return teacher

    monkeypatch.setattr(analysis, "load_teacher", load_broken)
    assert "not finite" in RunAnalyzer(max_images=9).analyze(runs[2]).missing_reason


def test_a_teacher_runs_once_for_runs_that_share_it(runs, tmp_path):
    """And the time for an image is of its precision."""
    shutil.copytree(runs[0], tmp_path / "teacher")
    shutil.copytree(runs[2], tmp_path / "run")
    recipe = tmp_path / "run" / "recipe.yaml"
    fields = yaml.safe_load(recipe.read_text())
    fields["teacher"] = str(tmp_path / "teacher")
    fields["data"]["batch_size"] = 13
    recipe.write_text(yaml.safe_dump(fields))
    analyst = RunAnalyzer(max_images=9)
    found = [analyst.analyze(folder) for folder in (runs[2], tmp_path / "run")]
    assert found[0].teacher is found[1].teacher
    assert found[0].images is found[1].images
    fields["runtime"] = {"precision": "bfloat16"}
    recipe.write_text(yaml.safe_dump(fields))
    other = analyst.analyze(tmp_path / "run")
    assert other.teacher is not found[0].teacher
    assert other.student.latency_ms != found[0].student.latency_ms


def test_networks_run_at_the_size_and_taps_of_the_recipe(runs):
    """A teacher at the size of its run, both at the taps that are named; each run's own."""
    folder = runs[0].parent
    named = ["network.layer1", "network.layer3"]
    made = cktf.distill(
        runs[0], "resnet8", train=f"imagefolder:{folder / 'data'}", method="at+kd", epochs=1,
        overrides={
            "data.batch_size": 8, "teacher_size": 16, "student_size": 16, "student_taps": named,
            "teacher_taps": named,
        },
        out=folder / "named", show=False,
    )  # fmt: skip
    analyst = RunAnalyzer()
    found = [analyst.analyze(folder) for folder in (runs[2], made.folder, runs[2])]
    for one in found:
        for network, said in ((one.teacher, "teacher_top1"), (one.student, "test_top1")):
            right = 100 * float((network.predicted == one.labels).double().mean())
            assert right == pytest.approx(one.summary[said], abs=0.01)
    plain, own, again = found
    assert plain.teacher is again.teacher
    assert own.teacher.macs < plain.teacher.macs / 3
    for network in (own.student, own.teacher):
        assert list(network.features) == ["stem", "stage 1", "stage 2", "embedding", "logits"]
    assert "stage 3" in plain.teacher.features


def read_figures(path):
    return json.loads(re.search(r'id="figures">(.*?)</script>', path.read_text())[1])


def test_a_teachers_own_run(runs, tmp_path):
    """By itself without comparisons; with its students last, compared with none."""
    figures = read_figures(write_report([runs[0]], tmp_path / "teacher.html", show=False))
    assert "plot-accuracy" in figures
    assert not any(name.startswith(("plot-cka", "plot-correlation")) for name in figures)
    path = write_report(runs, tmp_path / "all.html", show=False)
    text = path.read_text()
    assert "to its network&#39;s best" in text or "to its network's best" in text
    body = text[text.index("<tbody>") : text.index("</tbody>")]
    cells = [re.findall(r"<td>(.*?)</td>", row) for row in body.split("<tr>")[1:]]
    assert "resnet14 alone" in cells[-1][0]
    assert [bool(row[3]) for row in cells] == [False, True, False]
    names = read_figures(path)["plot-cost-0"]["data"][1]["text"]
    assert sorted(names) == [
        "resnet14 (teacher)", "resnet14 alone", "resnet8 AT+KD", "resnet8 alone",
    ]  # fmt: skip


def report_of_changed(run, tmp_path, change):
    """The text of a report of a copy of the run, changed before."""
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    change(copy)
    return write_report([copy], tmp_path / "report.html", show=False).read_text()


def test_a_run_whose_teacher_is_gone_or_was_trained_again(runs, tmp_path):
    """The rest is shown, and why some figures are missing."""

    def move_teacher(copy):
        recipe = (copy / "recipe.yaml").read_text().replace(str(runs[0]), "/nowhere/teacher")
        (copy / "recipe.yaml").write_text(recipe)

    text = report_of_changed(runs[2], tmp_path / "gone", move_teacher)
    assert "/nowhere/teacher" in text
    assert "Some figures are missing" in text

    def change_hash(copy):
        ref = json.loads((copy / "teacher.json").read_text()) | {"sha256": "0123456789abcdef"}
        (copy / "teacher.json").write_text(json.dumps(ref))

    text = report_of_changed(runs[2], tmp_path / "again", change_hash)
    assert "has other weights now" in text
    assert "01234567…" in text


@pytest.mark.parametrize("key", ["interleaved", "took_turns"])
def test_interleaved_students_have_no_training_time(runs, tmp_path, key):
    assert json.loads((runs[2] / "summary.json").read_text())["interleaved"] is False

    def change(copy):
        summary = json.loads((copy / "summary.json").read_text())
        del summary["interleaved"]
        (copy / "summary.json").write_text(json.dumps(summary | {key: True}))

    text = report_of_changed(runs[2], tmp_path, change)
    assert "<td>in turn</td>" in text
    assert "share their teacher" in text
    assert "seconds of training" not in text


def test_mistakes(runs, tmp_path):
    (tmp_path / "unfinished").mkdir()
    shutil.copy(runs[1] / "recipe.yaml", tmp_path / "unfinished")
    for folder, message in (
        (tmp_path, "unfinished: unfinished"),
        (tmp_path / "unfinished", "no finished"),
    ):
        assert message in " ".join(run_command(f"report {folder}", exit_code=2).split())


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Headless Chromium, as Debian's packages chromium and chromium-driver give it."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("no chromium and chromedriver here: apt-get install chromium chromium-driver")
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    profile = tmp_path_factory.mktemp("profile")
    for flag in (
        "headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run",
        "disable-background-networking", "disable-component-update", "disable-sync",
        "disable-dev-shm-usage", "hide-scrollbars", f"user-data-dir={profile}",
    ):  # fmt: skip
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(driver, log_output=os.devnull)
    opened = webdriver.Chrome(options=options, service=service)
    yield opened
    opened.quit()


def set_color_scheme(browser, scheme):
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def take_screenshot(browser, path, width, scheme):
    """The whole page as pixels, once all is drawn; kept as a picture."""
    set_color_scheme(browser, scheme)
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(path.as_uri())
    until = time.monotonic() + 60
    while not browser.execute_script("return document.documentElement.dataset.drawn"):
        assert time.monotonic() < until, browser.get_log("browser")
        time.sleep(0.1)
    height = browser.execute_script("return document.documentElement.scrollHeight")
    options = {
        "captureBeyondViewport": True,
        "clip": {"x": 0, "y": 0, "width": width, "height": height, "scale": 1},
    }
    screenshot = browser.execute_cdp_cmd("Page.captureScreenshot", options)
    SHOTS.mkdir(parents=True, exist_ok=True)
    png = base64.b64decode(screenshot["data"])
    (SHOTS / f"{scheme}-{width}.png").write_bytes(png)
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (420, "dark")])
def test_in_a_browser(browser, report, width, scheme):
    browser.get_log("browser"), browser.get_log("performance")
    pixels = take_screenshot(browser, report, width, scheme)
    # Nothing was complained of, and nothing was asked of a network.
    assert [entry for entry in browser.get_log("browser") if entry["level"] != "INFO"] == []
    events = [json.loads(e["message"])["message"] for e in browser.get_log("performance")]
    requests = [e["params"] for e in events if e["method"] == "Network.requestWillBeSent"]
    schemes = {request["request"]["url"].partition(":")[0] for request in requests} - {"chrome"}
    assert schemes
    assert schemes <= {"file", "data", "blob"}
    # It fits the window, and markup is text.
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert browser.title != "1"
    body = browser.execute_script("return document.body.innerText")
    assert SCRIPT in body
    assert IMAGE in body
    labels = browser.execute_script(
        "return [...document.querySelectorAll('#plot-classes .ytick text')].map(t => t.textContent)"
    )
    assert sorted(labels) == sorted([SCRIPT, IMAGE, "plain & simple"])
    # Every figure has ink: many pixels that are not the card's.
    places = browser.execute_script(
        "return [...document.querySelectorAll('.plot')].map(p => {"
        "const r = p.getBoundingClientRect();"
        "return [p.id, r.x + scrollX, r.y + scrollY, r.width, r.height]})"
    )
    assert {place[0] for place in places} == set(read_figures(report))
    for name, x, y, wide, high in places:
        part = pixels[int(y) : int(y + high), int(x) : int(x + wide)].reshape(-1, 3)
        ground = np.median(part, axis=0)
        ink = (np.abs(part - ground).sum(axis=1) > 90).mean()
        assert ink > 0.0004, (name, ink)
        assert wide > 150
    # The page's own colors.
    assert (pixels[2, 2].sum() > 380) == (scheme == "light")


@pytest.mark.slow
def test_a_change_of_scheme_redraws(browser, report):
    take_screenshot(browser, report, 1280, "light")
    ink = "return getComputedStyle(document.querySelector('#plot-accuracy .xtick text')).fill"
    before = browser.execute_script(ink)
    set_color_scheme(browser, "dark")
    until = time.monotonic() + 20
    while browser.execute_script(ink) == before:
        assert time.monotonic() < until
        time.sleep(0.1)
