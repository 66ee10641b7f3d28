"""The command line's table of options: each with the recipe field that it sets."""

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

import typer

from cktf.errors import RecipeError


@dataclass(frozen=True)
class Option:
    """An option of several commands, or one that sets a field of the recipe.

    Attributes:
        commands: names of the commands that have it, separated by spaces.
        name: of the option: `--data-dir`.
        field: the recipe field that it sets, a function from its value to fields and their values,
            or None where it sets none.
        type: of its value; `bool` makes a flag.
        help: one or two sentences for the help text.
        metavar: placeholder of the value in the help text; by default its type.
    """

    commands: str
    name: str
    field: str | Callable[[Any], dict[str, Any]] | None
    type: Any
    help: str
    metavar: str | None = None

    @property
    def key(self) -> str:
        """The name of the value that a command receives: `data_dir`."""
        return self.name.lstrip("-").replace("-", "_")

    def recipe_fields(self, value: Any) -> dict[str, Any]:
        """Recipe fields, by dotted name, that a value of this option sets."""
        if callable(self.field):
            return self.field(value)
        return {} if self.field is None else {self.field: value}

    def parameter(self, heading: str | None = None) -> inspect.Parameter:
        """The command's parameter from which typer makes the option, under a help heading."""
        option = typer.Option(
            self.name, help=self.help, metavar=self.metavar, rich_help_panel=heading
        )
        flag = self.type is bool
        return inspect.Parameter(
            self.key,
            inspect.Parameter.KEYWORD_ONLY,
            default=False if flag else None,
            annotation=Annotated[self.type if flag else self.type | None, option],
        )


def split_commas(field: str) -> Callable[[str], dict[str, Any]]:
    """Return a function that sets a recipe field to a list of names joined by commas."""
    return lambda text: {field: text.split(",")}


def parse_teacher_cache(text: str) -> dict[str, Any]:
    """Recipe fields from `views=8,dir=PATH`.

    >>> parse_teacher_cache("views=8")
    {'data.views': 8, 'teacher_cache': 'auto'}
    """
    values = dict(part.strip().partition("=")[::2] for part in text.split(","))
    views = values.pop("views", "")
    folder = values.pop("dir", "auto")
    if values or not (views.isdecimal() and int(views)) or not folder:
        raise RecipeError([f"--teacher-cache takes views=8 or views=8,dir=PATH; given {text!r}."])
    return {"data.views": int(views), "teacher_cache": folder}


def parse_label_counts(text: str) -> list[int]:
    """Numbers of labels from `1,5,20`.

    >>> parse_label_counts("1,5")
    [1, 5]
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) for part in parts):
        raise RecipeError([f"--labels-per-class takes numbers such as 1,5,20; given {text!r}."])
    return [int(part) for part in parts]


LABELS_PER_CLASS_HELP = (
    "Labeled images of each class to fit on; several numbers give a curve. By default all."
)
DRAWS_HELP = "Random draws of labels at each point of the curve. By default 5."

_TEACHER_COMMANDS = "distill transfer"
_RUN_COMMANDS = "train distill transfer"
_RECIPE_COMMANDS = "train distill transfer probe"

# Options by the heading that they stand under in the help text.
OPTIONS: dict[str | None, list[Option]] = {
    "Networks and method": [
        Option("train", "--model", "model", str,
               "Network to train: see cktf models. Or a run folder or weights file to start from."),
        Option(_TEACHER_COMMANDS, "--teacher", "teacher", str,
               "Trained network: a run folder, a weights file, or a network that comes with "
               "weights."),
        Option(_TEACHER_COMMANDS, "--teacher-weights", "teacher_weights", str,
               "Weights file for a --teacher that is the name of a network."),
        Option(_TEACHER_COMMANDS, "--student", "student", str,
               "Network to train: see cktf models; or timm:NAME, torchvision:NAME, "
               "FILE.py:FUNCTION."),
        Option(_TEACHER_COMMANDS, "--method", "method", str,
               "Distillation methods joined by +, such as cktf+kd: see cktf methods."),
        Option(_TEACHER_COMMANDS, "--student-taps", split_commas("student_taps"), str,
               "Modules whose outputs are the student's stages. Found by default.",
               "PATH,PATH,…"),
        Option(_TEACHER_COMMANDS, "--teacher-taps", split_commas("teacher_taps"), str,
               "Modules whose outputs are the teacher's stages. Found by default.",
               "PATH,PATH,…"),
        Option(_TEACHER_COMMANDS, "--student-embedding", "student_embedding", str,
               "Module whose output is the student's embedding, or whose input is: fc:input. "
               "Found by default.", "PATH"),
        Option(_TEACHER_COMMANDS, "--teacher-embedding", "teacher_embedding", str,
               "Module whose output is the teacher's embedding, or whose input is: fc:input. "
               "Found by default.", "PATH"),
        Option(_TEACHER_COMMANDS, "--student-size", "student_size", int,
               "Size of the student's images, to which they are resized.", "PIXELS"),
        Option(_TEACHER_COMMANDS, "--teacher-size", "teacher_size", int,
               "Size of the teacher's images, to which they are resized.", "PIXELS"),
        Option(_TEACHER_COMMANDS, "--teacher-cache", parse_teacher_cache, str,
               "Cache the teacher's outputs for N augmented views of each image on disk.",
               "views=N[,dir=DIR]"),
    ],
    "Data": [
        Option("train distill", "--data", "data.name", str, "Data set: see cktf datasets."),
        Option("distill", "--unlabeled",
               lambda name: {"data.name": name, "data.labels": False}, str,
               "Data set to train on without its labels; replaces --data."),
        Option("transfer", "--unlabeled", "data.name", str,
               "Data set to train on without its labels."),
        Option("transfer", "--labeled", "labeled.name", str,
               "Data set whose labels the classifiers learn. By default that of --unlabeled."),
        Option("probe", "--labeled", "data.name", str,
               "Data set whose labels the classifier learns."),
        Option("transfer", "--test", "labeled.test", str,
               "Data set whose test images are used. By default that of --labeled."),
        Option("probe", "--test", "data.test", str,
               "Data set whose test images are used. By default that of --labeled."),
        Option(_RECIPE_COMMANDS, "--data-dir", "data.dir", Path, "Folder of the data set."),
        Option("train distill", "--validation", "data.validation", float,
               "Fraction of each class's training images to hold out; the epoch that is best on "
               "them is kept."),
        Option("transfer", "--labels-per-class",
               lambda text: {"labels_per_class": parse_label_counts(text)}, str,
               LABELS_PER_CLASS_HELP, "N,N,…"),
        Option("transfer", "--draws", "draws", int, DRAWS_HELP),
    ],
    "Training": [
        Option(_RECIPE_COMMANDS, "--epochs", "epochs", int, "Passes over the training images."),
        Option("distill", "--init-epochs", "init_epochs", int,
               "Epochs of the initialization phase of ab, fsp and ft. By default an eighth of "
               "--epochs."),
        Option("transfer", "--scratch-epochs", "scratch_epochs", int,
               "Epochs of the student that is trained on the labels alone, for comparison."),
        Option(_RECIPE_COMMANDS, "--lr", "optimizer.lr", float,
               "Peak learning rate. By default 0.1, or 0.05 with schedule.name=multistep."),
        Option(_RECIPE_COMMANDS, "--batch-size", "data.batch_size", int, "Images a step."),
        Option(_RECIPE_COMMANDS, "--workers", "data.workers", int,
               "Processes that read images that do not fit in memory."),
        Option(_RECIPE_COMMANDS, "--device", "runtime.device", str,
               "Where to train. By default on a GPU that PyTorch sees, else on the CPU.",
               "auto|cpu|cuda"),
        Option(_RUN_COMMANDS, "--deterministic",
               lambda on: {"runtime.deterministic": True} if on else {}, bool,
               "Let a GPU compute the same bits each time, which is slower; a CPU always does."),
        Option(_RECIPE_COMMANDS, "--seed", "seed", int,
               "Random seed (weights, order, augmentation, negatives)."),
        Option(_RUN_COMMANDS, "--on-nonfinite", "runtime.on_nonfinite", str,
               "At a loss or gradient that is not finite: stop the run, or skip and count the "
               "step.", "stop|skip"),
        Option(_RUN_COMMANDS, "--track", "runtime.track", str,
               "Experiment trackers: tensorboard (default where installed), wandb, mlflow, …; or "
               "none.", "NAME,…"),
    ],
    None: [
        Option(_RUN_COMMANDS, "--out", None, Path, "Run folder. By default a new one in runs/."),
        Option("probe", "--out", None, Path,
               "Output folder. By default one in the run folder, or next to the weights file."),
        Option(_RUN_COMMANDS, "--recipe", None, Path,
               "Recipe file (YAML), or name of a shipped recipe. Options override its fields."),
        Option(_RECIPE_COMMANDS, "--set", None, list[str],
               "Set any field of the recipe, such as optimizer.lr=0.02. Can be repeated.",
               "FIELD=VALUE"),
        Option(_RECIPE_COMMANDS, "--resume", None, str,
               "Resume a run folder; auto resumes the run in --out, if there is one.",
               "RUN|auto"),
        Option(_RECIPE_COMMANDS, "--dry-run", None, bool,
               "Check the run on two batches and print its recipe; train nothing."),
        Option(_RECIPE_COMMANDS, "--trust-code", None, bool,
               "Run the Python code that a recipe or run names as its network."),
    ],
}  # fmt: skip


def options_of_command(command: str) -> list[tuple[str | None, Option]]:
    """Options of a command with their headings, in the order of the table."""
    return [
        (heading, option)
        for heading, options in OPTIONS.items()
        for option in options
        if command in option.commands.split()
    ]


# Names of options in other tools; those of fields are known to the recipe.
_OTHER_NAMES = {
    "--output": "--out", "--output-dir": "--out", "--save-dir": "--out", "--config": "--recipe",
    "--cfg": "--recipe", "--checkpoint": "--resume", "--val": "--validation",
    "--gpu": "--device cuda", "--cuda": "--device cuda", "--cpu": "--device cpu",
    "--pretrained": "a network's own weights, as in --{network} 'timm:resnet18(pretrained=True)'",
}  # fmt: skip


def suggest_option(command: str, name: str, names: Iterable[str]) -> str:
    """Say what an unknown option of a command may mean, among the names of its options."""
    from cktf.recipes.files import suggest_field

    options = [option for _, option in options_of_command(command)]
    network = "model" if command == "train" else "student"
    if name in _OTHER_NAMES and options:
        return f"Did you mean {_OTHER_NAMES[name].format(network=network)}?"
    if options:
        kind = "train" if command == "probe" else command
        key = network if name in ("--model", "--student", "--network", "--arch") else name[2:]
        if (field := suggest_field(kind, key)) is not None:
            set_by = next((option.name for option in options if option.field == field), None)
            return f"Did you mean {set_by or f'--set {field}=…'}?"
    near = get_close_matches(name[2:], [known[2:] for known in names], n=1, cutoff=0.5)
    return f"Did you mean --{near[0]}?" if near else f"See cktf {command} --help."


# Options of commands without a recipe.
DataDirOption = Annotated[Path | None, typer.Option("--data-dir", help="Folder of the data set.")]
NetworkOption = Annotated[
    str | None,
    typer.Option(
        metavar="FILE.py:FUNCTION",
        help="Builds the network of a run that was made in Python.",
    ),
]
TrustCodeOption = Annotated[
    bool,
    typer.Option("--trust-code", help="Run the Python code that a run names as its network."),
]
