"""The teacher of a run, identified by its weights.

A recipe names a teacher by a path, which may move or hold other weights later. A run is continued
with a teacher of the same weights only, wherever it is: the run folder holds their hash.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from cktf.engine import RunFolder
from cktf.errors import RunFolderError
from cktf.files import write_atomically
from cktf.models import short_sha256
from cktf.recipes import (
    Recipe,
    TrainRecipe,
    TransferRecipe,
    find_weights_file,
    is_weights_path,
    with_absolute_paths,
)
from cktf.user_paths import expand_user_path

TEACHER_REF_FILE = "teacher.json"


@dataclass(frozen=True)
class TeacherRef:
    """A teacher in a run folder or file, or a network with a file of weights.

    Attributes:
        teacher: its path at the first step; checkpoints identify their recipe by it.
        sha256: the first 8 hex digits of the hash of its weights, with the network that they are
            loaded into where that is named apart from them.
        teacher_weights: path of the weights at the first step, if they are named apart.
    """

    teacher: str
    sha256: str
    teacher_weights: str | None = None


def read_teacher_ref(run: Path) -> TeacherRef | None:
    """Read the teacher that a run folder names; of a transfer, that of its distillation."""
    for folder in (run, run / "student"):
        if (folder / TEACHER_REF_FILE).is_file():
            return TeacherRef(**json.loads((folder / TEACHER_REF_FILE).read_text()))
    return None


def teacher_ref_of(recipe: Recipe | TransferRecipe) -> TeacherRef | None:
    """Identify the teacher of a recipe; None for an object or a network with its own weights."""
    if isinstance(recipe, TrainRecipe):
        return None
    if is_weights_path(recipe.teacher):
        path = str(expand_user_path(recipe.teacher).absolute())
        return TeacherRef(path, short_sha256(find_weights_file(recipe.teacher)))
    absolute = with_absolute_paths(recipe)
    assert not isinstance(absolute, TrainRecipe)
    # The check of the recipe reports weights that are missing.
    if absolute.teacher_weights is None or not Path(absolute.teacher_weights).is_file():
        return None
    sha256 = short_sha256(Path(absolute.teacher_weights))
    # The same weights in another network are another teacher.
    return TeacherRef(absolute.teacher, f"{sha256} in {absolute.teacher}", absolute.teacher_weights)


def check_teacher_ref(recipe: Recipe | TransferRecipe, run: Path) -> None:
    """Raise RunFolderError if the path of a run's teacher has other weights now."""
    before, now = read_teacher_ref(run), teacher_ref_of(recipe)
    if before and now and before.sha256 != now.sha256:
        raise RunFolderError(
            f"{now.teacher_weights or now.teacher} has other weights now (sha256 "
            f"{now.sha256[:8]}…) than the teacher of {run} had ({before.sha256[:8]}…)."
        )


def with_original_teacher(recipe: Recipe, run: RunFolder) -> Recipe:
    """Return the recipe with the path that a teacher of the same weights had at the first step.

    Before the first step, this writes the teacher's path and hash to the run folder.
    """
    now, before = teacher_ref_of(recipe), read_teacher_ref(run.path)
    if now is None:
        return recipe
    if not any(run.checkpoints.folder.glob("*.pt")):
        text = (json.dumps(asdict(now)) + "\n").encode()
        path = run.path / TEACHER_REF_FILE
        run.write_with_retries(lambda: write_atomically(path, text), "the hash of its teacher")
    elif before is not None and before.sha256 == now.sha256:
        update = {"teacher": before.teacher, "teacher_weights": before.teacher_weights}
        return recipe.model_copy(update=update)
    return recipe
