"""The folder of a run, which is enough to resume, evaluate and report it."""

import json
import os
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cktf.errors import RunFolderError
from cktf.files import write_atomically
from cktf.locks import file_lock

if TYPE_CHECKING:
    from cktf.engine.checkpoints import Checkpoints

# How long the writing of a result is tried again, and the wait between two attempts, in seconds.
_GIVE_UP_AFTER, _RETRY_AFTER = 3600.0, 10.0


class RunFolder:
    """Files of one run; docs/design.md lists them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.recipe = path / "recipe.yaml"
        self.metrics = path / "metrics.jsonl"
        self.summary = path / "summary.json"
        self.weights = path / "student.safetensors"
        self.log_file = path / "log.txt"
        self._rows: list[dict[str, Any]] | None = None
        self._incomplete = False
        self._unwritten: list[str] = []

    @cached_property
    def checkpoints(self) -> "Checkpoints":
        """The run's checkpoints, which need PyTorch."""
        from cktf.engine.checkpoints import Checkpoints

        return Checkpoints(self.path / "checkpoints", self._warn)

    def check(self, *, resume: bool) -> None:
        """Raise RunFolderError if the folder cannot be written, or has a run not to be resumed."""
        try:
            existing = next(
                p for p in (self.path, *self.path.absolute().parents) if os.path.lexists(p)
            )
            writable = existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)
        except (OSError, ValueError) as error:
            raise RunFolderError(
                f"{str(self.path)[:200]!r} cannot be the name of a run folder ({error}). Choose "
                "another --out."
            ) from error
        if not writable:
            raise RunFolderError(
                f"The run folder {self.path} cannot be written: {existing} is "
                f"{'not yours to write' if existing.is_dir() else 'a file'}. Choose another --out."
            )
        # A run that failed before its first checkpoint left nothing that could be lost.
        if not resume and (self.finished or any((self.path / "checkpoints").glob("*.pt"))):
            raise RunFolderError(
                f"{self.path} already holds a run. Choose another --out, or continue it with "
                "--resume auto."
            )

    @property
    def finished(self) -> bool:
        """Whether the folder holds a finished run."""
        return self.summary.is_file() and self.weights.is_file()

    def create(self, checkpoint_mb: float) -> None:
        """Create the folder; RunFolderError if it cannot be written, or its disk is too full.

        There must be room for three checkpoints, minus those that exist, and for one in any case.
        """
        from cktf.engine.checkpoints import NUM_KEPT

        try:
            self.checkpoints.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunFolderError(
                f"The run folder {self.path} cannot be written ({error.strerror}). Choose another "
                "--out."
            ) from error
        # A new checkpoint is written before the oldest is removed.
        existing_mb = sum(p.stat().st_size for p in self.checkpoints.paths if p.exists()) / 2**20
        needed = max(checkpoint_mb, (NUM_KEPT + 1) * checkpoint_mb - existing_mb)
        free = shutil.disk_usage(self.path).free / 2**20
        if free < needed:
            raise RunFolderError(
                f"{self.path} has {free:.0f} MB left, and this run's checkpoints take "
                f"{needed:.0f} MB more. Make room, or choose another --out."
            )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder's lock until the process ends; RunFolderError if another run has it."""
        path = self.path / "lock"
        with file_lock(path, wait=False) as acquired:
            if not acquired:
                holder = path.read_text()[:200].strip()
                raise RunFolderError(
                    f"{self.path} is being written by another run"
                    f"{f' ({holder})' if holder else ''}. Wait for it, stop it, or choose another "
                    "--out."
                )
            with suppress(OSError):
                path.write_text(f"process {os.getpid()} on {socket.gethostname()}\n")
            yield

    def log(self, line: str) -> None:
        """Add a dated line to log.txt; if that fails, it is written with the next line."""
        self._unwritten.append(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")
        with suppress(OSError), self.log_file.open("a", encoding="utf-8") as file:
            file.write("".join(self._unwritten))
            file.flush()
            self._unwritten = []

    def _warn(self, line: str) -> None:
        self.log(line)
        print(line, file=sys.stderr, flush=True)

    def record(self, row: dict[str, Any]) -> None:
        """Add a line to metrics.jsonl; if that fails, it is written with the next line."""
        self._rows = [*self.rows(), row]
        try:
            if self._incomplete:
                write_atomically(self.metrics, _lines(self._rows))
            else:
                with self.metrics.open("ab") as file:
                    file.write(_lines([row]))
            self._incomplete = False
        except OSError as error:
            self._incomplete = True
            self._warn(f"{self.metrics} could not be written ({error.strerror}); trying later")

    def rows(self) -> list[dict[str, Any]]:
        """Return the lines of metrics.jsonl, up to the first incomplete one."""
        if self._rows is not None:
            return self._rows
        rows: list[dict[str, Any]] = []
        lines = self.metrics.read_text().splitlines() if self.metrics.exists() else []
        with suppress(ValueError):
            rows.extend(_with_phase(json.loads(line)) for line in lines)
        return rows

    def restore_rows(self, rows: list[dict[str, Any]]) -> None:
        """Start metrics.jsonl from the rows of a checkpoint; later epochs are trained again."""
        self._rows = list(map(_with_phase, rows))
        self.write_with_retries(lambda: write_atomically(self.metrics, _lines(rows)), "its record")

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Write summary.json."""
        write_atomically(self.summary, (json.dumps(summary, indent=2) + "\n").encode())

    def write_with_retries(self, write: Callable[[], None], what: str) -> None:
        """Write a result; RunFolderError if that fails, as on a full disk, for a whole hour."""
        until = time.monotonic() + _GIVE_UP_AFTER
        while True:
            try:
                return write()
            except OSError as error:
                reason = error.strerror or str(error)
                if time.monotonic() >= until:
                    raise RunFolderError(
                        f"{self.path}: {what} could not be written ({reason}). Make room, and "
                        "continue with --resume auto."
                    ) from error
                self._warn(
                    f"{self.path}: {what} could not be written ({reason}); trying again in "
                    f"{_RETRY_AFTER:.0f} s. Make room; Ctrl-C gives up."
                )
                time.sleep(_RETRY_AFTER)


def _lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def _with_phase(row: dict[str, Any]) -> dict[str, Any]:
    """Rename the key `stage`, which older runs have, to `phase`."""
    return {"phase" if name == "stage" else name: value for name, value in row.items()}
