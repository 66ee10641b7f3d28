"""The student of a run that is not finished: that of its last checkpoint."""

from pathlib import Path

from cktf.engine import RunFolder, announce
from cktf.engine.checkpointing import TrainingPosition, upgrade_checkpoint
from cktf.errors import CheckpointError, RunFolderError
from cktf.recipes import (
    CUSTOM,
    TransferRecipe,
    find_weights_file,
    parse_any_recipe,
    read_recipe,
    refuse_code,
)
from cktf.taps import count_logits
from cktf.workflows.run import save_student
from cktf.workflows.train import prepare

_FILE = "unfinished.safetensors"


def find_student_weights(run: Path, *, trust_code: bool = False) -> Path:
    """Return the weights file of a run, for which an unfinished run writes one and says so.

    Args:
        run: a run folder. If it is not finished, it gets a file of the last checkpoint's student.
        trust_code: whether the user's own code that builds an unfinished run's networks may run.

    Raises:
        CktfError: there is neither a finished run nor a checkpoint, or networks and data of an
            unfinished run cannot be loaded.
    """
    folder = RunFolder(run)
    if folder.summary.is_file() or not folder.recipe.is_file() or not folder.checkpoints.paths:
        return find_weights_file(str(run.absolute()))
    fields = read_recipe(folder.recipe)
    recipe = parse_any_recipe(fields)
    networks = {fields.get(name) for name in ("model", "student", "teacher")}
    if isinstance(recipe, TransferRecipe) or CUSTOM in {recipe.data.name, *networks}:
        raise RunFolderError(
            f"{run} is unfinished, and its student can be read before its end only if its networks "
            "and data have names. Finish it where it was started, with resume."
        )
    if not trust_code:
        refuse_code(fields, folder.recipe)
    state = folder.checkpoints.newest()
    assert state is not None
    try:
        state = upgrade_checkpoint(state)
        _, components = prepare(recipe, run, resume=True, trust_code=trust_code)
        components.student.load_state_dict(state["student"])
    except (KeyError, RuntimeError, ValueError) as error:
        message = f"The checkpoint in {run} belongs to another run: {error}."
        raise CheckpointError(message) from error
    images = next(iter(components.data.train.epoch(1))).images[:2]
    path = run / _FILE
    save_student(components, count_logits(components.student, images), images, path)
    position = TrainingPosition(*state["position"])
    announce(f"{run} is unfinished: this is its student {position} of {recipe.epochs}.", show=True)
    return path
