"""How memories begin, what they take, and what of it a run says before it trains."""

import sys
from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import cktf
from cktf.batch import Batch
from cktf.contrast import Bank, Footprint
from cktf.data import DatasetLoader, ImageSet, MemoryLoader
from cktf.engine import TrainStep, filling
from cktf.engine.filling import fill_memories
from cktf.errors import Interrupted, MethodError, ShapeError
from cktf.functional.batch_centering import subtract_batch_mean
from cktf.objectives import CRD
from cktf.objectives.crd import unit_rows
from cktf.taps import Features

N, B = 50, 8


class Net(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU())
        self.fc = nn.Linear(width, 4)

    def forward(self, x):
        return self.fc(self.stem(x).mean((2, 3)))


def data(count=N):
    generator = torch.Generator().manual_seed(0)
    return TensorDataset(torch.rand(count, 3, 16, 16, generator=generator), torch.arange(count) % 4)


def distill(out, student=None, **options):
    torch.manual_seed(0)
    return cktf.distill(
        Net(6), student or Net(), train=data(), method="cktf", epochs=2, out=out, show=False,
        options={"cktf": {"negatives": 16} | options}, overrides={"data.batch_size": B},
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["memory", "dataset"])
@pytest.mark.parametrize("samples", [40, 43, 5])
def test_a_covering_epoch_leaves_nobody_out(kind, samples):
    images = torch.randint(256, (samples, 8, 8, 3), dtype=torch.uint8)
    labels = torch.zeros(samples).long()
    stats = (0.5,) * 3
    loader = (
        MemoryLoader(ImageSet(images, labels, ("a",), stats, stats), B, train=True)
        if kind == "memory"
        else DatasetLoader(TensorDataset(images.permute(0, 3, 1, 2), labels), B, train=True)
    )
    batches = [b.index for b in loader.epoch(3, cover=True)]
    assert set(torch.cat(batches).tolist()) == set(range(samples))
    assert {len(b) for b in batches} == {min(B, samples)}
    plain = [b.index for b in loader.epoch(3)]
    assert len(plain) == samples // B
    assert all(torch.equal(a, b) for a, b in zip(plain, batches, strict=False))


class TestForward:
    def test_banks_hold_the_embeddings_of_everyone(self):
        torch.manual_seed(0)
        crd = CRD(3, 5, N, embedding_dim=8, negatives=10, init="forward")
        assert crd.fill_samples == N
        student, teacher = torch.randn(N, 3), torch.randn(N, 5)
        for index in torch.randperm(N).split(B):
            features = [
                Features(logits=torch.zeros(len(index), 2), embedding=e[index])
                for e in (student, teacher)
            ]
            crd.fill(*features, Batch(torch.zeros(len(index)), None, index))
        with torch.no_grad():
            for bank, head, given in (
                (crd.student_bank, crd.student_head, student),
                (crd.teacher_bank, crd.teacher_head, teacher),
            ):
                torch.testing.assert_close(bank, F.normalize(head(given), dim=1))
        assert crd.student_normalizer == 0
        crd.loss(student[:B], teacher[:B], torch.arange(B))
        crd.after_step()
        assert crd.student_normalizer > 0

    def test_a_run_fills_before_it_trains_and_leaves_the_student_as_it_was(
        self, tmp_path, monkeypatch
    ):
        fill, features, modes = fill_memories, TrainStep.features, set()

        def record_mode(step, batch):
            modes.add(step.student.training)
            return features(step, batch)

        def checked(step, *others):
            before = {n: t.clone() for n, t in step.student.state_dict().items()}
            step.eval()
            with monkeypatch.context() as patch:
                patch.setattr(TrainStep, "features", record_mode)
                fill(step, *others)
            assert modes == {True}
            after = step.student.state_dict()
            assert all(torch.equal(before[name], after[name]) for name in before)

        monkeypatch.setattr("cktf.engine.trainer.fill_memories", checked)
        forward = distill(tmp_path / "forward", init="forward")
        assert "memories filled from 56 training images" in (forward.folder / "log.txt").read_text()
        plain = distill(tmp_path / "plain")
        assert "filled" not in (plain.folder / "log.txt").read_text()
        first, second = ([p.clone() for p in run.student.parameters()] for run in (forward, plain))
        assert any(not torch.equal(a, b) for a, b in zip(first, second, strict=True))

    def test_what_is_filled_draws_nothing(self, tmp_path, monkeypatch):
        drawn = []
        monkeypatch.setattr(
            Bank, "draw", lambda *given, draw=Bank.draw: drawn.append(1) or draw(*given)
        )
        distill(tmp_path / "run", init="forward")
        # The rehearsal and the steps of two epochs.
        assert len(drawn) == 1 + 2 * (N // B)

    def test_a_student_is_left_as_it_was_where_filling_is_stopped(self, tmp_path, monkeypatch):
        asked = iter([None, "SIGTERM"])
        monkeypatch.setattr(filling, "stop_signal", lambda: next(asked))
        torch.manual_seed(0)
        student = Net()
        before = deepcopy(student.state_dict())
        with pytest.raises(Interrupted, match="before training"):
            distill(tmp_path / "run", student, init="forward")
        assert all(torch.equal(before[name], t) for name, t in student.state_dict().items())

    def test_a_queue_stops_when_it_is_full(self, tmp_path):
        run = distill(tmp_path / "run", init="forward", memory="queue", queue_size=16)
        assert "memories filled from 16 training images" in (run.folder / "log.txt").read_text()

    def test_no_memory_needs_no_pass(self):
        assert not CRD(
            3, 5, N, embedding_dim=8, negatives=10, init="forward", memory="batch"
        ).fill_samples


def test_normalizers_are_set_anew_at_the_epochs_that_were_named():
    torch.manual_seed(0)
    crd = CRD(3, 5, N, embedding_dim=8, negatives=10, renormalize=(2,))
    found = []
    for epoch in (1, 2, 3):
        crd.begin_epoch(epoch)
        for _ in range(3):
            crd.loss(torch.randn(B, 3), torch.randn(B, 5), torch.arange(B))
            crd.after_step()
        found.append(crd.student_normalizer.item())
    assert found[0] != found[1]
    assert found[1] == found[2]


class TestCenter:
    """Heads without what all samples share."""

    def crd(self, **options):
        torch.manual_seed(0)
        return CRD(6, 5, N, embedding_dim=8, negatives=10, **{"estimator": "all"} | options)

    def test_what_all_samples_share_changes_nothing(self):
        own, other, index = torch.randn(B, 6), torch.randn(B, 5), torch.arange(B)
        common, losses = 3 * torch.randn(6), {}
        for center in (True, False):
            losses[center] = [
                self.crd(center=center).loss(own + shift, other, index).item()
                for shift in (0.0, common)
            ]
        assert losses[True][0] == pytest.approx(losses[True][1], rel=1e-4)
        assert losses[False][0] != pytest.approx(losses[False][1], rel=1e-2)

    def test_rows_and_gradient_by_definition(self):
        own = torch.randn(B, 6, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(subtract_batch_mean, (own,))
        crd = self.crd(center=True, momentum=0.0)
        student, teacher, index = torch.randn(B, 6), torch.randn(B, 5), torch.arange(B)
        crd.loss(student, teacher, index)
        crd.after_step()
        given = crd.student_head(student)
        for i in range(B):
            row = given[i] - sum(given) / B
            torch.testing.assert_close(crd.student_bank[i], row / row.norm(), rtol=1e-4, atol=1e-5)

    def test_of_one_sample_nothing_would_be_left(self):
        with pytest.raises(ShapeError, match=r"centered head compares the samples .* given 1"):
            self.crd(center=True).loss(torch.randn(1, 6), torch.randn(1, 5), torch.zeros(1).long())

    def test_without_it_the_common_direction_takes_the_rows_over(self):
        """Samples that differ by a hundredth of what they share, against fresh rows."""
        chosen = {}
        for center in (False, True):
            crd = self.crd(center=center, memory="batch")
            torch.manual_seed(1)
            steps = torch.optim.SGD(crd.parameters(), lr=0.1, momentum=0.9)
            mixing = torch.randn(6, 5)
            for _ in range(150):
                own = torch.randn(N, 6)
                own, other = 1 + own / 100, 1 + own @ mixing / 100
                steps.zero_grad()
                crd.loss(own, other, torch.arange(N)).backward()
                steps.step()
                crd.after_step()
            rows, others = unit_rows([crd], [(own, other)])
            nearest = (rows @ others.T).argmax(1)
            chosen[center] = (nearest == torch.arange(N)).float().mean().item()
        assert chosen[True] > 0.5 > chosen[False]


class TestFootprint:
    @pytest.mark.parametrize("storage", ["float32", "bfloat16"])
    @pytest.mark.parametrize("memory", ["bank", "queue", "batch"])
    def test_banks_are_what_is_allocated(self, memory, storage):
        crd = CRD(
            3, 5, N, embedding_dim=8, negatives=10, memory=memory, queue_size=20, storage=storage
        )
        kept = sum(b.numel() * b.element_size() for b in (crd.student_bank, crd.teacher_bank))
        assert crd.footprint(B).banks == ({} if memory == "batch" else {"device": kept})

    def test_of_a_queue_does_not_depend_on_the_training_set(self):
        few, many = (
            CRD(3, 5, n, embedding_dim=8, negatives=10, memory="queue", queue_size=20).footprint(B)
            for n in (50, 9999)
        )
        assert few == many

    @pytest.mark.parametrize(
        "options",
        [{}, {"memory": "queue"}, {"bank_device": "host"},
         {"negatives": 10**12, "estimator": "shared"},
         {"negatives": 10**12, "estimator": "sampled"}],
    )  # fmt: skip
    def test_memory_that_no_machine_has_is_refused_with_advice(self, options):
        size = N if "negatives" in options else 10**12
        words = r"^Contrast needs \d+.\d GB \(banks .*\), and \S+ has \d.*B free\. Try .*queue_size"
        with pytest.raises(MethodError, match=words):
            CRD(3, 5, size, queue_size=10**12, **options)

    def test_on_disk_too(self, tmp_path):
        with pytest.raises(MethodError, match="GB free"):
            CRD(3, 5, 10**12, estimator="shared", bank_device=str(tmp_path))
        assert not list(tmp_path.iterdir())

    def test_sums_keep_what_lasts_and_the_largest_step(self):
        total = Footprint({"device": 10}, 5) + Footprint({"device": 20}, 3)
        assert total == Footprint({"device": 30}, 5)

    def test_sums_are_by_place(self, monkeypatch, tmp_path):
        mapped, device = (
            Footprint({place: size}, 5)
            for place, size in ((str(tmp_path), 10**6), ("device", 10**15))
        )
        free = {"cuda": 10**8, "cpu": 10**17, str(tmp_path): 10**7}
        monkeypatch.setattr(sys.modules["cktf.contrast.footprint"], "_free", lambda w: free[str(w)])
        cpu, cuda = torch.device("cpu"), torch.device("cuda")
        for total in (mapped + device, device + mapped):
            assert f"1.0 MB ({tmp_path})" in str(total)
            assert "1000000.0 GB (device)" in str(total)
            total.check(cpu)
            with pytest.raises(MethodError, match=r"cuda has 100.0 MB free"):
                total.check(cuda, built=True)
        mapped.check(cuda, built=True)
        with pytest.raises(MethodError, match=rf"{tmp_path} has 10.0 MB free"):
            (device + Footprint({str(tmp_path): 10**7}) + mapped).check(cpu)

    def test_a_run_says_it_before_it_trains(self, tmp_path, capsys):
        distill(tmp_path / "run")
        assert "memory for contrast: banks" in (tmp_path / "run" / "log.txt").read_text()
