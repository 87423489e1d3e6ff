"""Where a question names the two answers that it lets the model choose between."""

from __future__ import annotations

import re
from itertools import product

from lightning_mllm.data.text.rendering import RenderedSpan, RenderedText
from lightning_mllm.errors import DataError
from lightning_mllm.types import Options, Segment

Range = tuple[int, int]  # characters, end exclusive

_SEGMENTS = (Segment.TRUE_OPTION, Segment.FALSE_OPTION)
_OR = re.compile(r"\bor\b", re.IGNORECASE)


def find_options(question: str, options: Options, sample_id: str) -> tuple[Range, Range]:
    """Return where a question names the true and the false option.

    An option is a whole word or phrase: "hat" is not in "What", "bird" not in "birdcage". If the
    question has no such word, one that begins or ends with the option counts if it stands right
    before an "or" or at the end of the question: "elephants" for "elephant", "telephone" for
    "phone". If there are several places, the two with an "or" between them and the fewest
    characters are taken: "the laptop or the laptop screen", of laptop and screen, lets the model
    choose between the first laptop and the screen.

    Raises:
        DataError: An option is not there, or it can't be told which of its places is meant.
    """
    true = _find_places(question, options.true, "true", sample_id)
    false = _find_places(question, options.false, "false", sample_id)
    pairs = [(a, b) for a, b in product(true, false) if a[1] <= b[0] or b[1] <= a[0]]
    if len(true) == len(false) == len(pairs) == 1:
        return pairs[0]
    with_or = []
    for first, second in pairs:
        between = question[min(first[1], second[1]) : max(first[0], second[0])]
        if _OR.search(between):
            with_or.append((len(between), (first, second)))
    with_or.sort()
    if not with_or or (len(with_or) > 1 and with_or[0][0] == with_or[1][0]):
        raise DataError(
            f"The question of sample {sample_id!r} has the options {options.true!r} and "
            f"{options.false!r} in {len(true)} and {len(false)} places, and which of them are to "
            f"be chosen between can't be told: {question!r}. Name them once, with an 'or' between "
            "them, or give the sample no options.",
            "options",
        )
    return with_or[0][1]


def find_option_spans(
    rendered: RenderedText, options: Options | None, sample_id: str
) -> list[RenderedSpan]:
    """Return where the last question names its options; empty where nothing is asked."""
    questions = [span for span in rendered.slots if span.segment is Segment.QUESTION]
    if options is None or not questions:
        return []
    last = questions[-1]
    answered = [span.end for span in rendered.answers if span.end <= last.start]
    earlier = max(answered, default=0)
    # images may cut the last question into several texts
    start = min(span.start for span in questions if span.start >= earlier)
    ranges = find_options(rendered.text[start : last.end], options, sample_id)
    spans = []
    for segment, (first, end) in zip(_SEGMENTS, ranges, strict=True):
        spans.append(RenderedSpan(segment, start + first, start + end))
    return spans


def _find_places(question: str, option: str, name: str, sample_id: str) -> list[Range]:
    """Return where a question has an option as a word, or else as the end or start of one."""
    word = re.escape(option.strip())
    places = _find_matches(rf"(?<![\w-]){word}(?![\w-])", question)
    if not places:
        places = _find_matches(rf"\b(?:\w+{word}|{word}\w+)(?=,? or\b|\W*$)", question)
    if not option.strip() or not places:
        raise DataError(
            f"The question of sample {sample_id!r} does not name its {name} option {option!r}: "
            f"{question!r}. Correct the option to the word that the question has, or give the "
            "sample no options.",
            "options",
        )
    return places


def _find_matches(pattern: str, question: str) -> list[Range]:
    return [match.span() for match in re.finditer(pattern, question, re.IGNORECASE)]
