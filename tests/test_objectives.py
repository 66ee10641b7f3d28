"""The contract of every objective, and what is particular to some."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cktf.batch import Batch
from cktf.errors import MethodError, ShapeError
from cktf.functional import kd_loss
from cktf.functional.module_vector import module_vector, multiply_head
from cktf.models import create
from cktf.objectives import CKTF, CRD, METHODS, BuildContext, compose, features_read, parse
from cktf.objectives.adapters import Regressor
from cktf.objectives.cktf import _cosine
from cktf.objectives.crd import pair_losses
from cktf.taps import Features, Tap, infer_paths

N, B, CLASSES = 40, 6, 5
ALONE = [name for name in METHODS if name != "ce"]
COMBINED = [f"cktf+{name}" for name in ALONE if name != "cktf"]
SMALL = {"crd": {"negatives": 30}, "cktf": {"negatives": 30}}


class Tiny(nn.Module):
    """Another family: two resolutions, stride 2, a wide embedding."""

    def __init__(self):
        super().__init__()
        self.a = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.ReLU())
        self.a2 = nn.Sequential(nn.Conv2d(6, 6, 3, 1, 1), nn.ReLU())
        self.b = nn.Sequential(nn.Conv2d(6, 40, 3, 2, 1), nn.BatchNorm2d(40), nn.ReLU())
        self.c = nn.Conv2d(40, 40, 1)
        self.fc = nn.Linear(40, CLASSES)

    def forward(self, x):
        return self.fc(self.c(self.b(self.a2(self.a(x)))).mean((2, 3)))


PAIRS = {"resnet-wrn": ("resnet8", "wrn_16_2"), "tiny-resnet": (None, "resnet20")}
# FSP takes networks of equal widths only.
EQUAL = {"resnet-wrn": ("wrn_16_1", "resnet20"), "tiny-resnet": ("resnet8", "wrn_40_1")}


class Case:
    """A student, a teacher, a batch and a context."""

    def __init__(self, method: str, pair: str, dtype: torch.dtype = torch.float32):
        torch.manual_seed(0)
        names = (EQUAL if "fsp" in method else PAIRS)[pair]
        self.networks = [create(n, CLASSES) if n else Tiny() for n in names]
        self.networks[1].eval().requires_grad_(False)
        images = torch.rand(B, 3, 32, 32)
        labels = torch.arange(N) % CLASSES
        index = torch.randperm(N)[:B]
        self.batch = Batch(images, labels[index], index)
        reads = features_read(method)
        self.taps = [
            Tap(n, getattr(n, "feature_paths", None) or infer_paths(n, images), reads)
            for n in self.networks
        ]
        self.dtype = dtype
        student, teacher = self.features()
        self.context = BuildContext(student, teacher, N, labels)
        options = {name: SMALL[name] for name in parse(method) if name in SMALL}
        self.objective = compose(method, self.context, options)

    def features(self):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            return [tap(self.batch.images) for tap in self.taps]

    def loss(self, objective=None):
        torch.manual_seed(1)
        return (objective or self.objective)(*self.features(), self.batch)

    def losses(self):
        """Of the sum, and of the phases before it."""
        return [self.loss(), *(self.loss(phase.objective) for phase in self.objective.phases())]


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("method", ["ce", *ALONE, *COMBINED, "cktf+crd+kd"])
class TestContract:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_finite_scalar_with_gradient_to_the_student_alone(self, method, pair, dtype):
        case = Case(method, pair, dtype)
        for loss in case.losses():
            assert loss.total.shape == ()
            assert loss.total.dtype == torch.float32
            assert loss.total.isfinite()
            loss.total.backward()
        student, teacher = case.networks
        first = next(p for p in student.parameters() if p.dim() == 4)
        assert first.grad.isfinite().all()
        assert first.grad.abs().sum() > 0
        assert all(p.grad is None for p in teacher.parameters())
        for name, parameter in case.objective.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name

    def test_what_it_needs_is_what_the_registry_says_that_it_reads(self, method, pair):
        """A run taps by the one, and is planned by the other."""
        objective = Case(method, pair).objective
        parts = [objective, *(phase.objective for phase in objective.phases())]
        assert set().union(*(part.features for part in parts)) <= features_read(method)

    def test_state_dict_round_trip_and_deep_copy(self, method, pair):
        case = Case(method, pair)
        sum(loss.total for loss in case.losses()).backward()
        case.objective.after_step()
        twin = copy.deepcopy(case.objective)
        fresh = Case(method, pair).objective
        fresh.load_state_dict(case.objective.state_dict())
        expected = case.loss().total
        torch.manual_seed(1)
        for other in (twin, fresh):
            torch.manual_seed(1)
            found = other(*case.features(), case.batch).total
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)

    def test_batches_that_differ_are_refused(self, method, pair):
        if method == "ce":
            pytest.skip("compares no two networks")
        case = Case(method, pair)
        student = case.taps[0](case.batch.images)
        teacher = case.taps[1](case.batch.images[:3])
        phases = [phase.objective for phase in case.objective.phases() if phase.trains_student]
        for objective in [case.objective, *phases] if method not in {"ab", "fsp"} else phases:
            with pytest.raises(ShapeError, match=r"one batch|one shape"):
                objective(student, teacher, case.batch)


class TestMethodStrings:
    def weights(self, method, labels=True):
        context = Case(method, "resnet-wrn").context
        if not labels:
            context = replace(context, labels=None)
        options = {name: SMALL[name] for name in parse(method) if name in SMALL}
        return compose(method, context, options)

    @pytest.mark.parametrize(
        ("method", "expected"),
        [
            ("ce", {"ce": 1.0}),
            ("kd", {"ce": 0.1, "kd": 0.9}),
            ("kd:1", {"ce": 1.0, "kd": 1.0}),
            ("crd", {"ce": 1.0, "crd": 0.8}),
            ("crd+kd", {"ce": 1.0, "crd": 0.8, "kd": 1.0}),
            ("cktf", {"ce": 1.0, "cktf": 1.0}),
            ("cktf+kd", {"ce": 1.0, "cktf": 1.0, "kd": 1.0}),
            ("ce:0.5 + kd:2", {"ce": 0.5, "kd": 2.0}),
            ("kd:1+crd:0", {"ce": 1.0, "kd": 1.0}),
            ("at:500+sp+kd", {"ce": 1.0, "at": 500.0, "sp": 3000.0, "kd": 1.0}),
            ("fitnet", {"ce": 1.0, "fitnet": 100.0}),
            ("ab", {"ce": 1.0}),
            ("cktf+at", {"ce": 1.0, "cktf": 1.0, "at": 1000.0}),
            ("paper/cktf+at", {"ce": 1.0, "cktf": 0.8, "at": 1000.0}),
            ("paper/cktf+kd", {"ce": 0.1, "cktf": 0.8, "kd": 0.9}),
        ],
    )
    def test_published_weights(self, method, expected):
        assert self.weights(method).weights == expected

    @pytest.mark.parametrize("labels", [True, False])
    @pytest.mark.parametrize(
        ("method", "weight", "beta", "theta"),
        [("cktf", 1.0, 0.8, 0.1), ("cktf+kd", 1.0, 0.8, 0.1), ("cktf+crd", 1.0, 0.8, 0.1),
         ("cktf:0.5+kd", 0.5, 1.0, 1.0), ("paper/cktf+crd", 0.8, 1.0, 1.0),
         ("paper/transfer", 1.0, 1.0, 0.04)],
    )  # fmt: skip
    def test_cktf_weights_depend_on_nothing_beside_it(self, method, weight, beta, theta, labels):
        objective = self.weights(method, labels)
        cktf = objective.terms["cktf"]
        assert (objective.weights["cktf"], cktf.beta, cktf.theta) == (weight, beta, theta)
        temperature = 0.07 if method == "paper/transfer" else 0.1
        pairs = [module for module in objective.modules() if isinstance(module, CRD)]
        assert {pair.config.temperature for pair in pairs} == {temperature}

    def test_options_go_over_those_of_a_preset(self):
        context = Case("cktf", "resnet-wrn").context
        cktf = compose("paper/transfer", context, {"cktf": SMALL["cktf"] | {"theta": 0.5}})
        assert (cktf.terms["cktf"].beta, cktf.terms["cktf"].theta) == (1.0, 0.5)
        assert cktf.describe() == "1 ce + 1 cktf (beta 1, theta 0.5)"

    def test_what_only_initializes_is_no_part_of_the_sum(self):
        objective = self.weights("cktf+ab:2+ft")
        assert objective.weights == {"ce": 1.0, "cktf": 1.0, "ft": 200.0}
        assert "preacts" not in objective.features
        phases = {phase.name: phase for phase in objective.phases()}
        assert (phases["ab"].weight, phases["ab"].trains_student) == (2.0, True)
        assert (phases["ft"].weight, phases["ft"].trains_student) == (1.0, False)
        with pytest.raises(MethodError, match="ab only initialize"):
            self.weights("ab", labels=False)

    def test_without_labels_there_is_no_cross_entropy(self):
        assert self.weights("kd", labels=False).weights == {"kd": 1.0}
        assert self.weights("cktf", labels=False).weights == {"cktf": 1.0}

    def test_the_sum_is_the_sum(self):
        case = Case("ce:0.3+kd:2", "resnet-wrn")
        student, teacher = case.features()
        loss = case.objective(student, teacher, case.batch)
        ce = nn.functional.cross_entropy(student.logits, case.batch.labels)
        expected = 0.3 * ce + 2 * kd_loss(student.logits, teacher.logits)
        torch.testing.assert_close(loss.total, expected)
        assert list(loss.terms) == ["ce", "kd"]

    @pytest.mark.parametrize(
        ("method", "message"),
        [("ckft", "Did you mean 'cktf'"), ("kd+kd", "twice"), ("kd:x", "number of 0 or more"),
         ("kd:-1", "number of 0 or more"),
         ("paper/trnsfer", "Did you mean 'paper/transfer'"), ("", "no method ''"),
         ("kd:nan", "number of 0 or more")],
    )  # fmt: skip
    def test_mistakes(self, method, message):
        with pytest.raises(MethodError, match=message):
            parse(method)

    def test_unknown_options(self):
        context = Case("cktf", "resnet-wrn").context
        with pytest.raises(MethodError, match="Did you mean 'negatives'"):
            compose("cktf", context, {"cktf": {"negative": 3}})
        with pytest.raises(MethodError, match="does not name"):
            compose("kd", context, {"cktf": {"negatives": 3}})
        with pytest.raises(MethodError, match="Give one"):
            compose("cktf:0.5", context, {"cktf": {"beta": 1.0}})


class TestCRD:
    def test_an_evaluation_sets_no_normalizer(self):
        """A batch that is looked at before training is not what Z is of."""
        torch.manual_seed(0)
        crd, twin = (CRD(4, 5, N, negatives=8) for _ in range(2))
        twin.load_state_dict(crd.state_dict())
        a, b = torch.randn(6, 4), torch.randn(6, 5)
        torch.manual_seed(1)
        expected = twin.loss(a, b, torch.arange(6))
        twin.after_step()
        torch.manual_seed(1)
        assert torch.equal(crd.eval().loss(a, b, torch.arange(6)), expected)
        assert crd.student_normalizer == 0
        torch.manual_seed(1)
        assert torch.equal(crd.train().loss(a, b, torch.arange(6)), expected)
        crd.after_step()
        assert crd.student_normalizer == twin.student_normalizer > 0

    def test_normalizers_are_set_once(self):
        crd = CRD(4, 5, N, embedding_dim=8, negatives=10)
        assert crd.student_normalizer == 0
        for step in range(2):
            crd.loss(torch.randn(B, 4), torch.randn(B, 5), torch.arange(B))
            crd.after_step()
            if step == 0:
                first = crd.student_normalizer.clone(), crd.teacher_normalizer.clone()
        assert (crd.student_normalizer, crd.teacher_normalizer) == first
        assert min(first) > 0

    @pytest.mark.parametrize("memory", ["bank", "queue"])
    def test_memories_change_after_the_step_alone(self, memory):
        """A loss without its step is forgotten at the next one."""
        torch.manual_seed(0)
        crd = CRD(4, 5, N, embedding_dim=8, negatives=10, memory=memory, queue_size=16)
        before = copy.deepcopy(crd.state_dict())
        inputs = [(torch.randn(B, 4), torch.randn(B, 5), torch.arange(k, k + B)) for k in (0, 9)]
        for batch in inputs:
            torch.manual_seed(1)
            crd.loss(*batch).backward()
            assert all(torch.equal(before[name], t) for name, t in crd.state_dict().items())
        twin = copy.deepcopy(crd)
        twin.load_state_dict(before)
        crd.after_step()
        torch.manual_seed(1)
        twin.loss(*inputs[1])
        twin.after_step()
        assert all(torch.equal(twin.state_dict()[n], t) for n, t in crd.state_dict().items())
        changed = {n for n, t in crd.state_dict().items() if not torch.equal(before[n], t)}
        assert {n for n in changed if "head" not in n} == changed
        assert {"student_bank", "teacher_bank", "student_normalizer"} <= changed

    def test_a_batch_of_one(self):
        loss = CRD(4, 5, N, embedding_dim=8, negatives=10).loss(
            torch.randn(1, 4), torch.randn(1, 5), torch.tensor([3])
        )
        assert loss.isfinite()

    @pytest.mark.parametrize(
        ("index", "message"),
        [(torch.arange(B) + N, "one row for each of 40"), (torch.arange(B - 1), "position"),
         (torch.rand(B), "int64")],
    )  # fmt: skip
    def test_positions(self, index, message):
        with pytest.raises(ShapeError, match=message):
            CRD(4, 5, N, embedding_dim=8, negatives=10).loss(
                torch.randn(B, 4), torch.randn(B, 5), index
            )

    def test_bfloat16_banks_give_nearly_the_same(self):
        found = {}
        for storage in ("float32", "bfloat16"):
            torch.manual_seed(0)
            crd = CRD(4, 5, N, embedding_dim=16, negatives=30, storage=storage)
            assert crd.student_bank.dtype == getattr(torch, storage)
            student = torch.randn(B, 4, requires_grad=True)
            for _ in range(3):
                loss = crd.loss(student, torch.randn(B, 5), torch.arange(B))
                crd.after_step()
            loss.backward()
            found[storage] = loss.item(), student.grad
        assert found["bfloat16"][0] == pytest.approx(found["float32"][0], rel=0.02)
        error = (found["bfloat16"][1] - found["float32"][1]).norm() / found["float32"][1].norm()
        assert error < 0.03

    @pytest.mark.slow
    @pytest.mark.parametrize("labeled", [True, False])
    def test_all_is_the_mean_of_many_sampled(self, labeled):
        torch.manual_seed(0)
        labels = torch.arange(N) % CLASSES if labeled else None
        exact, sampled = (
            CRD(4, 5, N, embedding_dim=8, negatives=20, labels=labels, estimator=name)
            for name in ("all", "sampled")
        )
        inputs = torch.randn(B, 4), torch.randn(B, 5), torch.arange(B)
        exact.loss(*inputs)
        exact.after_step()
        sampled.load_state_dict(exact.state_dict())
        expected = exact.eval().loss(*inputs).item()
        sampled.eval()
        drawn = torch.stack([sampled.loss(*inputs).detach() for _ in range(400)])
        assert abs(drawn.mean() - expected) < 4.5 * drawn.std() / 400**0.5


@pytest.mark.parametrize(("channels", "maps"), [(9, (4, 3, 2)), (8, (8, 2, 2)), (512, (16, 4, 4))])
def test_a_head_multiplies_narrower_maps_as_padded(channels, maps):
    """In float64: nothing but the order of the sums differs."""
    torch.manual_seed(0)
    positions = maps[1] * maps[2]
    head = nn.Linear(channels * positions, 7).double()
    values = torch.randn(B, *maps, dtype=torch.float64, requires_grad=True)
    missing = channels - maps[0]
    padded = F.pad(values, (0, 0, 0, 0, missing // 2, missing - missing // 2)).flatten(1)
    given, weights = [values, *head.parameters()], torch.randn(B, 7, dtype=torch.float64)
    results = []
    for product in (multiply_head(head, values), head(padded)):
        gradients = torch.autograd.grad((product * weights).sum(), given)
        results.append([product, *gradients])
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)
    missed = torch.ones(channels, dtype=torch.bool)
    missed[missing // 2 : missing // 2 + maps[0]] = False
    assert not results[0][2].view(7, channels, positions)[:, missed].any()


class TestCKTF:
    @pytest.mark.parametrize("match", ["last", "first", "random", "smallest", "largest"])
    @pytest.mark.parametrize("norm", ["batch", "sample", "none"])
    def test_every_match_and_norm_works(self, match, norm):
        case = Case("cktf", "resnet-wrn")
        context = case.context
        cktf = CKTF(
            context.student, context.teacher, N,
            match=match, module_norm=norm, negatives=10, labels=context.labels,
        )  # fmt: skip
        loss = cktf(*case.features(), case.batch)
        assert loss.total.isfinite()
        assert list(loss.terms) == ["stem", "module1", "module2", "module3", "embedding"]

    @pytest.mark.parametrize("match", ["last", "smallest"])
    def test_batches_of_two_lengths_are_refused(self, match):
        case = Case("cktf", "resnet-wrn")
        context = case.context
        cktf = CKTF(context.student, context.teacher, N, match=match, negatives=10)
        student, teacher = case.features()
        fewer = replace(
            teacher, stem=teacher.stem[1:], stages=tuple(m[1:] for m in teacher.stages),
            blocks=tuple(tuple(m[1:] for m in b) for b in teacher.blocks),
            embedding=teacher.embedding[1:],
        )  # fmt: skip
        with pytest.raises(ShapeError, match=r"CKTF needs one batch .* \(\d+, 16, 32, 32\)"):
            cktf(student, fewer, case.batch)

    @pytest.mark.parametrize("match", ["first", "random", "smallest", "largest"])
    def test_blocks_of_a_stage_may_differ(self, match):
        """Any of them may be chosen, in any batch."""
        torch.manual_seed(0)

        def features(*widths):
            blocks = tuple(
                tuple(torch.randn(6, width, side, side) for width in widths) for side in (8, 4)
            )
            stages = tuple(stage[-1] for stage in blocks)
            return Features(
                stem=torch.randn(6, 4, 8, 8), stages=stages, blocks=blocks,
                embedding=torch.randn(6, 8), logits=torch.randn(6, 3),
            )  # fmt: skip

        cktf = CKTF(features(4, 4), features(9, 3, 5), N, match=match, memory="batch")
        for _ in range(8):
            loss = cktf.loss(features(4, 4), features(9, 3, 5), torch.arange(6))
            cktf.after_step()
            assert loss.total.isfinite()

    @pytest.mark.parametrize("match", ["smallest", "largest"])
    def test_blocks_are_compared_in_float32(self, match):
        """Blocks whose cosines with the student's are one number in bfloat16."""
        torch.manual_seed(0)
        own, noise = torch.randn(2, 6, 4, 8, 8)
        blocks = tuple(own + (1 + k / 400) * noise for k in range(3))
        plain = Case("cktf", "resnet-wrn").features()[0]
        student, teacher = (
            replace(plain, stages=(m,), blocks=(b,)) for m, b in ((own, (own,)), (own, blocks))
        )
        cktf = CKTF(student, teacher, N, match=match, memory="batch")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            chosen = cktf._match(own, blocks, lambda m: m)
        assert torch.equal(chosen, blocks[2 if match == "smallest" else 0])

    @pytest.mark.parametrize(
        ("student", "teacher"),
        [((6, 4, 8, 8), (6, 4, 8, 8)), ((6, 4, 8, 8), (6, 9, 8, 8)), ((6, 9, 4, 6), (6, 4, 8, 6))],
    )
    @pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
    def test_the_cosine_by_definition(self, student, teacher, order):
        """Units by their norms over the batch, the smaller map pooled to and padded with zeros."""
        torch.manual_seed(0)
        maps = [torch.randn(shape).to(memory_format=order) for shape in (student, teacher)]
        maps[0][:, 1, 2, 2] = 0  # a unit that is off
        size = [min(sides) for sides in zip(student[2:], teacher[2:], strict=True)]
        wide = torch.zeros(2, 6, 9, *size, dtype=torch.float64)
        for place, m in zip(wide, maps, strict=True):
            unit = m.double() / m.double().norm(dim=0).clamp_min(1e-12)
            before = (9 - m.shape[1]) // 2
            place[:, before : before + m.shape[1]] = F.adaptive_avg_pool2d(unit, size)
        expected = F.cosine_similarity(*wide.flatten(1), dim=0)
        torch.testing.assert_close(_cosine(*maps).double(), expected, rtol=1e-4, atol=1e-6)

    @pytest.mark.parametrize("widths", [(4, (9,)), (9, (4,)), (5, (4, 7)), (8, (4, 7)), (4, (4,))])
    @pytest.mark.parametrize("norm", ["batch", "sample", "none"])
    def test_heads_of_narrower_maps_compute_as_on_padded_vectors(self, widths, norm):
        """Losses and gradients of heads and maps, in three steps."""
        torch.manual_seed(0)
        own, others = widths
        with torch.no_grad():
            plain = Case("cktf", "resnet-wrn").features()

        def features():
            student = torch.randn(B, own, 8, 8, requires_grad=True)
            blocks = tuple(torch.randn(B, width, 8, 16) for width in others)
            return [
                replace(plain[0], stages=(student,), blocks=((student,),)),
                replace(plain[1], stages=blocks[-1:], blocks=(blocks,)),
            ]

        options = {"match": "first", "module_norm": norm, "negatives": 9, "estimator": "all"}
        sliced = CKTF(*features(), N, **options)
        padded = copy.deepcopy(sliced)
        channels = max(own, *others)
        assert sliced.pairs[1].student_head.in_features == channels * 4 * 4

        def pad(student, teacher):
            vectors = sliced._vectors(student, teacher)
            first = (student.stages[0], teacher.blocks[0][0])
            vectors["module1"] = [module_vector(m, channels, (4, 4), norm) for m in first]
            return vectors

        padded.compute_vectors = pad
        for step in range(3):
            given, gradients = features(), []
            for objective in (sliced, padded):
                objective.zero_grad()
                given[0].stages[0].grad = None
                torch.manual_seed(step)
                total = objective.loss(*given, torch.arange(B)).total
                total.backward()
                objective.after_step()
                trained = [*objective.parameters(), given[0].stages[0]]
                gradients.append([total.detach(), *(p.grad for p in trained)])
            torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)

    def test_blocks_that_are_not_known(self):
        student, teacher = (replace(f, blocks=()) for f in Case("cktf", "resnet-wrn").features())
        with pytest.raises(MethodError, match=r"teacher's stages.*match=last"):
            CKTF(student, teacher, N, match="first")

    def test_weights_place_the_terms(self):
        case = Case("cktf", "resnet-wrn")
        cktf = CKTF(case.context.student, case.context.teacher, N, beta=0.7, theta=0.2, negatives=9)
        loss = cktf(*case.features(), case.batch)
        *modules, embedding = loss.terms.values()
        torch.testing.assert_close(loss.total, 0.7 * embedding + 0.2 * sum(modules))

    @pytest.mark.parametrize(
        "options",
        [{"estimator": "sampled"}, {"estimator": "shared"}, {"estimator": "all"},
         {"estimator": "shared", "storage": "bfloat16", "bank_device": "host"},
         {"memory": "queue", "queue_size": 20}, {"memory": "batch", "center": True},
         {"estimator": "shared", "critic": "infonce"}],
    )  # fmt: skip
    def test_pairs_together_are_each_alone(self, options):
        """Losses, gradients, rows and normalizers, over three steps with the same draws."""
        case = Case("cktf", "resnet-wrn")
        together = CKTF(case.context.student, case.context.teacher, N, negatives=9, **options)
        apart = copy.deepcopy(together)
        for step in range(3):
            student, teacher = case.features()
            torch.manual_seed(step)
            losses = together.loss(student, teacher, case.batch.index).terms.values()
            torch.manual_seed(step)
            draw = apart.pairs[0].memory.draw(case.batch.index)
            vectors = apart._vectors(student, teacher).values()
            alone = [
                pair_losses([pair], [vector], draw)[0]
                for pair, vector in zip(apart.pairs, vectors, strict=True)
            ]
            torch.testing.assert_close(list(losses), alone)
            for objective in (together, apart):
                objective.after_step()
        for (name, found), expected in zip(
            together.state_dict().items(), apart.state_dict().values(), strict=True
        ):
            torch.testing.assert_close(found, expected, msg=name)
        assert together.pairs[1].student_normalizer > 0 or options.get("critic")

    @pytest.mark.parametrize("place", ["device", "host"])
    def test_rows_of_all_pairs_stay_one_tensor(self, place):
        """Copied, cast or loaded: what is saved under each pair's name is what is computed with."""
        case = Case("cktf", "resnet-wrn")
        features = case.context.student, case.context.teacher
        cktf = CKTF(*features, N, negatives=9, estimator="shared", bank_device=place)
        other = CKTF(*features, N, negatives=9, estimator="shared", bank_device=place)
        other.load_state_dict(cktf.state_dict())
        for module in (cktf, copy.deepcopy(cktf), copy.deepcopy(cktf).double(), other):
            group = module.pairs[0].group
            assert group.banks.dtype == (
                torch.float64 if module.pair_weights.dtype == torch.float64 and place == "device"
                else torch.float32
            )  # fmt: skip
            for i, pair in enumerate(module.pairs):
                assert pair.group is group
                for bank, side in ((pair.teacher_bank, 2 * i), (pair.student_bank, 2 * i + 1)):
                    assert bank.data_ptr() == group.banks[side].data_ptr()
                assert pair.teacher_normalizer.data_ptr() == group.normalizers[2 * i + 1].data_ptr()
            torch.testing.assert_close(
                group.banks.float(), cktf.pairs[0].group.banks, rtol=0, atol=0
            )

    def test_a_weight_of_zero_is_not_computed(self):
        case = Case("cktf", "resnet-wrn")
        cktf = CKTF(case.context.student, case.context.teacher, N, theta=0.0, negatives=9)
        student, teacher = (
            Features(logits=f.logits, embedding=f.embedding) for f in case.features()
        )
        loss = cktf(student, teacher, case.batch)
        assert list(loss.terms) == ["embedding"]
        assert cktf.features == {"logits", "embedding"}
        assert cktf.cacheable().stem is None
        loss.total.backward()
        assert all(p.grad is not None for p in cktf.parameters())
        cktf = CKTF(case.context.student, case.context.teacher, N, beta=0.0, negatives=9)
        student, teacher = (replace(f, embedding=None) for f in case.features())
        assert list(cktf(student, teacher, case.batch).terms) == [
            "stem", "module1", "module2", "module3",
        ]  # fmt: skip

    @pytest.mark.parametrize(
        ("names", "widths"),
        [(("vgg8", "vgg13"), [64, 128, 256, 512, 512, 512]),
         (("ResNet10", "ResNet18"), [64, 64, 128, 256, 512, 512]),
         (("resnet8", "resnet20"), [16 * 16, 16 * 16, 32 * 4, 64, 64]),
         (("resnet8", "vgg13"), [64 * 16, 128 * 16, 512 * 16, 512 * 16, 512])],
    )  # fmt: skip
    def test_networks_are_pooled_as_published(self, names, widths):
        images = torch.rand(2, 3, 32, 32)
        networks = [create(name, CLASSES) for name in names]
        student, teacher = (
            Tap(n, n.feature_paths, features_read("cktf"))(images) for n in networks
        )
        cktf = CKTF(student, teacher, N, memory="batch")
        heads = [(p.student_head.in_features, p.teacher_head.in_features) for p in cktf.pairs]
        assert [max(pair) for pair in heads] == widths
        assert cktf.loss(student, teacher, torch.arange(2)).total.isfinite()

    def test_positions_are_checked_before_a_queue_takes_them(self):
        case = Case("cktf", "resnet-wrn")
        cktf = CKTF(case.context.student, case.context.teacher, N, memory="queue", queue_size=30)
        student, teacher = case.features()
        for wrong in (torch.arange(N, N + B), torch.arange(B, dtype=torch.int32)):
            with pytest.raises(ShapeError):
                cktf.loss(student, teacher, wrong)
            with pytest.raises(ShapeError):
                cktf.fill(student, teacher, replace(case.batch, index=wrong))
        memory = cktf.pairs[0].memory
        assert (memory.held == -1).all()
        assert memory.next == 0

    def test_unequal_numbers_of_stages_are_spread(self):
        assert len(Case("cktf", "tiny-resnet").objective.terms["cktf"].pairs) == 4

    @pytest.mark.parametrize(
        ("option", "message"),
        [({"match": "lst"}, "Did you mean 'last'"), ({"module_norm": "bach"}, "'batch'"),
         ({"beta": -1.0}, "numbers from 0"), ({"beta": 0.0, "theta": 0.0}, "above 0"),
         ({"beta": float("nan")}, "finite"), ({"theta": float("inf")}, "finite"),
         ({"temperature": float("inf")}, "temperature: .* finite")],
    )  # fmt: skip
    def test_options(self, option, message):
        context = Case("cktf", "resnet-wrn").context
        with pytest.raises(MethodError, match=message):
            CKTF(context.student, context.teacher, N, **option)


def test_kd_between_other_classes_is_refused():
    case = Case("crd", "resnet-wrn")
    student = Tap(create("resnet8", 7), needs=["embedding"])(case.batch.images)
    with pytest.raises(MethodError, match="the student has 7, the teacher 5"):
        compose("kd", BuildContext(student, case.context.teacher, N, case.context.labels))


class TestClassic:
    def test_fsp_needs_equal_widths(self):
        case = Case("at", "resnet-wrn")
        student, teacher = (
            Tap(create(name, CLASSES), needs=["stem", "stages"])(case.batch.images)
            for name in ("resnet8", "wrn_16_2")
        )
        with pytest.raises(MethodError, match="at map 1 the student has 16, the teacher 32"):
            compose("fsp", BuildContext(student, teacher, N, None))

    @pytest.mark.parametrize("method", sorted({"fitnet", "at", "sp", "vid", "ft", "nst", "kdsvd"}))
    def test_networks_without_stages_are_refused(self, method):
        features = Features(torch.zeros(B, CLASSES), torch.zeros(B, 4))
        with pytest.raises(MethodError, match="compares stage maps, and the student has none"):
            compose(method, BuildContext(features, features, N, None))

    def test_networks_without_preactivations_are_refused(self):
        features = Features(torch.zeros(B, CLASSES), stages=(torch.zeros(B, 3, 4, 4),))
        with pytest.raises(MethodError, match="before their activation, and none are known"):
            compose("ab", BuildContext(features, features, N, torch.arange(N) % CLASSES))

    @pytest.mark.parametrize("method", [m for m in ALONE if m not in {"ce", "ab", "fsp"}])
    def test_without_labels(self, method):
        case = Case(method, "resnet-wrn")
        context = BuildContext(case.context.student, case.context.teacher, N, None)
        objective = compose(
            method, context, {name: SMALL[name] for name in SMALL if name == method}
        )
        assert list(objective.weights) == [method]
        batch = Batch(case.batch.images, None, case.batch.index)
        assert objective(*case.features(), batch).total.isfinite()

    def test_fitnet_in_two_stages(self):
        context = Case("fitnet", "resnet-wrn").context
        objective = compose("fitnet+kd", context, {"fitnet": {"staged": True}})
        assert objective.weights == {"ce": 1.0, "kd": 1.0}
        assert [(p.name, p.weight) for p in objective.phases()] == [("fitnet", 100.0)]
        assert not compose("fitnet+kd", context).phases()

    @pytest.mark.parametrize(
        ("student", "teacher", "kind", "pools"),
        [((3, 16, 16), (5, 8, 8), nn.Conv2d, False),
         ((3, 8, 8), (5, 16, 16), nn.ConvTranspose2d, False),
         ((3, 8, 8), (5, 6, 7), nn.Conv2d, False), ((3, 8, 8), (5, 8, 8), nn.Conv2d, False),
         ((3, 56, 56), (5, 8, 8), nn.Conv2d, True), ((3, 7, 7), (5, 12, 12), nn.Conv2d, True),
         ((3, 8, 4), (5, 4, 8), nn.Conv2d, True)],
    )  # fmt: skip
    @pytest.mark.parametrize("relu", [True, False])
    def test_regressors_bring_maps_together(self, student, teacher, kind, pools, relu):
        maps = torch.randn(B, *student), torch.randn(B, *teacher)
        regressor = Regressor(maps[0].shape, maps[1].shape, relu=relu)
        assert isinstance(regressor.layers[0], kind)
        own, other = regressor(*maps)
        assert own.shape == other.shape
        assert (other is maps[1]) == (not pools)
        assert (own.min() >= 0) == relu

    @pytest.mark.parametrize(
        ("method", "option", "message"),
        [("rkd", {"distance_weight": -1.0}, "weights are 0 or more"),
         ("cc", {"embedding_dim": 0}, "1 or more"),
         ("rkd", {"distance_weight": 0.0, "angle_weight": 0.0}, "one is above 0"),
         ("vid", {"variance": 0.0}, "variance"), ("fitnet", {"hint": 0}, "from 1"),
         ("ab", {"margin": 0.0}, "margin"), ("ft", {"factor": 0.0}, "at least one"),
         ("kdsvd", {"rank": 0}, "rank 0"),
         ("kdsvd", {"rank": 99}, "rank = 99.*or less"),
         ("kdsvd", {"axis": "channel"}, "use the other axis")],
    )  # fmt: skip
    def test_options(self, method, option, message):
        context = Case("cktf+ab", "resnet-wrn").context
        with pytest.raises(MethodError, match=message):
            compose(method, context, {method: option})
