"""The command line: what each mistake of a user says, and that nothing is written by it."""

import os
import re
import subprocess
import sys

import pytest
import yaml

import cktf
from cktf.cli.main import app
from cktf.cli.options import options_of_command
from cktf.engine import Accuracy
from cktf.errors import CktfError
from cktf.recipes import DistillRecipe, TrainRecipe, TransferRecipe, parse_recipe


def contents(folder):
    return {p: p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


TRAIN = "train --model resnet8"
DISTILL = "distill --teacher teacher --student resnet8"
BY = "distill --student resnet8 --teacher"
# A command, and what its message must say.
MISTAKES = {
    # data
    f"{TRAIN} --data cifar10": ["data.dir: cifar10 needs a folder", "--data-dir"],
    f"{TRAIN} --data cifar10 --data-dir empty": ["data: CIFAR-10: empty has no", "no network"],
    f"{TRAIN} --data fashion-mnist --data-dir empty": ["no train-images-idx3-ubyte", "--data-dir"],
    f"{TRAIN} --data fashion-mnsit": ["'fashion-mnsit'", "Did you mean 'fashion-mnist'?"],
    f"{TRAIN} --set data.batch_size=10001": ["10000 images, fewer than one batch of 10001"],
    f"{DISTILL} --set data.name=custom": ["train: the recipe says 'custom'", "cktf.distill"],
    # networks
    "train": ["model: is needed", "--model"],
    "distill": ["2 problems", "teacher: is needed", "student: is needed", "--student"],
    "train --model resnet9": ["model: There is no network 'resnet9'", "Did you mean 'resnet8'?"],
    f"{DISTILL} --set student=custom": ["student: the recipe says 'custom'"],
    # methods
    f"{DISTILL} --method cktff": ["method: There is no method 'cktff'", "Did you mean 'cktf'?"],
    f"{DISTILL} --method logit-KD": ["no method 'logit-kd'", "Did you mean 'kd'?"],
    f"{DISTILL} --method CKTF,kd": ["Methods are joined by +: cktf+kd"],
    f"{DISTILL} --method kd+": ["method: There is no method ''", "Known: ab, at, cc, ce, cktf"],
    f"{DISTILL} --method crd:-1": ["method: A weight is a number of 0 or more", "gives '-1'"],
    f"{DISTILL} --set options.kd.temperature=-1": ["KD's temperature is above 0", "given -1"],
    f"{DISTILL} --method crd --set options.crd.negatives=0": ["equal to 1, given 0"],
    # teachers
    f"{BY} nowhere": ["teacher: nowhere is neither a run folder nor a file of weights"],
    f"{BY} empty": ["teacher: empty holds no student.safetensors", "--resume auto"],
    f"{BY} cut.safetensors": ["teacher: cut.safetensors", "is damaged"],
    f"{BY} file": ["teacher: file is not a checkpoint, or is damaged"],
    f"{BY} foreign.safetensors": ["no network of this library has just these", "--teacher-weights"],
    f"{BY} own.safetensors": ["'MyNetwork', which cannot be built from its name", "load_weights"],
    f"{BY} animals.safetensors": ["knows 3 classes (it was trained on animals)", "data has 10"],
    # fields
    f"{TRAIN} --epochs 0": ["epochs: ", "equal to 1, given 0"],
    f"{TRAIN} --epochs ten": ["--epochs ten: ", "valid integer"],
    f"{TRAIN} --lr big": ["--lr big: ", "valid"],
    f"{TRAIN} --set lr=1": ["lr: there is no such field. Did you mean 'optimizer.lr'?"],
    f"{TRAIN} --set data.learning_rate=1": ["Did you mean 'optimizer.lr'?"],
    f"{TRAIN} --set optimizer.batch_size=8": ["Did you mean 'data.batch_size'?"],
    f"{TRAIN} --batch-size 1": ["data.batch_size: ", "given 1"],
    f"{TRAIN} --device tpu": ["runtime.device: ", "given 'tpu'"],
    f"{TRAIN} --set optimizer.lr": ["--set takes field.name=value, given 'optimizer.lr'"],
    f"{TRAIN} --set kind=[train]": ["kind: ['train'] is none of: train, "],
    # recipes
    "train --recipe nowhere.yaml": ["nowhere.yaml cannot be read (No such file or directory)"],
    "train --recipe empty": ["empty cannot be read (Is a directory)"],
    "train --recipe unclosed.yaml": ["unclosed.yaml is not YAML", "line 2"],
    "train --recipe distill.yaml": ["distill.yaml says 'distill', and this is cktf train"],
    "distill --recipe train.yaml": ["train.yaml says 'train', and this is cktf distill"],
    "train --recipe other.yaml": ["other.yaml says 'evaluate', and this is cktf train"],
    # run folders
    f"{TRAIN} --out held": ["out: held already holds a run", "--resume auto"],
    f"{TRAIN} --out file": ["out: The run folder file cannot be written", "is a file"],
    f"{TRAIN} --out file/a/b": ["out: The run folder file/a/b cannot be written", "is a file"],
    f"{TRAIN} --out=": ["out: ", "cktf did not write (animals.safetensors, broken,", ", …)"],
    f"{TRAIN} --out .": ["out: ", "cktf did not write (animals.safetensors, broken,"],
    f"{TRAIN} --out teacher": ["out: teacher holds files that cktf did not write (student.safet"],
    f"{TRAIN} --data imagefolder:. --out empty/a": ["out: empty/a is among the images of imagef"],
    "bench cpu-fashion --out .": ["files that cktf did not write (animals.safetensors, broken,"],
    "bench cpu-fashion --out new --results teacher": ["teacher holds files that cktf did not"],
    "quickstart --out .": ["files that cktf did not write (animals.safetensors, broken,"],
    "report held --out teacher": ["teacher is a folder. Give the name of a file", ".html"],
    "report held --out file": ["file exists and is no .html file"],
    "export held --out=": ["is a folder. Give the name of a file, which ends in .onnx"],
    "export held --out cut.safetensors": ["cut.safetensors exists and is no .onnx file"],
    f"{TRAIN} --resume auto": ["--resume auto continues what is in --out; give --out"],
    f"{TRAIN} --resume auto --out held --epochs 7": ["held was started with another", "epochs"],
    f"{TRAIN} --resume auto --out broken": ["broken/recipe.yaml is not YAML", "line 2"],
    "train --resume nowhere": ["nowhere holds no run", "recipe.yaml"],
    "train --resume empty": ["empty holds no run", "recipe.yaml"],
    "distill --resume held": ["held/recipe.yaml says 'train', and this is cktf distill"],
    "evaluate empty": ["empty holds no run", "recipe.yaml"],
    "evaluate nowhere": ["nowhere holds no run"],
    "evaluate file": ["file holds no run"],
    "evaluate held": ["held holds no student.safetensors: the run is unfinished"],
    "probe nowhere --labeled fashion-mini": ["nowhere is neither a run folder nor a file of"],
    # matrices
    "bench cpu-fashion --out new --teacher a=x --teacher a=y": ["each NAME once; given a=x, a=y"],
    # homes
    f"{TRAIN} --out=~/held": ["held already holds a run"],
    "train --resume ~/broken": ["broken/recipe.yaml is not YAML"],
    "train --recipe=~/unclosed.yaml": ["unclosed.yaml is not YAML"],
    "evaluate ~/held": ["held holds no student.safetensors"],
    "datasets imagefolder --data-dir=~/empty": ["empty has no class folders"],
    f"{TRAIN} --data cifar10 --data-dir '~nobody1/a'": ["~nobody1/a: a path", "home", "./~"],
    f"{TRAIN} --data imagefolder:~nobody1/a": ["data.name: ", "there is none for ~nobody1"],
    f"{TRAIN} --data cifar10 --set data.dir=~nobody1/a": ["data: ~nobody1/a: a path"],
    f"{BY} ~nobody1/a": ["teacher: ~nobody1/a: a path"],
    f"{BY} wrn_16_2 --teacher-weights ~nobody1/a": ["~nobody1/a: a path"],
    # commands
    "evaluate": ["Missing argument"],
    "distil": ["No such command 'distil'"],
    f"{TRAIN} --bogus": ["No such option", "--bogus"],
    "train empty": ["'empty'", "--data imagefolder:empty"],
    "distill a.pt resnet8": ["'a.pt resnet8'", "--teacher a.pt --student resnet8 --data …"],
    "evaluate held held": ["cktf evaluate does not know what 'held' is for"],
    "version": ["Did you mean cktf --version?"],
    "list": ["cktf models, cktf methods or cktf datasets"],
    "modles": ["Did you mean 'models'?"],
    "--epochs 3 train": ["Options follow the command: cktf train --epochs"],
    f"{TRAIN} --outt x": ["No such option: --outt. Did you mean --out?"],
    f"{TRAIN} --learning-rate=1": ["--learning-rate. Did you mean --lr?"],
    f"{TRAIN} --bs 8": ["--bs. Did you mean --batch-size?"],
    f"{TRAIN} --gpu 0": ["Did you mean --device cuda?"],
    f"{TRAIN} --lr-schedule step": ["Did you mean --set schedule.name=…?"],
    "train --student resnet8": ["Did you mean --model?"],
    "train --pretrained": ["--model 'timm:resnet18(pretrained=True)'"],
    f"{DISTILL} --model resnet8": ["Did you mean --student?"],
    # values given twice
    f"{TRAIN} --epochs 1 --epochs 50": ["--epochs is given 2 times, as 1, 50"],
    f"{TRAIN} --model=resnet14": ["--model is given 2 times, as resnet8, resnet14"],
    f"{TRAIN} --set epochs=1 --set epochs=2": ["--set gives epochs twice, as 1 and 2"],
    # several
    "train --model resnet8 --epochs 0 --set data.batchsize=3 --set optimizer.lr=x": [
        "3 problems in the recipe", "epochs: ", "data.batchsize: ", "'batch_size'?",
        "optimizer.lr: ",
    ],
    "distill --student resnet9 --teacher nowhere --method kdd --data cifra10 --out held": [
        "5 problems in the recipe", "data.name: ", "'cifar10'?", "student: ", "'resnet8'?",
        "method: ", "'kd'?", "teacher: ", "out: ",
    ],
    f"{BY} cut.safetensors --data fashion-mnist --data-dir empty": [
        "2 problems in the recipe", "data: Fashion-MNIST", "teacher: cut.safetensors",
    ],
}  # fmt: skip


@pytest.mark.parametrize(("line", "words"), MISTAKES.items(), ids=MISTAKES)
def test_a_mistake_gives_a_message_and_writes_nothing(run_cli, cli_dir, line, words):
    before = contents(cli_dir)
    result = run_cli(line)
    assert result.exit_code == 2, result.output
    for word in words:
        assert word in result.output
    # What is not raised on purpose would be here as itself.
    assert isinstance(result.exception, SystemExit)
    assert "Traceback" not in result.output
    assert result.output.count("in the recipe:") <= 1
    assert contents(cli_dir) == before


@pytest.mark.parametrize("line", ["train --model resnet9", "train --resume nowhere"])
def test_debug_lets_the_error_through(run_cli, line):
    plain, debugged = run_cli(line), run_cli(f"{line} --debug")
    assert isinstance(debugged.exception, CktfError)
    assert str(debugged.exception) in plain.output


# What works


def python(*arguments):
    """A fresh interpreter."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env=environment, timeout=120
    )


def test_help_does_not_wait_for_pytorch():
    code = (
        "import sys; from cktf.cli.main import main; sys.argv[1:] = sys.argv[1].split()\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print([m for m in ('torch', 'numpy', 'accelerate') if m in sys.modules])"
    )
    for line, word in (
        ("--help", "quickstart"),
        ("distill --help", "--teacher"),
        ("datasets", "cifar10"),
    ):
        result = python("-c", code, line)
        assert result.stdout.splitlines()[-1] == "[]", result.stderr
        assert word in result.stdout


@pytest.mark.parametrize(
    "line",
    [
        "train --model resnet9",
        "distill --method x+y --out a --set lr=1",
        f"{TRAIN} --data cifra10 --out b --set epochs=0",
        f"{TRAIN} --data cifra10 --out b",
        f"{BY} nowhere --method kdd --out b",
        "train --resume nowhere",
        "train --recipe nowhere.yaml",
        "train --model resnet8 --data fashion-mini --out taken",
        "train --model timm:resnt18 --data fashion-mini",
        "train --model torchvision:resnt18 --data fashion-mini",
        "inspect resnet9",
        "bench names.yaml --out b",
        "bench student.yaml --out b",
        "bench fields.yaml --out b",
    ],
)
def test_a_mistake_in_a_name_does_not_wait_for_pytorch(tmp_path, line):
    (tmp_path / "taken").mkdir()
    for name in ("summary.json", "student.safetensors"):
        (tmp_path / "taken" / name).touch()
    matrix = "name: m\ndata: {name: fashion-mini}\nseeds: [1]\npairs: [resnet20:%s]\nmethods: %s"
    options = "{alone: ce, KD: {method: kd, options: {kd: {temperature: 2}}}}"
    (tmp_path / "names.yaml").write_text(matrix % ("resnet8", "{KD: kdd}"))
    (tmp_path / "student.yaml").write_text(matrix % ("resnet9", options))
    (tmp_path / "fields.yaml").write_text(f"{matrix}\nmetod: kd" % ("resnet8", options))
    code = (
        "import os, sys; from cktf.cli.main import main; os.chdir(sys.argv.pop())\n"
        "sys.argv[1:] = sys.argv[1].split()\n"
        "try: main()\n"
        "except SystemExit as end: print(end.code)\n"
        "print([m for m in ('torch', 'numpy', 'accelerate', 'scipy') if m in sys.modules])"
    )
    result = python("-c", code, line, str(tmp_path))
    assert result.stdout.splitlines() == ["2", "[]"], result.stderr
    assert result.stderr.startswith("cktf: ")


def test_what_trains_and_reports_imports_no_plots_and_no_metrics():
    code = (
        "import sys, cktf.workflows, cktf.bench, cktf.export\n"
        "names = ('torchmetrics', 'matplotlib', 'scipy', 'torchvision', 'torch._dynamo')\n"
        "print([name for name in names if name in sys.modules])"
    )
    result = python("-c", code)
    assert result.stdout == "[]\n", result.stderr


@pytest.mark.slow
def test_a_mistake_in_a_process_of_its_own():
    result = python("-m", "cktf", "train", "--model", "resnet8", "--epochs", "0")
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith("cktf: epochs: ")


def test_help_names_every_command_and_fits_80_columns(run_cli, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    result = run_cli("--help")
    commands = {command.callback.__name__ for command in app.registered_commands}
    assert {"quickstart", "train", "distill", "doctor"} <= commands <= set(result.output.split())
    for command in commands - {"doctor"}:
        lines = run_cli(f"{command} --help").output.splitlines()
        assert max(map(len, lines)) <= 80
        assert any("--help" in line for line in lines)


@pytest.mark.parametrize(
    ("command", "schema"),
    [("train", TrainRecipe), ("probe", TrainRecipe), ("distill", DistillRecipe),
     ("transfer", TransferRecipe)],
)  # fmt: skip
def test_options_set_fields_of_the_recipe(command, schema):
    text = {"--teacher-cache": "views=8", "--labels-per-class": "1,2"}
    for _, option in options_of_command(command):
        for name in option.recipe_fields(text.get(option.name, "x")):
            section, _, field = name.partition(".")
            assert section in schema.model_fields, option.name
            inner = schema.model_fields[section].annotation
            assert not field or field in inner.model_fields, option.name


def test_version(run_cli):
    result = run_cli("--version")
    assert (result.exit_code, result.output) == (0, f"{cktf.__version__}\n")
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*", cktf.__version__)


def rows_of(result):
    """Words of each line of the output by its first word."""
    assert result.exit_code == 0
    return {cells[0]: cells for line in result.output.splitlines() if (cells := line.split())}


def test_models_lists_the_networks_with_their_size(run_cli):
    rows = rows_of(run_cli("models"))
    # Convolutions, batch norms and the classifier of ResNet-8, layer by layer.
    stem = 3 * 16 * 9 + 2 * 16
    first = 2 * (16 * 16 * 9 + 2 * 16)
    second = 16 * 32 * 9 + 32 * 32 * 9 + 16 * 32 + 3 * 2 * 32
    third = 32 * 64 * 9 + 64 * 64 * 9 + 32 * 64 + 3 * 2 * 64
    assert rows["resnet8"][1] == f"{stem + first + second + third + 64 * 10 + 10:,}"
    for name in ("resnet110", "resnet8x4", "wrn_16_2", "wrn_40_1"):
        assert len(rows[name]) == 2


def test_methods_lists_the_methods_with_their_papers(run_cli, monkeypatch):
    result = run_cli("methods")
    rows = rows_of(result)
    assert {"ce", "kd", "crd", "cktf"} <= rows.keys()
    for name, paper in (("kd", "1503.02531"), ("crd", "1910.10699"), ("cktf", "2303.07599")):
        assert f"arXiv {paper}" in result.output[result.output.index(f" {name} ") :]
    assert rows["at"][-2:] == ["1000", "yes"]
    assert rows["ab"][-3:] == ["1", "no", "yes"]
    monkeypatch.setenv("COLUMNS", "80")
    lines = run_cli("methods").output.splitlines()
    assert max(map(len, lines)) <= 80
    assert any(line.rstrip().endswith(" if staged") for line in lines)
    assert any(line.split()[-1] == "stage" for line in lines if line.strip())


def test_datasets_lists_the_data_sets_with_their_size(run_cli):
    rows = rows_of(run_cli("datasets"))
    assert rows["cifar10"][1:4] == ["10", "50,000", "10,000"]
    assert rows["fashion-mnist"][1:4] == ["10", "60,000", "10,000"]
    assert rows["fashion-mini"][1:4] == ["10", "10,000", "5,000"]


DRY = {
    "train --model wrn_16_1 --epochs 3 --seed 4": {"model": "wrn_16_1", "epochs": 3, "seed": 4},
    f"{DISTILL} --method crd:0.8+kd --set options.kd.temperature=2": {
        "kind": "distill", "method": "crd:0.8+kd", "options": {"kd": {"temperature": 2.0}},
    },
    "train --recipe train.yaml": {"epochs": 5, "model": "resnet8"},
    "train --recipe train.yaml --epochs 6 --model resnet14": {"epochs": 6, "model": "resnet14"},
    "train --recipe train.yaml --epochs 6 --set epochs=7": {"epochs": 7},
    "distill --recipe distill.yaml --out new/run": {"teacher": "teacher", "student": "resnet8"},
    f"{DISTILL} --method 'CKTF + KD' --set options.KD.temperature=2": {
        "method": "cktf + kd", "options": {"kd": {"temperature": 2.0}},
    },
    "train --resume held": {"epochs": 1, "model": "resnet8"},
    f"{TRAIN} --epochs 1 --resume auto --out held": {"epochs": 1},
    f"{TRAIN} --resume auto --out new/run": {"kind": "train"},
}  # fmt: skip


@pytest.mark.parametrize(("line", "expected"), DRY.items(), ids=DRY)
def test_a_dry_run_prints_the_recipe_and_writes_nothing(run_cli, cli_dir, line, expected):
    before = contents(cli_dir)
    result = run_cli(f"{line} --dry-run")
    assert result.exit_code == 0, result.output
    printed = yaml.safe_load(result.stdout)
    assert {key: printed[key] for key in expected} == expected
    assert parse_recipe(printed).model_dump(mode="json") == printed
    assert contents(cli_dir) == before


def test_a_printed_recipe_can_be_used(run_cli, tmp_path):
    """With one field changed, all others are the same."""
    printed = run_cli(f"{DISTILL} --epochs 2 --set optimizer.lr=1e-3 --dry-run").stdout
    path = tmp_path / "printed.yaml"
    path.write_text(printed)
    assert run_cli(f"distill --recipe {path} --dry-run").stdout == printed
    changed = run_cli(f"distill --recipe {path} --set optimizer.momentum=0.5 --dry-run").stdout
    assert changed == printed.replace("momentum: 0.9", "momentum: 0.5") != printed


@pytest.mark.parametrize(
    ("classes", "top5", "shown"), [(5, 100.0, False), (10, 100.0, True), (6, 98.5, True)]
)
def test_a_top_5_that_says_nothing_is_left_out(run_cli, monkeypatch, classes, top5, shown):
    accuracy = Accuracy(60.0, top5, 200, classes)
    monkeypatch.setattr("cktf.workflows.evaluate", lambda *_, **__: (accuracy, "run"))
    output = run_cli("evaluate run").output
    assert "top-1 60.00 % ± 3.46" in output
    assert (f"top-5 {top5:.2f} %" in output) == ("top-5" in output) == shown
