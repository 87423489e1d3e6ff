"""Errors that a user can cause: each says what was found, what was expected and how to go on."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Base of all errors that the command line shows as one message instead of a traceback."""


class ConfigError(UserError):
    """An option, or a combination of options, that cannot work."""


class DataError(UserError):
    """A dataset that is missing, malformed or inconsistent; the message names the file and the row.

    Attributes:
        kind: A word or two for what is wrong; errors are counted by it.
    """

    def __init__(self, message: str, kind: str = "row") -> None:
        super().__init__(message)
        self.kind = kind


class CheckpointError(UserError):
    """A model, a training checkpoint or a projector file that is not what the run needs."""


class NotFiniteError(UserError):
    """A loss, weights, features or scores that are NaN or infinite.

    Attributes:
        is_here: Whether this process has them; of several, another one may.
    """

    is_here = True


class PeerError(UserError):
    """Another process of the run has ended, so that this one can't go on."""


def did_you_mean(wrong: str, known: Iterable[str]) -> str:
    """Return a line with the known name nearest to a misspelt one; an empty text if none is."""
    nearest = difflib.get_close_matches(wrong, sorted(known), n=1)
    return f'\nDid you mean "{nearest[0]}"?' if nearest else ""
