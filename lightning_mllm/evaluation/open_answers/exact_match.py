"""Open answers: the model's greedy answer, and whether it equals the reference.

An answer is right if it ends and equals its reference, both normalised (case, outer quotes, a full
stop, spacing). Or, as in the study of Zhang et al. (arXiv 2411.18620), if its lower case is exactly
the reference. The reference is decoded from its own tokens, so that a model which says exactly what
it was trained on is right.

No more is generated than can matter: an answer that is longer than its reference by some tokens is
wrong whatever follows. Each sample has its own limit, and an answer that reaches it is wrong even
if the part before the limit equals the reference ("red" of "red and blue"). So the score does not
depend on the other samples of a batch or on how far they are decoded.

Known answers are not generated: where every token of a reference is the model's likeliest next
token, greedy decoding gives this reference. The loss computes that anyway. This is not used in 16
bit, where the two ways to compute a logit round differently: an answer would have two chances.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.errors import ConfigError
from lightning_mllm.evaluation.classification.answer_parser import normalise
from lightning_mllm.evaluation.decoding import decode_prompts, decoding_end_ids
from lightning_mllm.types import Segment

Match = Literal["normalised", "paper"]

# compares an answer with its reference, both without outer blanks
_MATCHES: Mapping[Match, Callable[[str, str], bool]] = {
    "normalised": lambda answer, reference: normalise(answer) == normalise(reference),
    "paper": lambda answer, reference: answer.lower() == reference,
}


@dataclass(frozen=True)
class OpenAnswer:
    """The model's answer to a sample that has a kind.

    Attributes:
        sample_id: Id of the sample.
        kind: Kind of question.
        reference: The right answer.
        answer: The model's answer, up to its end or to the limit of its length.
        correct: Whether the answer ends and equals the reference.
        first_token: Id of the first token of the answer.
        picture: Which picture the question is about; empty if no other question is about it.
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
    """Decodes answers greedily and compares them with their references.

    Attributes:
        spare_tokens: How many tokens an answer may be longer than its reference, for quotes, a full
            stop, and rare tokens for unusual capitals.
        match: When an answer equals its reference. With `normalised`, case, outer quotes, a full
            stop and spacing do not matter; with `paper`, only capitals in the answer do not matter.

    Raises:
        ConfigError: There is no such match.
    """

    spare_tokens: int = 8
    match: Match = "normalised"

    def __post_init__(self) -> None:
        if self.match not in _MATCHES:
            raise ConfigError(
                f"match is {self.match!r}; it can be {' or '.join(map(repr, _MATCHES))}."
            )

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
            tokenizer: The model's tokenizer.
            batch: Prompts and references.
            greedy: (batch, sequence) bool, `AnswerLoss.greedy` of this batch; without it all
                answers are generated.
        """
        rows = [row for row, kind in enumerate(batch.kinds) if kind is not None]
        if not rows:
            return ()
        asked, ends = batch.take(rows), frozenset(decoding_end_ids(model, batch))
        where = _last_answers(asked)
        expected = _gather_tokens(asked.input_ids, where)
        likeliest = torch.zeros_like(where) if greedy is None else greedy[rows]
        tokens = self._decode(model, asked, expected, _gather_tokens(likeliest, where), ends)
        references, texts = _decode_texts(tokenizer, expected), _decode_texts(tokenizer, tokens)
        is_match = _MATCHES[self.match]
        answers: list[OpenAnswer] = []
        for number, ids in enumerate(tokens):
            text, reference = texts[number], references[number]
            answers.append(
                OpenAnswer(
                    sample_id=asked.sample_ids[number],
                    kind=cast(str, asked.kinds[number]),
                    reference=reference,
                    answer=text,
                    correct=ids[-1] in ends and is_match(text, reference),
                    first_token=ids[0],
                    picture=asked.pictures[number],
                )
            )
        return tuple(answers)

    def _decode(
        self,
        model: PreTrainedModel,
        asked: MultimodalBatch,
        expected: list[list[int]],
        likeliest: list[list[bool]],
        ends: frozenset[int],
    ) -> list[list[int]]:
        """Return the tokens of each answer, up to its end; known answers are not generated.

        Args:
            model: The MLLM.
            asked: The samples to answer.
            expected: Tokens of each reference.
            likeliest: Per token of a reference, whether it is the model's likeliest next token.
            ends: Ids that end an answer.
        """
        answers: dict[int, list[int]] = {}
        limits: dict[int, int] = {}  # row to generate -> number of tokens
        for row, reference in enumerate(expected):
            if _is_known(reference, likeliest[row], ends):
                answers[row] = reference
            else:
                limits[row] = len(reference) + self.spare_tokens
        if limits:
            prompts = asked.take(list(limits)).prompts()
            generated = decode_prompts(model, prompts, max(limits.values())).tolist()
            for row, new in zip(limits, generated, strict=True):
                answers[row] = new[: limits[row]]
        return [_cut_at_end(answers[row], ends) for row in range(len(expected))]


def _last_answers(batch: MultimodalBatch) -> Tensor:
    """Return where each sample's last answer is, its end included: (batch, sequence) bool."""
    after = torch.zeros_like(batch.attention_mask)
    after[:, 1:] = batch.spans[Segment.LAST].cumsum(dim=1)[:, :-1]  # 1 after LAST
    return (after * batch.attention_mask).bool()


def _gather_tokens(values: Tensor, kept: Tensor) -> list[list[Any]]:
    """Return each row's values where they are kept; both are (batch, sequence)."""
    return [row[mask].tolist() for row, mask in zip(values, kept, strict=True)]


def _is_known(expected: list[int], likeliest: list[bool], ends: frozenset[int]) -> bool:
    """Return whether the model gives an expected answer, up to its end, by greedy decoding."""
    answer = _cut_at_end(expected, ends)
    return bool(answer) and answer[-1] in ends and all(likeliest[: len(answer)])


def _cut_at_end(tokens: list[int], ends: frozenset[int]) -> list[int]:
    """Return the tokens up to and including the first that ends the answer."""
    for position, token in enumerate(tokens):
        if token in ends:
            return tokens[: position + 1]
    return tokens


def _decode_texts(tokenizer: PreTrainedTokenizerBase, answers: list[list[int]]) -> list[str]:
    return [text.strip() for text in tokenizer.batch_decode(answers, skip_special_tokens=True)]
