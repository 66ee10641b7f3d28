"""Inputs of a run that its recipe cannot name: a teacher made in Python, and the number of images.

The run folder holds a fingerprint of both, and a run is continued with the same inputs only.
"""

import json
from typing import Any

from cktf.engine import RunFolder
from cktf.errors import RunFolderError
from cktf.files import write_atomically
from cktf.recipes import CUSTOM, DistillRecipe, Recipe
from cktf.taps.cached import hash_tensors
from cktf.workflows.components import RunComponents

FINGERPRINT_FILE = "given.json"


def write_input_fingerprint(recipe: Recipe, components: RunComponents, run: RunFolder) -> None:
    """Write the fingerprint of a run's inputs to its folder."""
    text = (json.dumps(_input_fingerprint(recipe, components)) + "\n").encode()
    path = run.path / FINGERPRINT_FILE
    run.write_with_retries(lambda: write_atomically(path, text), "the fingerprint of its inputs")


def check_input_fingerprint(recipe: Recipe, components: RunComponents, run: RunFolder) -> None:
    """Raise RunFolderError if a run that has a checkpoint or is finished had other inputs."""
    path = run.path / FINGERPRINT_FILE
    if not path.is_file() or not (run.finished or any(run.checkpoints.folder.glob("*.pt"))):
        return
    before, now = json.loads(path.read_text()), _input_fingerprint(recipe, components)
    for name in now:
        if before[name] != now[name]:
            raise RunFolderError(
                f"{run.path} began with other {name} ({before[name]}; now {now[name]}), and is "
                "continued with the same. Give those, or choose another out."
            )


def _input_fingerprint(recipe: Recipe, components: RunComponents) -> dict[str, Any]:
    is_object = isinstance(recipe, DistillRecipe) and recipe.teacher == CUSTOM
    teacher = components.teacher if is_object else None
    return {
        "training images": components.data.train.samples,
        "teacher": None if teacher is None else hash_tensors(teacher.state_dict())[:16],
    }
