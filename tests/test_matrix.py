"""Matrices and their cells, before anything is trained."""

import json
import re
from importlib.resources import files
from pathlib import Path

import pytest
import yaml
from small_matrix import TINY, make_bench

from cktf.bench import (
    build_cells,
    make_matrix,
    published_accuracies,
    read_matrix,
    read_results,
    shipped_matrices,
)
from cktf.bench.results import fill_defaults, result_key, to_plain, weights_fingerprint
from cktf.bench.tables import as_published
from cktf.errors import RecipeError
from cktf.recipes import parse_recipe, parse_transfer_recipe, result_fields

ROOT = Path(__file__).parents[1]
TEACHER = {"wrn_16_2": str(ROOT / "results/cifar10-wrn_16_2.safetensors")}


def test_cells_are_recipes(teacher_weights):
    cells = make_bench(Path("x"), teacher_weights).cells
    assert [(c.method, c.seed) for c in cells] == [
        (m, s) for s in (0, 1) for m in ("alone", "KD", "CKTF")
    ]
    recipe = cells[-1].recipe(with_teacher_weights=True)
    assert (recipe.teacher, recipe.teacher_weights) == (str(teacher_weights), None)
    assert recipe.method == "cktf"
    assert recipe.options == {"cktf": {"negatives": 8}}
    assert (recipe.seed, recipe.optimizer.lr, recipe.data.batch_size) == (1, 0.02, 8)
    assert cells[0].recipe().options == {}


@pytest.mark.parametrize(
    ("fields", "settings", "options"),
    [
        ({"recipe": {"options": {"cktf": {"theta": 0.5}}}}, {}, {"negatives": 8, "theta": 0.5}),
        ({}, {"options.cktf.negatives": 4}, {"negatives": 4}),
    ],
)
def test_options_of_recipes_and_settings_come_last(fields, settings, options):
    """Over those of the matrix and of a method, for the terms that a method has."""
    cells = build_cells(make_matrix(TINY | fields), settings=settings)
    by_method = {cell.method: cell.recipe().options for cell in cells}
    assert by_method == {"alone": {}, "KD": {}, "CKTF": {"cktf": options}}


TWICE = {"vgg8": {"network": "resnet14"}, "vgg8*": {"network": "resnet20"}}
AGAIN = {"teacher": "resnet14", "student": "resnet8", "recipe": {"optimizer.lr": 0.02}}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"methods": {"KD": "kdd", "b": "at"}, "options": {}, "baseline": None}, "'kdd'"),
        ({"pairs": ["resnet14:resnet9"]}, "Did you mean 'resnet8'"),
        ({"recipe": {"optimiser": {"lr": 0.1}}}, "Did you mean 'optimizer'"),
        (
            {"teachers": TWICE, "pairs": ["vgg8:resnet8", "vgg8*:resnet8"]},
            r"teachers.vgg8\*: it and vgg8 have one name",
        ),
        ({"options": {"cktff": {"negatives": 8}}}, "Did you mean 'cktf'"),
        ({"data": TINY["data"] | {"labels": False}}, "Set kind: transfer"),
        ({"pairs": ["resnet14:resnet8", AGAIN]}, "pairs: resnet14:resnet8 is listed twice"),
        ({"seeds": [1, 0, 1]}, "seeds: 1 is listed twice"),
        ({"methods": ["kd", "at", "kd"]}, "methods: kd is listed twice"),
        ({"methods": {"KD": "kd", "kd": "kd:2"}}, r"kd.* KD.* have one name for files"),
        ({"methods": {"m" * 220: "kd"}, "baseline": None}, "too long for the name of a file"),
        ({"held_out": True}, "held_out: no images are"),
    ],
)
def test_mistakes(fields, message):
    with pytest.raises(RecipeError, match=message):
        build_cells(make_matrix(TINY | fields))


def test_data_by_name_alone(tmp_path, monkeypatch):
    """Also folders of images, in any writing of their paths."""
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path)
    for data, names in (
        ("photos", ["photos"]),
        (["./photos", "fashion-mini"], ["./photos", "fashion-mini"]),
    ):
        matrix = make_matrix(TINY | {"data": data})
        assert matrix.data == [{"name": name} for name in names]
        cell = build_cells(matrix)[0]
        assert cell.recipe().data.name == f"imagefolder:{tmp_path / 'photos'}"
        assert "/" not in cell.slug


def test_mistakes_outside_the_matrix():
    with pytest.raises(RecipeError, match="Did you mean 'pairs'") as caught:
        make_matrix({**TINY, "pars": [], "seeds": [-1]})
    assert len(caught.value.problems) == 2
    with pytest.raises(RecipeError, match="Did you mean 'cpu-cifar10'"):
        read_matrix("cpu-cifar")
    with pytest.raises(RecipeError, match="no pair has it"):
        build_cells(make_matrix(TINY), weights={"resnet20": "x"})
    for name in ("seed", "method", "student", "kind"):
        with pytest.raises(RecipeError, match=f"--set {name}: the matrix says it"):
            build_cells(make_matrix(TINY), settings={name: "x"})
    with pytest.raises(RecipeError, match="Did you mean 'cktf'"):
        build_cells(make_matrix(TINY), settings={"options.cktff.negatives": 8})


def test_weights_of_another_network_are_refused(teacher_weights):
    """A column would be named after a network that did not teach."""
    weights = {"weights": str(teacher_weights)}
    for entry in (weights, weights | {"network": "resnet20"}):
        pairs = {"teachers": {"resnet20": entry}, "pairs": ["resnet20:resnet8"]}
        with pytest.raises(RecipeError, match=r"holds a resnet14, .* called resnet20"):
            build_cells(make_matrix(TINY | pairs))
    renamed = {"teachers": {"big": weights}, "pairs": ["big:resnet8"]}
    teacher = build_cells(make_matrix(TINY | renamed))[0].teacher
    assert (teacher.network, teacher.weights_lack_name) == ("resnet14", False)


@pytest.mark.parametrize("shards", [2, 3, 4])
def test_shards_share_every_method(teacher_weights, tmp_path, shards):
    """As many shards as methods would otherwise each have one of them, on a machine of its own."""
    plans = [
        make_bench(tmp_path, teacher_weights, {"seeds": list(range(8))}, shard=(n, shards))
        for n in range(1, shards + 1)
    ]
    shares = [[cell for group in plan.groups() for cell in group] for plan in plans]
    assert sorted(len(share) for share in shares) == [24 // shards] * shards
    assert {c.slug for share in shares for c in share} == {c.slug for c in plans[0].cells}
    assert all({cell.method for cell in share} == {"alone", "KD", "CKTF"} for share in shares)
    assert all([c.seed for c in share] == sorted(c.seed for c in share) for share in shares)


def test_interleaved_students_share_one_view_of_the_teacher(teacher_weights):
    methods = {"KD": "kd", "AT": "at", "KD 64": {"method": "kd", "recipe": {"teacher_size": 64}}}
    matrix = {"methods": methods, "seeds": [0]}
    plan = make_bench(Path("x"), teacher_weights, matrix, interleaved=4)
    assert [[c.method for c in group] for group in plan.groups()] == [["KD", "AT"], ["KD 64"]]


# The matrices of the library, of benchmarks/ and of results/


@pytest.mark.parametrize("name", shipped_matrices())
def test_shipped_matrices_follow_the_protocol(name):
    matrix = read_matrix(name)
    cells = build_cells(matrix, "/data")
    assert matrix.name == name
    assert matrix.seeds == [0, 1, 2]
    recipes = [cell.recipe() for cell in cells]
    if not name.startswith("paper-"):
        methods = "ce, kd, kd:1, fitnet, at, sp, cc, vid, rkd, pkt, nst, crd, crd+kd, cktf, cktf+kd"
        assert ", ".join(m.method for m in matrix.methods.values()) == methods
        assert (matrix.primary, matrix.baseline) == ("CKTF+KD", "KD (1, 1)")
        assert {r.runtime.precision for r in recipes} == {"bfloat16"}
        assert {r.epochs for r in recipes} == {8}
        return
    for recipe in recipes + [cell.teacher.recipe for cell in cells]:
        assert (recipe.epochs, recipe.data.batch_size, recipe.optimizer.lr) == (240, 64, 0.05)
        assert (recipe.schedule.name, recipe.schedule.gamma) == ("multistep", 0.1)
        assert [m * 240 for m in recipe.schedule.milestones] == [150, 180, 210]
        assert (recipe.optimizer.momentum, recipe.optimizer.weight_decay) == (0.9, 5e-4)
    tau = 0.1 if "cifar100" in name or "table2" in name else 0.07
    for recipe in recipes:
        for term in {"crd", "cktf"} & set(recipe.method.split("+")):
            assert recipe.options[term]["temperature"] == tau


@pytest.mark.parametrize("name", ["cifar100", "tiny-imagenet"])
def test_table_one_has_every_published_entry(name):
    """And no other: FSP where it is published, by the same method strings."""
    cells = build_cells(read_matrix(f"paper-table1-{name}"), "/data")
    ours = {(*cell.column, as_published(cell.recipe().method)) for cell in cells}
    rows = published_accuracies()
    theirs = {(p.dataset, p.pair, p.method) for p in rows if p.dataset == name}
    assert ours == {row for row in theirs if row[2] != "teacher"}


@pytest.mark.parametrize("pair", ["vgg19-vgg19", "vgg19-vgg8", "ResNet18-ResNet18"])
def test_figure_two_is_what_its_recipes_say(pair):
    """There is no second protocol beside the recipes of single transfers."""

    def fields(name, parse):
        text = files("cktf.recipes").joinpath("paper", f"{name}.yaml").read_text()
        return result_fields(parse(yaml.safe_load(text)))

    cells = build_cells(read_matrix("paper-figure2"), "/data")
    cell = next(c for c in cells if c.column[1].replace(":", "-") == pair and c.method == "CKTF")
    recipe, teacher = cell.recipe(), cell.teacher.recipe
    assert not recipe.data.labels
    assert recipe.labeled.name == recipe.data.name == "stl10"
    assert (teacher.data.name, teacher.data.labels) == ("tiny-imagenet", True)
    assert (teacher.data.image_size, recipe.data.image_size) == (None, 64)
    ours, theirs = result_fields(recipe), fields(f"transfer-{pair}", parse_transfer_recipe)
    for each in (ours, theirs):
        del each["teacher"]
    assert ours == theirs
    recipe_of_teacher = fields(f"transfer-teacher-{pair.partition('-')[0]}", parse_recipe)
    assert result_fields(teacher) == recipe_of_teacher


def test_the_held_out_matrix_holds_out_images():
    matrix = read_matrix(ROOT / "benchmarks" / "cifar10-held-out.yaml")
    cells = build_cells(matrix, "data")
    assert matrix.held_out
    assert {cell.recipe().data.validation for cell in cells} == {0.1}
    assert {cell.teacher.recipe.data.validation for cell in cells} == {0.1}


@pytest.mark.parametrize("name", ["cifar10-choices", "cifar10-combinations"])
def test_matrices_of_benchmarks_share_cells(name):
    """Their baselines are trained for `cpu-cifar10` too, by the very same recipes."""

    def recipes(matrix):
        cells = build_cells(read_matrix(matrix), "/data", TEACHER)
        return {json.dumps(result_fields(cell.recipe()), sort_keys=True) for cell in cells}

    ours, shared = recipes(ROOT / "benchmarks" / f"{name}.yaml"), recipes("cpu-cifar10")
    assert len(ours & shared) >= 9
    assert ours - shared


def test_the_matrix_of_cold_starts():
    """Short and long runs of each seed, which differ only in how the banks begin."""
    matrix = read_matrix(ROOT / "benchmarks" / "cifar10-cold-start.yaml")
    recipes = [cell.recipe() for cell in build_cells(matrix, "/data", TEACHER)]
    options = [recipe.options["cktf"] for recipe in recipes]
    begins = [(None, None), ("forward", None), (None, [2, 4])]
    assert [
        (r.seed, r.epochs, (o.get("init"), o.get("renormalize")))
        for r, o in zip(recipes, options, strict=True)
    ] == [(seed, epochs, begin) for seed in range(3) for epochs in (8, 30) for begin in begins]
    assert {recipe.data.per_class for recipe in recipes} == {500}


def test_committed_results_are_of_the_shipped_matrix():
    """By recipe and by the teacher's weights; and they name no folder of one machine."""
    place = ROOT / "results" / "cpu-cifar10"
    results = read_results(place)
    cells = build_cells(read_matrix("cpu-cifar10"), "/data", TEACHER)
    by_key = {(cell.pair, cell.method, cell.seed): cell for cell in cells}
    assert results
    for plan in {cell.teacher.slug: cell.teacher for cell in cells}.values():
        recorded = json.loads((place / f"{plan.slug}.json").read_text())["recipe"]
        assert recorded is None or fill_defaults(recorded) == to_plain(result_fields(plan.recipe))
    for result in results:
        cell = by_key[result.pair, result.method, result.seed]
        weights = cell.teacher.weights
        teacher = json.loads((place / f"{cell.teacher.slug}.json").read_text())["weights"]
        assert weights is None or teacher == f"sha256 {weights_fingerprint(weights)}"
        expected = result_key(cell.recipe(), teacher.removeprefix("sha256 "))
        assert fill_defaults(result.recipe) == expected
        assert result.top1_by_epoch[-1:] == [result.top1] or "not kept" in result.note
        assert not re.search(r'"/\w', (place / f"{cell.slug}.json").read_text())
