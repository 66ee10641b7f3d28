"""Contrastive representation distillation (CRD): one pair of representations.

Source: Tian, Krishnan, Isola, "Contrastive Representation Distillation", ICLR 2020,
arXiv 1910.10699, section 3; the loss is `cktf.functional.nce_loss`. For each anchor the student's
representation must pick the teacher's of the same sample out of K others, and the other way round;
the loss is the sum of both. It bounds mutual information from below:
`I(T; S) >= log K + E[log D+]`.

Departures: scores come from one product with the bank instead of copied rows; negatives are drawn
on the device for the whole batch; the normalizers do not join the autograd graph; without labels an
anchor is never its own negative; one draw serves a batch unless `estimator=sampled` draws for each
anchor, as the paper does; a positive is the sample itself, never (`relax`) another one of its
class. Other memories and critics than the paper's are options too: see
`cktf.contrast`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from inspect import Parameter, signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import Self

from cktf import _check
from cktf.batch import Batch
from cktf.config import rename_options
from cktf.contrast import (
    DEVICE,
    ContrastConfig,
    Draw,
    Footprint,
    Memory,
    allocate_banks,
    build_memory,
    copy_rows,
    footprint,
    set_random_rows,
    update_bank,
)
from cktf.functional.batch_centering import subtract_batch_mean
from cktf.functional.contrast import contrast_losses, select_rows
from cktf.functional.critics import Critic, InfoNCECritic, NCECritic, NormalizerEstimate
from cktf.functional.infonce import uninformed_infonce
from cktf.functional.module_vector import multiply_head
from cktf.functional.nce import uninformed_nce
from cktf.objectives.base import BuildContext, Loss, Objective, single_term_loss
from cktf.objectives.pairs import embeddings
from cktf.processes import gather, mean_over_processes
from cktf.taps import Features


class PairGroup(nn.Module):
    """State that several pairs of representations share: a memory, and their rows in one tensor.

    Pair i has two sides: 2i, whose anchors are the student's, and 2i + 1, whose anchors are the
    teacher's. The keys of a side are the other network's rows.

    Args:
        config: options of contrast.
        dataset_size: N, samples in the training set.
        labels: [N] classes, or None.
        num_pairs: P.

    Attributes:
        memory: says which rows a batch is contrasted with.
        banks: [2P, rows, embedding_dim], the rows of each side's keys.
        normalizers: [2P], Z of each side; 0 until the first batch sets it.

    Raises:
        MethodError: more memory than there is.
    """

    banks: Tensor
    normalizers: Tensor

    def __init__(
        self, config: ContrastConfig, dataset_size: int, labels: Tensor | None, num_pairs: int
    ) -> None:
        super().__init__()
        self.config = config
        # Saved, and moved to a device, by the pairs.
        self._memory = (build_memory(config, dataset_size, labels, num_pairs),)
        num_rows, sides = self.memory.num_rows, 2 * num_pairs
        banks = allocate_banks(
            sides, num_rows, config.embedding_dim, config.storage, config.bank_device
        )
        self.register_buffer("banks", banks, persistent=False)
        self.register_buffer("normalizers", torch.zeros(sides), persistent=False)
        self.unit_rows = unit_rows

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the heads; scores, draws and memories have kernels of their own."""
        self.unit_rows = torch.compile(self.unit_rows, *args, **kwargs)

    @property
    def memory(self) -> Memory:
        """Says which rows a batch is contrasted with."""
        return self._memory[0]

    def _apply(self, fn: Any, recurse: bool = True) -> "PairGroup":
        """Move or cast the module, as `.to()` does, but leave banks in host memory or files."""
        stays = self.config.bank_device != DEVICE
        banks = self._buffers.pop("banks") if stays else None
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if stays:
            self._buffers["banks"] = banks
        return self


@dataclass(frozen=True)
class _PendingUpdate:
    """Unit rows [S, B, D] of a batch's sides, and where they go, for `after_step`."""

    pairs: Sequence["CRD"]
    rows: Tensor
    write_index: Tensor | None
    normalizers: Tensor


class CRD(Objective):
    """Pick the teacher's representation of a sample among those of thousands of others.

    `−log(P₊ / (P₊ + c)) − Σ_k log(c / (P_k + c))`, with `P = exp(s·t/τ) / Z` for the sample's own
    pair and for K negatives, c = K/N; with the student as anchor and with the teacher.

    Args:
        student_dim: length of the student's vectors.
        teacher_dim: length of the teacher's vectors.
        dataset_size: N, samples in the training set.
        labels: [N] classes: negatives come from other classes; None: from all other samples.
        group: memory and rows of the objectives that are computed together; built where None.
        position: i, of this objective in its group.
        config: options of contrast.
        options: fields of `cktf.contrast.ContrastConfig`, over those of `config`.

    Attributes:
        config: the options.
        student_head, teacher_head: `nn.Linear` to embedding_dim; both train.
        student_bank, teacher_bank: the rows, [N, embedding_dim] for a bank.
        student_normalizer: Z where the student is the anchor; 0 until the first batch sets it.
            Without a memory it is Z over the batch's size, which may change.
        teacher_normalizer: Z where the teacher is the anchor.

    Raises:
        MethodError: an option out of its range, or more memory than there is.
    """

    title = "Contrastive representation distillation"
    paper = "arXiv 1910.10699"
    default_weight = 0.8
    requires = frozenset({"embedding", "index"})

    student_bank: Tensor
    teacher_bank: Tensor
    student_normalizer: Tensor
    teacher_normalizer: Tensor

    def __init__(
        self,
        student_dim: int,
        teacher_dim: int,
        dataset_size: int,
        *,
        labels: Tensor | None = None,
        group: PairGroup | None = None,
        position: int = 0,
        config: ContrastConfig | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        config = ContrastConfig.from_options(dict(config or {}) | rename_options(options))
        self.config = config
        self.group = group or PairGroup(config, dataset_size, labels, num_pairs=1)
        self.memory, self.position = self.group.memory, position
        self.fill_samples = self.memory.num_rows if config.init == "forward" else 0
        self.capturable = config.bank_device == DEVICE and not config.renormalize
        self.student_head = nn.Linear(student_dim, config.embedding_dim)
        self.teacher_head = nn.Linear(teacher_dim, config.embedding_dim)
        self._view_group()
        for bank in (self.student_bank, self.teacher_bank):
            set_random_rows(bank)
        # Known to Python, so that no step waits for the device to say whether they are set.
        self._normalized = False
        self._pending: _PendingUpdate | None = None
        self.register_load_state_dict_post_hook(_after_loading)  # type: ignore[no-untyped-call]

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the heads with `torch.compile`."""
        self.group.compile(*args, **kwargs)

    def _view_group(self) -> None:
        """Let the buffers, which are saved, be views of the group's rows and normalizers."""
        student, teacher = 2 * self.position, 2 * self.position + 1
        for name, side, keys in (("student", student, teacher), ("teacher", teacher, student)):
            self.register_buffer(f"{name}_bank", self.group.banks[keys])
            self.register_buffer(f"{name}_normalizer", self.group.normalizers[side])

    @classmethod
    def options(cls) -> dict[str, Parameter]:
        """The fields of `ContrastConfig`."""
        return dict(signature(ContrastConfig).parameters)

    @classmethod
    def from_setting(cls, context: BuildContext, **options: Any) -> Self:
        """Build it for the embeddings of two networks."""
        student, teacher = embeddings("CRD", *context.both_features("CRD"))
        return cls(
            student.shape[1],
            teacher.shape[1],
            context.dataset_size,
            labels=context.labels,
            **options,
        )

    def loss(
        self,
        student_embedding: Tensor,
        teacher_embedding: Tensor,
        index: Tensor,
        contrast_index: Tensor | None = None,
    ) -> Tensor:
        """Loss of one batch; in training, `after_step` then stores its rows and the first one's Z.

        A second call in training without `after_step` between discards what the first would store.

        Args:
            student_embedding: [B, student_dim].
            teacher_embedding: [B, teacher_dim]; no gradient reaches the teacher.
            index: [B] int64, positions in the training set.
            contrast_index: [B, 1+K] int64 bank rows, column 0 the positive; drawn when None.

        Returns:
            Scalar float32, in nats: the sum of both anchors' losses.

        Raises:
            ShapeError: unequal batches, or positions outside the training set.
        """
        _check.same_batch("CRD", student_embedding, teacher_embedding)
        _check.indices("CRD", index, len(student_embedding), self.memory.dataset_size)
        if contrast_index is None:
            draw = self.memory.draw(index)
        else:
            draw = self.memory.draw_of(contrast_index, index)
        return pair_losses([self], [(student_embedding, teacher_embedding)], draw)[0]

    @torch.no_grad()
    def after_step(self) -> None:
        """Store the rows of the last training batch, and the normalizers that it set."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            momentum = self.config.momentum if self.memory.uses_momentum else 0.0
            _update_banks(pending.pairs, pending.rows, pending.write_index, momentum)
            if not self._normalized:
                self.group.normalizers[_sides(pending.pairs)] = pending.normalizers
                for pair in pending.pairs:
                    pair._normalized = True
        self.memory.record_row_owners()

    def forward(self, student: Features, teacher: Features | None, batch: Batch) -> Loss:
        """The contrastive loss between the two embeddings of one batch."""
        return single_term_loss("crd", self.loss(*embeddings("CRD", student, teacher), batch.index))

    def begin_epoch(self, epoch: int) -> None:
        """Have the next batch set the normalizers, at the epochs of `renormalize`."""
        if epoch in self.config.renormalize:
            self._normalized = False

    @torch.no_grad()
    def fill(self, student: Features, teacher: Features | None, batch: Batch) -> None:
        """Put a batch's rows into the memory."""
        vectors = embeddings("CRD", student, teacher)
        _check.indices("CRD", batch.index, len(vectors[0]), self.memory.dataset_size)
        store_rows([self], [vectors], self.memory.reserve(batch.index))
        self.memory.record_row_owners()

    def footprint(self, batch: int) -> Footprint:
        """Memory of the banks and a step; MethodError for a batch that the memory cannot hold."""
        self.memory.check_batch(batch)
        return footprint(self.config, self.memory.dataset_size, batch)

    def uninformed_terms(self, batch: int) -> dict[str, float]:
        """The loss of both anchors where every score is the same."""
        critic_loss = uninformed_infonce if self.config.critic == "infonce" else uninformed_nce
        return {"crd": 2 * critic_loss(self.memory.negatives or batch - 1)}

    def _apply(self, fn: Any, recurse: bool = True) -> "CRD":
        """Move or cast the module, as `.to()` does, with its group's rows as one."""
        for name in ("student_bank", "teacher_bank", "student_normalizer", "teacher_normalizer"):
            del self._buffers[name]
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._view_group()
        return self


def pair_losses(
    pairs: Sequence[CRD], vectors: Sequence[tuple[Tensor, Tensor]], draw: Draw
) -> Tensor:
    """Losses [P] of pairs that follow each other in a group, for one batch.

    In training the first pair's `after_step` stores their rows.

    Args:
        pairs: P objectives.
        vectors: of each, what the student's head and the teacher's multiply.
        draw: of the group's memory.
    """
    first = pairs[0]
    with torch.autocast(vectors[0][0].device.type, enabled=False):
        anchors = first.group.unit_rows(pairs, vectors)
        others = _swap_sides(anchors.detach())
        losses, normalizers = _side_losses(first, _sides(pairs), anchors, others, draw)
    if first.training:
        first._pending = _PendingUpdate(pairs, others, draw.write_index, normalizers)
    return losses.view(-1, 2).sum(1)


@torch.no_grad()
def store_rows(
    pairs: Sequence[CRD],
    vectors: Sequence[tuple[Tensor, Tensor]],
    write_index: Tensor | None,
) -> None:
    """Write the rows of a batch's vectors into the banks of pairs, over the old rows."""
    _update_banks(pairs, _swap_sides(unit_rows(pairs, vectors)), write_index, momentum=0.0)


def _swap_sides(rows: Tensor) -> Tensor:
    """Rows [2P, B, D] of the student and the teacher in turn -> of the teacher and the student."""
    return rows.view(-1, 2, *rows.shape[1:]).flip(1).view_as(rows)


def _sides(pairs: Sequence[CRD]) -> slice:
    return slice(2 * pairs[0].position, 2 * pairs[-1].position + 2)


def unit_rows(pairs: Sequence[CRD], vectors: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """[2P, B, embedding_dim] rows of unit length, of the student and the teacher in turn."""
    heads = [
        multiply_head(head, vector.float())
        for pair, (student, teacher) in zip(pairs, vectors, strict=True)
        for head, vector in ((pair.student_head, student), (pair.teacher_head, teacher.detach()))
    ]
    rows = torch.stack(heads)
    if pairs[0].config.center:
        rows = subtract_batch_mean(rows)
    return F.normalize(rows, dim=-1)


def _update_banks(
    pairs: Sequence[CRD], rows: Tensor, write_index: Tensor | None, momentum: float
) -> None:
    if write_index is not None:
        rows = gather(rows.transpose(0, 1)).transpose(0, 1)
        update_bank(pairs[0].group.banks[_sides(pairs)], write_index, rows, momentum)


def _side_losses(
    pair: CRD, sides: slice, anchors: Tensor, others: Tensor, draw: Draw
) -> tuple[Tensor, Tensor]:
    """The losses [S] of sides, and their normalizers, of this batch where none are set yet.

    `others` is the same batch [S, B, D] seen by the other network.
    """
    temperature, num_rows = pair.config.temperature, pair.memory.num_rows
    # Z is over all rows of a memory. Over a batch, whose size may change, it is per row.
    normalizer_rows = num_rows or 1
    candidate_count = num_rows or draw.num_negatives + 1
    banks, normalizers = pair.group.banks[sides], pair.group.normalizers[sides]
    keys = banks if num_rows else gather(others.transpose(0, 1)).transpose(0, 1)
    positives, key_index = others, draw.key_index
    if draw.positive_index is not None and key_index is not None and banks.device != anchors.device:
        rows = copy_rows(banks, torch.cat([key_index, draw.positive_index]), anchors.device)
        keys, positives, key_index = rows[:, : len(key_index)], rows[:, len(key_index) :], None
    elif draw.positive_index is not None:
        positives = select_rows(banks, draw.positive_index, anchors)

    def contrast(anchors: Tensor, critic: Critic) -> Tensor:
        return contrast_losses(
            anchors, positives, keys, draw.negatives, temperature, critic, key_index
        )

    if pair.config.critic == "infonce":
        return contrast(anchors, InfoNCECritic()), normalizers
    if not pair._normalized:
        mean_scores = mean_over_processes(
            contrast(anchors.detach(), NormalizerEstimate(draw.num_negatives))
        )
        normalizers = mean_scores * normalizer_rows
    scaled = normalizers * (candidate_count // normalizer_rows)
    critic = NCECritic(scaled.log(), draw.num_negatives, candidate_count)
    return contrast(anchors, critic), normalizers


def _after_loading(module: nn.Module, incompatible_keys: Any) -> None:
    assert isinstance(module, CRD)
    module._normalized = bool(module.student_normalizer > 0)
