"""One folder per run: enough to resume, evaluate, export and report it."""

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import torch

from cktf.errors import RunFolderError

_KEPT = 2
_NEEDED_MB = 50


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
        if self.recipe.exists() and not resume:
            raise RunFolderError(
                f"{self.path} already holds a run. Choose another --out, or continue it with "
                "--resume auto."
            )
        there = next(p for p in (self.path, *self.path.absolute().parents) if p.exists())
        if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
            raise RunFolderError(
                f"The run folder {self.path} cannot be written: {there} is "
                f"{'not yours to write' if there.is_dir() else 'a file'}. Choose another --out."
            )
        free = shutil.disk_usage(there).free / 2**20
        if free < _NEEDED_MB:
            raise RunFolderError(
                f"{there} has {free:.0f} MB left, and a run needs {_NEEDED_MB} or more."
            )

    def create(self) -> None:
        """Make the folder.

        Raises:
            RunFolderError: the file system does not let us.
        """
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunFolderError(
                f"The run folder {self.path} cannot be written ({error.strerror}). Choose another "
                "--out."
            ) from error

    def log(self, line: str) -> None:
        """Add a dated line to log.txt."""
        with self.log_file.open("a") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")

    def record(self, row: dict[str, Any]) -> None:
        """Add a line to metrics.jsonl."""
        with self.metrics.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def rows(self) -> list[dict[str, Any]]:
        """What metrics.jsonl holds."""
        if not self.metrics.exists():
            return []
        return [json.loads(line) for line in self.metrics.read_text().splitlines()]

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
