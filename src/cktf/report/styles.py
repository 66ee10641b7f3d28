"""Colors and marks that tell networks apart in figures; the marks also without colors."""

from dataclasses import dataclass
from typing import Any

_COLORS = 8
# 7 symbols and 8 colors: a pair of both repeats after 56 groups. The diamond is the teacher's.
_SYMBOLS = (
    ("circle", "●"), ("square", "■"), ("triangle-up", "▲"), ("x", "✕"), ("triangle-down", "▼"),
    ("cross", "✚"), ("star", "★"),
)  # fmt: skip
_DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")


@dataclass(frozen=True)
class PlotStyle:
    """One network's look in all figures.

    Attributes:
        color: name of the page's CSS variable.
        symbol: Plotly's name for the mark of its points.
        letter: the same mark as text.
        dash: Plotly's name for the pattern of its lines.
    """

    color: str
    symbol: str
    letter: str
    dash: str = "solid"

    def marker(self, size: int) -> dict[str, Any]:
        """Plotly's marker of a size in pixels."""
        return {"color": self.color, "symbol": self.symbol, "size": size}


TEACHER_STYLE = PlotStyle("--teacher", "diamond", "◆")


def group_style(number: int) -> PlotStyle:
    """The style of the group with a number, from 0."""
    round_number, color = divmod(number, _COLORS)
    symbol, letter = _SYMBOLS[number % len(_SYMBOLS)]
    return PlotStyle(f"--c{color}", symbol, letter, _DASHES[round_number % len(_DASHES)])
