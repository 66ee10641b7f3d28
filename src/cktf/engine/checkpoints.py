"""Checkpoints on disk: written to a temporary file, flushed, renamed; the last two are kept.

`checkpoint-NAME.pt` has a manifest, `checkpoint-NAME.json`, with its size and SHA-256, which is
written last: a file without one is not complete. Loading a checkpoint runs no code.
"""

import hashlib
import json
import mmap
import os
import zipfile
from collections.abc import Callable
from contextlib import suppress
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import torch
from torch.serialization import set_default_mmap_options

from cktf.engine.memory import is_out_of_memory
from cktf.errors import RunFolderError, TrainingError
from cktf.files import replace_atomically, write_atomically

NUM_KEPT = 2
_BLOCK = 1 << 20
# Mapped from the file, since a module copies what it loads and banks may be larger than memory.
_MAPPED = "objective"
# PyTorch's message for a refused mapping.
_NOT_MAPPED = "unable to mmap"


class Checkpoints:
    """The checkpoints of one run; `warn` is called with a line about each that is damaged."""

    def __init__(self, folder: Path, warn: Callable[[str], None]) -> None:
        self.folder, self._warn = folder, warn

    @property
    def paths(self) -> list[Path]:
        """Paths of the complete checkpoints, oldest first; none is read."""
        return sorted(p.with_suffix(".pt") for p in self.folder.glob("checkpoint-*.json"))

    def save(self, state: dict[str, Any], name: str) -> None:
        """Write a checkpoint; the earlier ones stay until it is complete.

        The alphabetical order of names is the order in time. After an OSError no part is left.
        """
        # Someone may have deleted the folder.
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"checkpoint-{name}.pt"
        manifest = path.with_suffix(".json")
        with replace_atomically(path) as temp_path:
            with temp_path.open("wb") as file:
                writer = _Writer(file)
                try:
                    torch.save(state, cast(IO[bytes], writer))
                except RuntimeError as error:
                    # PyTorch turns an error in writing into one of its own.
                    raise writer.failure or OSError(str(error)) from error
                file.flush()
                os.fsync(file.fileno())
            # A damaged file of this name stays invalid until the new manifest is written.
            manifest.unlink(missing_ok=True)
        entry = {path.name: {"bytes": writer.bytes, "sha256": writer.digest.hexdigest()}}
        write_atomically(manifest, (json.dumps({"files": entry}, indent=1) + "\n").encode())
        # This and the one before it are kept; later ones were damaged.
        before = [p for p in self.paths if p < path]
        stems_to_keep = {path.stem, *(p.stem for p in before[1 - NUM_KEPT :])}
        with suppress(OSError):
            for other in self.folder.glob("checkpoint-*"):
                if other.stem not in stems_to_keep:
                    other.unlink(missing_ok=True)

    def newest(self) -> dict[str, Any] | None:
        """Read the newest complete checkpoint; None without any.

        The objective's tensors are mapped from the file and must not be written to. RunFolderError
        if all are damaged, TrainingError if the other tensors do not fit in memory.
        """
        for path in reversed(self.paths):
            try:
                return _read(path)
            except Exception as error:  # damage raises errors of many types
                if is_out_of_memory(error) or _NOT_MAPPED in str(error):
                    raise TrainingError(
                        f"There is too little memory to load {path} ({path.stat().st_size:,} "
                        f"bytes, undamaged): {_first_line(error)}. Free memory, or continue on a "
                        "machine that has more."
                    ) from error
                self._warn(
                    f"{path.name} is damaged ({_first_line(error)}); trying the one before it"
                )
        if self.paths:
            raise RunFolderError(
                f"None of the checkpoints in {self.folder} can be read. Remove that folder to "
                "start over, or choose another --out."
            )
        return None


class _Writer:
    """A file that counts and hashes what is written, and remembers an error."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.digest, self.bytes = file, hashlib.sha256(), 0
        self.failure: OSError | None = None

    def write(self, block: bytes) -> int:
        try:
            written = self.file.write(block)
        except OSError as error:
            self.failure = error
            raise
        self.digest.update(block)
        self.bytes += written
        return written

    def flush(self) -> None:
        self.file.flush()


def _read(path: Path) -> dict[str, Any]:
    """Read a checkpoint after checking its size and hash against its manifest."""
    expected = json.loads(path.with_suffix(".json").read_bytes())["files"][path.name]
    size = path.stat().st_size
    if size != expected["bytes"]:
        raise ValueError(f"it has {size:,} bytes in place of {expected['bytes']:,}")
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    if digest.hexdigest() != expected["sha256"]:
        raise ValueError("its content is not what was written")
    with zipfile.ZipFile(path) as archive:
        # Ours are stored uncompressed; a compressed one could unpack to any size.
        if any(part.compress_type != zipfile.ZIP_STORED for part in archive.infolist()):
            raise ValueError("it is compressed, as none of ours is")
    # Optimizers keep the tensors that they load, which must not be mapped from the file.
    return {k: v if k == _MAPPED else deepcopy(v) for k, v in _load_mapped(path).items()}


def _load_mapped(path: Path) -> dict[str, Any]:
    """Load a state whose tensors are mapped from the file."""
    load: Callable[[], dict[str, Any]] = partial(
        torch.load, path, map_location="cpu", weights_only=True, mmap=True
    )
    try:
        return load()
    except RuntimeError as error:
        if _NOT_MAPPED not in str(error) or not os.access(path, os.W_OK):
            raise
    # Linux reserves memory for a private mapping and none for a shared one, for which PyTorch opens
    # the file for writing.
    with set_default_mmap_options(mmap.MAP_SHARED):
        return load()


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__
