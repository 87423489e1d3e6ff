"""Windows of layers, as numbers of layers or as fractions of the depth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral

from lightning_mllm.errors import ConfigError


@dataclass(frozen=True, order=True)
class Window:
    """A run of decoder layers, `start` to `stop - 1`, counted from 0, and its centre."""

    centre: int
    start: int
    stop: int

    def __contains__(self, layer: int) -> bool:
        return self.start <= layer < self.stop

    def __len__(self) -> int:
        """Return the number of layers."""
        return self.stop - self.start


@dataclass(frozen=True)
class Windows:
    """The windows of a sweep.

    They have `width` layers around each centre, or are the ranges of layers that `layers` lists.
    For the centre l and width k: max(0, l - k // 2) <= layer < min(depth, l + (k + 1) // 2). At the
    edges a window is cut short, not shifted, so that it holds fewer layers.

    Attributes:
        width: Number of layers; a number with a decimal point is a fraction of the depth (at least
            one layer).
        centres: The layers on which windows are centred, by default every layer; numbers with a
            decimal point are fractions of the way from the first layer (0.0) to the last (1.0).
        layers: Ranges (start, stop), stop not included, instead of width and centres; numbers with
            a decimal point are fractions of the depth.
    """

    width: int | float = 0.22  # the paper's 7 of 32 layers and 9 of 40
    centres: Sequence[int | float] | None = None
    layers: Sequence[tuple[int | float, int | float]] | None = None

    def of(self, depth: int) -> list[Window]:
        """Return the windows in a decoder of `depth` layers.

        Raises:
            ConfigError: A width, centre or range does not fit the depth, or there is no window.
        """
        windows = []
        if self.layers is not None:
            for start, stop in self.layers:
                windows.append(_range_of(start, stop, depth))
        else:
            width = _width_of(self.width, depth)
            for each in range(depth) if self.centres is None else self.centres:
                centre = _centre_of(each, depth)
                start, stop = centre - width // 2, centre + (width + 1) // 2
                windows.append(Window(centre, max(0, start), min(depth, stop)))
        if not windows:
            raise ConfigError(
                "There is no window to block. Leave centres and layers out for one around each "
                "layer."
            )
        return windows


def _is_count(number: object) -> bool:
    """Return whether a number counts layers, and is not a fraction of them."""
    return isinstance(number, Integral)


def _width_of(width: int | float, depth: int) -> int:
    fraction = not _is_count(width)
    if width <= 0 or (fraction and width > 1):
        raise ConfigError(
            f"A window can't have the width {width}. Give a number of layers from 1 on, or a "
            "fraction of the depth, above 0.0 and up to 1.0."
        )
    return max(1, round(width * depth)) if fraction else int(width)


def _centre_of(centre: int | float, depth: int) -> int:
    layer = int(centre) if _is_count(centre) else round(centre * (depth - 1))
    if not 0 <= layer < depth:
        raise ConfigError(
            f"No window can be centred on {centre}: the decoder has the layers 0 to {depth - 1}, "
            "or 0.0 to 1.0 as fractions of its depth."
        )
    return layer


def _range_of(first: int | float, end: int | float, depth: int) -> Window:
    start, stop = (int(each) if _is_count(each) else round(each * depth) for each in (first, end))
    if not 0 <= start < stop <= depth:
        raise ConfigError(
            f"({first}, {end}) is not a range of layers: it has to be 0 <= start < stop <= "
            f"{depth}, stop not included, or in fractions of the depth 0.0 to 1.0."
        )
    return Window(start + (stop - start) // 2, start, stop)
