"""Anything at all as input: it ends in success or in one clear message, soon, and in little memory.

`CKTF_FUZZ=10000 pytest tests/test_fuzz.py` makes so many cases in all; by default 500.
"""

import gzip
import io
import json
import os
import pickle
import resource
import shlex
import signal
import warnings
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from cktf.cli.main import app
from cktf.data import cifar, fashion, load_dataset
from cktf.data.split_loading import ReadOptions
from cktf.engine.checkpoints import Checkpoints
from cktf.errors import CktfError
from cktf.models import create, load_network, read_state_dict, save_network
from cktf.recipes import load_teacher

pytestmark = pytest.mark.slow

CASES = int(os.environ.get("CKTF_FUZZ", "500"))
COUNTS = Path(os.environ["CKTF_FUZZ_COUNTS"]) if "CKTF_FUZZ_COUNTS" in os.environ else None
SECONDS, MEGABYTES = 60, 2048
RIGHT = 60


def fuzz(share):
    """A share of all cases, of no fixed seed where there are many."""
    return settings(
        max_examples=max(5, round(CASES * share)), deadline=None, derandomize=CASES <= 500,
        suppress_health_check=list(HealthCheck), database=None, print_blob=False,
    )  # fmt: skip


counted: dict[str, dict[str, int]] = {}
# Cases at which the process grew, by how many megabytes.
grown: list[tuple[str, int, str]] = []


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@contextmanager
def watched(kind, told):
    """Note a case that takes much memory."""
    before = peak()
    try:
        yield
    finally:
        if peak() - before > 100:
            grown.append((kind, round(peak() - before), str(told)[:500]))


@contextmanager
def within_time(kind):
    """What is inside ends within a minute."""

    def too_long(number, frame):
        raise TimeoutError(f"{kind}: no end after {SECONDS} s")

    before = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def outcome(kind):
    """Count a case, which may end with the errors of ours alone."""
    count = counted.setdefault(kind, {"accepted": 0, "refused": 0})
    try:
        with watched(kind, ""), within_time(kind):
            yield
        count["accepted"] += 1
    except CktfError as error:
        told = str(error).strip()
        count["refused" if told else "without a word"] += 1


@pytest.fixture(scope="module", autouse=True)
def within_memory():
    """With 600 MB said to be free, what would take more has to be refused."""
    with pytest.MonkeyPatch.context() as patch:
        free = psutil.virtual_memory()._replace(available=600_000_000)
        patch.setattr(psutil, "virtual_memory", lambda: free)
        # Other tests in this process may have taken more before.
        before = peak()
        yield
    used = peak()
    if COUNTS is not None:
        kept = {"peak_megabytes": round(used), "cases": counted, "grown": grown}
        COUNTS.write_text(json.dumps(kept, indent=1) + "\n")
    assert used < max(MEGABYTES, before + 1), grown


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A folder with whole files of every kind, and a teacher; the working folder of all cases."""
    folder = tmp_path_factory.mktemp("shop")
    rng = np.random.default_rng(0)
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        records = rng.integers(0, 256, (20, 3073), dtype=np.uint8)
        records[:, 0] = np.arange(20) % 10
        (folder / f"{name}.bin").write_bytes(records.tobytes())
    classes = load_dataset("cifar10", folder, "test").classes
    torch.manual_seed(0)
    network = create("resnet8", 10)
    save_network(network, folder / "teacher.st", name="resnet8", classes=classes, dataset="cifar10")
    torch.save(network.state_dict(), folder / "teacher.pt")
    (folder / "own.py").write_text("open('ran', 'w').close()\ndef net(): ...\n")
    return folder


@contextmanager
def working_in(folder):
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def command(kind, arguments, folder):
    """`cktf` with arguments: exit code 0, or 2 with a message; nothing is written."""
    names = sorted(p.name for p in folder.rglob("*"))
    count = counted.setdefault(kind, {"accepted": 0, "refused": 0})
    recipe = folder / "fuzzed.yaml"
    told = arguments, recipe.read_bytes() if recipe.exists() else b""
    with watched(kind, told), working_in(folder), within_time(kind), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = CliRunner().invoke(app, arguments)
    told = f"{shlex.join(arguments)}: {result.output}"
    assert result.exception is None or isinstance(result.exception, SystemExit), (
        told, result.exc_info,
    )  # fmt: skip
    assert result.exit_code in (0, 2), told
    assert "Traceback" not in result.output
    if result.exit_code:
        assert any(start in result.output for start in ("cktf: ", "Usage: ", "Error: ")), told
    count["refused" if result.exit_code else "accepted"] += 1
    assert sorted(p.name for p in folder.rglob("*")) == names, told


# Recipes and command lines

junk = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([10**30, -1, 0, 2**63, 1 << 80])
    | st.floats()
    | st.text(max_size=12)
    | st.sampled_from(["..", "/", "../../x", "~", "a\0b", "x" * 300, "1e1", "self", "<b>", "{}"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


@st.composite
def now_and_then(draw, strategy, good):
    """Something good, but once in so many times anything at all."""
    return draw(strategy if draw(st.integers(0, RIGHT)) == RIGHT // 2 else good)


def mostly(*values):
    """Values that are right, or nearly, and now and then one that is anything."""
    return now_and_then(junk, st.sampled_from(values))


def section(**fields):
    return now_and_then(junk, st.fixed_dictionaries({}, optional=fields))


# Well-meant ones, many times, beside those that try something.
networks = mostly(
    *["resnet8"] * 40, "own.py:net", "os:system(command='touch ran')", "timm:nothing",
    "teacher.st", "teacher.pt", "resnet8(num_classes=1000000000)", "resnet8@64", "resnet9",
    "subprocess:Popen(args='touch ran')", "timm:resnet10t(checkpoint_path='teacher.pt')", "x.py:y",
    "resnet8@99999999",
)  # fmt: skip
common = {
    "epochs": mostly(1, 3), "seed": mostly(0, 5),
    "optimizer": section(lr=mostly(0.1), momentum=mostly(0.9), clip=mostly(1.0, None)),
    "schedule": section(name=mostly("onecycle", "multistep"), milestones=mostly([0.5])),
    "runtime": section(
        device=mostly("cpu", "auto"), precision=mostly("float32"), channels_last=mostly(True),
        on_nonfinite=mostly("stop", "skip"),
    ),
    "checkpoint": section(epochs=mostly(1, 0), minutes=mostly(5.0, 0)),
}  # fmt: skip
images = st.fixed_dictionaries(
    {
        "name": mostly(*["cifar10"] * 40, "cifar100", "imagefolder:.", "stl10", "../x"),
        "dir": mostly(*["."] * 40, "/", "../..", "nowhere"),
        "batch_size": mostly(4, 8, 16),
    },
    optional={
        "augment": mostly(True, False), "workers": mostly(0), "skip_broken": mostly(True),
        "image_size": mostly(*[None] * 20, 16), "channels": mostly(*[3] * 20, 1),
        "classes": mostly(*[[]] * 20, ["cat", "dog"]), "per_class": mostly(*[None] * 20, 5),
        "validation": mostly(*[0.0] * 20, 0.3), "labels": mostly(*[True] * 20, False),
    },
)  # fmt: skip
options = section(
    cktf=section(
        negatives=mostly(8, 64), embedding_dim=mostly(*[8] * 20, 10**9), memory=mostly("bank"),
        queue_size=mostly(*[64] * 20, 10**12), estimator=mostly("all", "shared", "sampled"),
        temperature=mostly(*[0.1] * 20, 1e-9), place=mostly("device"),
        bank_device=mostly(*["device"] * 20, "host", "/"),
    )
)  # fmt: skip
method = mostly(
    *["kd", "cktf+kd", "at:500+sp", "cktf:0.8", "paper/cktf+kd"] * 5, "crd+", "kd+kd", "ab+ft", "xx"
)
distilling = common | {
    "init_epochs": mostly(1, None), "student_taps": mostly(*[[]] * 20, ["layer1"]),
    "teacher_embedding": mostly(*[None] * 20, "fc:input"),
}  # fmt: skip
trained = st.fixed_dictionaries(
    {"kind": st.just("train"), "model": networks, "data": images},
    optional=common | {"trains": mostly("all", "classifier")},
)
distilled = st.fixed_dictionaries(
    {
        "kind": st.just("distill"), "student": networks, "data": images, "method": method,
        "teacher": mostly(*["teacher.st"] * 20, "teacher.pt", "nowhere", "own.py:net", "."),
    },
    optional=distilling,
) | st.fixed_dictionaries(
    {
        "kind": st.just("distill"), "student": networks, "data": images, "options": options,
        "method": st.just("cktf+kd"), "teacher": st.just("teacher.st"),
    },
    optional=distilling,
)  # fmt: skip
surplus = st.fixed_dictionaries({"kind": mostly("train"), "surplus": junk})
recipes = st.one_of(trained, distilled, now_and_then(surplus, distilled))


@st.composite
def mutated(draw, content):
    """Bytes with a few places changed, removed, doubled or put in."""
    data = bytearray(content)
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        what = draw(st.sampled_from(["flip", "set", "cut", "insert", "double", "number"]))
        if what == "cut":
            del data[at : at + draw(st.integers(1, len(data) or 1))]
        elif what == "insert":
            data[at:at] = draw(st.binary(max_size=16))
        elif what == "double":
            data[at:at] = data[at : at + draw(st.integers(1, 64))]
        elif what == "number" and data:
            data[at : at + 4] = draw(st.sampled_from([b"\xff" * 4, b"\x7f\xff\xff\xff", bytes(4)]))
        elif data:
            data[at] = data[at] ^ (1 << draw(st.integers(0, 7))) if what == "flip" else draw(
                st.integers(0, 255))  # fmt: skip
    return bytes(data)


@fuzz(0.16)
@given(fields=recipes)
def test_recipes(shop, fields):
    path = shop / "fuzzed.yaml"
    path.write_text(yaml.dump(fields), encoding="utf-8")
    kind = fields["kind"] if fields["kind"] in ("train", "distill") else "train"
    command("recipes", [kind, "--recipe", "fuzzed.yaml", "--dry-run", "--out", "new"], shop)
    assert not (shop / "ran").exists()


TEXT = """kind: train
model: resnet8
epochs: 2
data: {name: cifar10, dir: ., batch_size: 4}
optimizer: {lr: 1e-2, momentum: 0.9}
schedule:
  milestones: [0.5, 0.75]
"""
hostile = st.sampled_from(
    [
        "[" * 5000, "{a: " * 3000, "&a [*a]", "a: &a [1]\nb: *a", "!!python/object/apply:os.system",
        "!!timestamp x", "!!int x", "!!bool maybe", "2024-99-99", "? [a]\n: b", "!!binary x",
        "9" * 6000, "\x85", "\x00", "<<: {a: 1}", "a: 1\na: 2", "- 1\n- 2", "1_0: 2", "{[]: 1}",
    ]
)  # fmt: skip


@fuzz(0.16)
@given(data=st.data())
def test_recipe_files(shop, data):
    text = data.draw(mutated(TEXT.encode()))
    if data.draw(st.booleans()):
        at = data.draw(st.integers(0, len(text)))
        text = text[:at] + data.draw(hostile).encode() + text[at:]
    (shop / "fuzzed.yaml").write_bytes(text)
    command("recipe files", ["train", "--recipe", "fuzzed.yaml", "--dry-run"], shop)


TEACHER = ["--teacher", "teacher.st", "--student", "resnet8", "--method", "kd"]
words = st.one_of(
    st.sampled_from(
        [
            "--model", "resnet8", "--data", "cifar10", "--data-dir", ".", "--epochs", "1", "--seed",
            "--out", "new", "--recipe", "own.py", "--set", "optimizer.lr=0.1", "--resume", "auto",
            "--trust-code", "--debug", "--teacher", "teacher.st", "--student", "--method", "kd",
            "--unlabeled", "--init-epochs", "--set", "data.batch_size=4", "--on-nonfinite", "skip",
            "--teacher-weights", "teacher.pt", "--labeled", "--labels-per-class", "1,2", "--test",
            "-1", "", "teacher.pt", "/", "..", "a=b", "=", "--nothing", "--help",
        ]
    ),
    st.text(max_size=10),
    st.builds(lambda a, b: f"{a}={b}", st.text(max_size=8), st.text(max_size=8)),
)  # fmt: skip
commands = st.sampled_from(
    ["train", "distill", "transfer", "inspect", "evaluate", "models", "methods", "datasets",
     "doctor", "nothing"]
)  # fmt: skip


@fuzz(0.16)
@given(name=commands, rest=st.lists(words, max_size=6))
def test_command_lines(shop, name, rest):
    good = ["--data", "cifar10", "--data-dir", ".", "--dry-run", "--set", "data.batch_size=4"]
    if name in ("train", "distill", "transfer", "doctor"):
        needed = ["--model", "resnet8"] if name in ("train", "doctor") else TEACHER
        rest = [*needed, *rest, *(good if name != "transfer" else ["--dry-run"])]
    if "--debug" in rest:
        rest.remove("--debug")
    command("command lines", [name, *rest], shop)


# Files of images


def idx(values):
    head = bytes([0, 0, 8, values.ndim])
    return head + b"".join(n.to_bytes(4, "big") for n in values.shape) + values.tobytes()


IDX = idx(np.arange(6 * 28 * 28, dtype=np.uint64).astype(np.uint8).reshape(6, 28, 28))


@fuzz(0.1)
@given(data=st.data())
def test_idx_files(shop, data):
    packed = data.draw(st.booleans())
    content = data.draw(mutated(gzip.compress(IDX, mtime=0) if packed else IDX))
    if packed and data.draw(st.booleans()):
        content = gzip.compress(data.draw(mutated(IDX)), mtime=0)
    path = shop / ("fuzzed.gz" if packed else "fuzzed-idx")
    path.write_bytes(content)
    with outcome("IDX files"):
        assert fashion._read_idx(path, 3).dtype == np.uint8


@fuzz(0.1)
@given(data=st.data())
def test_cifar_files(shop, tmp_path_factory, data):
    name = data.draw(st.sampled_from(["data_batch_3.bin", "test_batch.bin"]))
    whole = (shop / name).read_bytes()
    content = data.draw(mutated(whole) | st.binary(max_size=40) | st.just(whole * 2))
    folder = shop.parent / "cifar-fuzzed"
    folder.mkdir(exist_ok=True)
    for path in shop.glob("*_batch*.bin"):
        (folder / path.name).write_bytes(path.read_bytes() if path.name != name else content)
    with outcome("CIFAR binaries"):
        for split in ("train", "test"):
            images = load_dataset("cifar10", folder, split)
            assert int(images.labels.max()) < 10


def cifar_pickle():
    rows = np.arange(4 * 3072, dtype=np.uint64).astype(np.uint8).reshape(4, 3072)
    return pickle.dumps({"data": rows, "labels": [0, 1, 2, 3]}, protocol=2)


@fuzz(0.08)
@given(data=st.data())
def test_cifar_pickles(shop, data):
    path = shop / "fuzzed.pickle"
    path.write_bytes(data.draw(mutated(cifar_pickle())))
    with outcome("CIFAR pickles"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pixels, labels = cifar._read_pickle(cifar._CIFAR10, path)
        assert pixels.shape == (len(labels), 3072)


def pictures():
    image = Image.fromarray(
        np.arange(24 * 20 * 3, dtype=np.uint64).astype(np.uint8).reshape(24, 20, 3)
    )
    for kind in ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM"):
        file = io.BytesIO()
        image.save(file, kind)
        yield kind.lower(), file.getvalue()


PICTURES = dict(pictures())


@fuzz(0.12)
@given(data=st.data())
def test_images(shop, data):
    kind = data.draw(st.sampled_from(sorted(PICTURES)))
    folder = shop.parent / "pictures"
    for name in ("a", "b"):
        for split in ("train", "test"):
            (folder / split / name).mkdir(parents=True, exist_ok=True)
            (folder / split / name / "whole.png").write_bytes(PICTURES["png"])
    path = folder / "train" / "a" / f"fuzzed.{kind}"
    path.write_bytes(data.draw(mutated(PICTURES[kind])))
    try:
        with outcome("images"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            reading = ReadOptions(image_size=8, skip_broken=data.draw(st.booleans()))
            images = load_dataset("imagefolder", folder, "train", reading)
            assert images.images.shape[1:] == (8, 8, 3)
    finally:
        path.unlink()


# Weights and checkpoints


@fuzz(0.06)
@given(data=st.data())
def test_weights(shop, data):
    kind = data.draw(st.sampled_from(["st", "pt"]))
    whole = (shop / f"teacher.{kind}").read_bytes()
    # Where headers are is where changes matter.
    edge = data.draw(st.sampled_from([200, 3000, len(whole)]))
    content = data.draw(mutated(whole[:edge])) + whole[edge:]
    path = shop / ("fuzzed.safetensors" if kind == "st" else "fuzzed.pt")
    path.write_bytes(content)
    with outcome("weights"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        load_teacher(str(path), None)


DESCRIPTION = {
    "network": networks, "classes": mostly(*[[str(i) for i in range(10)]] * 20, ["a", "b"], []),
    "dataset": mostly("cifar10"), "mean": mostly(*[[0.5] * 3] * 20, [], [0.5]),
    "std": mostly([0.5] * 3), "size": mostly(*[32, None] * 10, 10**9),
}  # fmt: skip


def test_whole_files_are_taken(shop):
    """What is mutated is good before that."""
    for name in ("teacher.st", "teacher.pt"):
        load_teacher(str(shop / name), None)


@fuzz(0.04)
@given(described=st.fixed_dictionaries(DESCRIPTION) | section(**DESCRIPTION))
def test_descriptions(shop, described):
    from safetensors.torch import save_file

    state = {k: v.contiguous() for k, v in create("resnet8", 10).state_dict().items()}
    path = shop / "described.safetensors"
    save_file(state, path, metadata={"cktf": json.dumps(described)})
    with working_in(shop), outcome("descriptions of weights"):
        load_network(path)
    assert not (shop / "ran").exists()


@fuzz(0.02)
@given(data=st.data())
def test_pickles_of_others(shop, data):
    path = shop / "fuzzed.pt"
    path.write_bytes(data.draw(mutated(pickle.dumps({"a": [1.0] * 20}))))
    with outcome("pickles"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        read_state_dict(path)


@fuzz(0.04)
@given(data=st.data())
def test_checkpoints(shop, tmp_path_factory, data):
    folder = shop.parent / "checkpoints"
    folder.mkdir(exist_ok=True)
    kept = Checkpoints(folder, lambda line: None)
    for number in (1, 2):
        kept.save({"number": number, "w": torch.arange(50.0) * number}, str(number))
    path = kept.present[-1].with_suffix(data.draw(st.sampled_from([".pt", ".json"])))
    path.write_bytes(data.draw(mutated(path.read_bytes())))
    with outcome("checkpoints of runs"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        state = kept.newest()
        assert torch.equal(state["w"], torch.arange(50.0) * state["number"])
