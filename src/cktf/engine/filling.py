"""Memories of contrast that are filled before training."""

import torch

from cktf.data import Loader
from cktf.engine.run_folder import RunFolder
from cktf.engine.runtime import Runtime, synchronized_time
from cktf.engine.step import TrainStep, preserve_buffers
from cktf.errors import Interrupted
from cktf.signals import stop_signal


@torch.no_grad()
def fill_memories(step: TrainStep, train: Loader, runtime: Runtime, run: RunFolder) -> None:
    """Fill the objective's memories from a pass over the training set.

    The student is in training mode, as it is when these rows are its negatives.

    Raises:
        Interrupted: SIGTERM or Ctrl-C.
    """
    step.train()
    started, samples = synchronized_time(runtime.device), 0
    with preserve_buffers(step):
        for batch in train.epoch(0, cover=True, device=runtime.device):
            with runtime.autocast():
                features = step.features(batch)
            step.objective.fill(*features, batch)
            samples += len(batch)
            if (name := stop_signal()) is not None:
                raise Interrupted(f"Stopped by {name} before training.", run.path)
            if samples >= step.objective.fill_samples:
                break
    seconds = synchronized_time(runtime.device) - started
    run.log(f"memories filled from {samples} training images in {seconds:.1f} s")
