"""A run that is continued with another number of epochs."""

import json

import pytest
import yaml
from small_runs import assert_equal_runs, read_metrics, run_command

from cktf.errors import RecipeError, RunFolderError

CONSTANT = {"schedule": {"name": "multistep", "milestones": []}}


@pytest.mark.parametrize("method", ["cktf+kd", "ab+kd"])
def test_at_a_constant_rate_two_parts_are_one_run(small_run, method):
    """Bit for bit, also through first phases, whose default length follows the epochs."""
    settings = {"method": method, "overrides": CONSTANT | {"init_epochs": 1}}
    whole = small_run("whole", epochs=3, **settings)
    small_run("parts", epochs=1, **settings)
    parts = small_run("parts", epochs=3, resume=True, **settings)
    assert_equal_runs(whole, parts)
    assert parts.summary["epochs"] == 3
    assert parts.summary["earlier_epochs"] == [1]
    recipe = yaml.safe_load((parts.folder / "recipe.yaml").read_text())
    assert (recipe["epochs"], recipe["earlier_epochs"]) == (3, [1])
    # The finished run is read, and not trained again.
    assert_equal_runs(parts, small_run("parts", epochs=3, resume=True, **settings))


def test_the_rate_follows_the_schedule_of_the_new_number(small_run, interrupted_run, capsys):
    """Also if the longer run is stopped and continued once more."""
    whole = read_metrics(small_run("whole", epochs=4).folder)
    small_run(epochs=2)
    interrupted_run(3, epochs=4, resume=True)
    run = small_run(epochs=4, resume=True)
    rows = read_metrics(run.folder)
    assert [row["lr"] for row in rows[2:]] == [row["lr"] for row in whole[2:]]
    assert [row["lr"] for row in rows[:2]] != [row["lr"] for row in whole[:2]]
    log = (run.folder / "log.txt").read_text()
    assert log.count("The run goes on to 4 epochs in place of 2. From epoch 3") == 1
    assert log.count("had fallen to zero and rises again") == 1
    assert run.summary["earlier_epochs"] == [2]


def test_an_unfinished_run_may_be_made_longer(small_run, interrupted_run):
    interrupted_run(3, overrides=CONSTANT)
    run = small_run(epochs=3, overrides=CONSTANT, resume=True)
    assert_equal_runs(small_run("whole", epochs=3, overrides=CONSTANT), run)


def test_fewer_epochs_than_are_done_are_refused(small_run):
    run = small_run(epochs=2)
    with pytest.raises(
        RunFolderError, match="has 2 epochs already, and cannot be continued with 1"
    ):
        small_run(epochs=1, resume=True)
    with pytest.raises(RecipeError, match="differs in: method"):
        small_run(epochs=3, method="ce", resume=True)
    assert json.loads((run.folder / "summary.json").read_text())["epochs"] == 2


def test_the_command_line_makes_a_finished_run_longer(tmp_path):
    run = tmp_path / "run"
    small = "--set data.per_class=4 --set data.batch_size=20"
    run_command(f"train --model resnet8 --data fashion-mini --epochs 1 {small} --out {run}")
    assert "epochs: 2" in run_command(f"train --resume {run} --epochs 2 --dry-run")
    run_command(f"train --resume {run} --epochs 2")
    assert [row["epoch"] for row in read_metrics(run)] == [1, 2]
    assert "--resume" not in run_command(f"train --resume {run} --epochs 1", exit_code=2)
