"""Several trainings interleaved step by step, so that one pass of a shared teacher serves all.

Each ends with the same weights, bit for bit, as if it ran alone.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress

import torch

from cktf.engine.randomness import random_state, restore_random_state
from cktf.engine.trainer import Trainer, TrainResult
from cktf.errors import Interrupted


class RandomStream:
    """The state of the random generators of one of several trainings in a process.

    Args:
        device: where it trains.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.state = random_state(device)

    @contextmanager
    def resumed(self) -> Iterator[None]:
        """Restore this training's generators inside the block, and save them on exit."""
        restore_random_state(self.state, self.device)
        try:
            yield
        finally:
            self.state = random_state(self.device)


def fit_interleaved(trainers: Sequence[Trainer]) -> list[TrainResult]:
    """Train several students to the end, one step of each in turn.

    Args:
        trainers: all with the same training batches; phases, epochs and positions may differ.

    Raises:
        Interrupted: a signal came, and all have been saved.
        TrainingError: one of them cannot go on; the others end too.
    """
    streams = {trainer: RandomStream(trainer.device) for trainer in trainers}
    with ExitStack() as stack:
        for trainer, stream in streams.items():
            with stream.resumed():
                stack.enter_context(trainer.training())
        try:
            for number in range(1, max(trainer.num_epochs for trainer in trainers) + 1):
                _interleave_epoch(number, streams)
        except Interrupted:
            for trainer, stream in streams.items():
                with suppress(Interrupted), stream.resumed():
                    if trainer.phase is not None:
                        trainer.checkpoints.save(trainer)
            raise
    return [trainer.result() for trainer in trainers]


def _interleave_epoch(number: int, streams: dict[Trainer, RandomStream]) -> None:
    """Train epoch `number` of all trainings that have not finished it."""
    active = {
        trainer: stream
        for trainer, stream in streams.items()
        if trainer.position.epochs < number <= trainer.num_epochs and not trainer.should_stop
    }
    for trainer, stream in active.items():
        with stream.resumed():
            trainer.start_epoch(number)
    for step in range(max((len(trainer.train) for trainer in active), default=0)):
        for trainer, stream in active.items():
            if trainer.position.step == step < len(trainer.train):
                with stream.resumed():
                    trainer.train_step()
    for trainer, stream in active.items():
        with stream.resumed():
            trainer.end_epoch()
