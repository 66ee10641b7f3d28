"""Where the keys of a contrastive objective come from.

Each side of a pair of representations keeps its rows in a tensor (`cktf.contrast.bank`); a `Memory`
says how many rows there are, which of them a batch is contrasted with, and where its own go
afterwards. It holds no row itself, so that all pairs of an objective share one memory, and one
`Draw` per batch.

| memory | rows | positive | for |
|---|---|---|---|
| `Bank` | N, one per training sample | the sample's row, mixed over its visits | the paper |
| `Queue` | the last M | the sample's other representation, now | any N: memory is M |
| `InBatch` | none: the batch itself | the same | no memory at all |

Estimators, for K negatives: `sampled` draws K for each anchor (the paper); `all` takes the exact
expectation over every row; `shared` draws K rows once for the whole batch, in which an anchor's own
class is masked and the rest is scaled to K. Which of them is when the right one is in
docs/design.md, with their costs.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from cktf import _check
from cktf.contrast.negatives import NegativeSampler, check_labels
from cktf.errors import MethodError
from cktf.functional.contrast import Candidates
from cktf.processes import agreed, gathered

Estimator = Literal["sampled", "all", "shared"]


@dataclass(frozen=True)
class Draw:
    """Who is contrasted with whom in one batch.

    Attributes:
        stored: [B] rows that hold the positives; None where the positive is the other network's
            representation of this batch.
        slots: [processes · B] rows that the representations of all processes go to; None: nowhere.
        drawn: [B, K] rows that are the negatives of each anchor; or None, and then
        candidates: who of the keys is whose negative.
        chosen: [K] rows that are the keys of the batch; None: all of them.
    """

    stored: Tensor | None = None
    slots: Tensor | None = None
    drawn: Tensor | None = None
    candidates: Candidates | None = None
    chosen: Tensor | None = None

    @property
    def negatives(self) -> int:
        """K."""
        if self.candidates is not None:
            return self.candidates.negatives
        assert self.drawn is not None
        return self.drawn.shape[1]


class Memory(nn.Module, ABC):
    """Base of all memories; a class is either abstract or final.

    Args:
        dataset_size: N, samples in the training set.
        labels: [N] int64 classes: negatives come from other classes; None: all other samples.
        negatives: K.
        estimator: which negatives stand for all.

    Attributes:
        rows: kept for each side of a pair.
        mixes: whether a row keeps a part of what it held before.

    Raises:
        MethodError: nothing to draw from.
        ShapeError: labels that are not [N].
    """

    mixes = False
    labels: Tensor | None

    def __init__(
        self,
        dataset_size: int,
        labels: Tensor | None,
        negatives: int,
        estimator: Estimator,
        rows: int,
    ) -> None:
        super().__init__()
        check_labels(dataset_size, labels)
        self.dataset_size, self.negatives, self.rows = dataset_size, negatives, rows
        self.estimator = estimator
        self.register_buffer("labels", labels, persistent=False)

    @abstractmethod
    def draw(self, index: Tensor) -> Draw:
        """Draw what a batch at positions [B] is contrasted with, and the rows that it goes to."""

    def reserve(self, index: Tensor) -> Draw:
        """Reserve the rows that a batch at positions [B] goes to; `after_step` takes them."""
        return Draw()

    def after_step(self) -> None:
        """Record the samples of the last batch as the owners of its rows."""

    def given(self, contrast_index: Tensor, index: Tensor) -> Draw:
        """A draw that was made elsewhere: [B, 1+K] rows, the positive first.

        Raises:
            MethodError: a memory that has not a row for each sample.
            ShapeError: no such rows.
        """
        raise MethodError(
            "contrast_index names rows of a bank, one for each training sample, and this memory "
            "is none. Set memory=bank, or leave contrast_index away."
        )

    def full_after(self, samples: int) -> bool:
        """Whether so many samples have filled it."""
        return samples >= self.rows

    def check_batch(self, batch: int) -> None:
        """Raise MethodError for a batch of all processes that the memory cannot hold."""

    def _ids(self, index: Tensor) -> Tensor:
        """What makes samples each other's negatives when it differs; -1 stays -1."""
        if self.labels is None:
            return index
        return torch.where(index < 0, -1, self.labels[index])

    def _shared(self, device: torch.device) -> Tensor:
        return agreed(torch.randint(self.rows, (self.negatives,), device=device))


class Bank(Memory):
    """A row per training sample."""

    mixes = True

    def __init__(
        self, dataset_size: int, labels: Tensor | None, negatives: int, estimator: Estimator
    ) -> None:
        super().__init__(dataset_size, labels, negatives, estimator, rows=dataset_size)
        # Its tables are as long as the training set; only these draws read them.
        self.sampler = NegativeSampler(dataset_size, labels) if estimator == "sampled" else None

    def draw(self, index: Tensor) -> Draw:
        """Positives are the batch's own rows, which it then updates."""
        if self.sampler is not None:
            drawn = self.sampler.draw(index, self.negatives)
            return Draw(index, gathered(index), drawn=drawn)
        slots = gathered(index)
        if self.estimator == "shared":
            chosen = self._shared(index.device)
            keys = self._ids(chosen)
        else:
            chosen = None
            # Every row in order: its ids are the labels as they stand, without N look-ups a step.
            keys = (
                torch.arange(self.rows, device=index.device) if self.labels is None else self.labels
            )
        candidates = Candidates(self._ids(index), keys, self.negatives)
        return Draw(index, slots, candidates=candidates, chosen=chosen)

    def reserve(self, index: Tensor) -> Draw:
        """Reserve the samples' own rows."""
        return Draw(slots=gathered(index))

    def given(self, contrast_index: Tensor, index: Tensor) -> Draw:
        """A draw that was made elsewhere."""
        _check.chosen_rows(contrast_index, len(index), self.rows)
        drawn = contrast_index[:, 1:].contiguous()
        return Draw(contrast_index[:, 0], gathered(index), drawn=drawn)


class Queue(Memory):
    """The last M representations, first in, first out; a batch is scored before it enters.

    Rows that nothing has entered yet count as negatives of everyone.

    Attributes:
        held: [M] int64, which sample each row is of; -1: none yet.
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
        super().__init__(dataset_size, labels, negatives, estimator, rows=size)
        self.register_buffer("held", torch.full((size,), -1))
        self.register_buffer("next", torch.zeros((), dtype=torch.int64))
        self._pending: tuple[Tensor, Tensor] | None = None

    @torch.no_grad()
    def draw(self, index: Tensor) -> Draw:
        """Draw among the samples of earlier steps; in training reserve rows for the batch."""
        chosen = None if self.estimator == "all" else self._shared(index.device)
        held = self.held if chosen is None else self.held[chosen]
        candidates = Candidates(self._ids(index), self._ids(held), self.negatives)
        slots = self.reserve(index).slots if self.training else None
        return Draw(slots=slots, candidates=candidates, chosen=chosen)

    @torch.no_grad()
    def reserve(self, index: Tensor) -> Draw:
        """Reserve the oldest rows."""
        entering = gathered(index)
        self.check_batch(len(entering))
        slots = (self.next + torch.arange(len(entering), device=index.device)) % self.rows
        self._pending = slots, entering
        return Draw(slots=slots)

    @torch.no_grad()
    def after_step(self) -> None:
        """Record the last batch and move on to the next oldest rows."""
        if self._pending is not None:
            slots, entering = self._pending
            self.held[slots] = entering
            self.next.add_(len(entering)).remainder_(self.rows)
            self._pending = None

    def check_batch(self, batch: int) -> None:
        """A batch enters at once."""
        if batch > self.rows:
            raise MethodError(
                f"A queue holds at least one batch: queue_size is {self.rows}, the batch of all "
                f"processes {batch}. Set queue_size to {batch} or more."
            )


class InBatch(Memory):
    """No memory: the negatives are the other samples of the batch of all processes."""

    def __init__(self, dataset_size: int, labels: Tensor | None) -> None:
        super().__init__(dataset_size, labels, 0, "all", rows=0)

    def draw(self, index: Tensor) -> Draw:
        """Keys are the representations of the batch, in the order of the processes' ranks."""
        keys = gathered(index)
        others = max(1, len(keys) - 1)
        return Draw(candidates=Candidates(self._ids(index), self._ids(keys), others))
