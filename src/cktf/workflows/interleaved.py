"""Several students of one teacher, trained in turn, a step each: one pass of the teacher for all.

Students with the same seed and data see the same batches, so that the teacher, often the larger
part of the time, runs once for all of them. Each run is the same, bit for bit, as if it were alone.
"""

import random
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cktf.engine import Accuracy
from cktf.errors import Interrupted, RecipeError
from cktf.recipes import DistillRecipe
from cktf.taps import SharedTap
from cktf.workflows.run import Run, executing
from cktf.workflows.train import prepare

# Fields in which students that take turns are alike: they decide the batches, and what the teacher
# gives for them.
SHARED = (
    "teacher", "teacher_weights", "teacher_size", "teacher_taps", "teacher_embedding", "data",
    "seed", "runtime",
)  # fmt: skip


@dataclass
class _Turn:
    """One run, and the state of all random generators when it last stopped."""

    steps: Generator[None, None, Run]
    state: tuple[Any, ...] | None = None
    run: Run | None = None
    stopped: Interrupted | None = None

    def step(self) -> None:
        if self.state is not None:
            torch.set_rng_state(self.state[0])
            random.setstate(self.state[1])
            np.random.set_state(self.state[2])
            for device, kept in enumerate(self.state[3]):
                torch.cuda.set_rng_state(kept, device)
        try:
            next(self.steps)
        except StopIteration as end:
            self.run = end.value
        except Interrupted as stopped:
            self.stopped = stopped
        self.state = (
            torch.get_rng_state(),
            random.getstate(),
            np.random.get_state(),
            # Asking for them would start what a run on the CPU never uses.
            torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],  # type: ignore[no-untyped-call]
        )


def distill_interleaved(
    recipes: Sequence[tuple[DistillRecipe, Path]], *, trust_code: bool = False
) -> list[Run]:
    """Train students that differ in the method only, from one teacher; continues what is there.

    Args:
        recipes: each with its run folder; alike in the fields `SHARED`.
        trust_code: whether code that weights name may run.

    Returns:
        The runs, in order. Their times leave out what the teacher did for another.

    Raises:
        CktfError: a mistake in any of them, before anything is trained.
        Interrupted: a signal asked to stop, and all have saved themselves.
    """
    first = recipes[0][0]
    for recipe, _ in recipes:
        for name in SHARED:
            if getattr(recipe, name) != getattr(first, name):
                raise RecipeError(
                    [f"{name}: students are trained together from one teacher on the same batches."]
                )
    shared: SharedTap | None = None
    measured: dict[str, Accuracy] = {}
    turns = []
    for recipe, out in recipes:
        run, parts = prepare(recipe, out, resume=True, trust_code=trust_code)
        assert parts.teacher is not None
        shared = shared or SharedTap(parts.teacher, compile=recipe.runtime.compile)
        own = shared if len(recipes) > 1 else None
        parts = replace(parts, teacher=shared.model, shared=own, measured=measured)
        turns.append(_Turn(executing(recipe, parts, run, show=False)))
    try:
        # Where a signal stops one, each of the others saves itself after its next step.
        while left := [turn for turn in turns if turn.run is None and turn.stopped is None]:
            for turn in left:
                turn.step()
    finally:
        # Where one fails, the others leave their folders.
        for turn in turns:
            turn.steps.close()
    for turn in turns:
        if turn.stopped is not None:
            raise turn.stopped
    return [turn.run for turn in turns if turn.run is not None]
