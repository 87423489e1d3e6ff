"""Where a question names the two answers between which it lets choose."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import product

from lightning_mllm.errors import DataError
from lightning_mllm.types import Options

Range = tuple[int, int]  # characters, end exclusive

_OR = re.compile(r"\bor\b", re.IGNORECASE)


def find_options(question: str, options: Options, sample_id: str) -> tuple[Range, Range]:
    """Return where a question names the true and the false option.

    An option is a whole word or phrase: "hat" is not in "What", "bird" not in "birdcage". If the question has no such
    word, one that begins or ends with the option counts, so long as it stands right before an "or" or at the end of the
    question: "elephants" for "elephant", "telephone" for "phone". If there are several places, the two with an "or"
    between them and the fewest characters are taken: "the laptop or the laptop screen", of laptop and screen, lets
    choose between the first laptop and the screen.

    Raises:
        DataError: An option is not there, or which of its places lets choose can't be told.
    """
    true, false = (
        _places(question, option, name, sample_id)
        for option, name in ((options.true, "true"), (options.false, "false"))
    )
    pairs = [(a, b) for a, b in product(true, false) if a[1] <= b[0] or b[1] <= a[0]]
    if len(true) == len(false) == len(pairs) == 1:
        return pairs[0]
    chosen = sorted((len(between), (a, b)) for a, b in pairs if _OR.search(between := question[slice(*_gap(a, b))]))
    if not chosen or (len(chosen) > 1 and chosen[0][0] == chosen[1][0]):
        raise DataError(
            f"The question of sample {sample_id!r} has the options {options.true!r} and {options.false!r} in "
            f"{len(true)} and {len(false)} places, and which of them are to be chosen between can't be told: "
            f"{question!r}. Name them once, with an 'or' between them, or give the sample no options.",
            "options",
        )
    return chosen[0][1]


def _places(question: str, option: str, name: str, sample_id: str) -> list[Range]:
    places = [*_matches(rf"(?<![\w-]){_pattern(option)}(?![\w-])", question)]
    places = places or [*_matches(rf"\b(?:\w+{_pattern(option)}|{_pattern(option)}\w+)(?=,? or\b|\W*$)", question)]
    if not option.strip() or not places:
        raise DataError(
            f"The question of sample {sample_id!r} does not name its {name} option {option!r}: {question!r}. "
            "Correct the option to the word that the question has, or give the sample no options.",
            "options",
        )
    return places


def _matches(pattern: str, question: str) -> Iterator[Range]:
    return (match.span() for match in re.finditer(pattern, question, re.IGNORECASE))


def _pattern(option: str) -> str:
    return re.escape(option.strip())


def _gap(first: Range, second: Range) -> Range:
    return min(first[1], second[1]), max(first[0], second[0])
