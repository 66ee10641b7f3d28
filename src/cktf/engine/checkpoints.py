"""Checkpoints on disk: written beside, flushed, renamed, each with a manifest; the last two kept.

A checkpoint is `checkpoint-NAME.pt` and its manifest, which ends in `.json`, holds its size and
SHA-256, and is written last: what has no manifest was never finished. Nothing in a checkpoint can
run code, and its size is known before memory is taken for it.
"""

import hashlib
import json
import mmap
import os
import zipfile
from collections.abc import Callable
from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import torch
from torch.serialization import set_default_mmap_options

from cktf.errors import RunFolderError, TrainingError
from cktf.files import replace_atomically, write_atomically

KEPT = 2
_BLOCK = 1 << 20
# Stays in the file: a module copies what it loads, and banks may be larger than memory.
_MAPPED = "objective"
# How PyTorch words it: a mapping that is refused, and its allocator.
_NOT_MAPPED, _NOT_ALLOCATED = "unable to mmap", "can't allocate memory"


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: where they are.
        say: told what is wrong with one.
    """

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        self.folder, self._say = folder, say

    @property
    def present(self) -> list[Path]:
        """Those that were finished, oldest first, unread."""
        return sorted(p.with_suffix(".pt") for p in self.folder.glob("checkpoint-*.json"))

    @property
    def megabytes(self) -> float:
        """What those that were finished take of the disk, in MiB."""
        return sum(p.stat().st_size for p in self.present if p.exists()) / 2**20

    def save(self, state: dict[str, Any], name: str) -> None:
        """Write one; the earlier ones stay as they are until it is whole.

        Args:
            state: tensors, plain values and their containers.
            name: later ones come later in alphabetical order.

        Raises:
            OSError: it could not be written; nothing of it is left.
        """
        path = self.folder / f"checkpoint-{name}.pt"
        manifest = path.with_suffix(".json")
        with replace_atomically(path) as temp_path:
            with temp_path.open("wb") as file:
                writer = _Writer(file)
                try:
                    torch.save(state, cast(IO[bytes], writer))
                except RuntimeError as error:
                    # PyTorch makes an error of its own of one in writing.
                    raise writer.failure or OSError(str(error)) from error
                file.flush()
                os.fsync(file.fileno())
            # One of the same name that was found damaged is not whole until its manifest is new.
            manifest.unlink(missing_ok=True)
        told = {path.name: {"bytes": writer.bytes, "sha256": writer.digest.hexdigest()}}
        write_atomically(manifest, (json.dumps({"files": told}, indent=1) + "\n").encode())
        with suppress(OSError):
            self._keep(path)

    def newest(self) -> dict[str, Any] | None:
        """The newest that is whole; None if there is none at all.

        What it holds of the objective is read from the file where it is used, and is not to be
        written to.

        Raises:
            RunFolderError: all are damaged, or of an earlier version.
            TrainingError: too little memory for the rest.
        """
        for path in reversed(self.present):
            try:
                return _read(path)
            except Exception as error:  # damage shows as one of many types
                if _lacks_memory(error):
                    raise TrainingError(
                        "To continue takes memory for the newest checkpoint, but for what it "
                        f"holds of the objective. There is too little for {path}, of "
                        f"{path.stat().st_size:,} bytes, which is whole ({_line(error)}). Free "
                        "memory, or continue on a machine that has more."
                    ) from error
                self._say(f"{path.name} is damaged ({_line(error)}); trying the one before it")
        if self.present:
            raise RunFolderError(
                f"None of the checkpoints in {self.folder} can be read. Remove that folder to "
                "start over, or choose another --out."
            )
        if next(self.folder.glob("epoch-*.pt"), None):
            raise RunFolderError(
                f"The checkpoints in {self.folder} are of an earlier version of cktf, which this "
                "one cannot continue. Choose another --out."
            )
        return None

    def _keep(self, path: Path) -> None:
        """Drop all but this one and the one before it; later ones were damaged."""
        before = [p for p in self.present if p < path]
        kept = {path.stem, *(p.stem for p in before[1 - KEPT :])}
        for file in self.folder.glob("checkpoint-*"):
            if file.stem not in kept:
                file.unlink(missing_ok=True)


class _Writer:
    """A file that knows its size and hash, and keeps the error that it met."""

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
    """A checkpoint whose size and hash are those of its manifest."""
    told = json.loads(path.with_suffix(".json").read_bytes())["files"][path.name]
    size = path.stat().st_size
    if size != told["bytes"]:
        raise ValueError(f"it has {size:,} bytes in place of {told['bytes']:,}")
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    if digest.hexdigest() != told["sha256"]:
        raise ValueError("its content is not what was written")
    with zipfile.ZipFile(path) as archive:
        # As they are written; a compressed one could unpack to any size.
        if any(part.compress_type != zipfile.ZIP_STORED for part in archive.infolist()):
            raise ValueError("it is compressed, as none of ours is")
    # Others keep what they are given, as optimizers do, and must not depend on the file.
    return {k: v if k == _MAPPED else deepcopy(v) for k, v in _mapped(path).items()}


def _mapped(path: Path) -> dict[str, Any]:
    """A state whose tensors are where they are in the file."""

    def load() -> dict[str, Any]:
        return cast(
            dict[str, Any], torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        )

    try:
        return load()
    except RuntimeError as error:
        if _NOT_MAPPED not in str(error) or not os.access(path, os.W_OK):
            raise
    # Linux counts a private mapping as memory that may be needed, a shared one not; but PyTorch
    # opens the file of a shared one for writing.
    with set_default_mmap_options(mmap.MAP_SHARED):
        return load()


def _lacks_memory(error: Exception) -> bool:
    words = (_NOT_MAPPED, _NOT_ALLOCATED)
    return isinstance(error, MemoryError) or any(word in str(error) for word in words)


def _line(error: BaseException) -> str:
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__
