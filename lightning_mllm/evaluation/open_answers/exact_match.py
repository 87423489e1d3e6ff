"""Open answers: what the model says, greedily, and whether it is the reference.

An answer is right if it ends and equals its reference, both normalised (case, outer quotes, a full stop, spacing); or,
as in the study of Zhang et al. (arXiv 2411.18620), if its lower case is the reference to the letter. The reference is
decoded from the answer's own tokens, so that a model which says exactly what it was trained on is right.

No more is generated than can matter: an answer that goes on for some tokens behind its reference's length is wrong
whatever follows. Each sample has a limit of its own, and an answer that reaches it is wrong even if what is left equals
the reference ("red" of "red and blue"): so the score depends neither on the other samples of a batch nor on how far
they are decoded.

Nor is anything generated that is known: where every token of a reference is the model's likeliest behind those before
it, that reference is what greedy decoding says. The loss finds that out in passing. It is not asked in 16 bit, where
the two ways to compute a logit round apart: an answer would have two chances.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lightning_mllm.errors import ConfigError
from lightning_mllm.evaluation.classification.answer_parser import normalise
from lightning_mllm.evaluation.decoding import continue_prompts, end_ids
from lightning_mllm.types import MultimodalBatch, Segment

Match = Literal["normalised", "paper"]

_MATCHES: Mapping[Match, Callable[[str, str], bool]] = {  # an answer with its reference, outer blanks stripped
    "normalised": lambda answer, reference: normalise(answer) == normalise(reference),
    "paper": lambda answer, reference: answer.lower() == reference,
}


@dataclass(frozen=True)
class OpenAnswer:
    """What the model answers to a sample that has a kind.

    Attributes:
        sample_id: The sample's.
        kind: Its kind of question.
        reference: The right answer.
        answer: The model's, up to its end or to where it has gone on for too long.
        correct: Whether it ends and is the reference.
        first_token: Id of the token with which it begins.
        picture: Which picture the question is about; empty for one of its own.
    """

    sample_id: str
    kind: str
    reference: str
    answer: str
    correct: bool
    first_token: int
    picture: str = ""


@dataclass(frozen=True)
class ExactMatch:
    """Greedy decoding, and comparison with the reference.

    Attributes:
        spare_tokens: How many tokens an answer may be longer than its reference: quotes, a full stop, and rare tokens
            for unusual capitals.
        match: When an answer is its reference: with `normalised` case, outer quotes, a full stop and spacing make no
            difference, with `paper` only capitals of the answer do not.

    Raises:
        ConfigError: There is no such match.
    """

    spare_tokens: int = 8
    match: Match = "normalised"

    def __post_init__(self) -> None:
        if self.match not in _MATCHES:
            raise ConfigError(f"match is {self.match!r}; it can be {' or '.join(map(repr, _MATCHES))}.")

    def evaluate(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        batch: MultimodalBatch,
        greedy: Tensor | None = None,
    ) -> tuple[OpenAnswer, ...]:
        """Answer the (last) question of every sample that has a kind; the others are left out.

        Args:
            model: The MLLM.
            tokenizer: Its tokenizer.
            batch: Prompts and references.
            greedy: (batch, sequence) bool, `AnswerLoss.greedy` of this batch; without it all answers are generated.
        """
        kinds = {row: kind for row, kind in enumerate(batch.kinds) if kind is not None}
        if not kinds:
            return ()
        asked, ends = batch.take(list(kinds)), frozenset(end_ids(model, batch))
        behind = _behind_last(asked)
        expected = _rows(asked.input_ids, behind)
        likeliest = _rows(torch.zeros_like(behind) if greedy is None else greedy[list(kinds)], behind)
        known = {row: answer for row, answer in enumerate(expected) if _is_known(answer, likeliest[row], ends)}
        generated = self._generate(model, asked, {r: len(ids) for r, ids in enumerate(expected) if r not in known})
        said = [_until_end(tokens, ends) for _, tokens in sorted((known | generated).items())]

        references, answers = (_texts(tokenizer, ids) for ids in (expected, said))
        verdicts = [
            tokens[-1] in ends and _MATCHES[self.match](answer, reference)
            for tokens, answer, reference in zip(said, answers, references, strict=True)
        ]
        begins = [tokens[0] for tokens in said]
        named = asked.sample_ids, kinds.values(), references
        return tuple(map(OpenAnswer, *named, answers, verdicts, begins, asked.pictures))

    def _generate(
        self, model: PreTrainedModel, asked: MultimodalBatch, lengths: dict[int, int]
    ) -> dict[int, list[int]]:
        """Return the answers of some rows; `lengths` are those of their references."""
        if not lengths:
            return {}
        limits = [length + self.spare_tokens for length in lengths.values()]
        new_tokens = continue_prompts(model, asked.take(list(lengths)).prompts(), max(limits)).tolist()
        return {row: new[:limit] for row, new, limit in zip(lengths, new_tokens, limits, strict=True)}


def _behind_last(batch: MultimodalBatch) -> Tensor:
    """Return where each sample's last answer is, its end included: (batch, sequence) bool."""
    behind = torch.zeros_like(batch.attention_mask)
    behind[:, 1:] = batch.spans[Segment.LAST].cumsum(dim=1)[:, :-1]  # 1 behind LAST
    return (behind * batch.attention_mask).bool()


def _rows(values: Tensor, kept: Tensor) -> list[list[Any]]:
    """Return each row's values where they are kept; both are (batch, sequence)."""
    return [row[mask].tolist() for row, mask in zip(values, kept, strict=True)]


def _is_known(expected: list[int], likeliest: list[bool], ends: frozenset[int]) -> bool:
    """Return whether an expected answer, up to its end, is what the model says."""
    answer = _until_end(expected, ends)
    return bool(answer) and answer[-1] in ends and all(likeliest[: len(answer)])


def _until_end(tokens: list[int], ends: frozenset[int]) -> list[int]:
    """Return the tokens up to the first that ends the answer, that one included."""
    length = next((count for count, token in enumerate(tokens, 1) if token in ends), len(tokens))
    return tokens[:length]


def _texts(tokenizer: PreTrainedTokenizerBase, answers: list[list[int]]) -> list[str]:
    return [text.strip() for text in tokenizer.batch_decode(answers, skip_special_tokens=True)]
