"""The rules of the house that a machine can check."""

import ast
from pathlib import Path

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
    {"_check", "batch", "config", "files", "first_use", "locks", "machine", "output", "processes"}
    | {"signals", "user_paths"},
    {"errors"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
FILES = sorted(p for p in SOURCE.rglob("*.py") if p.parent != SOURCE or p.stem in LEVEL)


def imported_parts(path: Path) -> set[str]:
    """The parts of the package that a file imports."""
    parts = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "cktf":
            parts |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("cktf."):
            parts.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            parts |= {a.name.split(".")[1] for a in node.names if a.name.startswith("cktf.")}
    return parts - {"__version__"}


def test_imports_point_down():
    for path in FILES:
        part = path.relative_to(SOURCE).parts[0].removesuffix(".py")
        for imported in imported_parts(path) - {part}:
            assert imported in LEVEL, f"{path}: {imported} has no place in LAYERS"
            assert LEVEL[part] < LEVEL[imported], f"{path} imports {imported}, which is not below"


def test_every_package_has_a_level():
    packages = {p.name for p in SOURCE.iterdir() if p.is_dir() and (p / "__init__.py").exists()}
    assert packages <= set(LEVEL)


def test_file_names_say_what_is_in_them():
    assert not {"utils", "util", "helpers", "common", "misc"} & {p.stem for p in SOURCE.rglob("*")}


def test_files_are_short():
    lengths = {p: len(p.read_text().splitlines()) for p in SOURCE.rglob("*.py")}
    assert not {str(path): length for path, length in lengths.items() if length > 400}


def test_the_checker_sees_an_upward_import(tmp_path):
    source = tmp_path / "bad.py"
    source.write_text(
        "from cktf.engine import Trainer\nimport cktf.cli.main\nfrom cktf import _check\n"
    )
    assert imported_parts(source) == {"engine", "cli", "_check"}
