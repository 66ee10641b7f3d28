"""Distill several students from one teacher, step by step in turn: one teacher pass serves all.

With the same seed and data they see the same batches. Each run ends with the same weights, bit for
bit, as if it ran alone.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import torch

from cktf.engine import Accuracy, Trainer, TrainResult, default_tensors, fit_interleaved
from cktf.errors import RecipeError
from cktf.recipes import Data, DistillRecipe
from cktf.taps import SharedTap, preserve_modes
from cktf.workflows.input_fingerprint import check_input_fingerprint
from cktf.workflows.run import Run, StartedRun, finish_run, read_finished, start_run
from cktf.workflows.train import prepare

# Fields in which interleaved recipes agree: they decide the batches and the teacher's features.
SHARED = (
    "teacher", "teacher_weights", "teacher_size", "teacher_taps", "teacher_embedding", "data",
    "seed", "runtime",
)  # fmt: skip


@default_tensors()
@torch.inference_mode(False)
def distill_interleaved(
    recipes: Sequence[tuple[DistillRecipe, Path]], *, trust_code: bool = False
) -> list[Run]:
    """Train several students from one teacher; runs that were stopped are resumed.

    Args:
        recipes: recipes with their run folders; they agree in the fields of `SHARED`.
        trust_code: whether code that a weights file names may run.

    Returns:
        The runs, in the order of the recipes. Each teacher pass counts in the time of one run only.

    Raises:
        CktfError: a mistake in one of them; nothing was trained.
        Interrupted: a signal came, and all have been saved.
    """
    first = recipes[0][0]
    for recipe, _ in recipes:
        for name in SHARED:
            if getattr(recipe, name) != getattr(first, name):
                raise RecipeError(
                    [f"{name}: students are trained together from one teacher on the same batches."]
                )
    shared_tap: SharedTap | None = None
    data: Data | None = None
    measured: dict[str, Accuracy] = {}
    runs: dict[Path, Run] = {}
    started: dict[Path, StartedRun] = {}
    with ExitStack() as stack:
        for recipe, out in recipes:
            folder, components = prepare(recipe, out, resume=True, trust_code=trust_code)
            assert components.teacher is not None
            shared_tap = shared_tap or SharedTap(components.teacher, compile=recipe.runtime.compile)
            data = data or components.data
            components = replace(
                components,
                teacher=shared_tap.model,
                data=data,
                shared_tap=shared_tap if len(recipes) > 1 else None,
                measured_accuracy=measured,
            )
            stack.enter_context(preserve_modes(components.teacher))
            check_input_fingerprint(recipe, components, folder)
            if folder.finished:
                runs[out] = read_finished(components, folder)
            else:
                run = start_run(recipe, components, folder, show=False)
                started[out] = stack.enter_context(run)
        if started:

            def finish(trainer: Trainer, result: TrainResult) -> None:
                out = next(out for out, run in started.items() if run.trainer is trainer)
                runs[out] = finish_run(started[out], result)

            fit_interleaved([run.trainer for run in started.values()], finish)
    return [runs[out] for _, out in recipes]
