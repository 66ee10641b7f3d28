"""The folder of a run, which is enough to resume, evaluate and report it."""

import json
import os
import shutil
import socket
import sys
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cktf.errors import RunFolderError
from cktf.files import write_atomically
from cktf.locks import file_lock
from cktf.user_paths import shorten_path

if TYPE_CHECKING:
    from cktf.engine.checkpoints import Checkpoints

# What a run writes first; and names of what shells and schedulers keep, and of unfinished files.
_FIRST_FILES = ("recipe.yaml", "checkpoints", "lock", "log.txt")
_FREE_SUFFIXES = (".log", ".out", ".err", ".partial")
# How long the writing of a result is tried again, and the wait between two attempts, in seconds.
_GIVE_UP_AFTER, _RETRY_AFTER = 3600.0, 10.0


class RunFolder:
    """Files of one run; docs/design.md lists them.

    The path is made absolute, since a data set or callback may change the working folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path = path.absolute()
        self.recipe = path / "recipe.yaml"
        self.metrics = path / "metrics.jsonl"
        self.summary = path / "summary.json"
        self.weights = path / "student.safetensors"
        self.log_file = path / "log.txt"
        self._lock = path / "lock"
        self._rows: list[dict[str, Any]] | None = None
        self._incomplete = False
        self._unwritten: list[str] = []

    @cached_property
    def checkpoints(self) -> "Checkpoints":
        """The run's checkpoints, which need PyTorch."""
        from cktf.engine.checkpoints import Checkpoints

        return Checkpoints(self.path / "checkpoints", self._warn)

    def __str__(self) -> str:
        """Its path as messages show it."""
        return str(shorten_path(self.path))

    def check(self, *, resume: bool) -> None:
        """Check that a run may write to the folder.

        Raises:
            RunFolderError: it cannot be written, holds files that are not a run's, or holds a run
                that is not to be resumed.
        """
        try:
            existing = next(p for p in (self.path, *self.path.parents) if os.path.lexists(p))
            writable = existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)
        except (OSError, ValueError) as error:
            raise RunFolderError(
                f"{str(self)[:200]!r} cannot be the name of a run folder ({error}). Choose "
                "another --out."
            ) from error
        if not writable:
            raise RunFolderError(
                f"The run folder {self} cannot be written: {shorten_path(existing)} is "
                f"{'not yours to write' if existing.is_dir() else 'a file'}. Choose another --out."
            )
        begun = self.recipe.is_file() and (self._lock.exists() or self.weights.is_file())
        saved = self.path / "checkpoints"
        if not (begun or self.summary.is_file() or any(saved.glob("*.json"))):
            check_output_folder(self.path, _FIRST_FILES)
        # A run that failed before its first checkpoint left nothing that could be lost.
        if not resume and (self.finished or any(saved.glob("*.pt"))):
            raise RunFolderError(
                f"{self} already holds a run. Choose another --out, or continue it with "
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
                f"The run folder {self} cannot be written ({error.strerror}). Choose another --out."
            ) from error
        # A new checkpoint is written before the oldest is removed.
        existing_mb = sum(p.stat().st_size for p in self.checkpoints.paths if p.exists()) / 2**20
        needed = max(checkpoint_mb, (NUM_KEPT + 1) * checkpoint_mb - existing_mb)
        free = shutil.disk_usage(self.path).free / 2**20
        if free < needed:
            raise RunFolderError(
                f"{self} has {free:.0f} MB left, and this run's checkpoints take "
                f"{needed:.0f} MB more. Make room, or choose another --out."
            )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder's lock until the process ends; RunFolderError if another run has it."""
        with file_lock(self._lock, wait=False) as acquired:
            if not acquired:
                holder = self._lock.read_text()[:200].strip()
                raise RunFolderError(
                    f"{self} is being written by another run"
                    f"{f' ({holder})' if holder else ''}. Wait for it, stop it, or choose another "
                    "--out."
                )
            with suppress(OSError):
                self._lock.write_text(f"process {os.getpid()} on {socket.gethostname()}\n")
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
        with suppress(OSError, ValueError):
            print(line, file=sys.stderr, flush=True)

    def record(self, row: dict[str, Any]) -> None:
        """Add a line to metrics.jsonl; if that fails, it is written with the next line."""
        self._rows = [*self.rows(), row]
        try:
            if self._incomplete or not self.metrics.exists():
                write_atomically(self.metrics, _lines(self._rows))
            else:
                with self.metrics.open("ab") as file:
                    file.write(_lines([row]))
            self._incomplete = False
        except OSError as error:
            self._incomplete = True
            path = shorten_path(self.metrics)
            self._warn(f"{path} could not be written ({error.strerror}); trying later")

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
        """Write summary.json, after lines of metrics.jsonl that could not be written."""
        if self._rows and self._incomplete:
            write_atomically(self.metrics, _lines(self._rows))
            self._incomplete = False
        write_atomically(self.summary, (json.dumps(summary, indent=2) + "\n").encode())

    def write_with_retries(self, write: Callable[[], None], what: str) -> None:
        """Write a result; RunFolderError if that fails, as on a full disk, for a whole hour."""
        until = time.monotonic() + _GIVE_UP_AFTER
        while True:
            try:
                # Someone may have deleted the folder.
                self.path.mkdir(parents=True, exist_ok=True)
                return write()
            except OSError as error:
                reason = error.strerror or str(error)
                if time.monotonic() >= until:
                    raise RunFolderError(
                        f"{self}: {what} could not be written ({reason}). Make room, and "
                        "continue with --resume auto."
                    ) from error
                self._warn(
                    f"{self}: {what} could not be written ({reason}); trying again in "
                    f"{_RETRY_AFTER:.0f} s. Make room; Ctrl-C gives up."
                )
                time.sleep(_RETRY_AFTER)


def check_output_folder(path: Path, own: Collection[str]) -> None:
    """Raise RunFolderError if a folder holds other files than logs and those named in `own`."""
    if not path.is_dir():
        return
    others = [
        name
        for name in sorted(os.listdir(path))
        if name not in own and not name.startswith(".") and not name.endswith(_FREE_SUFFIXES)
    ]
    if others:
        listed = ", ".join(others[:3]) + (", …" if len(others) > 3 else "")
        raise RunFolderError(
            f"{shorten_path(path)} holds files that cktf did not write ({listed}), and its own "
            "would lie among them. Choose a new or an empty folder."
        )


def check_output_file(path: Path, suffix: str) -> None:
    """Raise RunFolderError if a file to write is a folder, or replaces a file of another kind."""
    if path.is_dir():
        raise RunFolderError(
            f"{shorten_path(path)} is a folder. Give the name of a file, which ends in {suffix}."
        )
    if path.exists() and path.suffix.lower() != suffix:
        raise RunFolderError(
            f"{shorten_path(path)} exists and is no {suffix} file. Choose another name."
        )


def _lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def _with_phase(row: dict[str, Any]) -> dict[str, Any]:
    """Rename the key `stage`, which older runs have, to `phase`."""
    return {"phase" if name == "stage" else name: value for name, value in row.items()}
