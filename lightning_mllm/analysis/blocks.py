"""What is blocked: from where to where, and in which layers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from numbers import Integral

from lightning_mllm.errors import ConfigError
from lightning_mllm.types import Segment

_FORM = re.compile(r"\s*(?P<source>[^>\[\]]+?)\s*->\s*(?P<target>[^>\[\]]+?)\s*(?:\[(?P<heads>[\d,\s]+)\])?\s*")


@dataclass(frozen=True)
class Positions:
    """Token positions: a union of intersections of segments, as in "image object&image tiles+question".

    Attributes:
        terms: A position is among them if it is in all segments of any term.
    """

    terms: frozenset[frozenset[Segment]]

    @property
    def segments(self) -> frozenset[Segment]:
        """All that are named; one alone is these positions themselves."""
        return frozenset(segment for term in self.terms for segment in term)

    def __str__(self) -> str:
        known = list(Segment)  # written in this order, so that equal positions have one name
        terms = sorted(sorted(map(known.index, term)) for term in self.terms)
        return "+".join("&".join(known[number] for number in term) for term in terms)


@dataclass(frozen=True)
class Block:
    """The target's positions lose sight of the source's: no target row gets anything from a source key.

    Attributes:
        source: Keys that become invisible.
        target: Queries that lose sight of them.
        heads: Attention heads in which it is so; None for all.
    """

    source: Positions
    target: Positions
    heads: tuple[int, ...] | None = None

    @classmethod
    def parse(cls, text: str) -> Block:
        """Read "image->question", or for some heads only "image->question[0,5]".

        A side may be composed of segments: `a+b` is what is in a or in b, `a&b` what is in both. `&` binds tighter.

        Raises:
            ConfigError: The text has another form, or a segment of this name does not exist.
        """
        match = _FORM.fullmatch(text)
        if match is None:
            raise ConfigError(
                f"The block {text!r} can't be read. Write source->target, as in 'image->question', and behind it "
                "the heads if not all are meant: 'image->question[0,5]'."
            )
        heads = match["heads"] and tuple(sorted({int(head) for head in re.findall(r"\d+", match["heads"])}))
        return cls(_positions(match["source"], text), _positions(match["target"], text), heads or None)

    def __str__(self) -> str:
        heads = "" if self.heads is None else f"[{','.join(map(str, self.heads))}]"
        return f"{self.source}->{self.target}{heads}"


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
            centres = range(depth) if self.centres is None else [_centre(each, depth) for each in self.centres]
            windows = [Window(at, max(0, at - width // 2), min(depth, at + (width + 1) // 2)) for at in centres]
        if not windows:
            raise ConfigError("There is no window to block. Leave centres and layers out for one around each layer.")
        return windows


def _positions(side: str, text: str) -> Positions:
    terms = (frozenset(_segment(name, text) for name in term.split("&")) for term in side.split("+"))
    return Positions(frozenset(terms))


def _segment(name: str, text: str) -> Segment:
    name = " ".join(name.split())
    if not name:
        raise ConfigError(
            f"The block {text!r} can't be read: + (either) and & (both) each stand between two segments, as in "
            "'image object&image tiles->question'."
        )
    try:
        return Segment(name.lower())
    except ValueError:
        known = [str(segment) for segment in Segment]
        nearest = get_close_matches(name.lower(), known, n=1)
        hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
        raise ConfigError(
            f"The block {text!r} names {name!r}, which is no segment.{hint} There are: {', '.join(known)}."
        ) from None


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
