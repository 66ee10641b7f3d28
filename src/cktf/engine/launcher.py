"""What launchers leave in the environment: a run is one process, whatever they say."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from cktf.errors import TrainingError

# Numbers of processes, as torchrun, Open MPI, other MPIs and MVAPICH2 name them.
_PROCESS_COUNTS = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")
_ACCUMULATION = "ACCELERATE_GRADIENT_ACCUMULATION_STEPS"
_PREFIXES = (
    "ACCELERATE_", "FSDP_", "FORK_LAUNCHED", "MASTER_", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE",
    "WORLD_SIZE", "OMPI_", "PMI_", "MV2_",
)  # fmt: skip


def check_launcher() -> None:
    """Raise TrainingError if the environment asks for several processes or accumulated gradients.

    A process that waits for others, which were not started, never ends.
    """
    for name in _PROCESS_COUNTS:
        if (value := os.environ.get(name, "")).strip() not in ("", "0", "1"):
            raise TrainingError(
                f"A run is one process, and the environment asks for several: {name}={value}. "
                f"Start it without a launcher; if {name} was left over, unset it."
            )
    if (value := os.environ.get(_ACCUMULATION, "1")) != "1":
        raise TrainingError(
            f"A run accumulates no gradients, and the environment asks for it: {_ACCUMULATION}="
            f"{value}. Choose data.batch_size instead, and start the run without a launcher."
        )


@contextmanager
def without_launcher_variables() -> Iterator[None]:
    """Hide the variables of launchers, which configure Accelerate for other processes."""
    names = [name for name in os.environ if name.startswith(_PREFIXES)]
    hidden = {name: os.environ.pop(name) for name in names}
    try:
        yield
    finally:
        os.environ.update(hidden)
