"""Standard output that is closed, full, or cannot show a character: a run outlives it."""

import os
import subprocess
import sys

import pytest

from cktf.engine.progress import announce

TRAIN = (
    "cktf train --model resnet8 --data imagefolder:photos --set data.batch_size=4 "
    "--set runtime.track=none --epochs 1"
)
TABLE = "cktf methods"


def shell(line, folder, **environment):
    """Run a line of a shell, in which `cktf` is this package's."""
    line = line.replace("cktf", f"{sys.executable} -m cktf", 1)
    return subprocess.run(
        ["bash", "-c", f"{line}; exit ${{PIPESTATUS[0]}}"], cwd=folder, capture_output=True,
        text=True, timeout=120, env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("end", ["2>&1 | true", ">/dev/full 2>&1", "<&- >&- 2>&-"])
def test_training_outlives_its_output(tmp_path, class_folders, end):
    done = shell(f"{TRAIN} --out run {end}", tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "summary.json").is_file()
    assert "Error" not in done.stderr
    # No file of the run took the place of standard output.
    assert "epoch 1/1 " not in (tmp_path / "run" / "log.txt").read_text()


@pytest.mark.parametrize(
    ("line", "code", "words"),
    [
        (f"{TABLE} >/dev/full", 2, "No space left on device: standard output"),
        (f"{TABLE} | true", 0, ""),
        ("cktf evaluate nowhere >&-", 2, "holds no run"),
    ],
)
def test_output_that_is_lost_is_told_where_it_is_all_there_is(tmp_path, line, code, words):
    done = shell(line, tmp_path)
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert bool(words) == bool(done.stderr)


@pytest.mark.slow
def test_characters_that_a_terminal_lacks_are_escaped(tmp_path, class_folders):
    ascii_only = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    done = shell(f"{TRAIN} --out run", tmp_path, **ascii_only)
    assert done.returncode == 0, done.stderr
    assert r"% \xb1 " in done.stdout
    done = shell("cktf evaluate überall", tmp_path, PYTHONIOENCODING="ascii")
    assert done.returncode == 2
    assert r"\xfcberall holds no run" in done.stderr


def test_progress_is_lost_where_it_cannot_be_shown(monkeypatch, small_run):
    """From Python, where the streams are the caller's."""
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        monkeypatch.setattr(sys, "stderr", full)
        announce("a line", True)
        run = small_run(epochs=1)
        monkeypatch.undo()
        assert run.summary["epochs"] == 1
        # What is left in the buffer must not fail when the file is closed.
        os.dup2(os.open(os.devnull, os.O_WRONLY), full.fileno())
