"""Recipes: reading, assigning, checking, and saying all that is wrong at once."""

from pathlib import Path

import pytest
import torch
import yaml

import cktf
from cktf.data import load_dataset
from cktf.errors import CktfError, RecipeError, RunFolderError
from cktf.models import create, save_network
from cktf.recipes import (
    apply_assignments,
    check_recipe,
    parse_recipe,
    read_recipe,
    result_fields,
    set_fields,
    to_yaml,
    with_absolute_paths,
)
from cktf.workflows.teacher_ref import teacher_ref_of
from cktf.workflows.train import network_fields, prepare

TRAIN = {"kind": "train", "model": "resnet8"}
DISTILL = {"kind": "distill", "teacher": "custom", "student": "resnet8"}


def problems_of(fields):
    with pytest.raises(RecipeError) as caught:
        parse_recipe(fields)
    return caught.value.problems


# Form

MISTAKES = {
    "unknown field": ({"epocs": 3}, "epocs", "Did you mean 'epochs'?"),
    "unknown section": ({"optimiser": {"lr": 1}}, "optimiser", "Did you mean 'optimizer'?"),
    "unknown inner field": (
        {"optimizer": {"weigth_decay": 0}}, "optimizer.weigth_decay", "Did you mean 'weight_decay'",
    ),
    "field of nothing like it": ({"zzz": 1}, "zzz", "Known: checkpoint, data, earlier_epochs"),
    "field of another kind": ({"teacher": "runs/x"}, "teacher", "no such field"),
    "section as a value": ({"data": 3}, "data", "given 3"),
    "value as a section": ({"epochs": {"a": 1}}, "epochs", "given {'a': 1}"),
    "half an epoch": ({"epochs": 1.5}, "epochs", "valid integer"),
    "one image a batch": ({"data": {"batch_size": 1}}, "data.batch_size", "equal to 2, given 1"),
    "negative rate": ({"optimizer": {"lr": -1}}, "optimizer.lr", "greater than 0, given -1"),
    "infinite rate": ({"optimizer": {"lr": float("inf")}}, "optimizer.lr", "finite"),
    "momentum of one": ({"optimizer": {"momentum": 1}}, "optimizer.momentum", "less than 1"),
    "precision": ({"runtime": {"precision": "half"}}, "runtime.precision", "'bfloat16', given"),
    "device": ({"runtime": {"device": "tpu"}}, "runtime.device", "'cuda', given 'tpu'"),
    "schedule": ({"schedule": {"name": "step"}}, "schedule.name", "'multistep', given 'step'"),
    "late milestone": (
        {"schedule": {"milestones": [0.5, 1]}}, "schedule.milestones.1", "less than 1, given 1",
    ),
    "empty name": ({"model": " "}, "model", "at least 1 character"),
    "never saved": ({"checkpoint": {"epochs": -1}}, "checkpoint.epochs", "given -1"),
}  # fmt: skip


@pytest.mark.parametrize(("fields", "where", "words"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_named_with_its_field(fields, where, words):
    (problem,) = problems_of(TRAIN | fields)
    assert problem.startswith(f"{where}: ")
    assert words in problem


def test_all_mistakes_are_reported_at_once():
    fields = {"kind": "distill", "studnet": "resnet8", "epochs": 0, "seed": "x"}
    fields |= {
        "optimizer": {"lr": -1, "nestrov": True},
        "data": {"batch_size": 1},
        "runtime": {"precision": "half"},
    }
    with pytest.raises(RecipeError) as caught:
        parse_recipe(fields)
    fields_named = {problem.partition(":")[0] for problem in caught.value.problems}
    assert fields_named == {
        "teacher", "student", "studnet", "epochs", "seed", "optimizer.lr", "optimizer.nestrov",
        "data.batch_size", "runtime.precision",
    }  # fmt: skip
    message = str(caught.value)
    assert message.startswith("9 problems in the recipe:\n")
    assert "Did you mean 'student'?" in message
    assert "Did you mean 'nesterov'?" in message
    assert "Give --teacher" in message


@pytest.mark.parametrize("kind", ["evaluate", None, ["train"], {}, 3])
def test_an_unknown_kind_is_refused(kind):
    assert "is none of: train, distill, transfer" in problems_of(TRAIN | {"kind": kind})[0]


def test_defaults_are_those_of_the_documentation():
    recipe = parse_recipe(DISTILL)
    assert (recipe.method, recipe.data.name) == ("cktf+kd", "fashion-mini")


# Assignments


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("epochs=3", {"epochs": 3}),
        ("optimizer.lr=1e-3", {"optimizer": {"lr": 0.001}}),
        ("optimizer.lr=2E2", {"optimizer": {"lr": 200.0}}),
        ("seed=010", {"seed": 10}),
        ("seed=-1_000", {"seed": -1000}),
        ("data.per_class=1:30", {"data": {"per_class": "1:30"}}),
        ("seed=0x10", {"seed": "0x10"}),
        ("data.augment=false", {"data": {"augment": False}}),
        ("data.dir=", {"data": {"dir": None}}),
        ("data.dir=some=where", {"data": {"dir": "some=where"}}),
        ("schedule.milestones=[0.5, 0.9]", {"schedule": {"milestones": [0.5, 0.9]}}),
        ("options.cktf.match=same", {"options": {"cktf": {"match": "same"}}}),
        ("options.kd={temperature: 2}", {"options": {"kd": {"temperature": 2}}}),
    ],
)
def test_assignments_are_read_as_yaml(assignment, expected):
    fields = {}
    apply_assignments(fields, [assignment])
    assert fields == expected


CLASS_NAMES = "[NO, yes, 0, 1.0, null, ~, 2024-01-01, 010, 1:30, 1e3, off, 'a b']"


@pytest.mark.parametrize("kind", ["assignment", "flow", "block", "dotted"])
def test_names_of_classes_are_kept_as_written(tmp_path, kind):
    """YAML reads NO as false, 1.0 as a number and 2024-01-01 as a date."""
    expected = [name.strip("'") for name in CLASS_NAMES[1:-1].split(", ")]
    fields = {}
    if kind == "assignment":
        apply_assignments(fields, [f"data.classes={CLASS_NAMES}"])
    else:
        block = "\n".join(f"  - {name}" for name in CLASS_NAMES[1:-1].split(", "))
        text = {
            "flow": f"data: {{classes: {CLASS_NAMES}, augment: no}}",
            "block": f"data:\n  augment: no\n  classes:\n{block}",
            "dotted": f"data.classes:\n{block}\ndata.augment: no",
        }[kind]
        path = tmp_path / "recipe.yaml"
        path.write_text(text)
        set_fields(fields, read_recipe(path))
        assert fields["data"].pop("augment") is False
    assert fields == {"data": {"classes": expected}}
    recipe = parse_recipe({**TRAIN, "data": fields["data"]})
    assert recipe.data.classes == expected
    (tmp_path / "again.yaml").write_text(to_yaml(recipe))
    assert parse_recipe(read_recipe(tmp_path / "again.yaml")) == recipe


def test_a_number_for_a_name_is_to_be_quoted():
    with pytest.raises(RecipeError, match=r"data.dir: .* given 2024\. Write it in quotes"):
        parse_recipe({**TRAIN, "data": {"dir": 2024}})


def test_assignments_keep_their_neighbors_and_the_last_counts():
    fields = {"optimizer": {"lr": 0.1, "momentum": 0.5}, "epochs": 2}
    apply_assignments(fields, ["optimizer.lr=0.2", "optimizer.nesterov=true", "optimizer.lr=0.3"])
    assert fields == {"optimizer": {"lr": 0.3, "momentum": 0.5, "nesterov": True}, "epochs": 2}


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("epochs", "field.name=value, given 'epochs'"),
        ("optimizer.=3", "field.name=value"),
        ("optimizer..lr=3", "field.name=value"),
        ("epochs=[1", "not YAML: expected"),
        ("options.kd={temperature: 1, temperature: 2}", "'temperature' is given twice"),
        ("epochs.x=1", "'epochs' is a single value"),
    ],
)
def test_bad_assignments_are_refused(assignment, words):
    with pytest.raises(RecipeError, match=words.replace(".", r"\.")):
        apply_assignments({"epochs": 3}, [assignment])


# Files

RECIPES = {
    "train": TRAIN,
    "distill": DISTILL,
    "all given": {
        **DISTILL, "teacher": "runs/teacher", "method": "crd:0.8+kd",
        "options": {"crd": {"negatives": 12, "temperature": 0.07}, "kd": {"temperature": 1e-3}},
        "epochs": 240, "seed": 2**32 - 1, "data": {"name": "cifar10", "dir": "2e3"},
        "optimizer": {"lr": 1e-05, "weight_decay": 0, "nesterov": True},
        "schedule": {"name": "multistep", "milestones": []},
    },
    "names like other values": {**DISTILL, "teacher": "no", "student": "1e3", "method": "null"},
    "other letters": {**TRAIN, "data": {"dir": "Überträge: #1"}},
}  # fmt: skip


@pytest.mark.parametrize("fields", RECIPES.values(), ids=RECIPES)
def test_a_recipe_survives_its_file(tmp_path, fields):
    recipe = parse_recipe(fields)
    path = tmp_path / "recipe.yaml"
    path.write_text(to_yaml(recipe), encoding="utf-8")
    assert parse_recipe(read_recipe(path)) == recipe
    assert next(iter(read_recipe(path))) == "kind"


def test_a_written_recipe_is_complete():
    written = yaml.safe_load(to_yaml(parse_recipe(TRAIN)))
    assert set(written) == {
        "kind", "model", "trains", "new_classifier", "epochs", "earlier_epochs", "seed", "data",
        "optimizer", "schedule", "runtime", "checkpoint",
    }  # fmt: skip
    assert written["schedule"]["milestones"] == [0.625, 0.75, 0.875]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be read"),
        (b"a: [1, 2\n", "is not YAML: .*line 2"),
        (b"\xff\xfe\x00\x80", "is not YAML: it is not text in UTF-8"),
        ("model: Ü".encode("latin-1"), r"is not YAML: it is not text in UTF-8 \(byte 7\)"),
        (b"optimizer:\n\tlr: 1", "is not YAML: .* line 2, column 1; indent by spaces"),
        (b"a: 1\n---\nb: 1", "is not YAML: expected a single document .* line 2"),
        (b"", "holds no fields: it is empty"),
        (b"# all of it\n", "holds no fields: it is empty"),
        (b"- 1\n- 2\n", "holds no fields: it is a list"),
        (b"resnet8", "holds no fields: it is a single value"),
        (b"epochs: 1\nseed: 1\nepochs: 1", "is not YAML: 'epochs' is given .* 1 and in line 3"),
        (b'epochs: 1\r\n"epochs": 1', "is not YAML: 'epochs' is given .* 1 and in line 2"),
        (b"data:\n  name: a\n  name: b", "is not YAML: 'name' is given .* 2 and in line 3"),
        (b"a: [{b: {c: 1,\nd: 1, c: 2}}]", "is not YAML: 'c' is given .* 1 and in line 2"),
        (b"a: {<<: {b: 1, b: 2}}", "is not YAML: 'b' is given twice"),
    ],
)
def test_files_that_are_no_recipes(tmp_path, content, words):
    path = tmp_path / "mine.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RecipeError, match=f"mine.yaml {words}") as caught:
        read_recipe(path)
    assert len(caught.value.problems) == 1


def test_a_byte_order_mark_is_no_part_of_the_first_field(tmp_path):
    (tmp_path / "mine.yaml").write_text("epochs: 3\n", encoding="utf-8-sig")
    assert read_recipe(tmp_path / "mine.yaml") == {"epochs": 3}


def test_a_merged_key_may_be_given_again(tmp_path):
    text = "optimizer: {<<: {lr: 1, clip: 2}, lr: 3}\nschedule: &unused {gamma: 1}\n"
    (tmp_path / "mine.yaml").write_text(text)
    fields = {"optimizer": {"lr": 3, "clip": 2}, "schedule": {"gamma": 1}}
    assert read_recipe(tmp_path / "mine.yaml") == fields


# Names and options


def problems_with_names(fields):
    return check_recipe(parse_recipe(fields)).messages


@pytest.mark.parametrize("fields", [TRAIN, DISTILL, DISTILL | {"student": "custom"}])
def test_a_good_recipe_has_no_problems(fields):
    assert problems_with_names(fields) == []


BAD_NAMES = {
    "student": (DISTILL | {"student": "wrn16_2"}, "student", "Did you mean 'wrn_16_2'?"),
    "infinite weight": (DISTILL | {"method": "kd:inf"}, "method", "gives 'inf'"),
    "twice": (DISTILL | {"method": "kd+crd+kd:1"}, "method", "names 'kd' twice"),
    "network as teacher": (DISTILL | {"teacher": "wrn_40_2"}, "teacher", "cktf train --model wrn"),
    "options of another method": (
        DISTILL | {"method": "kd", "options": {"crd": {}}}, "options.crd", "'kd' does not name it",
    ),
    "options misspelt": (
        DISTILL | {"options": {"ctkf": {}}}, "options.ctkf", "Did you mean 'cktf'?",
    ),
    "option": (
        DISTILL | {"options": {"kd": {"temprature": 1}}}, "options.kd.temprature",
        "Did you mean 'temperature'?",
    ),
    "option of a method without any": (
        DISTILL | {"method": "ce+kd", "options": {"ce": {"x": 1}}}, "options.ce.x", "None is known",
    ),
    "option that is no number": (
        DISTILL | {"options": {"kd": {"temperature": "hot"}}}, "options.kd.temperature",
        "valid number, unable to parse string as a number, given 'hot'",
    ),
    "option that is no whole number": (
        DISTILL | {"options": {"cktf": {"negatives": 1.5}}}, "options.cktf.negatives", "given 1.5",
    ),
    "option of few values": (
        DISTILL | {"options": {"cktf": {"match": "all"}}}, "options.cktf.match", "given 'all'",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("fields", "where", "words"), BAD_NAMES.values(), ids=BAD_NAMES)
def test_names_and_options_are_checked(fields, where, words):
    (problem,) = problems_with_names(fields)
    assert problem.startswith(f"{where}: ")
    assert words in problem


def test_a_gpu_is_chosen_by_the_environment():
    with pytest.raises(RecipeError, match=r"runtime\.device: .*CUDA_VISIBLE_DEVICES=7, and"):
        parse_recipe(TRAIN | {"runtime": {"device": "cuda:7"}})


def test_cuda_needs_a_gpu(monkeypatch):
    fields = TRAIN | {"runtime": {"device": "cuda"}}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert problems_with_names(fields)[0].startswith("runtime.device: ")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert problems_with_names(fields) == []


def test_numbers_with_exponents_are_converted(tmp_path):
    path = tmp_path / "recipe.yaml"
    text = "options: {kd: {temperature: 1e1}}\noptimizer: {lr: 1e-3}\n"
    path.write_text(yaml.safe_dump(DISTILL) + text)
    recipe = parse_recipe(read_recipe(path))
    assert recipe.optimizer.lr == 0.001
    assert check_recipe(recipe).messages == []
    assert recipe.options == {"kd": {"temperature": 10.0}}


def test_result_fields_are_the_same_from_a_file(tmp_path):
    recipe = parse_recipe(DISTILL | {"options": {"cktf": {"renormalize": (2, 4)}}})
    path = tmp_path / "recipe.yaml"
    path.write_text(to_yaml(recipe))
    assert result_fields(parse_recipe(read_recipe(path))) == result_fields(recipe)


# Teachers


@pytest.fixture
def resnet8(tmp_path, monkeypatch):
    """A run folder called like a network, in the working folder; its weights are all 7."""
    monkeypatch.chdir(tmp_path)
    network = create("resnet8", 10)
    for parameter in network.parameters():
        parameter.data.fill_(7)
    classes = load_dataset("fashion-mini", None, "test").classes
    path = tmp_path / "resnet8" / "student.safetensors"
    path.parent.mkdir()
    save_network(network, path, name="resnet8", classes=classes, dataset="fashion-mini")
    return path.parent


def test_the_name_of_a_network_precedes_a_folder_of_that_name(resnet8):
    def first_weight(fields):
        student = prepare(parse_recipe(fields), "out")[1].student
        return next(student.parameters()).flatten()[0].item()

    distill_fields = DISTILL | {"teacher": "./resnet8", "method": "kd"}
    for fields, name in ((TRAIN, "model"), (distill_fields, "student")):
        assert first_weight(fields) != 7
        assert first_weight(fields | {name: "./resnet8"}) == 7
        assert getattr(with_absolute_paths(parse_recipe(fields)), name) == "resnet8"
        absolute = with_absolute_paths(parse_recipe(fields | {name: "./resnet8"}))
        assert getattr(absolute, name) == str(resnet8)
    for teacher in (network_fields(teacher=Path("resnet8"))["teacher"], "./resnet8", str(resnet8)):
        assert teacher_ref_of(parse_recipe(distill_fields | {"teacher": teacher})).teacher == str(
            resnet8
        )
    assert teacher_ref_of(parse_recipe(distill_fields | {"teacher": "resnet8"})) is None
    assert (
        "what is called so here: ./resnet8"
        in problems_with_names(distill_fields | {"teacher": "resnet8"})[0]
    )


def test_data_set_names_hold_absolute_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "dataset_dict.json").write_text("{}")

    def name(line):
        return parse_recipe(TRAIN | {"data": {"name": line}}).data.name

    assert name("hf:saved") == f"hf:{tmp_path / 'saved'}"
    assert name("imagefolder:saved") == f"imagefolder:{tmp_path / 'saved'}"
    assert name("hf:owner/of_the_hub") == "hf:owner/of_the_hub"


def test_paths_from_python_may_begin_with_a_tilde(resnet8, monkeypatch):
    monkeypatch.setenv("HOME", str(resnet8.parent))
    assert prepare(parse_recipe(TRAIN), "~/out")[0].path == resnet8.parent / "out"
    assert network_fields(model=Path("~/resnet8")) == {"model": str(resnet8)}
    with pytest.raises(RunFolderError, match=f"^{resnet8} holds no run"):
        cktf.evaluate("~/resnet8")
    with pytest.raises(CktfError, match="there is none for ~nobody1"):
        with_absolute_paths(parse_recipe(TRAIN | {"data": {"dir": "~nobody1"}}))


def test_the_data_directory_is_a_result_field_of_image_folders_only():
    def data_dir(**section):
        fields = {"kind": "train", "model": "resnet8", "data": section}
        return result_fields(parse_recipe(fields)).get("data.dir")

    assert data_dir(name="cifar10", dir="/a") is None
    assert data_dir(name="imagefolder", dir="/a") == "/a"
    assert data_dir(name="cifar10", test="imagefolder", dir="/a") == "/a"
    assert data_dir(name="imagefolder:/a", dir="/b") is None
