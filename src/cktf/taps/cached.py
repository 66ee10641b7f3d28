"""A frozen network's features of a finite set of views, computed once and kept on disk.

Every tensor of every view is a file of its own, whose rows are the samples in order, mapped into
memory. It is written beside its place, flushed and renamed, and then described by a note with its
size and check sum, so that it is either whole or not there. The folder's name is a hash of all
that decides the contents: weights, images, how a view is drawn, and precision.
"""

import hashlib
import json
import os
import re
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cktf.batch import Batch, moved
from cktf.errors import DataError
from cktf.locks import file_lock
from cktf.models.feature_paths import FeaturePaths
from cktf.taps.cache_spec import CacheSpec
from cktf.taps.features import Features
from cktf.taps.tap import Tap

_VERSION = 1
_BLOCK = 1 << 24
# Room that is left on the disk.
_SPARE = 1 << 28


class CachedTap:
    """Features of a frozen network by sample and view, from disk where they are there already.

    Args:
        tap: of the network.
        kept: what is kept of its features.
        view: all samples of a view, in order.
        views: how many views there are.
        samples: N.
        decides: what decides the features, beside the network: of the images and their views.
        folder: where the caches of all networks are.

    Attributes:
        say: told what is done.
    """

    def __init__(
        self,
        tap: Tap,
        kept: CacheSpec,
        view: Callable[[int], Iterator[Batch]],
        views: int,
        samples: int,
        decides: Mapping[str, Any],
        folder: Path,
    ) -> None:
        self.model, self._tap, self._kept, self._view = tap.model, tap, kept, view
        self._views, self._samples = views, samples
        self.say: Callable[[str], None] = lambda line: None
        self._named = kept.named(tap.paths)
        self._key = {"version": _VERSION, "teacher": hash_network(tap.model), **decides}
        name = hashlib.sha256(json.dumps(self._key, sort_keys=True).encode()).hexdigest()[:16]
        self.folder = folder / name
        self._open: dict[int, list[Tensor]] = {}

    @property
    def paths(self) -> FeaturePaths:
        """Where the features that are kept come from."""
        stages = tuple(self._tap.paths.stages[position] for position, _ in self._kept.stages)
        return replace(self._tap.paths, stages=stages)

    def __call__(self, images: Tensor) -> Features:
        """Features of any images [B, C, H, W], computed now, as those that are kept would be."""
        return self._kept.of(self._tap(images))

    def extract(self, batch: Batch) -> Features:
        """Features of a batch whose samples are all seen in one view."""
        assert batch.view is not None
        rows = self._rows(batch.view)
        index, device = batch.original.index.cpu(), batch.images.device
        return self._kept.assembled([moved(row[index], device) for row in rows])

    def check_room(self, example: Features) -> None:
        """Make sure that what is missing fits on the disk.

        Args:
            example: the network's features of a few images.

        Raises:
            DataError: it does not.
        """
        rows = [one.tensor(example) for one in self._named.values()]
        each = [self._samples * row[0].numel() * row.element_size() for row in rows]
        needed = sum(
            size
            for view in range(self._views)
            for name, size in zip(self._named, each, strict=True)
            if not self._note(view, name).is_file()
        )
        there = next(p for p in (self.folder, *self.folder.absolute().parents) if p.exists())
        free = shutil.disk_usage(there).free - _SPARE
        if needed > free:
            raise DataError(
                f"The teacher's features of {self._samples:,} images in {self._views} views take "
                f"{needed / 1e9:.1f} GB, and {self.folder.parent} has {max(free, 0) / 1e9:.1f} GB "
                "left. Keep fewer views, or name another folder: --teacher-cache views=…,dir=…"
            )

    def _rows(self, view: int) -> list[Tensor]:
        if view not in self._open:
            found = {name: self._read(view, name) for name in self._named}
            if any(rows is None for rows in found.values()):
                self._fill_alone(view)
                found = {name: self._read(view, name, trusted=True) for name in self._named}
            whole = [rows for rows in found.values() if rows is not None]
            if len(whole) < len(found):
                raise DataError(
                    f"{self.folder} was written to while it was read. Nothing but a teacher cache "
                    "is to change it; run again."
                )
            self._open[view] = whole
        return self._open[view]

    def _fill_alone(self, view: int) -> None:
        """Compute what a view lacks; of several processes one does, and the others wait for it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with file_lock(self.folder / "lock"):
            missing = [name for name in self._named if self._read(view, name) is None]
            for name in missing:
                if self._note(view, name).is_file():
                    path = self._path(view, name)
                    self.say(f"{path} is damaged, or of something else: it is computed anew")
            if missing:
                self._fill(view, missing)

    def _path(self, view: int, name: str) -> Path:
        return self.folder / f"view-{view:03d}" / re.sub(r"[^\w.-]", "_", name)

    def _note(self, view: int, name: str) -> Path:
        path = self._path(view, name)
        return path.with_name(f"{path.name}.json")

    def _read(self, view: int, name: str, trusted: bool = False) -> Tensor | None:
        """A tensor [N, …] mapped into memory; None where it is not there as it was written."""
        path, note = self._path(view, name), self._note(view, name)
        try:
            said = json.loads(note.read_text())
            dtype = getattr(torch, said["dtype"])
            count = torch.Size(said["shape"]).numel()
            whole = said["name"] == name and said["key"] == self._key
            whole &= path.stat().st_size == count * dtype.itemsize
            if not whole or not (trusted or _checksum(path) == said["crc32"]):
                return None
        except (OSError, ValueError, KeyError, AttributeError, TypeError):
            return None
        mapped = torch.from_file(str(path), shared=False, size=count, dtype=dtype)
        return mapped.view(said["shape"])

    @torch.no_grad()
    def _fill(self, view: int, names: list[str]) -> None:
        """Compute tensors of one view, each first beside its place."""
        self.say(f"teacher cache: view {view + 1} of {self._views}: {', '.join(names)}")
        partial = {n: _beside(self._path(view, n), "partial") for n in names}
        partial[names[0]].parent.mkdir(parents=True, exist_ok=True)
        device = next(self.model.parameters()).device
        rows: dict[str, Tensor] = {}
        done = 0
        try:
            for batch in self._view(view):
                features = self._tap(batch.images.to(device))
                for name in names:
                    value = self._named[name].tensor(features).cpu()
                    if not done:
                        shape = (self._samples, *value.shape[1:])
                        rows[name] = _mapped(partial[name], shape, value.dtype)
                    rows[name][done : done + len(value)] = value
                done += len(batch)
            assert done == self._samples
            for name in names:
                self._finish(view, name, rows.pop(name), partial[name])
        finally:
            for path in partial.values():
                path.unlink(missing_ok=True)

    def _finish(self, view: int, name: str, rows: Tensor, partial: Path) -> None:
        shape, dtype = list(rows.shape), str(rows.dtype).removeprefix("torch.")
        del rows
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        note = {
            "name": name, "shape": shape, "dtype": dtype, "crc32": _checksum(partial),
            "key": self._key,
        }  # fmt: skip
        self._note(view, name).unlink(missing_ok=True)
        partial.replace(self._path(view, name))
        written = _beside(self._note(view, name), "partial")
        written.write_text(json.dumps(note, indent=1) + "\n")
        written.replace(self._note(view, name))


def _beside(path: Path, what: str) -> Path:
    """A place of this process's own beside a file's."""
    return path.with_name(f"{path.name}.{what}-{os.getpid()}")


def _mapped(path: Path, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A new file of a tensor's size, mapped into memory and written through."""
    count = torch.Size(shape).numel()
    return torch.from_file(str(path), shared=True, size=count, dtype=dtype).view(shape)


def _checksum(path: Path) -> int:
    found = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            found = zlib.crc32(block, found)
    return found


def hash_network(network: nn.Module) -> str:
    """SHA-256 of what a network computes by: its modules, weights and buffers, of whatever size."""
    digest = hashlib.sha256(repr(network).encode())
    # Buffers that a state dict leaves out, as mean and std, decide as well.
    tensors = {**network.state_dict(), **dict(network.named_buffers())}
    digest.update(hash_tensors(tensors).encode())
    digest.update(str(getattr(network, "size", None)).encode())
    return digest.hexdigest()


def hash_tensors(state: Mapping[str, Any]) -> str:
    """SHA-256 of named tensors; what else a state holds is left out."""
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        if isinstance(value, Tensor) and not value.is_quantized:
            numbers = value.detach().cpu().contiguous().view(-1).view(torch.uint8)
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(numbers.numpy().data)
    return digest.hexdigest()
