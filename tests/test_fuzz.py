"""Any input ends in success or in one clear message, within a minute and 2 GB of memory.

`CKTF_FUZZ=10000 pytest tests/test_fuzz.py` runs 10,000 cases in all; the default is 500.
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
# One draw in so many is junk.
JUNK_INTERVAL = 60


def fuzz(share):
    """Settings for a share of all cases; more than 500 cases are not derandomized."""
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
def record_memory(kind, case):
    """Record a case that takes much memory."""
    before = peak()
    try:
        yield
    finally:
        if peak() - before > 100:
            grown.append((kind, round(peak() - before), str(case)[:500]))


@contextmanager
def time_limit(kind):
    """Fail where the block takes more than a minute."""

    def fail(number, frame):
        raise TimeoutError(f"{kind}: no end after {SECONDS} s")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def count_outcome(kind):
    """Count a case, which may raise `CktfError` alone."""
    count = counted.setdefault(kind, {"accepted": 0, "refused": 0})
    try:
        with record_memory(kind, ""), time_limit(kind):
            yield
        count["accepted"] += 1
    except CktfError as error:
        count["refused" if str(error).strip() else "without a message"] += 1


@pytest.fixture(scope="module", autouse=True)
def memory_limit():
    """Report 600 MB of free memory, so that larger cases must be refused."""
    with pytest.MonkeyPatch.context() as patch:
        free = psutil.virtual_memory()._replace(available=600_000_000)
        patch.setattr(psutil, "virtual_memory", lambda: free)
        # Other tests in this process may have taken more before.
        before = peak()
        yield
    used = peak()
    if COUNTS is not None:
        record = {"peak_megabytes": round(used), "cases": counted, "grown": grown}
        COUNTS.write_text(json.dumps(record, indent=1) + "\n")
    assert used < max(MEGABYTES, before + 1), grown


@pytest.fixture(scope="module")
def fuzz_dir(tmp_path_factory):
    """A folder with whole files of every kind, and a teacher; the working folder of all cases."""
    folder = tmp_path_factory.mktemp("fuzz_dir")
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
    case = arguments, recipe.read_bytes() if recipe.exists() else b""
    with record_memory(kind, case), working_in(folder), time_limit(kind), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = CliRunner().invoke(app, arguments)
    message = f"{shlex.join(arguments)}: {result.output}"
    assert result.exception is None or isinstance(result.exception, SystemExit), (
        message, result.exc_info,
    )  # fmt: skip
    assert result.exit_code in (0, 2), message
    assert "Traceback" not in result.output
    if result.exit_code:
        assert any(start in result.output for start in ("cktf: ", "Usage: ", "Error: ")), message
    count["refused" if result.exit_code else "accepted"] += 1
    assert sorted(p.name for p in folder.rglob("*")) == names, message


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
def occasionally(draw, strategy, good):
    """Draw good values, and now and then one of another strategy."""
    return draw(strategy if draw(st.integers(0, JUNK_INTERVAL)) == JUNK_INTERVAL // 2 else good)


def mostly(*values):
    """Draw one of some values, and now and then junk."""
    return occasionally(junk, st.sampled_from(values))


def section(**fields):
    return occasionally(junk, st.fixed_dictionaries({}, optional=fields))


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
recipes = st.one_of(trained, distilled, occasionally(surplus, distilled))


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
def test_recipes(fuzz_dir, fields):
    path = fuzz_dir / "fuzzed.yaml"
    path.write_text(yaml.dump(fields), encoding="utf-8")
    kind = fields["kind"] if fields["kind"] in ("train", "distill") else "train"
    command("recipes", [kind, "--recipe", "fuzzed.yaml", "--dry-run", "--out", "new"], fuzz_dir)
    assert not (fuzz_dir / "ran").exists()


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
def test_recipe_files(fuzz_dir, data):
    text = data.draw(mutated(TEXT.encode()))
    if data.draw(st.booleans()):
        at = data.draw(st.integers(0, len(text)))
        text = text[:at] + data.draw(hostile).encode() + text[at:]
    (fuzz_dir / "fuzzed.yaml").write_bytes(text)
    command("recipe files", ["train", "--recipe", "fuzzed.yaml", "--dry-run"], fuzz_dir)


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
def test_command_lines(fuzz_dir, name, rest):
    good = ["--data", "cifar10", "--data-dir", ".", "--dry-run", "--set", "data.batch_size=4"]
    if name in ("train", "distill", "transfer", "doctor"):
        needed = ["--model", "resnet8"] if name in ("train", "doctor") else TEACHER
        rest = [*needed, *rest, *(good if name != "transfer" else ["--dry-run"])]
    if "--debug" in rest:
        rest.remove("--debug")
    command("command lines", [name, *rest], fuzz_dir)


# Files of images


def idx(values):
    head = bytes([0, 0, 8, values.ndim])
    return head + b"".join(n.to_bytes(4, "big") for n in values.shape) + values.tobytes()


IDX = idx(np.arange(6 * 28 * 28, dtype=np.uint64).astype(np.uint8).reshape(6, 28, 28))


@fuzz(0.1)
@given(data=st.data())
def test_idx_files(fuzz_dir, data):
    packed = data.draw(st.booleans())
    content = data.draw(mutated(gzip.compress(IDX, mtime=0) if packed else IDX))
    if packed and data.draw(st.booleans()):
        content = gzip.compress(data.draw(mutated(IDX)), mtime=0)
    path = fuzz_dir / ("fuzzed.gz" if packed else "fuzzed-idx")
    path.write_bytes(content)
    with count_outcome("IDX files"):
        assert fashion._read_idx(path, 3).dtype == np.uint8


@fuzz(0.1)
@given(data=st.data())
def test_cifar_files(fuzz_dir, tmp_path_factory, data):
    name = data.draw(st.sampled_from(["data_batch_3.bin", "test_batch.bin"]))
    whole = (fuzz_dir / name).read_bytes()
    content = data.draw(mutated(whole) | st.binary(max_size=40) | st.just(whole * 2))
    folder = fuzz_dir.parent / "cifar-fuzzed"
    folder.mkdir(exist_ok=True)
    for path in fuzz_dir.glob("*_batch*.bin"):
        (folder / path.name).write_bytes(path.read_bytes() if path.name != name else content)
    with count_outcome("CIFAR binaries"):
        for split in ("train", "test"):
            images = load_dataset("cifar10", folder, split)
            assert int(images.labels.max()) < 10


def cifar_pickle():
    rows = np.arange(4 * 3072, dtype=np.uint64).astype(np.uint8).reshape(4, 3072)
    return pickle.dumps({"data": rows, "labels": [0, 1, 2, 3]}, protocol=2)


@fuzz(0.08)
@given(data=st.data())
def test_cifar_pickles(fuzz_dir, data):
    path = fuzz_dir / "fuzzed.pickle"
    path.write_bytes(data.draw(mutated(cifar_pickle())))
    with count_outcome("CIFAR pickles"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pixels, labels = cifar._read_pickle(cifar.CIFAR10_LAYOUT, path)
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
def test_images(fuzz_dir, data):
    kind = data.draw(st.sampled_from(sorted(PICTURES)))
    folder = fuzz_dir.parent / "pictures"
    for name in ("a", "b"):
        for split in ("train", "test"):
            (folder / split / name).mkdir(parents=True, exist_ok=True)
            (folder / split / name / "whole.png").write_bytes(PICTURES["png"])
    path = folder / "train" / "a" / f"fuzzed.{kind}"
    path.write_bytes(data.draw(mutated(PICTURES[kind])))
    try:
        with count_outcome("images"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            reading = ReadOptions(image_size=8, skip_broken=data.draw(st.booleans()))
            images = load_dataset("imagefolder", folder, "train", reading)
            assert images.images.shape[1:] == (8, 8, 3)
    finally:
        path.unlink()


# Weights and checkpoints


@fuzz(0.06)
@given(data=st.data())
def test_weights(fuzz_dir, data):
    kind = data.draw(st.sampled_from(["st", "pt"]))
    whole = (fuzz_dir / f"teacher.{kind}").read_bytes()
    # Where headers are is where changes matter.
    edge = data.draw(st.sampled_from([200, 3000, len(whole)]))
    content = data.draw(mutated(whole[:edge])) + whole[edge:]
    path = fuzz_dir / ("fuzzed.safetensors" if kind == "st" else "fuzzed.pt")
    path.write_bytes(content)
    with count_outcome("weights"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        load_teacher(str(path), None)


DESCRIPTION = {
    "network": networks, "classes": mostly(*[[str(i) for i in range(10)]] * 20, ["a", "b"], []),
    "dataset": mostly("cifar10"), "mean": mostly(*[[0.5] * 3] * 20, [], [0.5]),
    "std": mostly([0.5] * 3), "size": mostly(*[32, None] * 10, 10**9),
}  # fmt: skip


def test_unchanged_files_are_loaded(fuzz_dir):
    """Files are good before they are mutated."""
    for name in ("teacher.st", "teacher.pt"):
        load_teacher(str(fuzz_dir / name), None)


@fuzz(0.04)
@given(metadata=st.fixed_dictionaries(DESCRIPTION) | section(**DESCRIPTION))
def test_descriptions(fuzz_dir, metadata):
    from safetensors.torch import save_file

    state = {k: v.contiguous() for k, v in create("resnet8", 10).state_dict().items()}
    path = fuzz_dir / "described.safetensors"
    save_file(state, path, metadata={"cktf": json.dumps(metadata)})
    with working_in(fuzz_dir), count_outcome("descriptions of weights"):
        load_network(path)
    assert not (fuzz_dir / "ran").exists()


@fuzz(0.02)
@given(data=st.data())
def test_foreign_pickles(fuzz_dir, data):
    path = fuzz_dir / "fuzzed.pt"
    path.write_bytes(data.draw(mutated(pickle.dumps({"a": [1.0] * 20}))))
    with count_outcome("pickles"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        read_state_dict(path)


@fuzz(0.04)
@given(data=st.data())
def test_checkpoints(fuzz_dir, tmp_path_factory, data):
    folder = fuzz_dir.parent / "checkpoints"
    folder.mkdir(exist_ok=True)
    kept = Checkpoints(folder, lambda line: None)
    for number in (1, 2):
        kept.save({"number": number, "w": torch.arange(50.0) * number}, str(number))
    path = kept.paths[-1].with_suffix(data.draw(st.sampled_from([".pt", ".json"])))
    path.write_bytes(data.draw(mutated(path.read_bytes())))
    with count_outcome("checkpoints of runs"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        state = kept.newest()
        assert torch.equal(state["w"], torch.arange(50.0) * state["number"])
