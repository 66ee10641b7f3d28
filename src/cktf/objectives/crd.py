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
    build_memory,
    footprint,
    random_bank,
    rows_of,
    update_bank,
)
from cktf.functional.batch_centering import subtract_batch_mean
from cktf.functional.contrast import contrast_loss
from cktf.functional.critics import Critic, InfoNCECritic, NCECritic, NormalizerEstimate
from cktf.functional.infonce import uninformed_infonce
from cktf.functional.nce import uninformed_nce
from cktf.objectives.base import BuildContext, Loss, Objective, single_term_loss
from cktf.objectives.pairs import embeddings
from cktf.processes import gather, mean_over_processes
from cktf.taps import Features


@dataclass(frozen=True)
class _PendingUpdate:
    """Unit rows of a batch, the bank rows that they go to, and normalizers, for `after_step`."""

    student: Tensor
    teacher: Tensor
    write_index: Tensor | None
    student_normalizer: Tensor
    teacher_normalizer: Tensor


class CRD(Objective):
    """Pick the teacher's representation of a sample among those of thousands of others.

    `−log(P₊ / (P₊ + c)) − Σ_k log(c / (P_k + c))`, with `P = exp(s·t/τ) / Z` for the sample's own
    pair and for K negatives, c = K/N; with the student as anchor and with the teacher.

    Args:
        student_dim: length of the student's vectors.
        teacher_dim: length of the teacher's vectors.
        dataset_size: N, samples in the training set.
        labels: [N] classes: negatives come from other classes; None: from all other samples.
        memory_module: the memory, where several objectives share one; built where None.
        num_pairs: objectives that share the memory which this one builds.
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
        memory_module: Memory | None = None,
        num_pairs: int = 1,
        config: ContrastConfig | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        config = ContrastConfig.from_options(dict(config or {}) | rename_options(options))
        self.config = config
        self.memory = memory_module or build_memory(config, dataset_size, labels, num_pairs)
        self.fill_samples = self.memory.num_rows if config.init == "forward" else 0
        self.student_head = nn.Linear(student_dim, config.embedding_dim)
        self.teacher_head = nn.Linear(teacher_dim, config.embedding_dim)
        for side in ("student", "teacher"):
            rows = random_bank(
                self.memory.num_rows, config.embedding_dim, config.storage, config.bank_device
            )
            self.register_buffer(f"{side}_bank", rows)
            self.register_buffer(f"{side}_normalizer", torch.zeros(()))
        # Known to Python, so that no step waits for the device to say whether they are set.
        self._normalized = False
        self._pending: _PendingUpdate | None = None
        self.register_load_state_dict_post_hook(_after_loading)  # type: ignore[no-untyped-call]

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
        *,
        draw: Draw | None = None,
    ) -> Tensor:
        """Loss of one batch; in training, `after_step` then stores its rows and the first one's Z.

        A second call in training without `after_step` between discards what the first would store.

        Args:
            student_embedding: [B, student_dim].
            teacher_embedding: [B, teacher_dim]; no gradient reaches the teacher.
            index: [B] int64, positions in the training set.
            contrast_index: [B, 1+K] int64 bank rows, column 0 the positive; drawn when None.
            draw: of the memory, where several objectives share one.

        Returns:
            Scalar float32, in nats: the sum of both anchors' losses.

        Raises:
            ShapeError: unequal batches, or positions outside the training set.
        """
        _check.same_batch("CRD", student_embedding, teacher_embedding)
        if draw is None:
            _check.indices("CRD", index, len(student_embedding), self.memory.dataset_size)
            if contrast_index is None:
                draw = self.memory.draw(index)
            else:
                draw = self.memory.draw_of(contrast_index, index)
        with torch.autocast(student_embedding.device.type, enabled=False):
            student, teacher = self._rows(student_embedding, teacher_embedding)
            student_loss, student_normalizer = self._anchor_loss(
                student, teacher, self.teacher_bank, draw, self.student_normalizer
            )
            teacher_loss, teacher_normalizer = self._anchor_loss(
                teacher, student, self.student_bank, draw, self.teacher_normalizer
            )
        if self.training:
            self._pending = _PendingUpdate(
                student.detach(), teacher.detach(), draw.write_index,
                student_normalizer, teacher_normalizer,
            )  # fmt: skip
        return student_loss + teacher_loss

    @torch.no_grad()
    def after_step(self) -> None:
        """Store the rows of the last training batch, and the normalizers that it set."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            momentum = self.config.momentum if self.memory.uses_momentum else 0.0
            self._update_banks(pending.student, pending.teacher, pending.write_index, momentum)
            if not self._normalized:
                self.student_normalizer.copy_(pending.student_normalizer)
                self.teacher_normalizer.copy_(pending.teacher_normalizer)
                self._normalized = True
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
        self.fill_rows(*vectors, self.memory.reserve(batch.index))
        self.memory.record_row_owners()

    def fill_rows(
        self, student_embedding: Tensor, teacher_embedding: Tensor, write_index: Tensor | None
    ) -> None:
        """Write the rows of embeddings [B, dim] into the banks, over the old rows."""
        student, teacher = self._rows(student_embedding, teacher_embedding)
        self._update_banks(student, teacher, write_index, momentum=0.0)

    def footprint(self, batch: int) -> Footprint:
        """Memory of the banks and a step; MethodError for a batch that the memory cannot hold."""
        self.memory.check_batch(batch)
        return footprint(self.config, self.memory.dataset_size, batch)

    def uninformed_terms(self, batch: int) -> dict[str, float]:
        """The loss of both anchors where every score is the same."""
        critic_loss = uninformed_infonce if self.config.critic == "infonce" else uninformed_nce
        return {"crd": 2 * critic_loss(self.memory.negatives or batch - 1)}

    def _rows(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """[B, embedding_dim] rows of unit length."""
        student = self.student_head(student.float())
        teacher = self.teacher_head(teacher.detach().float())
        if self.config.center:
            student, teacher = subtract_batch_mean(student), subtract_batch_mean(teacher)
        return F.normalize(student, dim=1), F.normalize(teacher, dim=1)

    def _update_banks(
        self, student: Tensor, teacher: Tensor, write_index: Tensor | None, momentum: float
    ) -> None:
        if write_index is not None:
            update_bank(self.student_bank, write_index, gather(student), momentum)
            update_bank(self.teacher_bank, write_index, gather(teacher), momentum)

    def _anchor_loss(
        self, anchor: Tensor, other: Tensor, bank: Tensor, draw: Draw, normalizer: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The loss of one anchor, and its normalizer, of this batch where none is set yet.

        `other` is the same batch seen by the other network, `bank` that network's rows.
        """
        device, temperature, num_rows = anchor.device, self.config.temperature, self.memory.num_rows
        # Z is over all rows of a memory. Over a batch, whose size may change, it is per row.
        normalizer_rows = num_rows or 1
        candidate_count = num_rows or draw.num_negatives + 1
        keys = rows_of(bank, draw.key_index, device) if num_rows else gather(other)

        def contrast(anchor: Tensor, critic: Critic) -> Tensor:
            positive = other
            if draw.positive_index is not None:
                positive = rows_of(bank, draw.positive_index, device)
            return contrast_loss(anchor, positive, keys, draw.negatives, temperature, critic)

        if self.config.critic == "infonce":
            return contrast(anchor, InfoNCECritic()), normalizer
        if not self._normalized:
            mean_score = mean_over_processes(
                contrast(anchor.detach(), NormalizerEstimate(draw.num_negatives))
            )
            normalizer = mean_score * normalizer_rows
        scaled = normalizer * (candidate_count // normalizer_rows)
        critic = NCECritic(scaled.log(), draw.num_negatives, candidate_count)
        return contrast(anchor, critic), normalizer

    def _apply(self, fn: Any, recurse: bool = True) -> "CRD":
        """Move or cast the module, as `.to()` does, but leave banks in host memory or files."""
        names = [] if self.config.bank_device == DEVICE else ["student_bank", "teacher_bank"]
        banks = {name: self._buffers.pop(name) for name in names}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._buffers.update(banks)
        return self


def _after_loading(module: nn.Module, incompatible_keys: Any) -> None:
    assert isinstance(module, CRD)
    module._normalized = bool(module.student_normalizer > 0)
