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
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cktf import _check
from cktf.batch import Batch
from cktf.contrast import (
    DEVICE,
    CriticName,
    Draw,
    Estimator,
    Footprint,
    Init,
    Memory,
    MemoryName,
    Queue,
    Storage,
    check_options,
    footprint,
    new_memory,
    random_bank,
    rows_of,
    update_bank,
)
from cktf.functional.centered import centered
from cktf.functional.contrast import dense_contrast, sampled_contrast
from cktf.functional.critics import Critic, InfoNCECritic, MeanScore, NCECritic
from cktf.objectives.base import BuildContext, Loss, Objective, loss_of
from cktf.objectives.pairs import embeddings
from cktf.processes import averaged, gathered
from cktf.taps import Features


@dataclass(frozen=True)
class _Pending:
    """What `after_step` stores of a batch: unit rows, the bank rows they go to, normalizers."""

    student: Tensor
    teacher: Tensor
    slots: Tensor | None
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
        embedding_dim: length of the rows that are compared.
        negatives: K, negatives for each anchor.
        temperature: τ, by which the products of unit rows are divided. The paper takes 0.1 on
            CIFAR-100 and 0.07 on Tiny-ImageNet and STL-10, as a method string without labels does.
        momentum: how much of its old row a sample keeps at each visit, in a bank.
        memory: `bank`, a row per sample (the paper); `queue`, the last rows, whatever N; `batch`,
            the other samples of the batch.
        queue_size: M, rows of a queue.
        estimator: `sampled` draws K negatives for each anchor (the paper); `all` takes the exact
            expectation over every row; `shared` draws K rows for the whole batch. None is `shared`
            for a bank of more than K rows and `all` otherwise.
        critic: `nce` (the paper), with a normalizer that the first batch fixes; or `infonce`.
        storage: type of the rows. `bfloat16` takes half the memory, and products are faster where
            the hardware multiplies it.
        place: of a bank: on the `device`, in `host` memory, or a folder in which it is a mapped
            file; the last two with `shared`.
        init: rows at the start: `random` (the paper), or from a `forward` pass over the training
            set.
        renormalize: epochs at whose first batch the normalizers are set anew.
        center: whether the batch's mean is taken from what a head gives, before rows get unit
            length: then no direction that all samples share can take the rows over.
        labels: [N] classes: negatives come from other classes; None: from all other samples.
        source: the memory, where several objectives share one.
        sharing: how many objectives will share the memory that this one makes.

    Attributes:
        student_head, teacher_head: `nn.Linear` to embedding_dim; both train.
        student_bank, teacher_bank: the rows, [N, embedding_dim] for a bank.
        student_normalizer: Z where the student is the anchor; 0 until the first batch sets it.
            Without a memory Z over the batch's size, which may change.
        teacher_normalizer: Z where the teacher is the anchor.

    Raises:
        MethodError: an option out of its range, or more memory than there is.
    """

    needs = frozenset({"embedding"})

    student_bank: Tensor
    teacher_bank: Tensor
    student_normalizer: Tensor
    teacher_normalizer: Tensor

    def __init__(
        self,
        student_dim: int,
        teacher_dim: int,
        dataset_size: int,
        embedding_dim: int = 128,
        negatives: int = 16384,
        temperature: float = 0.1,
        momentum: float = 0.5,
        *,
        memory: MemoryName = "bank",
        queue_size: int = 16384,
        estimator: Estimator | None = None,
        critic: CriticName = "nce",
        storage: Storage = "float32",
        place: str = DEVICE,
        init: Init = "random",
        renormalize: Sequence[int] = (),
        center: bool = False,
        labels: Tensor | None = None,
        source: Memory | None = None,
        sharing: int = 1,
    ) -> None:
        super().__init__()
        check_options(
            embedding_dim=embedding_dim, negatives=negatives, temperature=temperature,
            momentum=momentum, memory=memory, queue_size=queue_size, estimator=estimator,
            critic=critic, storage=storage, place=place, init=init, renormalize=renormalize,
        )  # fmt: skip
        self.temperature, self.momentum, self.critic = temperature, momentum, critic
        self.storage, self.place, self.renormalize = storage, place, frozenset(renormalize)
        self.embedding_dim, self.center = embedding_dim, center
        if source is None:
            source = new_memory(
                dataset_size, labels,
                memory=memory, negatives=negatives, estimator=estimator, queue_size=queue_size,
                pairs=sharing, embedding_dim=embedding_dim, storage=storage, place=place,
            )  # fmt: skip
        self.memory = source
        self.filling = init == "forward" and source.rows > 0
        self.student_head = nn.Linear(student_dim, embedding_dim)
        self.teacher_head = nn.Linear(teacher_dim, embedding_dim)
        for side in ("student", "teacher"):
            rows = random_bank(source.rows, embedding_dim, storage, place)
            self.register_buffer(f"{side}_bank", rows)
            self.register_buffer(f"{side}_normalizer", torch.zeros(()))
        # Known to Python, so that no step waits for the device to say whether they are set.
        self._normalized = False
        self._pending: _Pending | None = None
        self.register_load_state_dict_post_hook(_after_loading)  # type: ignore[no-untyped-call]

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
            memory = self.memory
            given = None if contrast_index is None else memory.given(contrast_index, index)
            draw = given or memory.draw(index)
        with torch.autocast(student_embedding.device.type, enabled=False):
            student, teacher = self._rows(student_embedding, teacher_embedding)
            loss, student_normalizer = self._side(
                student, teacher, self.teacher_bank, draw, self.student_normalizer
            )
            teacher_loss, teacher_normalizer = self._side(
                teacher, student, self.student_bank, draw, self.teacher_normalizer
            )
            loss = loss + teacher_loss
        if self.training:
            rows = student.detach(), teacher.detach()
            self._pending = _Pending(*rows, draw.slots, student_normalizer, teacher_normalizer)
        return loss

    @torch.no_grad()
    def after_step(self) -> None:
        """Store the rows of the last training batch, and the normalizers that it set."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            momentum = self.momentum if self.memory.mixes else 0.0
            self._store(pending.student, pending.teacher, pending.slots, momentum)
            if not self._normalized:
                self.student_normalizer.copy_(pending.student_normalizer)
                self.teacher_normalizer.copy_(pending.teacher_normalizer)
                self._normalized = True
        self.memory.after_step()

    def forward(self, student: Features, teacher: Features | None, batch: Batch) -> Loss:
        """The contrastive loss between the two embeddings of one batch."""
        return loss_of("crd", self.loss(*embeddings("CRD", student, teacher), batch.index))

    def begin_epoch(self, epoch: int) -> None:
        """Set the normalizers anew at the epochs that ask for it."""
        if epoch in self.renormalize:
            self._normalized = False

    @torch.no_grad()
    def fill(self, student: Features, teacher: Features | None, batch: Batch) -> None:
        """Put a batch's rows into the memory."""
        own, other = embeddings("CRD", student, teacher)
        _check.indices("CRD", batch.index, len(own), self.memory.dataset_size)
        self.fill_rows(own, other, self.memory.reserve(batch.index))
        self.memory.after_step()

    def fill_rows(self, student_embedding: Tensor, teacher_embedding: Tensor, draw: Draw) -> None:
        """Put the rows of embeddings [B, dim] into the memory, as they are."""
        student, teacher = self._rows(student_embedding, teacher_embedding)
        self._store(student, teacher, draw.slots, momentum=0.0)

    def full_after(self, samples: int) -> bool:
        """Whether so many samples have filled the memory."""
        return self.memory.full_after(samples)

    def footprint(self, batch: int) -> Footprint:
        """What the banks and a step take; MethodError for a batch that the memory cannot hold."""
        kept = self.memory
        kept.check_batch(batch)
        return footprint(
            rows=kept.rows, queue=isinstance(kept, Queue), negatives=kept.negatives,
            estimator=kept.estimator, pairs=1, dim=self.embedding_dim, storage=self.storage,
            place=self.place, batch=batch,
        )  # fmt: skip

    def _rows(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """[B, embedding_dim] rows of unit length."""
        own = self.student_head(student.float())
        other = self.teacher_head(teacher.detach().float())
        if self.center:
            own, other = centered(own), centered(other)
        return F.normalize(own, dim=1), F.normalize(other, dim=1)

    def _store(
        self, student: Tensor, teacher: Tensor, slots: Tensor | None, momentum: float
    ) -> None:
        if slots is not None:
            update_bank(self.student_bank, slots, gathered(student), momentum)
            update_bank(self.teacher_bank, slots, gathered(teacher), momentum)

    def _side(
        self, anchor: Tensor, other: Tensor, bank: Tensor, draw: Draw, normalizer: Tensor
    ) -> tuple[Tensor, Tensor]:
        """One anchor's loss, and its normalizer, of this batch where none is set yet.

        `other` is the batch seen by the other network, `bank` its memory.
        """
        device, tau = anchor.device, self.temperature
        # Z is of all rows of a memory; of the batch, which may be of another size, it is of one.
        normalized = self.memory.rows or 1
        size = self.memory.rows or draw.negatives + 1
        keys = rows_of(bank, draw.chosen, device) if self.memory.rows else gathered(other)

        def contrast(anchor: Tensor, critic: Critic) -> Tensor:
            positive = other if draw.stored is None else rows_of(bank, draw.stored, device)
            if draw.drawn is not None:
                return sampled_contrast(anchor, positive, keys, draw.drawn, tau, critic)
            assert draw.candidates is not None
            return dense_contrast(anchor, positive, keys, draw.candidates, tau, critic)

        if self.critic == "infonce":
            return contrast(anchor, InfoNCECritic()), normalizer
        negatives = draw.negatives
        if not self._normalized:
            normalizer = averaged(contrast(anchor.detach(), MeanScore(negatives))) * normalized
        whole = normalizer * (size // normalized)
        return contrast(anchor, NCECritic(whole.log(), negatives, size)), normalizer

    def _apply(self, fn: Any, recurse: bool = True) -> "CRD":
        # Banks in host memory or in files stay where they are when the objective moves.
        stay = [] if self.place == DEVICE else ["student_bank", "teacher_bank"]
        kept = {name: self._buffers.pop(name) for name in stay}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._buffers.update(kept)
        return self


def _after_loading(module: nn.Module, incompatible_keys: Any) -> None:
    assert isinstance(module, CRD)
    module._normalized = bool(module.student_normalizer > 0)


def build(setting: BuildContext, **options: Any) -> CRD:
    """CRD between the two penultimate embeddings."""
    student, teacher = embeddings("CRD", *setting.both("CRD"))
    return CRD(
        student.shape[1],
        teacher.shape[1],
        setting.dataset_size,
        labels=setting.labels,
        **options,
    )
