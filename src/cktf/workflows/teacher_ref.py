"""Which teacher a run has: a recipe names it by a path, and what lies there may change or move.

So the path and the weights' fingerprint are noted in the run folder before the first step. A run is
continued with a teacher of the same weights wherever it is, and with no other.
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

NOTE = "teacher.json"


@dataclass(frozen=True)
class TeacherRef:
    """A teacher of a run folder or file, or a network with a file of weights.

    Attributes:
        teacher: where it was, as the recipe has it; checkpoints know their recipe by that.
        sha256: fingerprint of its weights, and with these the network that they are put into.
        teacher_weights: likewise where they were, if they are given apart from the network.
    """

    teacher: str
    sha256: str
    teacher_weights: str | None = None


def read_teacher_ref(run: Path) -> TeacherRef | None:
    """What a run's folder says of its teacher; of a transfer, that of its first part."""
    for folder in (run, run / "student"):
        if (folder / NOTE).is_file():
            return TeacherRef(**json.loads((folder / NOTE).read_text()))
    return None


def teacher_ref_of(recipe: Recipe | TransferRecipe) -> TeacherRef | None:
    """The teacher of a recipe; None for an object, and for a network that brings its own weights.

    Raises:
        CheckpointError: a folder without weights.
    """
    if isinstance(recipe, TrainRecipe):
        return None
    if is_weights_path(recipe.teacher):
        where = str(expand_user_path(recipe.teacher).absolute())
        return TeacherRef(where, short_sha256(find_weights_file(recipe.teacher)))
    there = with_absolute_paths(recipe)
    assert not isinstance(there, TrainRecipe)
    # One that is missing is told of by the recipe's check.
    if there.teacher_weights is None or not Path(there.teacher_weights).is_file():
        return None
    sha256 = short_sha256(Path(there.teacher_weights))
    # The same weights in another network are another teacher.
    return TeacherRef(there.teacher, f"{sha256} in {there.teacher}", there.teacher_weights)


def check_teacher_ref(recipe: Recipe | TransferRecipe, run: Path) -> None:
    """Raise RunFolderError where other weights lie by now where a run's teacher was."""
    before, now = read_teacher_ref(run), teacher_ref_of(recipe)
    if before and now and before.sha256 != now.sha256:
        raise RunFolderError(
            f"{now.teacher_weights or now.teacher} has other weights by now (sha256 "
            f"{now.sha256[:8]}…) than those that taught {run} ({before.sha256[:8]}…)."
        )


def with_original_teacher(recipe: Recipe, run: RunFolder) -> Recipe:
    """The recipe with its teacher where that was at the first step, which is noted in the folder.

    A run of before there were notes, and one whose teacher has other weights, is as it is given.
    """
    now, before = teacher_ref_of(recipe), read_teacher_ref(run.path)
    if now is None:
        return recipe
    if not any(run.saved.folder.glob("*.pt")):
        text = (json.dumps(asdict(now)) + "\n").encode()
        run.insist(lambda: write_atomically(run.path / NOTE, text), "its teacher's fingerprint")
    elif before is not None and before.sha256 == now.sha256:
        update = {"teacher": before.teacher, "teacher_weights": before.teacher_weights}
        return recipe.model_copy(update=update)
    return recipe
