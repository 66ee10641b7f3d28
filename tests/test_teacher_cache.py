"""Finite sets of views, the teacher's features of them on disk, and two renderings of one view."""

import copy
import threading
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from small_runs import read_metrics, run_command
from torch import nn
from torch.nn import functional as F

from cktf.batch import Batch
from cktf.data import (
    DatasetLoader,
    ImageSet,
    MemoryLoader,
    ReadOptions,
    StreamedImages,
    hash_images,
    load_dataset,
)
from cktf.data.stored_images import ImageArrays
from cktf.errors import DataError, MethodError, RecipeError
from cktf.models import Normalized, create
from cktf.objectives import CKTF, METHODS, BuildContext, compose
from cktf.recipes import parse_recipe
from cktf.taps import CachedTap, CacheSpec, Features, Tap
from cktf.workflows import distill_interleaved, run_recipe

V = 3


def same(one, other):
    return torch.equal(one.images, other.images) and torch.equal(one.index, other.index)


# Views


def loaders(data, seed, views=V, size=16):
    some = torch.arange(48)
    streamed = load_dataset("fashion-mini", None, "test", ReadOptions(budget=0)).subset(some)
    how = {"train": True, "augment": True, "seed": seed, "views": views}
    return MemoryLoader(data.subset(some), size, **how), DatasetLoader(streamed, size, **how)


@pytest.mark.parametrize("kind", [0, 1])
def test_a_view_of_an_image_is_the_same_in_every_epoch_and_run(images, kind):
    seen = {}
    for seed in (0, 1):
        loader = loaders(images[1], seed)[kind]
        for epoch in (1, 2, 3, 1 + V):
            for batch in loader.epoch(epoch):
                assert batch.view == epoch % V
                for image, position in zip(batch.images, batch.index.tolist(), strict=True):
                    key = batch.view, position
                    assert torch.equal(seen.setdefault(key, image), image)
    assert len(seen) == V * 48
    # Views differ from each other, and are what the loader gives in order.
    assert sum(torch.equal(seen[0, i], seen[1, i]) for i in range(48)) < 8
    for view in range(V):
        rows = torch.cat([batch.images for batch in loader.view(view)])
        assert all(torch.equal(rows[i], seen[view, i]) for i in range(48))
    orders = [torch.cat([b.index for b in loaders(images[1], s)[kind].epoch(1)]) for s in (0, 1)]
    assert not torch.equal(*orders)
    # A resumed epoch is in the same view.
    whole, rest = list(loader.epoch(2)), list(loader.epoch(2, start=1))
    assert all(same(a, b) for a, b in zip(whole[1:], rest, strict=True))


# What is kept


class Net(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, 1, 1), nn.BatchNorm2d(width), nn.ReLU())
        self.down = nn.Sequential(nn.Conv2d(width, 2 * width, 3, 2, 1), nn.ReLU())
        self.fc = nn.Linear(2 * width, 5)

    def forward(self, x):
        return self.fc(self.down(self.stem(x)).mean((2, 3)))


def features(seed, *sizes, channels=4):
    generator = torch.Generator().manual_seed(seed)
    maps = [torch.rand(6, channels, s, s, generator=generator) for s in sizes]
    return Features(
        logits=torch.rand(6, 5, generator=generator),
        embedding=torch.rand(6, 7, generator=generator),
        stem=maps[0], stages=tuple(maps), blocks=tuple((m,) for m in maps), preacts=tuple(maps),
    )  # fmt: skip


SIZES = [((32, 16, 8), (32, 16, 8)), ((32, 16, 8), (48, 24, 12, 6, 3)), ((8, 4, 2, 1), (24, 6))]


@pytest.mark.parametrize(("student", "teacher"), SIZES)
def test_cached_features_do_not_change_the_loss_of_cktf(student, teacher):
    s, t = features(0, *student), features(1, *teacher, channels=6)
    torch.manual_seed(0)
    cktf = CKTF(s, t, 20, negatives=8, module_norm="none")
    kept = cktf.cacheable().reduce(t)
    assert all(m.shape[-1] <= 4 for m in (kept.stem, *kept.stages))
    index, chosen = torch.arange(6), torch.arange(6).view(6, 1) + torch.arange(9)
    state = {k: v.clone() for k, v in cktf.state_dict().items()}
    losses = []
    for given in (t, kept):
        cktf.load_state_dict(state)
        losses.append(cktf.loss(s, given, index, chosen))
    assert losses[0].terms.keys() == losses[1].terms.keys()
    torch.testing.assert_close(losses[0].total, losses[1].total)


READ = {n for n, m in METHODS.items() if m.requires <= {"logits", "embedding", "labels", "index"}}
SETTING = BuildContext(features(0, 32, 16, 8), features(1, 32, 16, 8), 20, None)


@pytest.mark.parametrize("name", sorted(set(METHODS) - {"ce", "ab", "fsp"}))
def test_methods_that_can_use_the_cache(name):
    objective = compose(name, SETTING)
    if name in READ:
        kept = objective.cacheable()
        assert not kept.stages
        assert kept.embedding == ("embedding" in METHODS[name].requires)
    else:
        with pytest.raises(MethodError, match="cache"):
            objective.cacheable()


def test_sums_keep_enough_for_every_term():
    options = {"cktf": {"module_norm": "none", "negatives": 4}}
    kept = compose("kd+crd+cktf", SETTING, options | {"crd": {"negatives": 4}}).cacheable()
    assert kept.embedding
    assert [grid for _, grid in kept.stages] == [(4, 4), (2, 2), (1, 1)]


# The cache


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net().eval().requires_grad_(False)


class CountedView:
    """Twenty images of a view, and the views that were computed."""

    def __init__(self):
        self.calls = []

    def __call__(self, view):
        self.calls.append(view)
        images = torch.rand(20, 1, 8, 8, generator=torch.Generator().manual_seed(view))
        for index in torch.arange(20).split(6):
            yield Batch(images[index], None, index, view)


SPEC = CacheSpec(embedding=True, stem=(2, 2), stages=((0, (1, 1)),))


def build_cache(net, view, folder, spec=SPEC, identity=None):
    tap = Tap.infer(net, torch.rand(2, 1, 8, 8), ["embedding", "stem", "stages"])
    lines = []
    cached = CachedTap(tap, spec, view, 2, 20, identity or {"images": "a"}, folder)
    cached.lines, cached.say = lines, lines.append
    return cached


def make_batch(view=0):
    images = torch.cat([batch.images for batch in CountedView()(view)])
    index = torch.tensor([7, 0, 19, 7])
    return Batch(images[index], None, index, view)


def check_features(net, folder, computed=(0,), view=0, **options):
    """A new tap gives the network's features; only the views `computed` are computed for it."""
    counted, batch = CountedView(), make_batch(view)
    cached = build_cache(net, counted, folder, **options)
    for _ in range(2):
        torch.testing.assert_close(cached.extract(batch), cached(batch.images))
    assert counted.calls == list(computed)
    return cached


@pytest.mark.parametrize("view", [0, 1])
def test_cached_features_are_those_of_the_network(net, tmp_path, view):
    check_features(net, tmp_path, computed=[view], view=view)
    check_features(net, tmp_path, computed=[], view=view)
    assert not list(tmp_path.rglob("*partial*"))


def test_bfloat16_features_stay_bfloat16(net, tmp_path):
    with torch.autocast("cpu", torch.bfloat16):
        cached = check_features(net, tmp_path)
        assert cached.extract(make_batch()).logits.dtype == torch.bfloat16


def test_a_method_that_reads_more_computes_only_what_is_missing(net, tmp_path):
    check_features(net, tmp_path, spec=CacheSpec(embedding=True))
    cached = check_features(net, tmp_path)
    assert "stem" in cached.lines[0]
    assert "logits" not in cached.lines[0]
    check_features(net, tmp_path, computed=[], spec=CacheSpec())


@pytest.mark.parametrize(
    ("changed", "identity"),
    [("fc.bias", {}), ("stem.1.running_mean", {}), (None, {"images": "b"}),
     (None, {"images": "a", "precision": "bfloat16"})],
    ids=["weights", "statistics", "images", "precision"],
)  # fmt: skip
def test_another_teacher_or_data_set_has_another_cache(net, tmp_path, changed, identity):
    check_features(net, tmp_path)
    if changed:
        net.state_dict()[changed][0] += 1
    check_features(net, tmp_path, identity=identity)


def test_the_input_size_identifies_a_network():
    from cktf.taps.cached import hash_network

    network = create("resnet8", 10)
    found = {
        hash_network(Normalized(network, [0.5] * 3, [0.5] * 3, size)) for size in (None, 32, 96)
    }
    assert len(found | {hash_network(Normalized(network, [0.4] * 3, [0.5] * 3))}) == 4


def test_pixels_identify_images():
    """Read one by one they have names and no ends that tell them from others."""
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    others = pixels.copy()
    others[1, 2, 3, 0] ^= 1
    found = set()
    for each in (pixels, pixels.copy(), others):
        images = StreamedImages(ImageArrays(each, "some train"), 8, 3)
        data = ImageSet(images, torch.arange(3), "abc", (0.5,), (0.5,), name="some")
        found.add(hash_images(data))
    assert len(found) == 2


def flip_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def note_of(path):
    return path.with_name(f"{path.name}.json")


DAMAGES = {
    "a bit": flip_bit,
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-4]),
    "gone": lambda path: path.unlink(),
    "no note": lambda path: note_of(path).unlink(),
    "half a note": lambda path: note_of(path).write_text('{"name": "log'),
    "note of another": lambda path: note_of(path).write_text(
        note_of(path).read_text().replace('"a"', '"b"')
    ),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damaged_features_are_computed_again(net, tmp_path, damage):
    check_features(net, tmp_path)
    (path,) = tmp_path.rglob("logits")
    damage(path)
    check_features(net, tmp_path)


def test_of_two_processes_one_computes_and_the_other_waits(net, tmp_path):
    start, views = threading.Barrier(2, timeout=60), [CountedView(), CountedView()]

    def read(view):
        cached = build_cache(copy.deepcopy(net), view, tmp_path)
        start.wait()
        return cached.extract(make_batch())

    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(read, views))
    assert sorted(view.calls for view in views) == [[], [0]]
    for features in results:
        torch.testing.assert_close(features, build_cache(net, None, tmp_path)(make_batch().images))


def test_interrupted_features_are_never_used(net, tmp_path):
    def interrupted(view):
        yield next(iter(CountedView()(view)))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_cache(net, interrupted, tmp_path).extract(make_batch())
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["lock"]
    check_features(net, tmp_path)


def test_disk_space_is_checked_first(net, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("cktf.taps.cached.shutil.disk_usage", lambda path: usage(1, 1, 2**28 + 100))
    cached = build_cache(net, CountedView(), tmp_path)
    with pytest.raises(DataError, match=r"20 images in 2 views take .* GB, and .* has 0.0 GB left"):
        cached.check_disk_space(cached._tap(torch.rand(2, 1, 8, 8)))


# In runs


def recipe(teacher_dir, cifar_dir, cache, **more):
    return parse_recipe(
        {
            "kind": "distill", "teacher": str(teacher_dir), "student": "resnet8", "epochs": 3,
            "method": "kd+crd", "options": {"crd": {"negatives": 8}}, "teacher_cache": cache,
            "runtime": {"precision": "float32"},
            "data": {
                "name": "cifar10", "dir": cifar_dir, "labels": False, "views": 2, "batch_size": 16,
            },
            **more,
        }
    )  # fmt: skip


def test_a_run_with_the_cache_equals_one_without(teacher_dir, cifar_dir, tmp_path):
    plain = run_recipe(recipe(teacher_dir, cifar_dir, None), tmp_path / "plain", show=False)
    kept = run_recipe(
        recipe(teacher_dir, cifar_dir, str(tmp_path / "cache")), tmp_path / "kept", show=False
    )
    one, other = ([row["loss"] for row in read_metrics(run.folder)] for run in (plain, kept))
    assert one == pytest.approx(other, rel=1e-4)
    views = {path.parent.name for path in tmp_path.glob("cache/*/view-*/logits")}
    assert views == {"view-000", "view-001"}


def test_interleaved_students_compute_it_once(teacher_dir, cifar_dir, tmp_path, monkeypatch):
    views, compute, folder = [], CachedTap._compute, str(tmp_path / "cache")

    def record_view(tap, view, names):
        views.append(view)
        compute(tap, view, names)

    monkeypatch.setattr(CachedTap, "_compute", record_view)
    recipes = [recipe(teacher_dir, cifar_dir, folder, method=m, options={}) for m in ("pkt", "kd")]
    distill_interleaved([(each, tmp_path / each.method) for each in recipes])
    assert sorted(views) == [0, 1]


MISTAKES = {
    "--unlabeled cifar10 --set teacher_cache=auto": "Give a number of views",
    "--unlabeled cifar10 --method at --teacher-cache views=2": "AT reads whole maps",
    "--unlabeled cifar10 --method cktf --teacher-cache views=2": "module_norm=none",
    "--unlabeled cifar10 --method kd+ab --teacher-cache views=2": "cache",
    "--unlabeled cifar10 --method kd --teacher-cache views=0": "given 'views=0'",
    "--unlabeled cifar10 --method kd --teacher-cache view=2": "given 'view=2'",
}


@pytest.mark.parametrize(("options", "words"), MISTAKES.items(), ids=MISTAKES)
def test_mistakes_with_the_cache(teacher_dir, cifar_dir, tmp_path, options, words, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    line = f"distill --teacher {teacher_dir} --student resnet8 --data-dir {cifar_dir} {options}"
    assert words in run_command(f"{line} --out {tmp_path / 'x'}", exit_code=2)
    assert not (tmp_path / "x").exists()
    assert not (tmp_path / "home").exists()


def test_a_data_set_of_the_users_own_has_no_views(images, tmp_path):
    import cktf

    with pytest.raises(RecipeError, match="augments its images itself"):
        cktf.distill(
            Net(), Net(), unlabeled=images[0], method="kd", out=tmp_path, show=False,
            overrides={"teacher_cache": "auto"},
        )  # fmt: skip


@pytest.mark.parametrize("method", ["kd+crd", "cktf"])
def test_a_dry_run_with_the_cache_writes_nothing(teacher_dir, cifar_dir, tmp_path, method):
    options = "--set options.cktf.module_norm=none" if method == "cktf" else ""
    printed = run_command(
        f"doctor distill --teacher {teacher_dir} --student resnet8 --unlabeled cifar10 --data-dir "
        f"{cifar_dir} --method {method} {options} --out {tmp_path / 'run'} "
        f"--teacher-cache views=2,dir={tmp_path / 'cache'}"
    )
    assert "views: 2" in printed
    assert "has no training image" not in printed
    assert not (tmp_path / "cache").exists()
    assert not (tmp_path / "run").exists()


# Two renderings


def test_both_networks_see_the_same_view_each_in_its_size_and_normalization(
    teacher_dir, cifar_dir, tmp_path, monkeypatch
):
    renderings, forward = {}, Normalized.forward

    def record_forward(self, pixels):
        handle = self.network.register_forward_pre_hook(
            lambda _, args: renderings.update({self.size: (self, pixels, args[0])})
        )
        logits = forward(self, pixels)
        handle.remove()
        return logits

    monkeypatch.setattr(Normalized, "forward", record_forward)
    run_command(
        f"distill --teacher {teacher_dir} --student resnet8 --unlabeled cifar10 "
        f"--data-dir {cifar_dir} --method kd --epochs 1 --teacher-size 48 --student-size 16 "
        f"--out {tmp_path / 'run'} --set data.batch_size=50 --set runtime.precision=float32"
    )
    # The last batch: both were given the same images, and each rendered them for itself.
    (one, first, big), (other, second, small) = renderings[48], renderings[16]
    assert torch.equal(first, second)
    assert first.shape[-1] == 32
    assert (big.shape[-1], small.shape[-1]) == (48, 16)
    for network, size, found in ((one, 48, big), (other, 16, small)):
        resized = F.interpolate(first, (size, size), mode="bilinear", antialias=True)
        torch.testing.assert_close(found, (resized - network.mean) / network.std)
    assert not torch.equal(one.mean, other.mean)
