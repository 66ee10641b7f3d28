"""Several trainings interleaved step by step, so that one pass of a shared teacher serves all.

Each ends with the same weights, bit for bit, as if it ran alone.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from cktf.engine.checkpointing import TrainingPosition
from cktf.engine.randomness import random_state, restore_random_state
from cktf.engine.result import TrainResult
from cktf.engine.trainer import Trainer
from cktf.errors import Interrupted

_States = dict[Trainer, dict[str, Any]]


@contextmanager
def _restored_rng(trainer: Trainer, states: _States) -> Iterator[None]:
    """Restore a training's random generators inside the block, and save their states on exit."""
    restore_random_state(states[trainer], trainer.device)
    try:
        with trainer.explain_out_of_memory():
            yield
    finally:
        states[trainer] = random_state(trainer.device)


def fit_interleaved(
    trainers: Sequence[Trainer], on_finish: Callable[[Trainer, TrainResult], None]
) -> None:
    """Train several students to the end, one step of each in turn.

    Args:
        trainers: all with the same training batches; phases, epochs and positions may differ.
        on_finish: called with each trainer and its result when it has finished.

    Raises:
        Interrupted: a signal came, and all have been saved.
        TrainingError: one of them cannot go on; the others end too.
    """
    states = {trainer: random_state(trainer.device) for trainer in trainers}
    with ExitStack() as stack:
        for trainer in trainers:
            with _restored_rng(trainer, states):
                stack.enter_context(trainer.training())
        try:
            unfinished = list(trainers)
            for number in range(max(trainer.num_epochs for trainer in trainers) + 1):
                _interleave_epoch(number, states)
                for trainer in [trainer for trainer in unfinished if trainer.is_finished]:
                    on_finish(trainer, trainer.result())
                    unfinished.remove(trainer)
        except Interrupted:
            for trainer in trainers:
                with suppress(Interrupted), _restored_rng(trainer, states):
                    # Before the first step there is nothing to save but half-filled memories.
                    if trainer.position != TrainingPosition():
                        trainer.checkpoints.save(trainer)
            raise


def _interleave_epoch(number: int, states: _States) -> None:
    """Train epoch `number` of all trainings that have not finished it."""
    active = [
        trainer
        for trainer in states
        if trainer.position.epochs < number and not trainer.is_finished
    ]
    for trainer in active:
        with _restored_rng(trainer, states):
            trainer.start_epoch(number)
    for step in range(max((len(trainer.train) for trainer in active), default=0)):
        for trainer in active:
            if trainer.position.step == step < len(trainer.train):
                with _restored_rng(trainer, states):
                    trainer.train_step()
    for trainer in active:
        with _restored_rng(trainer, states):
            trainer.end_epoch()
