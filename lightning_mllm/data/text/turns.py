"""Where images stand in the text of a turn."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

from lightning_mllm.types import Turn


def join_turn_around_images(pieces: list[str]) -> Turn:
    """Return the user's turn with an image between each two pieces, outer blanks stripped."""
    text, places = pieces[0], []
    for piece in pieces[1:]:
        places.append(len(text))
        text += piece
    return strip_turn(Turn("user", text, images=len(places), places=tuple(places)))


def cut_turn_at_images(turn: Turn) -> list[str]:
    """Return the text of a turn, cut where its images stand: one piece more than images."""
    cuts = [0, *(turn.places or (0,) * turn.images), len(turn.text)]
    return [turn.text[start:end] for start, end in pairwise(cuts)]


def strip_turn(turn: Turn) -> Turn:
    """Return a turn without blanks around its text; those between text and a later image stay."""
    if turn.text == turn.text.strip() and (any(turn.places) or not turn.places):
        return turn  # as nearly all are: a copy takes longer than the rest
    text = turn.text.lstrip()
    places = tuple(max(place - len(turn.text) + len(text), 0) for place in turn.places)
    last = max(places, default=0)
    text = text[:last] + text[last:].rstrip()
    return replace(turn, text=text, places=places if any(places) else ())


def put_images_first_in_turn(turn: Turn) -> Turn:
    """Return a turn with its images before its text, and a blank or line break in their place."""
    text = ""
    for piece in cut_turn_at_images(turn):
        before, after = text.rstrip(), piece.lstrip()
        blanks = text[len(before) :] + piece[: len(piece) - len(after)]
        joint = "\n" if "\n" in blanks else " "
        text = f"{before}{joint}{after}"
    return replace(turn, text=text.strip(), places=())


def has_image_within_turn(turn: Turn) -> bool:
    """Return whether an image stands within the text, with words on both sides."""
    return any(turn.text[:place].strip() and turn.text[place:].strip() for place in turn.places)
