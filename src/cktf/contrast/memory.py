"""Where the keys of a contrastive objective come from.

Each side of a pair of representations keeps its rows in a tensor (`cktf.contrast.bank`). A `Memory`
says how many rows there are, which of them a batch is contrasted with, and which the batch
overwrites. It holds no row itself, so that all pairs of an objective share one memory, and one
`Draw` per batch.

| memory | rows | positive | for |
|---|---|---|---|
| `Bank` | N, one per training sample | the sample's row, mixed over its visits | the paper |
| `Queue` | the last M | the sample's other representation, of this batch | any N: memory is M |
| `InBatch` | none: the batch itself | the same | no memory at all |

Estimators, for K negatives: `sampled` draws K for each anchor (the paper); `all` takes the exact
expectation over every row; `shared` draws K rows once for the whole batch, in which an anchor's own
class is masked and the rest is scaled to K. docs/design.md compares them and their costs.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cktf import _check
from cktf.batch import tensor_to_device
from cktf.contrast.bank import DEVICE
from cktf.contrast.config import ContrastConfig, Estimator
from cktf.contrast.footprint import footprint
from cktf.contrast.negatives import NegativeSampler, check_labels
from cktf.errors import MethodError
from cktf.functional.contrast import Candidates
from cktf.processes import broadcast_first, gather, num_processes


@dataclass(frozen=True)
class Draw:
    """Rows of the memory that one batch is contrasted with, and rows that it overwrites.

    Attributes:
        negatives: [B, K] rows of each anchor's negatives, or which keys are negatives.
        positive_index: [B] rows of the positives; None where the positive is the other network's
            representation of this batch.
        write_index: [processes · B] rows that the representations of all processes overwrite; None
            for no row.
        key_index: [K] rows of the batch's keys; None for all rows.

    Rows are on the CPU for banks in host memory, where they are read and written.
    """

    negatives: Tensor | Candidates
    positive_index: Tensor | None = None
    write_index: Tensor | None = None
    key_index: Tensor | None = None

    @property
    def num_negatives(self) -> int:
        """K."""
        if isinstance(self.negatives, Candidates):
            return self.negatives.negatives
        return self.negatives.shape[1]


class Memory(nn.Module, ABC):
    """Base of all memories; a class is either abstract or final.

    Args:
        dataset_size: N, samples in the training set.
        labels: [N] int64 classes: negatives come from other classes; None: all other samples.
        negatives: K.
        estimator: which negatives stand for all.
        num_rows: rows of each side of a pair.

    Attributes:
        uses_momentum: a row keeps a fraction of its old value.

    Raises:
        MethodError: nothing to draw from.
        ShapeError: labels that are not [N].
    """

    uses_momentum = False
    labels: Tensor | None

    def __init__(
        self,
        dataset_size: int,
        labels: Tensor | None,
        negatives: int,
        estimator: Estimator,
        num_rows: int,
    ) -> None:
        super().__init__()
        check_labels(dataset_size, labels)
        self.dataset_size, self.negatives, self.num_rows = dataset_size, negatives, num_rows
        self.estimator = estimator
        self.register_buffer("labels", labels, persistent=False)

    @abstractmethod
    def draw(self, index: Tensor) -> Draw:
        """Draw the keys of a batch at positions [B], and reserve the rows that it overwrites."""

    def reserve(self, index: Tensor) -> Tensor | None:
        """Reserve the rows that a batch at positions [B] overwrites, until `record_row_owners`."""
        return None

    def record_row_owners(self) -> None:
        """Record the samples of the last batch as the owners of its rows."""

    def draw_of(self, contrast_index: Tensor, index: Tensor) -> Draw:
        """Make a draw from rows chosen elsewhere: [B, 1+K], the positive first.

        Raises:
            MethodError: a memory without a row for each sample.
            ShapeError: no such rows.
        """
        raise MethodError(
            "contrast_index names rows of a bank, one for each training sample, and this memory "
            "is no bank. Set memory=bank, or leave contrast_index out."
        )

    def check_batch(self, batch: int) -> None:
        """Raise MethodError for a batch of all processes that the memory cannot hold."""

    def _class_ids(self, index: Tensor) -> Tensor:
        """Ids that differ between samples which are each other's negatives; -1 stays -1."""
        if self.labels is None:
            return index
        return torch.where(index < 0, -1, self.labels[index])

    def _draw_shared(self, device: torch.device) -> Tensor:
        """[K] rows for a whole batch, the same in all processes."""
        return broadcast_first(torch.randint(self.num_rows, (self.negatives,), device=device))


class Bank(Memory):
    """A row per training sample.

    Args:
        dataset_size, labels, negatives, estimator: as in `Memory`.
        in_host_memory: whether the rows are there, or in a file, wherever the batch is.
    """

    uses_momentum = True

    def __init__(
        self,
        dataset_size: int,
        labels: Tensor | None,
        negatives: int,
        estimator: Estimator,
        *,
        in_host_memory: bool = False,
    ) -> None:
        super().__init__(dataset_size, labels, negatives, estimator, num_rows=dataset_size)
        # Its tables are as long as the training set; only these draws read them.
        self.sampler = NegativeSampler(dataset_size, labels) if estimator == "sampled" else None
        self.in_host_memory = in_host_memory

    def draw(self, index: Tensor) -> Draw:
        """Draw negatives; the positives are the batch's own rows, which it then updates."""
        if self.sampler is not None:
            return Draw(self.sampler.draw(index, self.negatives), index, gather(index))
        key_index = None
        if self.estimator == "shared":
            # Drawn where the rows are, unless processes have to agree on it on their devices.
            on_cpu = self.in_host_memory and num_processes() == 1
            key_index = self._draw_shared(torch.device("cpu") if on_cpu else index.device)
            key_ids = self._class_ids(tensor_to_device(key_index, index.device))
        elif self.labels is None:
            key_ids = torch.arange(self.num_rows, device=index.device)
        else:
            # Every row in order: its ids are the labels as they stand, without N look-ups a step.
            key_ids = self.labels
        candidates = Candidates(self._class_ids(index), key_ids, self.negatives)
        if not self.in_host_memory or key_index is None:
            return Draw(candidates, index, gather(index), key_index)
        positive_index = index.cpu()
        write_index = positive_index if num_processes() == 1 else gather(index).cpu()
        return Draw(candidates, positive_index, write_index, key_index.cpu())

    def reserve(self, index: Tensor) -> Tensor:
        """Reserve the samples' own rows."""
        return gather(index)

    def draw_of(self, contrast_index: Tensor, index: Tensor) -> Draw:
        """Make a draw from rows chosen elsewhere."""
        _check.contrast_index(contrast_index, len(index), self.num_rows)
        return Draw(contrast_index[:, 1:].contiguous(), contrast_index[:, 0], gather(index))


class Queue(Memory):
    """The last M representations, first in, first out; a batch is scored before it enters.

    Rows that nothing has entered yet count as negatives of everyone.

    Attributes:
        held: [M] int64, the sample that each row is of; -1: none yet.
        next: scalar int64, the row that is overwritten next.
    """

    held: Tensor
    next: Tensor

    def __init__(
        self,
        dataset_size: int,
        labels: Tensor | None,
        negatives: int,
        estimator: Estimator,
        size: int,
    ) -> None:
        super().__init__(dataset_size, labels, negatives, estimator, num_rows=size)
        self.register_buffer("held", torch.full((size,), -1))
        self.register_buffer("next", torch.zeros((), dtype=torch.int64))
        self._pending: tuple[Tensor, Tensor] | None = None

    @torch.no_grad()
    def draw(self, index: Tensor) -> Draw:
        """Draw among the samples of earlier steps; in training reserve rows for the batch."""
        key_index = None if self.estimator == "all" else self._draw_shared(index.device)
        key_samples = self.held if key_index is None else self.held[key_index]
        candidates = Candidates(
            self._class_ids(index), self._class_ids(key_samples), self.negatives
        )
        write_index = self.reserve(index) if self.training else None
        return Draw(candidates, write_index=write_index, key_index=key_index)

    @torch.no_grad()
    def reserve(self, index: Tensor) -> Tensor:
        """Reserve the oldest rows."""
        samples = gather(index)
        self.check_batch(len(samples))
        write_index = (self.next + torch.arange(len(samples), device=index.device)) % self.num_rows
        self._pending = write_index, samples
        return write_index

    @torch.no_grad()
    def record_row_owners(self) -> None:
        """Record the last batch and move on to the next oldest rows."""
        if self._pending is not None:
            write_index, samples = self._pending
            self.held[write_index] = samples
            self.next.add_(len(samples)).remainder_(self.num_rows)
            self._pending = None

    def check_batch(self, batch: int) -> None:
        """Raise MethodError for a batch of more samples than rows."""
        if batch > self.num_rows:
            raise MethodError(
                f"A queue holds at least one batch: queue_size is {self.num_rows}, the batch of "
                f"all processes {batch}. Set queue_size to {batch} or more."
            )


class InBatch(Memory):
    """No memory: the negatives are the other samples of the batch of all processes."""

    def __init__(self, dataset_size: int, labels: Tensor | None) -> None:
        super().__init__(dataset_size, labels, 0, "all", num_rows=0)

    def draw(self, index: Tensor) -> Draw:
        """Take the batch's representations as keys, in the order of the processes' ranks."""
        samples = gather(index)
        num_negatives = max(1, len(samples) - 1)
        return Draw(Candidates(self._class_ids(index), self._class_ids(samples), num_negatives))


def build_memory(
    config: ContrastConfig, dataset_size: int, labels: Tensor | None, num_pairs: int
) -> Memory:
    """Build the memory that so many pairs of representations share.

    Raises:
        MethodError: the banks of all pairs do not fit; nothing was allocated.
    """
    footprint(config, dataset_size, batch=1, num_pairs=num_pairs).check(torch.device("cpu"))
    estimator = config.chosen_estimator(dataset_size)
    if config.memory == "batch":
        return InBatch(dataset_size, labels)
    if config.memory == "queue":
        return Queue(dataset_size, labels, config.negatives, estimator, config.queue_size)
    in_host_memory = config.bank_device != DEVICE
    return Bank(dataset_size, labels, config.negatives, estimator, in_host_memory=in_host_memory)
