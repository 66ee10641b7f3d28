"""Memories, estimators and critics against their definitions and against each other."""

import copy
import math
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional as F

from cktf.contrast import Bank, ContrastConfig, InBatch, Queue, random_bank
from cktf.errors import MethodError, ShapeError
from cktf.functional import infonce_loss, infonce_loss_all, nce_loss, nce_loss_all
from cktf.functional.contrast import Candidates, contrast_loss
from cktf.functional.critics import EPSILON, InfoNCECritic, NCECritic
from cktf.objectives import CRD
from cktf.objectives.crd import store_rows, unit_rows

B, N, D, K, TAU = 6, 60, 8, 30, 0.1
MAPS = Path("/proc/self/maps")


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(params=["labels", "no labels"])
def labels(request):
    """Classes of unequal size, or none."""
    classes = torch.tensor([0] * 30 + [1] * 20 + [2] * 10)[torch.randperm(N)]
    return classes if request.param == "labels" else None


def rows(count):
    return F.normalize(torch.randn(count, D), dim=1)


def embeddings(count=N):
    """Student's and teacher's vectors of every sample of a small training set."""
    return torch.randn(count, 4), torch.randn(count, 5)


def crd(labels=None, **options):
    return CRD(4, 5, N, labels=labels, **({"embedding_dim": D, "negatives": K} | options))


def ids(labels, index):
    return index if labels is None else labels[index]


def softmax_loss(anchor, positive, others, share):
    """InfoNCE of one anchor, in double precision."""
    scores = torch.exp(others.double() @ anchor.double() / TAU).sum() * share
    own = torch.exp(positive.double() @ anchor.double() / TAU)
    return -torch.log(own / (own + scores))


def nce_side(anchor, positive, others, share, k, size, z):
    """NCE of one anchor, in double precision."""
    c = k / size
    p = torch.exp(others.double() @ anchor.double() / TAU) / z
    own = torch.exp(positive.double() @ anchor.double() / TAU) / z
    negative = torch.log(c / (p + c + EPSILON)).sum() * share
    return -torch.log(own / (own + c + EPSILON)) - negative


class TestInfoNCE:
    def test_sampled_by_definition(self):
        anchor, bank, index = rows(B), rows(N), torch.randint(N, (B, 1 + K))
        fused, naive = (anchor.clone().requires_grad_() for _ in range(2))
        loss = infonce_loss(fused, bank, index, temperature=TAU)
        expected = (
            sum(
                softmax_loss(naive[i], bank[index[i, 0]], bank[index[i, 1:]], 1.0) for i in range(B)
            )
            / B
        )
        loss.backward()
        expected.backward()
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
        torch.testing.assert_close(fused.grad, naive.grad, rtol=1e-4, atol=1e-6)

    def test_all_by_definition(self, labels):
        anchor, bank, index = rows(B), rows(N), torch.randperm(N)[:B]
        fused, naive = (anchor.clone().requires_grad_() for _ in range(2))
        own = None if labels is None else labels[index]
        loss = infonce_loss_all(
            fused, bank, index, temperature=TAU, negatives=K, labels=own, bank_labels=labels
        )
        every, expected = ids(labels, torch.arange(N)), 0.0
        for i, j in enumerate(index):
            others = bank[every != ids(labels, j)]
            expected = expected + softmax_loss(naive[i], bank[j], others, K / len(others)) / B
        loss.backward()
        expected.backward()
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
        torch.testing.assert_close(fused.grad, naive.grad, rtol=1e-4, atol=1e-6)

    def test_the_mean_of_sampled_losses_is_no_larger_than_all(self):
        anchor, bank, index = rows(B), rows(N), torch.arange(B)
        sampler, losses = Bank(N, None, K, "sampled"), []
        for _ in range(300):
            contrast = torch.cat([index.unsqueeze(1), sampler.draw(index).negatives], dim=1)
            losses.append(infonce_loss(anchor, bank, contrast, temperature=TAU))
        exact = infonce_loss_all(anchor, bank, index, temperature=TAU, negatives=K)
        assert torch.stack(losses).mean() < exact
        assert torch.stack(losses).mean() == pytest.approx(exact.item(), rel=0.1)

    def test_extreme_scores_stay_finite(self):
        anchor = torch.eye(D)[:2].requires_grad_()
        bank = torch.cat([-torch.eye(D)[:2], torch.eye(D)[:2]])
        for index in (torch.tensor([0, 1]), torch.tensor([2, 3])):
            loss = infonce_loss_all(anchor, bank, index, temperature=0.02, negatives=10**7)
            loss.backward()
            assert loss.isfinite()
            assert anchor.grad.isfinite().all()


class TestShared:
    @pytest.mark.slow
    def test_mean_over_draws_is_the_exact_expectation(self, labels):
        """Value and gradient, within a few of their standard errors."""
        bank, index, anchor = rows(N), torch.randperm(N)[:B], rows(B).requires_grad_()
        z = torch.tensor(float(N) * 2)
        memory = Bank(N, labels, K, "shared")
        losses, gradients = [], []
        for _ in range(1500):
            draw, anchor.grad = memory.draw(index), None
            loss = contrast_loss(
                anchor, bank[index], bank[draw.key_index], draw.negatives, TAU,
                NCECritic(z.log(), K, N),
            )  # fmt: skip
            loss.backward()
            losses.append(loss.detach())
            gradients.append(anchor.grad)
        anchor.grad = None
        own = None if labels is None else labels[index]
        expected = nce_loss_all(
            anchor, bank, index, temperature=TAU, normalizer=z, negatives=K,
            labels=own, bank_labels=labels,
        )  # fmt: skip
        expected.backward()
        for drawn, exact in ((losses, expected.detach()), (gradients, anchor.grad)):
            sample = torch.stack(drawn)
            error = sample.std(0) / len(drawn) ** 0.5
            assert ((sample.mean(0) - exact).abs() < 4.5 * error).all()
            assert error.max() < 0.05 * exact.abs().max()

    def test_all_anchors_see_the_same_keys_but_their_own_class(self, labels):
        memory, index = Bank(N, labels, 500, "shared"), torch.arange(B)
        draw = memory.draw(index)
        mask = draw.negatives.mask(slice(None))
        keys = ids(labels, draw.key_index)
        assert torch.equal(mask.isinf(), keys == ids(labels, index).unsqueeze(1))
        torch.testing.assert_close(draw.negatives.share, 500 / (mask == 0).sum(1))

    @pytest.mark.parametrize("memory", [
        lambda: Bank(N, None, 20, "shared"), lambda: Queue(1000, None, 20, "shared", N)
    ])  # fmt: skip
    def test_every_row_is_drawn_equally_often(self, memory):
        memory = memory().eval()
        drawn = torch.stack([memory.draw(torch.arange(B)).key_index for _ in range(600)])
        counts = drawn.flatten().bincount(minlength=N).float()
        assert len(counts) == N
        # Six standard deviations above the mean of chi-squared, as in test_contrast.py.
        chi2 = float(((counts - 200) ** 2 / 200).sum())
        assert chi2 < N + 6 * (2 * N) ** 0.5

    def test_keys_of_a_queue_have_the_samples_that_entered(self, labels):
        queue, index = Queue(N, labels, 500, "shared", 16), torch.arange(40, 40 + B)
        queue.draw(index)
        queue.record_row_owners()
        draw = queue.eval().draw(index)
        held = torch.cat([index, torch.full((16 - B,), -1)])[draw.key_index]
        own = (ids(labels, held) == ids(labels, index).unsqueeze(1)) & (held >= 0)
        assert own.any()
        assert torch.equal(draw.negatives.mask(slice(None)).isinf(), own)


def test_normalizers_of_batches_of_another_size():
    """Z is the size of the batch times the mean score, which the first one says."""
    objective = crd(memory="batch")
    everyone = embeddings()
    for index in (torch.arange(20), torch.arange(30, 34)):
        student, teacher = (e[index] for e in everyone)
        loss = objective.loss(student, teacher, index)
        objective.after_step()
        rows = [r.detach() for r in unit_rows([objective], [(student, teacher)])]
        means = objective.student_normalizer, objective.teacher_normalizer
        expected, size = 0.0, len(index)
        for (own, other), mean in zip((rows, rows[::-1]), means, strict=True):
            for i in range(size):
                others = torch.cat([other[:i], other[i + 1 :]])
                z = float(mean) * size
                side = nce_side(own[i], other[i], others, 1.0, size - 1, size, z)
                expected += float(side) / size
        assert loss.item() == pytest.approx(expected, rel=1e-5)


class TestQueue:
    def test_by_definition_over_several_steps(self, labels):
        """Scored before it enters, first in, first out, never against its own class or sample."""
        objective = crd(labels, memory="queue", queue_size=16, negatives=K, critic="infonce")
        everyone = embeddings()
        held = [(None, r, t) for r, t in zip(
            objective.student_bank.clone(), objective.teacher_bank.clone(), strict=True
        )]  # fmt: skip
        for step in range(8):
            index = torch.randperm(N)[:B]
            student, teacher = (e[index] for e in everyone)
            s, t = (v.detach() for v in unit_rows([objective], [(student, teacher)]))
            expected = 0.0
            for i, j in enumerate(index):
                others = [h for h in held if h[0] is None or ids(labels, h[0]) != ids(labels, j)]
                share = K / len(others)
                expected += softmax_loss(s[i], t[i], torch.stack([h[2] for h in others]), share) / B
                expected += softmax_loss(t[i], s[i], torch.stack([h[1] for h in others]), share) / B
            loss = objective.loss(student, teacher, index)
            objective.after_step()
            assert loss.item() == pytest.approx(float(expected), rel=1e-5), step
            held = (held + [(j, s[i], t[i]) for i, j in enumerate(index)])[-16:]

    def test_a_batch_enters_after_its_step(self):
        queue = Queue(N, None, K, "all", 16)
        queue.draw(torch.arange(10))
        queue.record_row_owners()
        queue.draw(torch.arange(20, 30))
        candidates = queue.draw(torch.arange(3, 10)).negatives
        held = torch.cat([torch.arange(10), torch.full((6,), -1)])
        expected = held == torch.arange(3, 10).unsqueeze(1)
        assert torch.equal(candidates.mask(slice(None)).isinf(), expected)
        torch.testing.assert_close(candidates.share, K / (~expected).sum(1))
        queue.record_row_owners()
        assert torch.equal(queue.held, torch.tensor([9, *range(1, 10), *range(3, 9)]))
        assert queue.next == 1

    def test_agrees_with_a_bank_once_both_have_seen_everyone(self, labels):
        everyone = embeddings()
        queue = crd(labels, memory="queue", queue_size=N)
        bank = crd(labels, estimator="all", momentum=0.0)
        with torch.no_grad():
            for name in ("student_head", "teacher_head"):
                getattr(bank, name).load_state_dict(getattr(queue, name).state_dict())
        for index in torch.randperm(N).split(B):
            draw = queue.memory.draw(index), bank.memory.draw(index)
            for objective, drawn in zip((queue, bank), draw, strict=True):
                vectors = everyone[0][index], everyone[1][index]
                store_rows([objective], [vectors], drawn.write_index)
                objective.memory.record_row_owners()
        index = torch.randperm(N)[:B]
        found, gradients = [], []
        for objective in (queue, bank):
            student = everyone[0][index].clone().requires_grad_()
            loss = objective.loss(student, everyone[1][index], index)
            loss.backward()
            objective.after_step()
            found.append(loss.item())
            gradients.append(student.grad)
        assert found[0] == pytest.approx(found[1], rel=1e-5)
        torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)
        assert queue.student_normalizer.item() == pytest.approx(bank.student_normalizer.item())

    def test_a_batch_that_does_not_fit_is_told_before_training(self):
        objective = crd(memory="queue", queue_size=16)
        objective.footprint(16)
        with pytest.raises(MethodError, match=r"queue_size is 16.* 17. Set queue_size to 17"):
            objective.footprint(17)

    def test_shorter_than_a_batch(self):
        objective = crd(memory="queue", queue_size=4)
        with pytest.raises(MethodError, match="queue_size is 4, the batch of all processes 6"):
            objective.loss(*(e[:B] for e in embeddings()), torch.arange(B))


@pytest.mark.parametrize("memory", ["bank", "queue"])
def test_evaluation_leaves_a_memory_unchanged(memory):
    objective = crd(memory=memory, queue_size=16).eval()
    before = copy.deepcopy(objective.state_dict())
    objective.loss(*(e[:B] for e in embeddings()), torch.arange(B))
    objective.after_step()
    after = objective.state_dict()
    assert all(torch.equal(before[n], after[n]) for n in before if "normalizer" not in n)


@pytest.mark.parametrize("tau", [0.01, math.nan, math.inf])
def test_infonce_refuses_a_temperature_whose_exponentials_are_no_numbers(tau):
    rows, index = F.normalize(torch.randn(4, 8), dim=1), torch.arange(4)
    for loss in (
        lambda: infonce_loss(rows, rows, torch.tensor([[0, 1]] * 4), temperature=tau),
        lambda: infonce_loss_all(rows, rows, index, temperature=tau, negatives=3),
    ):
        with pytest.raises(MethodError, match=rf"0.02 or more, given {tau}"):
            loss()


@pytest.mark.parametrize("critic", ["nce", "infonce"])
def test_in_batch_by_definition(labels, critic):
    objective = crd(labels, memory="batch", critic=critic)
    assert objective.student_bank.numel() == 0
    index = torch.randperm(N)[:B]
    student, teacher = (e[index] for e in embeddings())
    loss = objective.loss(student, teacher, index)
    objective.after_step()
    s, t = unit_rows([objective], [(student, teacher)])
    own, k, expected = ids(labels, index), B - 1, 0.0
    for anchor, other, z in (
        (s, t, objective.student_normalizer), (t, s, objective.teacher_normalizer)
    ):  # fmt: skip
        for i in range(B):
            others = other[own != own[i]]
            share = k / len(others)
            if critic == "infonce":
                expected += softmax_loss(anchor[i], other[i], others, share) / B
            else:
                expected += nce_side(anchor[i], other[i], others, share, k, B, B * z) / B
    assert loss.item() == pytest.approx(float(expected.detach()), rel=1e-5)


def test_an_anchor_without_negatives_counts_its_positive_alone():
    labels = torch.tensor([0] * (N - 1) + [1])
    for critic in ("nce", "infonce"):
        objective = crd(labels, memory="batch", critic=critic)
        student = torch.randn(B, 4, requires_grad=True)
        loss = objective.loss(student, torch.randn(B, 5), torch.arange(B))
        loss.backward()
        assert loss.isfinite()
        assert student.grad.isfinite().all()


def test_the_normalizer_is_not_of_negatives_that_are_not_there():
    """A first batch of one class says of the scores what its positives do."""
    labels = torch.tensor([0] * (N - 1) + [1])
    objective = crd(labels, memory="batch")
    given = torch.randn(B, 4), torch.randn(B, 5)
    objective.loss(*given, torch.arange(B))
    objective.after_step()
    student, teacher = unit_rows([objective], [given])
    expected = torch.exp((student * teacher).sum(1) / TAU).mean()
    torch.testing.assert_close(objective.student_normalizer, expected.detach())


@pytest.mark.parametrize("memory", ["queue", "batch"])
def test_rows_of_a_bank_are_for_a_bank(memory):
    objective = crd(memory=memory, queue_size=N)
    chosen = torch.randint(N, (B, 1 + K))
    with pytest.raises(MethodError, match="Set memory=bank"):
        objective.loss(torch.randn(B, 4), torch.randn(B, 5), torch.arange(B), chosen)


@pytest.mark.parametrize(
    ("chosen", "message"),
    [(torch.zeros(B, 1, dtype=torch.int64), "K >= 1"),
     (torch.zeros(B - 1, 4, dtype=torch.int64), "for a batch of 6"),
     (torch.zeros(B, 4), "int64"), (torch.full((B, 4), -1), "given -1 to -1"),
     (torch.full((B, 4), N), "bank of 60")],
)  # fmt: skip
def test_rows_that_no_bank_has(chosen, message):
    objective = crd(estimator="sampled")
    with pytest.raises(ShapeError, match=message):
        objective.loss(torch.randn(B, 4), torch.randn(B, 5), torch.arange(B), chosen)
    with pytest.raises(ShapeError, match=message):
        nce_loss(rows(B), rows(N), chosen, temperature=TAU, normalizer=10.0)


@pytest.mark.parametrize(
    ("constants", "message"),
    [({"temperature": t}, "temperature") for t in (0.0, -0.1, float("nan"), float("inf"))]
    + [({"normalizer": z}, "normalizer") for z in (0.0, -1.0, float("nan"))],
)
def test_constants_of_nce(constants, message):
    constants = {"temperature": TAU, "normalizer": 10.0} | constants
    with pytest.raises(MethodError, match=message):
        nce_loss(rows(B), rows(N), torch.randint(N, (B, 1 + K)), **constants)
    with pytest.raises(MethodError, match=message):
        nce_loss_all(rows(B), rows(N), torch.arange(B), negatives=K, **constants)


CHOICES = [
    {"memory": memory, "estimator": estimator, "critic": critic}
    for memory, estimator in [
        ("bank", "sampled"), ("bank", "all"), ("bank", "shared"),
        ("queue", "all"), ("queue", "shared"), ("batch", "all"),
    ]
    for critic in ("nce", "infonce")
]  # fmt: skip


@pytest.mark.parametrize("choice", CHOICES, ids=lambda c: "-".join(c.values()))
class TestEveryChoice:
    def steps(self, objective, count, first=0):
        losses = []
        for step in range(first, first + count):
            generator = torch.Generator().manual_seed(step)
            index = torch.randperm(N, generator=generator)[:B]
            torch.manual_seed(step)
            inputs = torch.randn(B, 4, generator=generator), torch.randn(B, 5, generator=generator)
            losses.append(objective.loss(*inputs, index).item())
            objective.after_step()
        return losses

    def test_a_saved_state_goes_on_as_if_nothing_had_happened(self, choice):
        objective = crd(torch.arange(N) % 3, queue_size=20, **choice)
        self.steps(objective, 3)
        saved, copied = copy.deepcopy(objective.state_dict()), copy.deepcopy(objective)
        expected = self.steps(objective, 3, first=3)
        restored = crd(torch.arange(N) % 3, queue_size=20, **choice)
        restored.load_state_dict(saved)
        assert self.steps(restored, 3, first=3) == expected
        assert self.steps(copied, 3, first=3) == expected

    def test_float32_whatever_autocast_says_and_gradients_reach_both_heads(self, choice):
        plain = crd(torch.arange(N) % 3, queue_size=20, **choice)
        mixed = copy.deepcopy(plain)
        expected = self.steps(plain, 1)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert self.steps(mixed, 1) == expected
        loss = plain.loss(torch.randn(B, 4), torch.randn(B, 5), torch.arange(B))
        loss.backward()
        assert loss.dtype == torch.float32
        for head in (plain.student_head, plain.teacher_head):
            assert head.weight.grad.abs().sum() > 0

    def test_training_brings_the_pairs_together(self, choice):
        """Minimizing it raises the agreement of positives, whatever the choice."""
        objective = crd(queue_size=20, **choice)
        student, noise = embeddings()
        teacher = noise + 2 * F.pad(student, (0, 1))
        optimizer = torch.optim.Adam(objective.parameters(), lr=0.05)

        def agreement():
            with torch.no_grad():
                s, t = unit_rows([objective], [(student, teacher)])
                return float((s * t).sum(1).mean())

        before = agreement()
        for _ in range(60):
            index = torch.randperm(N)[:20]
            optimizer.zero_grad()
            objective.loss(student[index], teacher[index], index).backward()
            optimizer.step()
            objective.after_step()
        assert agreement() > before + 0.2


class TestBankDevice:
    @pytest.mark.parametrize("storage", ["float32", "bfloat16"])
    def test_wherever_banks_are_they_give_the_same(self, storage, tmp_path):
        found = []
        for bank_device in ("device", "host", str(tmp_path)):
            torch.manual_seed(0)
            objective = crd(estimator="shared", bank_device=bank_device, storage=storage)
            assert objective.student_bank.dtype == getattr(torch, storage)
            index = torch.arange(B)
            losses = []
            for _ in range(3):
                losses.append(objective.loss(*(e[index] for e in embeddings()), index).item())
                objective.after_step()
            found.append((losses, objective.student_bank.clone()))
        for losses, bank in found[1:]:
            assert losses == found[0][0]
            assert torch.equal(bank, found[0][1])
        assert not list(tmp_path.iterdir()), "the file outlives nobody"

    @pytest.mark.gpu
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
    @pytest.mark.parametrize("storage", ["float32", "bfloat16"])
    def test_a_gpu_reads_and_writes_rows_in_host_memory(self, storage):
        """Both devices take the draws of the CPU's generator."""
        found = []
        for device in ("cpu", "cuda"):
            torch.manual_seed(0)
            objective = crd(estimator="shared", bank_device="host", storage=storage).to(device)
            index = torch.arange(B)
            vectors = [e[index].to(device) for e in embeddings()]
            losses = []
            for _ in range(3):
                losses.append(objective.loss(*vectors, index.to(device)).item())
                objective.after_step()
            assert objective.student_bank.device.type == "cpu"
            found.append((torch.tensor(losses), objective.student_bank.float()))
        rounding = 2e-2 if storage == "bfloat16" else 1e-4
        torch.testing.assert_close(*found, rtol=rounding, atol=rounding)

    def test_moving_the_objective_leaves_the_banks(self, tmp_path):
        objective = crd(estimator="shared", bank_device=str(tmp_path))
        rows = objective.student_bank.data_ptr()
        objective.to(torch.float64)
        assert objective.student_bank.data_ptr() == rows
        assert objective.student_bank.dtype == torch.float32
        assert objective.student_head.weight.dtype == torch.float64

    def test_a_mapped_bank_needs_no_memory_of_its_own(self, tmp_path):
        mapped = random_bank(1000, 16, "float32", str(tmp_path))
        assert mapped.abs().max() <= (16 / 3) ** -0.5
        assert mapped.std() > 0
        if MAPS.exists():  # Linux
            assert str(tmp_path) in MAPS.read_text()
            del mapped
            assert str(tmp_path) not in MAPS.read_text()


@pytest.mark.parametrize(
    ("options", "estimator"),
    [
        ({"negatives": N - 1}, "shared"),
        ({"negatives": N}, "all"),
        ({"negatives": N, "bank_device": "host"}, "shared"),
        ({"negatives": 2, "memory": "queue"}, "all"),
        ({"memory": "batch"}, "all"),
        ({"negatives": N - 1, "estimator": "sampled"}, "sampled"),
    ],
)
def test_the_estimator_of_whoever_names_none(options, estimator):
    assert crd(**options).memory.estimator == estimator


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"memory": "quue"}, "'bank', 'queue' or 'batch', given 'quue'"),
        ({"negative": 3}, "no option 'negative'. Did you mean 'negatives'"),
        ({"critic": "softmax"}, "'nce' or 'infonce', given 'softmax'"),
        ({"init": "warm"}, "'random' or 'forward'"),
        ({"memory": "queue", "estimator": "sampled"}, "estimator=all or shared"),
        ({"memory": "batch", "estimator": "shared"}, "goes with estimator=all"),
        ({"memory": "queue", "queue_size": 1}, "queue_size: .* equal to 2, given 1"),
        ({"bank_device": "host", "estimator": "all"}, "given bank with all. Set estimator=shared"),
        (
            {"bank_device": "host", "memory": "queue"},
            "given queue. Set memory=bank and estimator=shared",
        ),
        (
            {"bank_device": "host", "memory": "queue", "estimator": "shared"},
            "given queue with shared. Set memory=bank and estimator=shared, or leave",
        ),
        ({"bank_device": "/no/such/folder", "estimator": "shared"}, "device, host or a folder"),
        ({"estimator": "some"}, "estimator: "),
        ({"storage": "float16"}, "storage: "),
        ({"negatives": 0}, "negatives: .* equal to 1"),
        ({"temperature": 0.01}, "temperature: .* equal to 0.02"),
        ({"momentum": 1.5}, "momentum: .* equal to 1"),
        ({"embedding_dim": 0}, "embedding_dim: .* equal to 1"),
        ({"renormalize": (0,)}, "renormalize: .* equal to 1"),
    ],
)
def test_mistakes(options, message):
    with pytest.raises(MethodError, match=message):
        crd(**options)


def test_options_are_defaults_of_a_config_and_old_names_are_read():
    config = ContrastConfig(negatives=7, bank_device="host")
    objective = CRD(4, 5, N, config=config, negatives=8)
    assert (objective.config.negatives, objective.config.bank_device) == (8, "host")
    assert crd(place="host").config == crd(bank_device="host").config
    with pytest.raises(ValidationError, match="frozen"):
        config.negatives = 9


def test_labels_that_do_not_fit():
    for memory in (lambda c: Queue(N, c, K, "all", 8), lambda c: InBatch(N, c)):
        with pytest.raises(ShapeError, match="one per sample"):
            memory(torch.arange(3))
        with pytest.raises(MethodError, match="one class"):
            memory(torch.zeros(N).long())


def test_a_mask_too_large_to_keep_is_made_block_by_block(monkeypatch):
    from cktf.functional import contrast

    anchor, keys = rows(B), rows(N)
    key_ids, anchor_ids = torch.arange(N) % 3, torch.arange(B) % 3

    def loss():
        candidates = Candidates(anchor_ids, key_ids, K)
        return contrast_loss(anchor, anchor, keys, candidates, TAU, InfoNCECritic())

    whole = loss()
    monkeypatch.setattr(contrast, "BLOCK", 4 * B)
    torch.testing.assert_close(loss(), whole)
