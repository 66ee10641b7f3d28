"""Which Python files a user has run, so that their own runs need no `--trust-code` again.

A run folder or recipe may come from a stranger, and so may a Python file beside it: where a file
lies says nothing about who wrote it. What the user has run is remembered outside of them, in
`$XDG_STATE_HOME/cktf/own-code`: a hash for each function or class of a Python file that built a
network, over the path of the file, its content, the name and the arguments.
"""

import hashlib
import os
from contextlib import suppress
from pathlib import Path

from cktf.errors import CktfError
from cktf.models.network_spec import NetworkSpec, parse_network_spec, runs_user_code
from cktf.user_paths import expand_user_path


def needs_trust(text: str) -> bool:
    """Whether building a network by its spec would run code that the user has not run before.

    >>> needs_trust("resnet8"), needs_trust("package.module:Net")
    (False, True)
    """
    if not runs_user_code(text):
        return False
    try:
        return _hash(parse_network_spec(text)) not in _memory_path().read_text().split()
    except (CktfError, OSError, ValueError):
        return True


def remember_code(spec: NetworkSpec) -> None:
    """Remember that the user has run the code of a spec; a module that is no file is not."""
    # A home folder may be read-only.
    with suppress(OSError, CktfError):
        line, path = _hash(spec), _memory_path()
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or line not in path.read_text().split():
            with path.open("a") as file:
                file.write(line + "\n")


def _memory_path() -> Path:
    state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return expand_user_path(state) / "cktf" / "own-code"


def _hash(spec: NetworkSpec) -> str:
    """Hash all that decides what runs but the modules that it imports; OSError without a file."""
    path = expand_user_path(spec.library).resolve()
    parts = (str(path), path.read_bytes(), spec.name, sorted(spec.arguments.items()))
    return hashlib.sha256(repr(parts).encode()).hexdigest()
