"""What a run was given that its recipe has no name for.

A teacher made in Python is `custom` in every recipe, and a data set's name says nothing of images
that came or went. So the run folder notes them, and a run is continued with what it began with.
"""

import json
from typing import Any

from cktf.engine import RunFolder
from cktf.errors import RunFolderError
from cktf.files import write_atomically
from cktf.recipes import CUSTOM, DistillRecipe, Recipe
from cktf.taps.cached import hash_tensors
from cktf.workflows.components import RunComponents

NOTE = "given.json"


def write_input_fingerprint(recipe: Recipe, components: RunComponents, run: RunFolder) -> None:
    """Write down what a run is given."""
    text = (json.dumps(_given(recipe, components)) + "\n").encode()
    run.insist(lambda: write_atomically(run.path / NOTE, text), "what it was given")


def check_input_fingerprint(recipe: Recipe, components: RunComponents, run: RunFolder) -> None:
    """Raise RunFolderError where a run that has learned something was given something else."""
    note = run.path / NOTE
    if not note.is_file() or not (run.finished or any(run.saved.folder.glob("*.pt"))):
        return
    before, now = json.loads(note.read_text()), _given(recipe, components)
    for what in now:
        if before[what] != now[what]:
            raise RunFolderError(
                f"{run.path} began with other {what} ({before[what]}; now {now[what]}), and is "
                "continued with the same. Give those, or choose another out."
            )


def _given(recipe: Recipe, components: RunComponents) -> dict[str, Any]:
    made = isinstance(recipe, DistillRecipe) and recipe.teacher == CUSTOM
    teacher = components.teacher if made else None
    return {
        "training images": components.data.train.samples,
        "teacher": None if teacher is None else hash_tensors(teacher.state_dict())[:16],
    }
