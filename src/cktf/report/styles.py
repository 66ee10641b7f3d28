"""How networks are told apart in figures: by color, and by marks for people who see none."""

from dataclasses import dataclass
from typing import Any

_COLORS = 8
# Seven to eight colors: 56 groups go by before a pair of both comes again. Not the teacher's.
_SYMBOLS = (
    ("circle", "●"), ("square", "■"), ("triangle-up", "▲"), ("x", "✕"), ("triangle-down", "▼"),
    ("cross", "✚"), ("star", "★"),
)  # fmt: skip
_DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")


@dataclass(frozen=True)
class Look:
    """What tells a network from others in a figure, also for people who see no colors.

    Attributes:
        color: of all that is its own.
        symbol: of its points, as Plotly names it.
        letter: the same in a text.
        dash: of its lines.
    """

    color: str
    symbol: str
    letter: str
    dash: str = "solid"

    def marker(self, size: int) -> dict[str, Any]:
        """Of one trace, in pixels."""
        return {"color": self.color, "symbol": self.symbol, "size": size}


TEACHER = Look("--teacher", "diamond", "◆")


def look(number: int) -> Look:
    """Of the group with a number."""
    again, tone = divmod(number, _COLORS)
    symbol, letter = _SYMBOLS[number % len(_SYMBOLS)]
    return Look(f"--c{tone}", symbol, letter, _DASHES[again % len(_DASHES)])
