"""Finds what an answer denies: "It is not healthy" does not say that it is healthy.

In the text, names are replaced by single characters (`MARKS`), so that a name which itself denies
("no damage", "not humanitarian", "non-infectious") is one name and not a negation. A name is denied

- after a negation in its clause: no, not, isn't, non-, neither, without, rather than, far from,
  ...;
- in a list after a negation: "no rust, blight or mildew";
- before a negation that is about it: "melanoma is unlikely", "rust-free", "melanoma: no".

A clause ends at punctuation and at words such as "but". Two negations of one name are counted, not
resolved. The words are English. The plain ones (nicht, pas, ...) of German, French, Spanish,
Italian, Portuguese, Dutch and Chinese are known before a name, those of Japanese after it. Other
languages are not covered: there a denied name counts as named.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

MARKS = range(0xF0000, 0xFFFFE)  # code points of private use; MARK finds those of a text
UNCLEAR = 2  # so many negations of a name, or more

_M = "[\U000f0000-\U000ffffd]"
MARK = re.compile(_M)
_DOUBTLESS = re.compile(r"\b(?:no|without (?:a |any )?)\s*(?:doubt|question)\b|\bnothing but\b")
_ANYTHING_BUT = re.compile(r"\b(?:anything|all) but\b")
_END = re.compile(  # ends a clause, and what is denied in it
    r"[.;:!?()\[\]\u2013\u2014\u3002\uff1b\uff1a\uff01\uff1f]+|\s-+\s"
    r"|\b(?:but|however|although|though|while|whereas|because|since|therefore|thus|hence)\b"
    r"|\binstead\b(?! of)"
    r"|(?:,|\band) so\b|\band (?=(?:it|this|is|are|has|have|shows?)\b)"
    r"|\b(?:and|or) (?=(?:no|not|without|neither|nor)\b)|(?=\bnor\b)"
)
_COMMA = re.compile(r"[,\uff0c\u3001]")
_UNLIKELY = (
    r"unlikely|improbable|impossible|doubtful|absent|exclud(?:e|es|ed|ing)|rul(?:e|es|ed"
    r"|ing)[ -]out|never|cannot"
    r"|not|\w+n['\u2019]t|(?:is|are|was|were|do|does|did|has|have|ca|could|would|should|wo)nt"
)
_NEGATION = re.compile(
    rf"\b(?:{_UNLIKELY}|no|non|nor|none|nothing|neither|without|hardly|barely|scarcely|rarely"
    rf"|lacks?|lacking|absence"
    r"|except|rather than|instead of|other than|far from|free (?:of|from)|negative for|fail(?:s"
    r"|ed)? to|un(?=-)"
    r"|nicht|nie|kein\w*|ohne|weder|pas|ne|sans|jamais|sin|ni|nunca|senza|n\u00e9|n\u00e3o|sem"
    r"|nem|niet|geen|zonder)\b"
    rf"|[\u6ca1\u6c92\u65e0\u7121\u672a]|\u975e(?!\u5e38)|\u4e0d(?!\u8fc7|\u4ec5|\u4f46)"
)
_DENIED = re.compile(
    rf"\b(?:{_UNLIKELY})\b|^[- ](?:free|negative)\b|\u306a\u3044|\u307e\u305b\u3093"
)
_ELSEWHERE = re.compile(r"\b(?:and|or|with|without|which|that|as)\b")
_COMPOUND = re.compile(
    rf"\b(?:anti|pre|pseudo|quasi|semi|near|half)-{_M}|{_M}-(?:like|resistant)\b"
)
_LISTED = re.compile(rf"(?:{_M}|\s|\b(?:and|or|a|an|the|any|also)\b)*")
_ALONE = re.compile(
    r"\s*(?:(?:it is|it's|is)\s+)?(?:no|nope|not|never|none|negative|absent|false|wrong"
    r"|incorrect|unlikely"
    r"|excluded|ruled out)(?:\s+(?:really|likely|present|visible|at all|here|shown|seen))?\s*"
)


def has_negation(text: str) -> bool:
    """Return whether a text has a negation."""
    return bool(_NEGATION.search(text))


def negated_mentions(text: str, denying: frozenset[str] = frozenset()) -> Iterator[tuple[str, int]]:
    """Yield each name of a text, in order, with the number of its negations, `UNCLEAR` at most.

    Args:
        text: Normalised text, in which names are replaced by `MARKS`.
        denying: Names that are negations themselves: "No, there is not" does not deny "no".
    """
    if _COMPOUND.search(text):
        yield from ((mark, UNCLEAR) for mark in MARK.findall(text))
        return
    earlier: list[tuple[str, int]] = []
    for sentence in _END.split(_ANYTHING_BUT.sub(" not ", _DOUBTLESS.sub(" ", text))):
        pending = False
        for clause in _COMMA.split(sentence):
            if _ALONE.fullmatch(clause):
                earlier = [(mark, count if mark in denying else UNCLEAR) for mark, count in earlier]
                continue
            for mark, count in _count_in_clause(clause, pending, denying):
                earlier.append((mark, min(count, UNCLEAR)))
            pending = pending or bool(_NEGATION.search(clause))
    yield from earlier


def _count_in_clause(
    clause: str, pending: bool, denying: frozenset[str]
) -> Iterator[tuple[str, int]]:
    """Yield the names of a clause, each with the number of its negations.

    Args:
        clause: Part of a sentence.
        pending: Whether an earlier clause of the sentence denies something.
        denying: Names that are negations themselves.
    """
    found = [*MARK.finditer(clause)]
    for number, match in enumerate(found):
        count = len(_NEGATION.findall(clause, 0, match.start()))
        if match[0] not in denying:
            count += pending and not count and bool(_LISTED.fullmatch(clause, 0, match.start()))
            if number == len(found) - 1:  # else a negation after it is about the next name
                count += len(_DENIED.findall(_ELSEWHERE.split(clause[match.end() :])[0]))
        yield match[0], count
