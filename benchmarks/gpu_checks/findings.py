"""What a check finds: compared figures, rows of a table, failures, and cases without time."""

import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")

OK, OFF, ERROR, SKIPPED = "ok", "OFF", "error", "skipped"
_TOLD_EVERY = 2.0
_LINES_OF_ERROR = 6
LEAST_NORM = 1e-8


class DeviceLostError(Exception):
    """The GPU takes no more work from this process."""


class Findings:
    """The findings of one check.

    Args:
        device: what is checked.
        seconds: time that the check may take.
        tell: called with `record()` now and then, for the case that the check never ends.

    Attributes:
        figures: numbers and words for the check's line.
        worst: the largest relative error of each kind of quantity, with its case.
        rows: rows of a table.
        failures: cases that are wrong, with their figures.
        errors: cases that raised, with the last lines of the traceback.
        left_out: cases for which there was no time, or that cannot run here.
    """

    def __init__(
        self,
        device: torch.device,
        seconds: float = float("inf"),
        tell: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        self.device = device
        self.figures: dict[str, Any] = {}
        self.worst: dict[str, tuple[float, str]] = {}
        self.rows: list[dict[str, Any]] = []
        self.failures: list[str] = []
        self.errors: list[str] = []
        self.left_out: list[str] = []
        self.cases = 0
        self._case = ""
        self._tell, self._told = tell, time.monotonic()
        self._began, self._seconds = time.monotonic(), seconds

    @property
    def is_cuda(self) -> bool:
        """Whether the device is a GPU; else sizes are small."""
        return self.device.type == "cuda"

    @property
    def seconds_left(self) -> float:
        """Time that remains."""
        return self._seconds - (time.monotonic() - self._began)

    def timed(self, cases: Iterable[T], name: Callable[[T], str] = str) -> Iterator[T]:
        """Yield cases while there is time; note the others as left out."""
        for case in cases:
            if self.seconds_left <= 0:
                self.left_out.append(f"{name(case)}: no time")
            else:
                yield case

    @contextmanager
    def case(self, name: str) -> Iterator[None]:
        """Note an exception of a case instead of raising it, unless the device is lost."""
        self._case, self.cases = name, self.cases + 1
        try:
            yield
        except Exception as error:  # whatever it is, the next case may work
            lines = traceback.format_exception(error)
            self.errors.append(f"{name}: {''.join(lines[-_LINES_OF_ERROR:])[-1500:]}")
            if not self.device_works():
                raise DeviceLostError(name) from error
        if self._tell is not None and time.monotonic() - self._told > _TOLD_EVERY:
            self._told = time.monotonic()
            self._tell(self.record())

    def require(self, right: bool, what: str) -> None:
        """Note a failure of the present case unless something is right."""
        if not right:
            self.failures.append(f"{self._case}: {what}")

    def compare(
        self,
        kind: str,
        found: Tensor | float,
        expected: Tensor | float,
        tolerance: float,
        least: float = LEAST_NORM,
    ) -> None:
        """Compare a quantity of the present case with its reference.

        Args:
            kind: under which the largest error is kept.
            found: on any device.
            expected: of the same shape.
            tolerance: largest relative error.
            least: norm to which a smaller one of `expected` is raised, as where it should be 0.
        """
        error = relative_error(found, expected, least)
        if error >= self.worst.get(kind, (-1.0, ""))[0]:
            self.worst[kind] = error, self._case
        self.require(error <= tolerance, f"{kind} off by {error:.2e}, allowed {tolerance:g}")

    def device_works(self) -> bool:
        """Whether the device still takes work; an illegal access ends that for a whole process."""
        try:
            if self.is_cuda:
                torch.cuda.synchronize(self.device)
        except RuntimeError:
            return False
        return True

    def record(self) -> dict[str, Any]:
        """Everything, for JSON."""
        status = ERROR if self.errors else OFF if self.failures else OK
        if not self.cases and status == OK:
            status = SKIPPED
        return {
            "status": status,
            "seconds": round(time.monotonic() - self._began, 1),
            "cases": self.cases,
            "figures": self.figures,
            "worst": {k: [f"{error:.1e}", case] for k, (error, case) in self.worst.items()},
            "failures": self.failures,
            "errors": self.errors,
            "left_out": self.left_out,
            "rows": self.rows,
        }


def relative_error(
    found: Tensor | float, expected: Tensor | float, least: float = LEAST_NORM
) -> float:
    """`|found − expected| / |expected|` in Frobenius norms; infinite for unlike shapes and NaN."""
    a, b = (torch.as_tensor(t).detach().double().cpu() for t in (found, expected))
    if a.shape != b.shape:
        return float("inf")
    error = float((a - b).norm() / b.norm().clamp_min(least))
    return error if error == error else float("inf")
