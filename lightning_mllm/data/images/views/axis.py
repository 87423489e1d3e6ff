"""One direction of a picture, through all that is done to it before the patches."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction


@dataclass(frozen=True)
class Axis:
    """One direction of a processed picture: pixel p of the original is at `scale` * p + `shift`.

    Numbers are fractions: no rounding decides what a patch shows.

    Attributes:
        length: How many pixels there are now.
        scale: How many pixels one pixel of the original takes.
        shift: Where the original begins.
        shown: The range in which something of the original is shown.
    """

    length: int
    scale: Fraction
    shift: Fraction
    shown: tuple[Fraction, Fraction]

    @classmethod
    def of_original(cls, length: int) -> Axis:
        """Return the axis of a picture that nothing was done to."""
        return cls(length, Fraction(1), Fraction(0), (Fraction(0), Fraction(length)))

    def resize(self, length: int) -> Axis:
        """Stretch or shrink to a length."""
        factor = Fraction(length, self.length)
        start, end = self.shown
        return Axis(
            length, self.scale * factor, self.shift * factor, (start * factor, end * factor)
        )

    def cut(self, start: int, length: int) -> Axis:
        """Keep `length` pixels from `start` on; those outside the picture are padding."""
        first, last = (min(max(edge - start, Fraction(0)), Fraction(length)) for edge in self.shown)
        return replace(self, length=length, shift=self.shift - start, shown=(first, last))

    def centre(self, length: int) -> Axis:
        """Keep the middle.

        If the difference is odd, one more pixel is cut at the end, or added in front.
        """
        return self.cut((self.length - length) // 2, length)

    def enclose(self, length: int) -> Axis:
        """Pad on both sides; if the difference is odd, one more pixel is added at the end."""
        return self.cut(-((length - self.length) // 2), length)

    def locate(self, first: Fraction, last: Fraction) -> tuple[Fraction, Fraction]:
        """Return where a part of the original is now, as far as it is shown."""
        start, end = self.shown
        return max(self.scale * first + self.shift, start), min(self.scale * last + self.shift, end)
