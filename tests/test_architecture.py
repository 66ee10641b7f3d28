"""The rules of the house that a machine can check."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "cktf"
# Highest first; a package imports from those behind it, and from its own.
LAYERS = [
    {"cli"},
    {"report"},
    {"bench"},
    {"export"},
    {"workflows"},
    {"recipes"},
    {"engine"},
    {"objectives"},
    {"contrast"},
    {"taps"},
    {"models", "data"},
    {"functional"},
    {"_check", "batch", "config", "files", "locks", "processes", "signals", "user_paths"},
    {"errors"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
FILES = sorted(p for p in SOURCE.rglob("*.py") if p.parent != SOURCE or p.stem in LEVEL)


def imports(path: Path) -> set[str]:
    """The parts of the package that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "cktf":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("cktf."):
            found.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("cktf.")}
    return found - {"__version__"}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_point_down(path):
    own = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    for other in imports(path):
        assert other in LEVEL, f"{other} has no place in the order of the packages"
        same_level = LEVEL[own] == LEVEL[other] and own != other
        assert LEVEL[own] <= LEVEL[other], f"{own} imports {other}, which is above it"
        assert not same_level, f"{own} and {other} are neighbors"


def test_every_package_has_a_level():
    packages = {p.name for p in SOURCE.iterdir() if p.is_dir() and (p / "__init__.py").exists()}
    assert packages <= set(LEVEL)


def test_a_name_says_what_is_in_it():
    assert not {"utils", "util", "helpers", "common", "misc"} & {p.stem for p in SOURCE.rglob("*")}


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda p: p.name)
def test_a_file_is_short(path):
    assert len(path.read_text().splitlines()) <= 400


def test_the_checker_sees_an_upward_import(tmp_path):
    source = tmp_path / "bad.py"
    source.write_text(
        "from cktf.engine import Trainer\nimport cktf.cli.main\nfrom cktf import _check\n"
    )
    assert imports(source) == {"engine", "cli", "_check"}
