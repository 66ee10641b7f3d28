"""What a run was given that its recipe has no name for.

A teacher made in Python is `custom` in every recipe, and a data set's name says nothing of images
that came or went. So the run folder notes them, and a run is continued with what it began with.
"""

import json
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor, nn

from cktf.engine import RunFolder, write_atomically
from cktf.errors import RunFolderError
from cktf.recipes import CUSTOM, DistillRecipe, Recipe
from cktf.workflows.parts import Parts

NOTE = "given.json"


def note_given(recipe: Recipe, parts: Parts, run: RunFolder) -> None:
    """Write down what a run is given."""
    text = (json.dumps(_given(recipe, parts)) + "\n").encode()
    run.insist(lambda: write_atomically(run.path / NOTE, text), "what it was given")


def check_given(recipe: Recipe, parts: Parts, run: RunFolder) -> None:
    """Raise RunFolderError where a run that has learnt something was given something else."""
    note = run.path / NOTE
    if not note.is_file() or not (run.finished or any(run.saved.folder.glob("*.pt"))):
        return
    before, now = json.loads(note.read_text()), _given(recipe, parts)
    for what in now:
        if before[what] != now[what]:
            raise RunFolderError(
                f"{run.path} began with other {what} ({before[what]}; now {now[what]}), and is "
                "continued with the same. Give those, or choose another out."
            )


def _given(recipe: Recipe, parts: Parts) -> dict[str, Any]:
    made = isinstance(recipe, DistillRecipe) and recipe.teacher == CUSTOM
    return {
        "training images": parts.data.train.samples,
        "teacher": _weights(parts.teacher) if made and parts.teacher is not None else None,
    }


def _weights(network: nn.Module) -> str:
    """A fingerprint of a network's tensors; what else its state holds is left out."""
    digest = sha256()
    for name, value in sorted(network.state_dict().items()):
        if isinstance(value, Tensor) and not value.is_quantized:
            numbers = value.detach().cpu().contiguous().view(-1).view(torch.uint8)
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(numbers.numpy().data)
    return digest.hexdigest()[:16]
