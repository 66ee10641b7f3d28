"""One folder per run: enough to resume, evaluate, export and report it."""

import json
import os
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from cktf.errors import RunFolderError

_KEPT = 2


class RunFolder:
    """Files of one run; see DESIGN for what is in it.

    Args:
        path: the folder.

    Attributes:
        recipe, metrics, summary, weights, log_file: paths of its files.
        checkpoints: the folder of the last two checkpoints.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.recipe = path / "recipe.yaml"
        self.metrics = path / "metrics.jsonl"
        self.summary = path / "summary.json"
        self.weights = path / "student.safetensors"
        self.log_file = path / "log.txt"
        self.checkpoints = path / "checkpoints"

    def check(self, *, resume: bool) -> None:
        """Make sure that the run can be written here, without writing anything.

        Raises:
            RunFolderError: it cannot be written, or holds a run and is not to be continued.
        """
        there = next(p for p in (self.path, *self.path.absolute().parents) if os.path.lexists(p))
        if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
            raise RunFolderError(
                f"The run folder {self.path} cannot be written: {there} is "
                f"{'not yours to write' if there.is_dir() else 'a file'}. Choose another --out."
            )
        # What failed before its first checkpoint holds nothing that could be lost.
        if not resume and (self._saved() or self.finished):
            raise RunFolderError(
                f"{self.path} already holds a run. Choose another --out, or continue it with "
                "--resume auto."
            )

    @property
    def finished(self) -> bool:
        """Whether a run came to its end here."""
        return self.summary.is_file() and self.weights.is_file()

    def create(self, checkpoint_mb: float) -> None:
        """Make the folder.

        Args:
            checkpoint_mb: size of a checkpoint: there must be room for three.

        Raises:
            RunFolderError: the file system does not let us, or is too full.
        """
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunFolderError(
                f"The run folder {self.path} cannot be written ({error.strerror}). Choose another "
                "--out."
            ) from error
        needed, free = (_KEPT + 1) * checkpoint_mb, shutil.disk_usage(self.path).free / 2**20
        if free < needed:
            raise RunFolderError(
                f"{self.path} has {free:.0f} MB left, and this run's checkpoints take "
                f"{needed:.0f} MB. Make room, or choose another --out."
            )

    def log(self, line: str) -> None:
        """Add a dated line to log.txt."""
        with self.log_file.open("a") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")

    def record(self, row: dict[str, Any]) -> None:
        """Add a line to metrics.jsonl."""
        with self.metrics.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def rows(self) -> list[dict[str, Any]]:
        """What metrics.jsonl holds, up to a line that a kill left half-written."""
        rows: list[dict[str, Any]] = []
        lines = self.metrics.read_text().splitlines() if self.metrics.exists() else []
        with suppress(ValueError):
            rows.extend(json.loads(line) for line in lines)
        return rows

    def keep_rows(self, count: int) -> None:
        """Drop the lines of epochs that a resumed run trains again."""
        kept = "".join(json.dumps(row) + "\n" for row in self.rows()[:count])
        write_atomically(self.metrics, kept.encode())

    def save_checkpoint(self, state: dict[str, Any], epoch: int) -> None:
        """Write a checkpoint beside the others, then rename it; keep the last two."""
        path = self.checkpoints / f"epoch-{epoch:05d}.pt"
        partial = path.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(path)
        for old in self._saved()[:-_KEPT]:
            old.unlink()

    def last_checkpoint(self) -> dict[str, Any] | None:
        """The newest checkpoint that can be read; None if there is none."""
        for path in reversed(self._saved()):
            try:
                state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            except Exception as error:
                # Damage shows as one of many types; whichever, the one before it is used.
                self.log(f"{path.name} cannot be read ({error}); trying the one before it")
                continue
            return state
        if self._saved():
            raise RunFolderError(
                f"None of the checkpoints in {self.checkpoints} can be read. Remove that folder to "
                "start over, or choose another --out."
            )
        return None

    def _saved(self) -> list[Path]:
        return sorted(self.checkpoints.glob("epoch-*.pt"))

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Write summary.json."""
        write_atomically(self.summary, (json.dumps(summary, indent=2) + "\n").encode())


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a file in one step, so that a crash leaves the old one or the new one."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
