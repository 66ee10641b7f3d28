"""A frozen network's features of a finite set of views, computed once and kept on disk.

Each tensor of a view is a file, mapped into memory, whose rows are the samples in order. A JSON
note with its shape and checksum is written after it: a tensor with a note is whole. The folder's
name is a hash of weights, images, how a view is drawn, and precision.
"""

import hashlib
import json
import re
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cktf.batch import Batch, tensor_to_device
from cktf.errors import DataError
from cktf.files import replace_atomically, write_atomically
from cktf.locks import file_lock
from cktf.models.feature_paths import FeaturePaths
from cktf.taps.cache_spec import CacheSpec
from cktf.taps.features import Features
from cktf.taps.modes import to_device_of
from cktf.taps.tap import Tap

_VERSION = 1
_BLOCK = 1 << 24
# Bytes to leave free on the disk.
_RESERVE = 1 << 28


class CachedTap:
    """Features of a frozen network by sample and view, read from disk once they were computed.

    Args:
        tap: of the network.
        spec: the features to keep.
        load_view: all samples of a view, in order.
        num_views: how many views there are.
        num_samples: N.
        identity: what decides the features beside the network: the images and their views.
        folder: holds the caches of all networks.

    Attributes:
        say: called with a line about each view that is computed.
    """

    def __init__(
        self,
        tap: Tap,
        spec: CacheSpec,
        load_view: Callable[[int], Iterator[Batch]],
        num_views: int,
        num_samples: int,
        identity: Mapping[str, Any],
        folder: Path,
    ) -> None:
        self.model, self._tap, self._spec, self._load_view = tap.model, tap, spec, load_view
        self._num_views, self._num_samples = num_views, num_samples
        self.say: Callable[[str], None] = lambda line: None
        self._names = spec.tensor_names(tap.paths)
        self._key = {"version": _VERSION, "teacher": hash_network(tap.model), **identity}
        name = hashlib.sha256(json.dumps(self._key, sort_keys=True).encode()).hexdigest()[:16]
        self.folder = folder / name
        self._views: dict[int, list[Tensor]] = {}

    @property
    def paths(self) -> FeaturePaths:
        """Paths of the cached features."""
        stages = tuple(self._tap.paths.stages[position] for position, _ in self._spec.stages)
        return replace(self._tap.paths, stages=stages)

    def __call__(self, images: Tensor) -> Features:
        """Features of images [B, C, H, W], computed now and reduced as cached ones are."""
        return self._spec.reduce(self._tap(images))

    def extract(self, batch: Batch) -> Features:
        """Features of a batch, all of whose samples are seen in one view.

        Of a batch without the number of its view they are computed now, and not kept.
        """
        if batch.view is None:
            return self(batch.images)
        if batch.view not in self._views:
            self._views[batch.view] = self._open_view(batch.view)
        index = (batch.index if batch.host_index is None else batch.host_index).cpu()
        device = batch.images.device
        return self._spec.assemble(
            [tensor_to_device(rows[index], device) for rows in self._views[batch.view]]
        )

    def check_disk_space(self, example: Features) -> None:
        """Raise DataError if the missing tensors, each as large as here, do not fit on the disk."""
        needed = sum(
            self._num_samples * tensor[0].numel() * tensor.element_size()
            for name, tensor in zip(self._names, self._spec.tensors(example), strict=True)
            for view in range(self._num_views)
            if not self._note(view, name).is_file()
        )
        parents = (self.folder, *self.folder.absolute().parents)
        free = shutil.disk_usage(next(p for p in parents if p.exists())).free - _RESERVE
        if needed > free:
            raise DataError(
                f"The teacher's features of {self._num_samples:,} images in {self._num_views} "
                f"views take {needed / 1e9:.1f} GB, and {self.folder.parent} has "
                f"{max(free, 0) / 1e9:.1f} GB left. Keep fewer views, or name another folder: "
                "--teacher-cache views=…,dir=…"
            )

    def _open_view(self, view: int) -> list[Tensor]:
        """Map a view's tensors into memory; one process computes missing ones first."""
        tensors = [self._read(view, name) for name in self._names]
        if any(rows is None for rows in tensors):
            self.folder.mkdir(parents=True, exist_ok=True)
            with file_lock(self.folder / "lock"):
                missing_names = [name for name in self._names if self._read(view, name) is None]
                for name in missing_names:
                    if self._note(view, name).is_file():
                        self.say(f"{self._path(view, name)} is damaged: computing it again")
                if missing_names:
                    self._compute(view, missing_names)
            tensors = [self._read(view, name, verify=False) for name in self._names]
        complete = [rows for rows in tensors if rows is not None]
        if len(complete) < len(tensors):
            raise DataError(
                f"{self.folder} changed while it was read. Nothing but a teacher cache may write "
                "there; run again."
            )
        return complete

    def _path(self, view: int, name: str) -> Path:
        return self.folder / f"view-{view:03d}" / re.sub(r"[^\w.-]", "_", name)

    def _note(self, view: int, name: str) -> Path:
        path = self._path(view, name)
        return path.with_name(f"{path.name}.json")

    def _read(self, view: int, name: str, verify: bool = True) -> Tensor | None:
        """A tensor [N, …] mapped into memory; None if it is absent or unlike its note."""
        path = self._path(view, name)
        try:
            note = json.loads(self._note(view, name).read_text())
            dtype = getattr(torch, note["dtype"])
            count = torch.Size(note["shape"]).numel()
            intact = note["name"] == name and note["key"] == self._key
            intact &= path.stat().st_size == count * dtype.itemsize
            if not intact or (verify and _checksum(path) != note["crc32"]):
                return None
        except (OSError, ValueError, KeyError, AttributeError, TypeError):
            return None
        mapped = torch.from_file(str(path), shared=False, size=count, dtype=dtype)
        return mapped.view(note["shape"])

    @torch.no_grad()
    def _compute(self, view: int, names: list[str]) -> None:
        """Compute and write tensors of one view, then their notes."""
        self.say(f"teacher cache: view {view + 1} of {self._num_views}: {', '.join(names)}")
        self._path(view, names[0]).parent.mkdir(parents=True, exist_ok=True)
        notes: dict[str, dict[str, Any]] = {}
        with ExitStack() as stack:
            temp_paths = {
                name: stack.enter_context(replace_atomically(self._path(view, name)))
                for name in names
            }
            rows: dict[str, Tensor] = {}
            row = 0
            for batch in self._load_view(view):
                tensors = self._spec.tensors(self._tap(to_device_of(self.model, batch.images)))
                for name, tensor in zip(self._names, tensors, strict=True):
                    if name not in temp_paths:
                        continue
                    if name not in rows:
                        shape = (self._num_samples, *tensor.shape[1:])
                        rows[name] = torch.from_file(
                            str(temp_paths[name]), shared=True, size=torch.Size(shape).numel(),
                            dtype=tensor.dtype,
                        ).view(shape)  # fmt: skip
                    rows[name][row : row + len(tensor)] = tensor.cpu()
                row += len(batch)
            assert row == self._num_samples
            for name in names:
                written = rows.pop(name)
                sizes, dtype = list(written.shape), str(written.dtype).removeprefix("torch.")
                # Unmaps the file, so that its checksum is that of the content on disk.
                del written
                notes[name] = {
                    "name": name, "shape": sizes, "dtype": dtype,
                    "crc32": _checksum(temp_paths[name]), "key": self._key,
                }  # fmt: skip
                self._note(view, name).unlink(missing_ok=True)
        for name, note in notes.items():
            write_atomically(self._note(view, name), f"{json.dumps(note, indent=1)}\n".encode())


def _checksum(path: Path) -> int:
    checksum = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            checksum = zlib.crc32(block, checksum)
    return checksum


def hash_network(network: nn.Module) -> str:
    """SHA-256 of all that a network computes with: modules, weights, buffers, input size."""
    digest = hashlib.sha256(repr(network).encode())
    # Buffers outside the state dict, such as mean and std, count too.
    tensors = {**network.state_dict(), **dict(network.named_buffers())}
    digest.update(hash_tensors(tensors).encode())
    digest.update(str(getattr(network, "size", None)).encode())
    return digest.hexdigest()


def hash_tensors(state: Mapping[str, Any]) -> str:
    """SHA-256 of the named tensors of a state; other values are left out."""
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        if isinstance(value, Tensor) and not value.is_quantized:
            numbers = value.detach().cpu().contiguous().view(-1).view(torch.uint8)
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(numbers.numpy().data)
    return digest.hexdigest()
