"""Errors that users can fix.

Every message states the rule, what was given and what to try. It is written with the options of the
command line, which prints it alone and exits with code 2; `--debug` shows the traceback as well. To
a user of Python the same message adds the arguments that these options are: `out=…` for `--out`.
"""

import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from difflib import get_close_matches
from importlib import metadata
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

_on_command_line = ContextVar("on_command_line", default=False)
_ARGUMENTS = (
    "model|teacher|student|method|test|epochs|seed|out|labeled|unlabeled|draws|labels-per-class"
)
_FIELDS = "(?:student|teacher)-(?:taps|embedding|size|weights)|init-epochs|scratch-epochs"
# Options in prose, and what they are in Python.
_IN_PYTHON = [
    (re.compile(pattern), argument)
    for pattern, argument in (
        (r"--resume \S+ alone", "resume=True and its own recipe"),
        (r"--resume (?:auto|RUN)", "resume=True"),
        (r"--set (?P<field>[\w.]+)=(?P<value>\S*[^\s,;.)])", "overrides={'%(field)s': %(value)s}"),
        (r"--on-nonfinite (?P<value>\w+)", "overrides={'runtime.on_nonfinite': %(value)s}"),
        (r"--validation (?P<value>[\d.]*\d)", "overrides={'data.validation': %(value)s}"),
        (r"--lr (?P<value>\S*\w)", "overrides={'optimizer.lr': %(value)s}"),
        (
            r"--teacher-cache views=(?P<value>\w+)",
            "overrides={'data.views': %(value)s, 'teacher_cache': 'auto'}",
        ),
        (r"--data-dir(?: DIR)?", "overrides={'data.dir': DIR}"),
        (rf"--(?P<name>{_FIELDS})(?: FILE)?", "overrides={'%(name)s': …}"),
        (r"--trust-code", "trust_code=True"),
        (r"--data\b(?!-)", "train=…"),
        (rf"--(?P<name>{_ARGUMENTS}) (?P<value>[A-Z]{{2,}}\b|\w+/[\w/]+)", "%(name)s=%(value)s"),
        (rf"--(?P<name>{_ARGUMENTS})\b(?![-=]| [\w-]+=)", "%(name)s=…"),
    )
]
_COMMAND = re.compile(r"\bcktf [a-z]+ [^);,]*")
_ADDED = re.compile(r"\s\[In Python: .*?\](?=\s|$)")


@contextmanager
def command_line_wording() -> Iterator[None]:
    """Let messages name the options of the command line inside the block."""
    token = _on_command_line.set(True)
    try:
        yield
    finally:
        _on_command_line.reset(token)


def add_arguments(message: str) -> str:
    """Add to a message the arguments in Python that its options are; commands are left out.

    >>> add_arguments("runs/a holds a run. Choose another --out, or --set optimizer.lr=0.01.")
    "runs/a holds a run. Choose another --out, or --set optimizer.lr=0.01. [In Python: out=…, ...]"
    """
    # A message may quote one that has its arguments already.
    message = _ADDED.sub("", message)
    prose = _COMMAND.sub("", message)
    found: dict[int, str] = {}
    for pattern, argument in _IN_PYTHON:
        for match in pattern.finditer(prose):
            groups = match.groupdict()
            groups["name"] = groups.get("name", "").replace("-", "_")
            if "overrides" in argument and "value" in groups:
                groups["value"] = _python_value(groups["value"])
            found.setdefault(match.start(), argument % groups)
    arguments = dict.fromkeys(argument for _, argument in sorted(found.items()))
    end = "\n" if "\n" in message else " "
    return f"{message}{end}[In Python: {', '.join(arguments)}]" if arguments else message


def _python_value(text: str) -> str:
    """Write a value of the command line in Python: words in quotes, but no numbers or placeholders.

    >>> _python_value("float32"), _python_value("false"), _python_value("0.01"), _python_value("…")
    ("'float32'", 'False', '0.01', '…')
    """
    if text in ("true", "false", "null", "none"):
        return {"true": "True", "false": "False"}.get(text, "None" if text == "null" else "'none'")
    return repr(text) if re.fullmatch(r"[a-z][\w./+-]*", text) else text


class CktfError(Exception):
    """A mistake that the user can fix. Base class of all errors raised on purpose."""

    def __str__(self) -> str:
        message = super().__str__()
        return message if _on_command_line.get() else add_arguments(message)


class ShapeError(CktfError, ValueError):
    """Tensors whose shapes do not fit the method or each other."""


class TapError(CktfError):
    """A network without the features that a method reads."""


class ModelError(CktfError):
    """An unknown network, or one that cannot be built with its arguments."""


class CheckpointError(CktfError):
    """A weights file that is missing, damaged, or belongs to another network."""


class DataError(CktfError):
    """A data set that is unknown, missing, damaged, or does not fit the networks."""


class PathError(CktfError, ValueError):
    """A path in the home folder of an unknown user."""


class MethodError(CktfError):
    """An unknown method, or one that does not fit the networks, data or options."""


class RecipeError(CktfError):
    """All problems with a recipe or with options, reported at once.

    Attributes:
        problems: one message each.
    """

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = list(problems)
        message = self.problems[0] if self.problems else ""
        if len(self.problems) > 1:
            lines = "\n".join(f"  - {problem}" for problem in self.problems)
            message = f"{len(self.problems)} problems in the recipe:\n{lines}"
        super().__init__(message)


class RunFolderError(CktfError):
    """A run folder that cannot be written, read or resumed."""


class TrainingError(CktfError):
    """Training that cannot go on: numbers that are not finite, or too little memory."""


class Interrupted(KeyboardInterrupt):
    """A signal asked a run to stop; the run can be resumed.

    Attributes:
        folder: of the run.
    """

    def __init__(self, message: str, folder: Path) -> None:
        super().__init__(message)
        self.folder = folder


def nearest(name: str, known: Iterable[str]) -> str:
    """Suggest the nearest known name for an unknown one.

    >>> nearest("resnet9", ["resnet8", "wrn_16_2"])
    "Did you mean 'resnet8'?"
    """
    known = sorted(known)
    if matches := get_close_matches(name, known, n=1, cutoff=0.5):
        return f"Did you mean {matches[0]!r}?"
    return f"Known: {', '.join(known)}." if known else "None is known."


def install_command(extra: str) -> str:
    """The command that adds an extra of this package to the installation that runs.

    pip records where it installed a package from (PEP 610): a folder, or a repository. Nothing is
    recorded of a package from an index.
    """
    try:
        record = metadata.distribution("cktf").read_text("direct_url.json")
    except metadata.PackageNotFoundError:
        # Imported from its source folder without an installation.
        folder = Path(__file__).parents[2]
        return f"pip install '.[{extra}]' in the folder {folder}"
    origin = json.loads(record) if record else {}
    url = origin.get("url", "")
    if "dir_info" in origin:
        editable = "-e " if origin["dir_info"].get("editable") else ""
        folder = Path(url2pathname(urlsplit(url).path))
        return f"pip install {editable}'.[{extra}]' in the folder {folder}"
    vcs = f"{origin['vcs_info']['vcs']}+" if "vcs_info" in origin else ""
    return f"pip install 'cktf[{extra}]{f' @ {vcs}{url}' if url else ''}'"
