"""Contrastive representation distillation (CRD): one pair of representations.

Source: Tian, Krishnan, Isola, "Contrastive Representation Distillation", ICLR 2020,
arXiv 1910.10699, section 3; the loss is `cktf.functional.nce_loss`. For each anchor the student's
representation must pick the teacher's of the same sample out of K others held in a memory bank, and
the other way round; the loss is the sum of both. It bounds mutual information from below:
`I(T; S) >= log K + E[log D+]`.

Departures: scores come from one product with the bank instead of copied rows; negatives are drawn
on the device for the whole batch; the normalizers do not join the autograd graph; without labels an
anchor is never its own negative.
"""

from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cktf import _check
from cktf.batch import Batch
from cktf.contrast import DTYPES, NegativeSampler, Storage, random_bank, update_bank
from cktf.errors import MethodError
from cktf.functional import nce_loss, nce_loss_all
from cktf.functional.nce import normalizer
from cktf.objectives.base import Loss, Objective, Setting, present
from cktf.taps import Features

Estimator = Literal["sampled", "all"]
_COLDEST = 0.02


class CRD(Objective):
    """The contrastive objective on one pair of representations.

    Args:
        student_dim: length of the student's vectors.
        teacher_dim: length of the teacher's vectors.
        dataset_size: N, samples in the training set: each has a row in both banks.
        embedding_dim: length of the rows that are compared.
        negatives: K, negatives for each anchor.
        temperature: τ, by which the products of unit rows are divided.
        momentum: how much of its old row a sample keeps at each visit.
        sampler: draws negatives; by default all samples but the anchor are candidates. Give one
            with labels to draw from other classes only.
        estimator: `sampled` draws K negatives for each anchor (the paper); `all` takes the exact
            expectation over every negative, without draws or sampling noise.
        storage: type of the banks and of the products with them; `bfloat16` takes half the memory,
            and its products are faster where the hardware multiplies it.

    Attributes:
        student_head, teacher_head: `nn.Linear` to embedding_dim; both train.
        student_bank, teacher_bank: [N, embedding_dim], of the storage type.
        student_normalizer: Z where the student is the anchor; 0 until the first batch sets it.
        teacher_normalizer: Z where the teacher is the anchor.

    Raises:
        MethodError: an option out of its range.
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
        sampler: NegativeSampler | None = None,
        storage: Storage = "float32",
        estimator: Estimator = "sampled",
    ) -> None:
        super().__init__()
        check_options(negatives, temperature, momentum, embedding_dim, storage, estimator)
        self.estimator = estimator
        self.negatives, self.temperature, self.momentum = negatives, temperature, momentum
        self.sampler = NegativeSampler(dataset_size) if sampler is None else sampler
        self.student_head = nn.Linear(student_dim, embedding_dim)
        self.teacher_head = nn.Linear(teacher_dim, embedding_dim)
        self.register_buffer("student_bank", random_bank(dataset_size, embedding_dim, storage))
        self.register_buffer("teacher_bank", random_bank(dataset_size, embedding_dim, storage))
        self.register_buffer("student_normalizer", torch.zeros(()))
        self.register_buffer("teacher_normalizer", torch.zeros(()))
        # Known to Python, so that no step waits for the device to say whether they are set.
        self._normalized = False
        self.register_load_state_dict_post_hook(_after_loading)  # type: ignore[no-untyped-call]

    def loss(
        self,
        student_embedding: Tensor,
        teacher_embedding: Tensor,
        index: Tensor,
        contrast_index: Tensor | None = None,
    ) -> Tensor:
        """Loss of one batch; in training the banks then hold its rows. The first batch sets Z.

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
        _check.indices("CRD", index, len(student_embedding), len(self.student_bank))
        if contrast_index is None and (self.estimator == "sampled" or not self._normalized):
            contrast_index = self.sampler.draw(index, self.negatives)
        with torch.autocast(student_embedding.device.type, enabled=False):
            student = F.normalize(self.student_head(student_embedding.float()), dim=1)
            teacher = F.normalize(self.teacher_head(teacher_embedding.detach().float()), dim=1)
            if not self._normalized and contrast_index is not None:
                self._set_normalizers(student, teacher, contrast_index)
            rows = index if self.estimator == "all" else present(contrast_index, "contrast_index")
            loss = self._side(student, self.teacher_bank, rows, self.student_normalizer)
            loss = loss + self._side(teacher, self.student_bank, rows, self.teacher_normalizer)
        if self.training:
            update_bank(self.student_bank, index, student, self.momentum)
            update_bank(self.teacher_bank, index, teacher, self.momentum)
        return loss

    def forward(self, student: Features, teacher: Features | None, batch: Batch) -> Loss:
        """The contrastive loss between the two embeddings of one batch."""
        own = present(student.embedding, "CRD's student embedding")
        other = present(present(teacher, "CRD's teacher").embedding, "CRD's teacher embedding")
        loss = self.loss(own, other, batch.index)
        return Loss(loss, {"crd": loss.detach()})

    def _side(self, anchor: Tensor, bank: Tensor, rows: Tensor, constant: Tensor) -> Tensor:
        """One anchor's loss; `rows` are the chosen ones, or with `all` the positives alone."""
        if self.estimator == "sampled":
            return nce_loss(anchor, bank, rows, temperature=self.temperature, normalizer=constant)
        classes = self.sampler.labels
        return nce_loss_all(
            anchor,
            bank,
            rows,
            temperature=self.temperature,
            normalizer=constant,
            negatives=self.negatives,
            labels=None if classes is None else classes[rows],
            bank_labels=classes,
        )

    def _set_normalizers(self, student: Tensor, teacher: Tensor, contrast_index: Tensor) -> None:
        tau = self.temperature
        self.student_normalizer.copy_(normalizer(student, self.teacher_bank, contrast_index, tau))
        self.teacher_normalizer.copy_(normalizer(teacher, self.student_bank, contrast_index, tau))
        self._normalized = True


def _after_loading(module: nn.Module, incompatible_keys: Any) -> None:
    assert isinstance(module, CRD)
    module._normalized = bool(module.student_normalizer > 0)


def check_options(
    negatives: int,
    temperature: float,
    momentum: float,
    embedding_dim: int,
    storage: str,
    estimator: str,
) -> None:
    """Raise MethodError unless the options of a contrastive objective are in their ranges."""
    rules = {
        f"negatives is 1 or more, given {negatives}": negatives >= 1,
        # exp(1/τ) times N must stay below the largest float32.
        f"temperature is {_COLDEST} or more, given {temperature}": temperature >= _COLDEST,
        f"momentum is from 0 to 1, given {momentum}": 0 <= momentum <= 1,
        f"estimator is sampled or all, given {estimator!r}": estimator in get_args(Estimator),
        f"storage is float32 or bfloat16, given {storage!r}": storage in DTYPES,
        f"embedding_dim is 1 or more, given {embedding_dim}": embedding_dim >= 1,
    }
    broken = [rule for rule, holds in rules.items() if not holds]
    if broken:
        raise MethodError(f"A contrastive objective's {'; '.join(broken)}.")


def build(setting: Setting, **options: Any) -> CRD:
    """CRD between the two penultimate embeddings."""
    student, teacher = setting.both("CRD")
    return CRD(
        present(student.embedding, "CRD's student embedding").shape[1],
        present(teacher.embedding, "CRD's teacher embedding").shape[1],
        setting.dataset_size,
        sampler=NegativeSampler(setting.dataset_size, setting.labels),
        **options,
    )
