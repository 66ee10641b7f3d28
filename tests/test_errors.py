"""What errors say: to users of Python and of the command line, and how extras are installed."""

import json
from importlib import metadata

import pytest

import cktf
from cktf.errors import (
    CktfError,
    RecipeError,
    command_line_wording,
    install_command,
)


@pytest.mark.parametrize(("message", "arguments"), {
    "Choose another --out, or --resume auto.": "out=…, resume=True",
    "Try --set optimizer.lr=1e-3, or --set a.b=…": (
        "overrides={'optimizer.lr': 1e-3}, overrides={'a.b': …}"
    ),
    "Train with --set runtime.precision=float32.": "overrides={'runtime.precision': 'float32'}",
    "Give --set runtime.channels_last=false.": "overrides={'runtime.channels_last': False}",
    "Go on: --on-nonfinite skip.": "overrides={'runtime.on_nonfinite': 'skip'}",
    "needs a folder: --data-dir DIR.": "overrides={'data.dir': DIR}",
    "--student-taps or --teacher-taps path,path": (
        "overrides={'student_taps': …}, overrides={'teacher_taps': …}"
    ),
    "give --teacher-weights FILE, or": "overrides={'teacher_weights': …}",
    "Give --teacher, or set --labels-per-class": "teacher=…, labels_per_class=…",
    "--teacher NETWORK, --teacher b": "teacher=NETWORK, teacher=…",
    # Commands, options of commands that Python has not, and other dashes.
    "(cktf train --model a --out b; then --teacher runs/b)": "teacher=runs/b",
    "Give one with --teacher a=FILE or other --results": "",
    "a -- b --int8": "",
}.items())  # fmt: skip
def test_python_reads_the_arguments_that_options_are(message, arguments):
    expected = f"{message} [In Python: {arguments}]" if arguments else message
    assert str(CktfError(message)) == str(RecipeError([message])) == expected
    assert str(CktfError(expected)) == expected
    with command_line_wording():
        assert str(CktfError(message)) == message
    assert str(CktfError(message)) == expected


def test_a_mistake_in_python_names_its_arguments(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "epoch-00001.pt").touch()
    with pytest.raises(CktfError) as caught:
        cktf.teach("resnet8", train="cifar10", out=tmp_path)
    assert "out=…" in str(caught.value)
    assert "resume=True" in str(caught.value)
    assert "overrides={'data.dir': DIR}" in str(caught.value)
    assert str(caught.value).count("In Python") == 1


@pytest.mark.parametrize(("record", "command"), [
    ({"url": "file:///src/cktf", "dir_info": {"editable": True}},
     "pip install -e '.[report]' in the folder /src/cktf"),
    ({"url": "file:///a%20b/cktf", "dir_info": {}},
     "pip install '.[report]' in the folder /a b/cktf"),
    ({"url": "https://host/cktf", "vcs_info": {"vcs": "git", "commit_id": "1"}},
     "pip install 'cktf[report] @ git+https://host/cktf'"),
    ({"url": "file:///a/cktf.whl", "archive_info": {}},
     "pip install 'cktf[report] @ file:///a/cktf.whl'"),
    (None, "pip install 'cktf[report]'"),
])  # fmt: skip
def test_an_extra_is_installed_from_where_the_package_came(monkeypatch, record, command):
    class Distribution:
        def read_text(self, name):
            assert name == "direct_url.json"
            return record and json.dumps(record)

    monkeypatch.setattr(metadata, "distribution", lambda name: Distribution())
    assert install_command("report") == command


def test_an_extra_of_a_package_that_is_not_installed(monkeypatch):
    def absent(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", absent)
    assert install_command("hf").startswith("pip install '.[hf]' in the folder /")
