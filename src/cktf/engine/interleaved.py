"""Several trainings interleaved step by step, so that one pass of a shared teacher serves all.

Each ends with the same weights, bit for bit, as if it ran alone.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from cktf.engine.randomness import random_state, restore_random_state
from cktf.engine.trainer import Trainer, TrainResult
from cktf.errors import Interrupted

_States = dict[Trainer, dict[str, Any]]


@contextmanager
def _restored_rng(trainer: Trainer, states: _States) -> Iterator[None]:
    """Restore a training's random generators inside the block, and save their states on exit."""
    restore_random_state(states[trainer], trainer.device)
    try:
        yield
    finally:
        states[trainer] = random_state(trainer.device)


def fit_interleaved(trainers: Sequence[Trainer]) -> list[TrainResult]:
    """Train several students to the end, one step of each in turn.

    Args:
        trainers: all with the same training batches; phases, epochs and positions may differ.

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
            for number in range(1, max(trainer.num_epochs for trainer in trainers) + 1):
                _interleave_epoch(number, states)
        except Interrupted:
            for trainer in trainers:
                with suppress(Interrupted), _restored_rng(trainer, states):
                    if trainer.phase is not None:
                        trainer.checkpoints.save(trainer)
            raise
    return [trainer.result() for trainer in trainers]


def _interleave_epoch(number: int, states: _States) -> None:
    """Train epoch `number` of all trainings that have not finished it."""
    active = [
        trainer
        for trainer in states
        if trainer.position.epochs < number <= trainer.num_epochs and not trainer.should_stop
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
