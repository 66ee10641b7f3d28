"""The classic losses against their published formulation, by hand, and at the edges."""

import math

import naive_losses
import pytest
import torch
from measure import peak_allocated_mb
from torch.nn import functional as F

from cktf import functional
from cktf.errors import ShapeError
from cktf.functional import kdsvd, singular_vectors
from cktf.functional.maps import pair_stages, pool_to_size, pool_to_smaller

B = 6


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def maps(*shapes, batch=B):
    return [torch.randn(batch, *shape) for shape in shapes]


STUDENT = [(4, 8, 8), (6, 4, 4), (10, 2, 2)]
TEACHER = [(5, 8, 8), (6, 8, 8), (12, 2, 2)]
INPUTS = {
    "kd": lambda: maps((7,), (7,)),
    "at": lambda: (maps(*STUDENT), maps(*TEACHER)),
    "sp": lambda: maps((4, 8, 8), (6, 2, 2)),
    "cc": lambda: maps((9,), (9,)),
    "vid": lambda: [*maps((5, 4, 4), (5, 4, 4)), torch.randn(5)],
    "rkd": lambda: maps((9,), (5,)),
    "pkt": lambda: maps((9,), (5,)),
    "ab": lambda: (maps(*STUDENT), maps(*STUDENT)),
    "ft": lambda: maps((4, 8, 8), (6, 2, 2)),
    "fsp": lambda: (maps(*STUDENT), maps(*STUDENT)),
    "nst": lambda: (maps(*STUDENT), maps(*TEACHER)),
    "kdsvd": lambda: (maps((4, 8, 8), (6, 4, 4)), maps((4, 8, 8), (6, 4, 4))),
}


def leaves(student):
    several = isinstance(student, list)
    made = [m.clone().requires_grad_() for m in (student if several else [student])]
    return (made if several else made[0]), made


def ours(name):
    return getattr(functional, f"{name}_loss")


@pytest.mark.parametrize("name", INPUTS)
def test_value_and_gradient_of_the_published_formulation(name):
    student, *rest = INPUTS[name]()
    given, found = leaves(student)
    loss = ours(name)(given, *rest)
    loss.backward()
    given, expected = leaves(student)
    reference = getattr(naive_losses, name)(given, *rest)
    torch.testing.assert_close(loss, reference, rtol=1e-5, atol=1e-7)
    assert loss.dtype == torch.float32
    assert loss.shape == ()
    assert all(leaf.grad.isfinite().all() for leaf in found)
    if name != "kdsvd":
        reference.backward()
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", INPUTS)
def test_no_gradient_reaches_the_teacher(name):
    student, teacher, *rest = INPUTS[name]()
    given, _ = leaves(student)
    other, made = leaves(teacher)
    ours(name)(given, other, *rest).backward()
    # CC's teacher side is a layer of its own, which trains.
    assert all((leaf.grad is None) == (name != "cc") for leaf in made)


@pytest.mark.parametrize("name", INPUTS)
def test_float32_inside_whatever_the_precision_outside(name):
    student, teacher, *rest = INPUTS[name]()
    plain = ours(name)(student, teacher, *rest)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = ours(name)(student, teacher, *rest)
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed, plain, rtol=1e-6, atol=1e-9)

    def half(x):
        return [m.bfloat16() for m in x] if isinstance(x, list) else x.bfloat16()

    low = ours(name)(half(student), half(teacher), *rest)
    assert low.dtype == torch.float32
    assert low.isfinite()


@pytest.mark.parametrize("name", sorted(set(INPUTS) - {"vid"}))
def test_equal_networks_have_no_loss(name):
    student, *_ = INPUTS[name]()
    signs = [3 * m.sign() for m in student] if name == "ab" else student
    loss = ours(name)(signs, signs)
    assert abs(float(loss)) < 2e-6


@pytest.mark.parametrize("name", INPUTS)
def test_batches_that_differ_are_refused(name):
    student, teacher, *rest = INPUTS[name]()
    less = [m[:3] for m in teacher] if isinstance(teacher, list) else teacher[:3]
    with pytest.raises(ShapeError, match=r"one batch|one shape"):
        ours(name)(student, less, *rest)


@pytest.mark.parametrize("name", ["at", "ab", "fsp", "nst", "kdsvd"])
def test_lists_of_unequal_length_are_refused(name):
    student, teacher = INPUTS[name]()
    with pytest.raises(ShapeError, match="as many maps"):
        ours(name)(student, teacher[:1])
    with pytest.raises(ShapeError, match="at least one"):
        ours(name)([], [])


@pytest.mark.parametrize("name", ["sp", "ft", "vid", "fitnet"])
def test_rows_are_no_maps(name):
    rest = [torch.zeros(4)] if name == "vid" else []
    with pytest.raises(ShapeError, match="channels, height, width"):
        ours(name)(torch.rand(B, 4), torch.rand(B, 4), *rest)


@pytest.mark.parametrize("name", ["cc", "rkd"])
def test_one_sample_has_no_neighbors(name):
    with pytest.raises(ShapeError, match="two or more, given 1"):
        ours(name)(torch.rand(1, 4), torch.rand(1, 4))


@pytest.mark.parametrize("name", ["fsp", "kdsvd"])
def test_one_map_has_no_neighbor(name):
    one = maps((4, 8, 8))
    with pytest.raises(ShapeError, match="two or more, given one"):
        ours(name)(one, one)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: functional.kd_loss(torch.rand(4, 3), torch.rand(4, 5)), "same classes"),
        (lambda: functional.kd_loss(torch.rand(4, 3, 1), torch.rand(4, 3)), "floating-point rows"),
        (lambda: functional.cc_loss(torch.rand(3, 4), torch.rand(3, 5)), "rows of one length"),
        (lambda: functional.fitnet_loss(*maps((3, 4, 4), (4, 4, 4))), "maps of one shape"),
        (lambda: functional.vid_loss(*maps((3, 4, 4), (3, 4, 4)), torch.zeros(4)), "3 channels"),
        (lambda: functional.ab_loss(maps((3, 4, 4)), maps((3, 2, 2))), "maps of one shape"),
        (lambda: functional.fsp_loss(maps((3, 4, 4), (4, 2, 2)), maps((3, 4, 4), (5, 2, 2))),
         "at map 1 the student has 4, the teacher 5"),
        (lambda: functional.kdsvd_loss(maps((3, 4, 4), (4, 2, 2)), maps((3, 4, 5), (5, 2, 2))),
         "over the width: student 4, teacher 5"),
        (lambda: functional.kdsvd_loss(maps((3, 4, 4), (4, 2, 2)), maps((3, 4, 4), (5, 2, 2)),
                                       axis="channel"), "over the channel"),
        (lambda: functional.kdsvd_loss(maps((3, 4, 8), (4, 2, 1)), maps((3, 4, 8), (5, 2, 1)), 3),
         "rank = 3 singular vectors.*one has 1 over the width.*1 or less"),
    ],
)  # fmt: skip
def test_shapes(call, message):
    with pytest.raises(ShapeError, match=message):
        call()


def test_pkt_of_opposite_rows():
    """Their cosine is -1, or by rounding below it."""
    for _ in range(300):
        row = torch.randn(512)
        student = torch.stack([row, -3.3 * row]).requires_grad_()
        loss = functional.pkt_loss(student, torch.randn(2, 512))
        loss.backward()
        assert loss.isfinite()
        assert student.grad.isfinite().all()


def test_fitnet_by_hand():
    student, teacher = maps((2, 3, 1), (2, 3, 1))
    by_hand = [(a - b) ** 2 for a, b in zip(student.flatten(), teacher.flatten(), strict=True)]
    assert float(functional.fitnet_loss(student, teacher)) == pytest.approx(
        float(sum(by_hand)) / len(by_hand), rel=1e-5
    )


def test_attention_by_hand():
    student, teacher = [torch.randn(1, 2, 2, 3) for _ in range(2)]

    def attention(m):
        energies = [
            sum(float(m[0, c, y, x]) ** 2 for c in (0, 1)) / 2 for y in (0, 1) for x in range(3)
        ]
        norm = math.sqrt(sum(e * e for e in energies))
        return [e / norm for e in energies]

    pairs = zip(attention(student), attention(teacher), strict=True)
    expected = sum((a - b) ** 2 for a, b in pairs) / 6
    assert float(functional.at_loss([student], [teacher])) == pytest.approx(expected, rel=1e-5)


def test_selectivity_by_hand():
    """The kernel of every two channels, one by one."""
    student, teacher = [F.normalize(torch.randn(1, c, 4), dim=2) for c in (3, 5)]

    def mean(a, b):
        products = [float(x @ y) ** 2 for x in a[0] for y in b[0]]
        return sum(products) / len(products)

    expected = mean(teacher, teacher) + mean(student, student) - 2 * mean(student, teacher)
    found = functional.nst_loss([student.view(1, 3, 2, 2)], [teacher.view(1, 5, 2, 2)])
    assert float(found) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("side", [1, 2, 5])
def test_both_forms_of_the_selectivity_kernel(side):
    """Fewer positions than channels, and more."""
    student, teacher = maps((9, side, side), (12, side, side))
    found, expected = (m.clone().requires_grad_() for m in (student, student))
    functional.nst_loss([found], [teacher]).backward()
    naive_losses.nst([expected], [teacher]).backward()
    torch.testing.assert_close(found.grad, expected.grad, rtol=1e-4, atol=1e-7)


def test_angles_in_blocks(monkeypatch):
    student, teacher = maps((9,), (5,))
    whole, blocks = (student.clone().requires_grad_() for _ in range(2))
    expected = functional.rkd_loss(whole, teacher)
    expected.backward()
    monkeypatch.setattr("cktf.functional.rkd._BLOCK", 2 * B * (B + 9))
    found = functional.rkd_loss(blocks, teacher)
    found.backward()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(blocks.grad, whole.grad)


@pytest.mark.parametrize("name", ["at", "nst", "sp", "ft"])
def test_rectangular_maps(name):
    student, teacher = torch.randn(B, 3, 8, 2, requires_grad=True), torch.randn(B, 5, 4, 6)
    several = name in {"at", "nst"}
    loss = ours(name)(*([student], [teacher]) if several else (student, teacher))
    loss.backward()
    assert loss.isfinite()
    assert student.grad.abs().sum() > 0


@pytest.mark.parametrize("name", ["pkt", "rkd", "sp", "at", "nst", "ft", "kdsvd"])
def test_dead_samples_give_finite_gradients(name):
    """A row of zeros, and rows that are equal."""
    student, *rest = INPUTS[name]()
    several = isinstance(student, list)
    with torch.no_grad():
        for m in student if several else [student]:
            m[0] = 0
            m[1] = m[2]
    given, made = leaves(student)
    loss = ours(name)(given, *rest)
    loss.backward()
    assert loss.isfinite()
    assert all(leaf.grad.isfinite().all() for leaf in made)


def test_softplus_does_not_overflow():
    mean, teacher = maps((3, 4, 4), (3, 4, 4))
    scale = torch.tensor([200.0, -200.0, 0.0], requires_grad=True)
    loss = functional.vid_loss(mean, teacher, scale)
    loss.backward()
    assert loss.isfinite()
    assert scale.grad.isfinite().all()


def test_svd_gradient_by_differences():
    student, teacher = ([m.double() for m in maps((4, 5, 5), (6, 3, 3), batch=2)] for _ in range(2))
    student = [m.requires_grad_() for m in student]

    def loss(*students):
        return functional.kdsvd_loss(students, teacher).double()

    # The loss itself is given in float32, which is what limits the differences.
    assert torch.autograd.gradcheck(loss, student, eps=1e-2, atol=5e-3, rtol=5e-2)


@pytest.mark.parametrize("name", ["nst", "rkd"])
def test_a_quarter_of_the_memory(name):
    if name == "nst":
        student, teacher = ([torch.randn(16, 128, 8, 8)] for _ in range(2))
    else:
        student, teacher = torch.randn(300, 64), torch.randn(300, 64)

    def step(function):
        given, _ = leaves(student)
        function(given, teacher).backward()

    step(ours(name))
    own, published = (
        peak_allocated_mb(lambda f=f: step(f)) for f in (ours(name), getattr(naive_losses, name))
    )
    assert 0 < own < published / 4


def leading_vectors(method, rows, weights, dtype):
    """Singular values, vectors and the gradient of the vectors' signless products with weights."""
    rows = rows.to(dtype).requires_grad_()
    values, vectors = method.apply(rows, weights.shape[1])
    products = torch.einsum("blk,lk->bk", vectors.double(), weights)
    products.abs().sum().backward()
    return values.double(), products.abs().detach(), rows.grad.double()


@pytest.mark.parametrize("shape", [(40, 6), (6, 40), (16, 16), (300, 16)])
@pytest.mark.parametrize("draw", [torch.randn, torch.rand])
def test_vectors_of_a_gpu_are_those_of_a_cpu(shape, draw):
    """Powers against the complete decomposition, which a fixture checks, in float64."""
    rows, weights = draw(5, *shape), torch.randn(shape[1], 4, dtype=torch.float64)
    expected = leading_vectors(singular_vectors._Decomposed, rows, weights, torch.float64)
    for dtype, rounding in ((torch.float64, 1e-6), (torch.float32, 1e-5)):
        found = leading_vectors(singular_vectors._Powers, rows, weights, dtype)
        for own, other in zip(found, expected, strict=True):
            torch.testing.assert_close(own, other, rtol=rounding, atol=rounding)


@pytest.mark.parametrize("shape", [(9, 6), (6, 9)])
@pytest.mark.parametrize("rank", [0, 1, 2])
def test_vectors_of_a_gpu_where_there_are_fewer(shape, rank):
    """Of maps that are zero, or of low rank: finite, and the ones that exist are right."""
    rows = torch.rand(3, shape[0], rank) @ torch.rand(3, rank, shape[1])
    weights = torch.randn(shape[1], 4, dtype=torch.float64)
    found = leading_vectors(singular_vectors._Powers, rows.clone(), weights, torch.float32)
    assert all(tensor.isfinite().all() for tensor in found)
    expected = leading_vectors(singular_vectors._Decomposed, rows, weights, torch.float64)
    torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found[1][:, :rank], expected[1][:, :rank], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("axis", ["channel", "width"])
@pytest.mark.parametrize("rank", [1, 2])
def test_kdsvd_of_a_gpu_is_that_of_a_cpu(axis, rank, monkeypatch):
    """But for the signs of the vectors: each is given a positive sum."""
    students, teachers = (maps((4, 8, 8), (4, 4, 8), (4, 1, 8)) for _ in range(2))
    results = []
    for method in (singular_vectors._Decomposed, singular_vectors._Powers):

        def right_vectors(rows, count, method=method):
            values, vectors = method.apply(rows, count)
            return values, vectors * vectors.sum(1, keepdim=True).sign()

        monkeypatch.setattr(kdsvd, "right_vectors", right_vectors)
        given, constants = leaves(students)[0], teachers
        loss = functional.kdsvd_loss(given, constants, rank=rank, axis=axis)
        loss.backward()
        results.append([loss.detach(), *(leaf.grad for leaf in given)])
    torch.testing.assert_close(*results, rtol=1e-3, atol=1e-5)


def test_maps_are_shrunk_side_by_side():
    assert pool_to_size(torch.rand(1, 2, 8, 3), torch.Size([4, 6])).shape == (1, 2, 4, 3)
    student, teacher = pool_to_smaller(torch.rand(1, 2, 8, 3), torch.rand(1, 5, 4, 6))
    assert student.shape[2:] == teacher.shape[2:] == (4, 3)


@pytest.mark.parametrize(
    ("student", "teacher", "expected"),
    [("abc", "xyz", "ax by cz"), ("abcd", "yz", "by dz"), ("c", "xyz", "cz"), ("", "x", "")],
)
def test_stages_are_paired(student, teacher, expected):
    assert " ".join(a + b for a, b in pair_stages(student, teacher)) == expected
