"""Users' Python files: each with its own neighbors, and mistakes in them explained."""

import sys

import pytest
import torch

from cktf.errors import ModelError
from cktf.models import build_network, parse_network_spec
from cktf.models.user_code import call_user_code

NETWORK = """
from torch import nn
def build(num_classes, width):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, width),
                         nn.Linear(width, num_classes))
"""
BUILD = "def make(): return build(2, W)"
USES = {
    "a module": ("helper_.py", "import helper_\nmake = lambda: helper_.build(2, helper_.W)"),
    "names of a module": ("helper_.py", f"from helper_ import *\n{BUILD}"),
    "an installed package": ("timm.py", "import timm\nmake = lambda: timm.build(2, timm.W)"),
    "a package": ("layers_/__init__.py", f"from layers_ import W, build\n{BUILD}"),
    "a folder in a folder": ("layers_/a/deep.py", f"from layers_.a.deep import *\n{BUILD}"),
    "a late import": ("helper_.py", "def make():\n  import helper_ as h\n  return h.build(2, h.W)"),
    "a relative module": ("helper_.py", f"from .helper_ import W, build\n{BUILD}"),
    "a relative folder": ("layers_/deep.py", f"from .layers_.deep import W, build\n{BUILD}"),
}


def build(text, num_classes=None):
    return build_network(parse_network_spec(text), num_classes).network


@pytest.mark.parametrize("use", USES)
def test_each_file_has_its_own_neighbors(use, tmp_path, monkeypatch):
    timm = pytest.importorskip("timm")
    for name in list(sys.modules):
        if name.partition(".")[0] in ("helper_", "layers_"):
            monkeypatch.delitem(sys.modules, name)
    neighbor, code = USES[use]
    widths = {"teacher": 32, "student": 4}
    for folder, width in widths.items():
        path = tmp_path / folder / neighbor
        path.parent.mkdir(parents=True)
        path.write_text(f"W = {width}\n{NETWORK}")
        (tmp_path / folder / "net.py").write_text(code)
    paths = list(sys.path)
    for folder in ("teacher", "student", "teacher", "student"):
        assert build(f"{tmp_path / folder}/net.py:make")[2].out_features == widths[folder]
        assert sys.path == paths
    import timm as again

    assert again is timm
    # The rest of the library still finds the package.
    assert isinstance(build("timm:resnet10t", 3), torch.nn.Module)


def test_no_neighbor_replaces_a_module_that_this_process_shares(tmp_path):
    for name in ("torch.py", "random.py", "numpy.py", "__main__.py"):
        (tmp_path / name).write_text("raise RuntimeError('not this one')")
    (tmp_path / "net.py").write_text(f"import __main__, random, numpy\n{NETWORK}")
    build(f"{tmp_path}/net.py:build(num_classes=2, width=3)")


MISTAKES = """
import sys
from torch import nn

class Net(nn.Module):
    def __init__(self, width, num_classes=3):
        super().__init__()

class Outer:
    @staticmethod
    def build(num_classes):
        return nn.Linear(2, num_classes)

made = nn.Linear(2, 2)
number = 3
def nothing(): nn.Linear(2, 2)
def fails():
    raise ValueError("out of luck")
def fails_in_torch():
    return nn.Linear(2, "wide")
def ends():
    sys.exit("usage: net.py")
def imports():
    import not_installed
def syntax():
    import broken_
"""


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Net", r"missing a required argument: 'width'. It is Net\(width, num_classes=3\)"),
        ("Net(depth=3, width=1)", "unexpected keyword argument 'depth'"),
        ("made", "is an object of Linear, and not a function or class.*It has Net, Outer"),
        ("number", "is an object of int"),
        ("nothing", "gives a NoneType; a network is a torch.nn.Module, which the function must re"),
        ("fails", r"net\.py, line 18: ValueError: out of luck"),
        ("fails_in_torch", r"net\.py, line 20: TypeError"),
        ("ends", r"net\.py, line 22: the code ended the program.*__name__"),
        ("imports", r"net\.py, line 24: ModuleNotFoundError: .*not_installed.*Install it"),
        ("syntax", r"broken_\.py, line 2: SyntaxError"),
        ("Outer.nothing", "defines no 'Outer.nothing'. It has Net"),
    ],
)
def test_mistakes_are_explained_with_their_line(name, message, tmp_path):
    (tmp_path / "net.py").write_text(MISTAKES.replace("class Outer:", "class Outer(object):"))
    (tmp_path / "broken_.py").write_text("x = 1\ndef f(:\n")
    with pytest.raises(ModelError, match=f"(?s){message}"):
        build(f"{tmp_path}/net.py:{name}")


def test_a_script_that_ends_the_program_while_it_is_imported(tmp_path):
    (tmp_path / "net.py").write_text("def make(): pass\nraise SystemExit(3)\n")
    with pytest.raises(ModelError, match=r"net\.py, line 2: the code ended the program"):
        build(f"{tmp_path}/net.py:make")


def test_a_class_inside_another_and_classes_that_are_needed(tmp_path):
    (tmp_path / "net.py").write_text(MISTAKES)
    spec = parse_network_spec(f"{tmp_path}/net.py:Outer.build")
    assert call_user_code(spec, 7).out_features == 7
    assert call_user_code(spec, None).out_features == 10
