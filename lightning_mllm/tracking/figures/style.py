"""How curves are told apart: each has a colour, a dash and a marker that no other curve has."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from matplotlib import colormaps
from matplotlib.colors import to_hex

# Okabe and Ito's palette, which colour-blind readers can tell apart.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
GREY = "#6B6B6B"
BLACK = "#000000"
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", "-.", ":", (0, (6, 1.5)), (0, (4, 1, 1, 1, 1, 1)))
_RAMPS = (("viridis", 0.0, 0.9), ("Oranges", 0.4, 1.0), ("Purples", 0.4, 1.0), ("Greys", 0.4, 1.0))
_FEWEST_IN_ORDER = 3
_NUMBER = re.compile(r"\d+(?:\.\d+)?")


class FigureStyle(NamedTuple):
    """How a curve looks."""

    colour: str
    dashes: Any
    marker: str

    def line(self) -> dict[str, Any]:
        """Return it as matplotlib's options of a line."""
        return {
            "color": self.colour,
            "linestyle": self.dashes,
            "marker": self.marker,
            "markersize": 4,
            "linewidth": 1.6,
        }


REFERENCE_STYLES = (FigureStyle(GREY, "--", ""), FigureStyle(BLACK, ":", ""))
CHANCE_STYLE = FigureStyle(GREY, ":", "")


def choose_figure_styles(names: Sequence[str]) -> dict[str, FigureStyle]:
    """Return how each curve of a figure looks.

    Three or more curves whose names differ in numbers alone, such as steps or layers, get colours
    from dark to light in the order of the numbers; the others get the colours of the palette.

    Args:
        names: Names of the curves, each once.
    """
    series: dict[str, list[str]] = {}
    for name in names:
        series.setdefault(_NUMBER.sub("#", name), []).append(name)
    in_order = [own for own in series.values() if len(own) >= _FEWEST_IN_ORDER]
    styles: dict[str, FigureStyle] = {}
    for number, own in enumerate(in_order):
        ramp, first, last = _RAMPS[number % len(_RAMPS)]
        for index, name in enumerate(sorted(own, key=_find_numbers)):
            colour = colormaps[ramp](first + (last - first) * index / (len(own) - 1))
            dashes = DASHES[number % len(DASHES)]
            styles[name] = FigureStyle(to_hex(colour), dashes, MARKERS[index % len(MARKERS)])
    for index, name in enumerate(name for name in names if name not in styles):
        place = index + len(in_order)  # the first dash is theirs
        dashes, marker = DASHES[place % len(DASHES)], MARKERS[place % len(MARKERS)]
        styles[name] = FigureStyle(PALETTE[index % len(PALETTE)], dashes, marker)
    return {name: styles[name] for name in names}


def _find_numbers(name: str) -> list[float]:
    return [float(number) for number in _NUMBER.findall(name)]
