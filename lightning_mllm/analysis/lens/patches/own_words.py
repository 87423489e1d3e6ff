"""The words of what a sample shows: texts of its fields, or the name of its class.

Punctuation is no word, nor are function words (of, the) beside others. Words are compared without
capitals and surrounding blanks. The logit lens reads tokens, so a word
that is no token counts as said there where its first token is; a bank has whole words.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerBase

from lightning_mllm.analysis.lens.bank.contexts import is_in_word
from lightning_mllm.errors import ConfigError
from lightning_mllm.store.manifest import manifest_digest
from lightning_mllm.types import Sample

LABEL = "label"  # the attribute that a class name is, where a sample has a label
_FUNCTION_WORDS = frozenset(
    ("a", "an", "and", "at", "by", "for", "from", "in", "of", "on", "or", "the", "to", "with")
)

logger = logging.getLogger(__name__)


def fold_patch_word(word: str) -> str:
    """Return a word as it is compared with others."""
    return word.strip().casefold()


def split_own_words(value: str) -> set[str]:
    """Return the words of a value, folded: without punctuation and function words.

    A value of nothing else keeps what it has: the letter `a` and the sign `+` are words there.
    """
    letters = [each if is_in_word(value, place) else " " for place, each in enumerate(value)]
    words = {fold_patch_word(word) for word in "".join(letters).split()}
    return words - _FUNCTION_WORDS or words or {fold_patch_word(each) for each in value.split()}


@dataclass
class OwnWords:
    """What the samples show, in words.

    Attributes:
        of_sample: Id -> attribute -> value.
        attributes: Attribute -> its values in all samples, sorted.
        boxed: Ids of the samples with boxes.
    """

    of_sample: dict[str, Mapping[str, str]] = field(default_factory=dict)
    attributes: dict[str, list[str]] = field(default_factory=dict)
    boxed: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, samples: Iterable[Sample], fields: Sequence[str]) -> OwnWords:
        """Collect them.

        Args:
            samples: The samples.
            fields: Names of the fields that say what they show.

        Raises:
            ConfigError: No sample has such a field, or one has a number in it.
        """
        found = cls()
        values: dict[str, set[str]] = {}
        for sample in samples:
            shown = {} if sample.label is None else {LABEL: sample.label}
            for name in fields:
                value = sample.fields.get(name, "")
                if not isinstance(value, str):
                    raise ConfigError(
                        f"Patches say words, but the field {name!r} of sample {sample.id!r} is "
                        f"{value!r}. Name fields with text in PatchWords.fields."
                    )
                if value:
                    shown[name] = value
            found.of_sample[sample.id] = shown
            if sample.boxes:
                found.boxed.add(sample.id)
            for name, value in shown.items():
                values.setdefault(name, set()).add(value)
        if missing := [name for name in fields if name not in values]:
            raise ConfigError(
                f"PatchWords.fields has {missing[0]!r}, but no sample has such a field. Name "
                "fields of the data, or leave the option out: then only the class is a word."
            )
        found.attributes = {name: sorted(values[name]) for name in sorted(values)}
        return found

    @property
    def digest(self) -> str:
        """A hash of which sample shows what, and in which words."""
        return manifest_digest(
            f"{each!r} {dict(shown)!r} {sorted(self.words_of(each))!r}"
            for each, shown in self.of_sample.items()
        )

    def label_of(self, sample_id: str) -> str:
        """Return a sample's class; an empty text without one."""
        return self.of_sample[sample_id].get(LABEL, "")

    def words_of(self, sample_id: str) -> set[str]:
        """Return a sample's words, folded, each of a value alone."""
        words: set[str] = set()
        for value in self.of_sample[sample_id].values():
            words |= split_own_words(value)
        return words


class FirstTokens:
    """Which tokens words are, or begin with, in lower case or capitalised.

    Args:
        tokenizer: The model's.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._known: dict[str, tuple[int, ...]] = {}

    def of(self, text: str) -> tuple[int, ...]:
        """Return the tokens that are a whole text; where there is none, those that can begin it.

        A text within a sentence follows a blank; only a whole token may stand without one.
        """
        if text not in self._known:
            whole: set[int] = set()
            first: set[int] = set()
            for written in {text, text.lower(), text.capitalize()}:
                for blank in ("", " "):
                    ids = self._tokenizer.encode(blank + written, add_special_tokens=False)
                    says = [token for token in ids if self.text_of(token)]
                    if len(says) == 1:
                        whole |= set(says)
                    elif blank:
                        first |= set(says[:1])
            self._known[text] = tuple(sorted(whole or first))
        return self._known[text]

    def folded(self, words: Iterable[str]) -> set[str]:
        """Return the folded texts of the tokens of words."""
        found: set[str] = set()
        for word in words:
            found |= {self.text_of(token) for token in self.of(word)}
        return found

    def text_of(self, token: int) -> str:
        """Return the folded text of a token."""
        return fold_patch_word(str(self._tokenizer.decode([token])))


@dataclass(frozen=True)
class AttributeTokens:
    """The tokens that stand for the values of an attribute.

    Attributes:
        name: The attribute.
        values: All values of the attribute.
        tokens: Every token, of all values.
        owner: Per token, which value it stands for.
    """

    name: str
    values: tuple[str, ...]
    tokens: tuple[int, ...]
    owner: tuple[int, ...]


def find_attribute_tokens(
    attributes: Mapping[str, Sequence[str]], first: FirstTokens
) -> list[AttributeTokens]:
    """Return the tokens of each attribute whose values begin with different ones.

    The others are left out, which is logged: a token would stand for two values.
    """
    found = []
    for name, values in attributes.items():
        owners: dict[int, int] = {}
        shared = ""
        for place, value in enumerate(values):
            for token in first.of(value.replace("_", " ")):
                if token in owners and not shared:
                    shared = f"{values[owners[token]]!r} and {value!r}"
                owners[token] = place
        if shared:
            logger.warning(
                "The logit lens can't tell the values %s of %r apart, which begin with one token; "
                "%r is left out.",
                shared,
                name,
                name,
            )
        elif len(values) > 1:
            found.append(AttributeTokens(name, tuple(values), (*owners,), (*owners.values(),)))
    return found
