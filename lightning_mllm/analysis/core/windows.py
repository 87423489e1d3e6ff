"""Windows of layers, as numbers or as shares of the depth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral

from lightning_mllm.errors import ConfigError


@dataclass(frozen=True, order=True)
class Window:
    """A run of decoder layers, `start` to `stop - 1`, counted from 0, and the one it is named after."""

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
    """The windows of a sweep: of `width` layers around each centre, or the ranges of layers that `layers` lists.

    For the centre l and width k: max(0, l - k // 2) <= layer < min(depth, l + (k + 1) // 2). At the edges a window is
    cut short, not shifted, so that it holds fewer layers.

    Attributes:
        width: Number of layers; a number with a decimal point is a fraction of the depth (at least one layer).
        centres: The layers on which windows are centred, None for each; numbers with a decimal point are fractions
            of the way from the first layer (0.0) to the last (1.0).
        layers: Instead of width and centres, explicit (start, stop), stop not included; numbers with a decimal point
            are fractions of the depth.
    """

    width: int | float = 0.22  # the paper's 7 of 32 layers and 9 of 40
    centres: Sequence[int | float] | None = None
    layers: Sequence[tuple[int | float, int | float]] | None = None

    def of(self, depth: int) -> list[Window]:
        """Return the windows in a decoder of `depth` layers.

        Raises:
            ConfigError: A width, centre or range does not fit the depth, or there is no window at all.
        """
        if self.layers is not None:
            windows = [_range(start, stop, depth) for start, stop in self.layers]
        else:
            width = _width(self.width, depth)
            centres = (
                range(depth)
                if self.centres is None
                else [_centre(each, depth) for each in self.centres]
            )
            windows = [
                Window(at, max(0, at - width // 2), min(depth, at + (width + 1) // 2))
                for at in centres
            ]
        if not windows:
            raise ConfigError(
                "There is no window to block. Leave centres and layers out for one around each layer."
            )
        return windows


def _counts(number: object) -> bool:
    """Return whether a number is one of layers, and not a fraction of them."""
    return isinstance(number, Integral)


def _width(width: int | float, depth: int) -> int:
    fraction = not _counts(width)
    if width <= 0 or (fraction and width > 1):
        raise ConfigError(
            f"A window of width {width} can't be. Give a number of layers from 1 on, or a fraction of the depth, "
            "above 0.0 and up to 1.0."
        )
    return max(1, round(width * depth)) if fraction else int(width)


def _centre(centre: int | float, depth: int) -> int:
    layer = int(centre) if _counts(centre) else round(centre * (depth - 1))
    if not 0 <= layer < depth:
        raise ConfigError(
            f"No window can be centred on {centre}: the decoder has the layers 0 to {depth - 1}, or 0.0 to 1.0 as "
            "fractions of its depth."
        )
    return layer


def _range(first: int | float, behind: int | float, depth: int) -> Window:
    start, stop = (int(each) if _counts(each) else round(each * depth) for each in (first, behind))
    if not 0 <= start < stop <= depth:
        raise ConfigError(
            f"({first}, {behind}) is no range of layers: it has to be 0 <= start < stop <= {depth}, stop not included, "
            "or in fractions of the depth 0.0 to 1.0."
        )
    return Window(start + (stop - start) // 2, start, stop)
