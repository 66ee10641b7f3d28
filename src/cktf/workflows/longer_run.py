"""A run that is continued with another number of epochs than it was planned for.

From there on, its learning rate follows the schedule of the new number, and all else goes on. With
a constant rate, N epochs and then M more are N + M, bit for bit.
"""

from pathlib import Path

from cktf.engine import MAIN, RunFolder
from cktf.errors import RunFolderError
from cktf.recipes import (
    DistillRecipe,
    Recipe,
    TransferRecipe,
    parse_any_recipe,
    read_recipe,
    recipe_hash,
)
from cktf.user_paths import expand_user_path


def continue_with_epochs(recipe: Recipe, out: str | Path | None, *, resume: bool) -> Recipe:
    """Return a recipe that may continue the run in `out` with its own number of epochs.

    Its `earlier_epochs` name the numbers that the run was planned for before. Without a run to
    continue, there are none.

    Raises:
        RunFolderError: the run has more epochs already, or no checkpoint to continue from.
    """
    run = None if out is None else RunFolder(expand_user_path(out))
    if run is None or not resume or not run.recipe.is_file():
        return recipe.model_copy(update={"earlier_epochs": ()})
    before = parse_any_recipe(read_recipe(run.recipe))
    if isinstance(before, TransferRecipe) or not (run.finished or run.checkpoints.paths):
        return recipe
    earlier = before.earlier_epochs
    if recipe.epochs != before.epochs:
        done = _epochs_done(run)
        if recipe.epochs < done:
            raise RunFolderError(
                f"{run.path} has {done} epochs already, and cannot be continued with "
                f"{recipe.epochs}. Give more epochs, or train a new run in another folder."
            )
        if not run.checkpoints.paths:
            raise RunFolderError(
                f"{run.path} has no checkpoint from which it could be continued. Train a new run "
                "in another folder, or begin with its weights: give it as the network to train."
            )
        earlier = (*earlier, before.epochs)
    update: dict[str, object] = {"earlier_epochs": earlier}
    if isinstance(before, DistillRecipe) and isinstance(recipe, DistillRecipe):
        # The default follows `epochs`, and the first phases are over.
        shorter = DistillRecipe(**{**before.model_dump(), "init_epochs": None})
        longer = DistillRecipe(**{**recipe.model_dump(), "init_epochs": None})
        if (before.init_epochs, recipe.init_epochs) == (shorter.init_epochs, longer.init_epochs):
            update["init_epochs"] = before.init_epochs
    return recipe.model_copy(update=update)


def earlier_identities(recipe: Recipe) -> list[str]:
    """Hashes of the recipes that a run had with its earlier numbers of epochs."""
    earlier = recipe.earlier_epochs
    return [
        recipe_hash(recipe.model_copy(update={"epochs": n, "earlier_epochs": earlier[:index]}))
        for index, n in enumerate(earlier)
    ]


def describe_change_of_epochs(recipe: Recipe, run: RunFolder) -> list[str]:
    """Say how a run goes on whose folder has another number of epochs; nothing if it is the same.

    The folder's recipe is that of its last start.
    """
    if not recipe.earlier_epochs or not run.recipe.is_file():
        return []
    before, done = read_recipe(run.recipe)["epochs"], _epochs_done(run)
    if before == recipe.epochs:
        return []
    text = (
        f"The run goes on to {recipe.epochs} epochs in place of {before}. From epoch {done + 1}, "
        f"the learning rate follows the schedule of {recipe.epochs} epochs."
    )
    if recipe.schedule.name == "onecycle" and done >= before:
        text += (
            " It had fallen to zero and rises again, so that the accuracy falls at first. A new "
            f"run of {recipe.epochs} epochs may end higher."
        )
    return [text]


def _epochs_done(run: RunFolder) -> int:
    """Number of epochs of the main phase in a run's record."""
    return sum(row["phase"] == MAIN for row in run.rows())
