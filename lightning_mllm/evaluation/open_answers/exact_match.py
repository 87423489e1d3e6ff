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
or 8 bit, where the two ways to compute a logit round differently: an answer would have two chances.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.errors import ConfigError
from lightning_mllm.evaluation.classification.answer_parser import normalise
from lightning_mllm.evaluation.decoding import decode_answers, decoding_end_ids
from lightning_mllm.evaluation.prompt_pass import PromptPass
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
        return self.judge(PromptPass(model, batch), tokenizer, greedy)

    def judge(
        self, asked: PromptPass, tokenizer: PreTrainedTokenizerBase, greedy: Tensor | None = None
    ) -> tuple[OpenAnswer, ...]:
        """Do as `evaluate`, after a pass over the batch; it is not left as it was."""
        batch = asked.batch
        rows = [row for row, kind in enumerate(batch.kinds) if kind is not None]
        if not rows:
            return ()
        ends, where = frozenset(decoding_end_ids(asked.model, batch)), _last_answers(batch)
        expected = _gather_tokens(batch.input_ids, where)
        likeliest = torch.zeros_like(where) if greedy is None else greedy
        known = _gather_tokens(likeliest, where)
        tokens = self._decode(asked, rows, expected, known, ends)
        references = _decode_texts(tokenizer, [expected[row] for row in rows])
        texts, is_match = _decode_texts(tokenizer, tokens), _MATCHES[self.match]
        answers: list[OpenAnswer] = []
        for row, ids, text, reference in zip(rows, tokens, texts, references, strict=True):
            answers.append(
                OpenAnswer(
                    sample_id=batch.sample_ids[row],
                    kind=cast(str, batch.kinds[row]),
                    reference=reference,
                    answer=text,
                    correct=ids[-1] in ends and is_match(text, reference),
                    first_token=ids[0],
                    picture=batch.pictures[row],
                )
            )
        return tuple(answers)

    def _decode(
        self,
        asked: PromptPass,
        rows: Sequence[int],
        expected: list[list[int]],
        likeliest: list[list[bool]],
        ends: frozenset[int],
    ) -> list[list[int]]:
        """Return the tokens of some answers, up to their end; known ones are not generated.

        Args:
            asked: The samples.
            rows: Which of them to answer.
            expected: Tokens of each reference.
            likeliest: Per token of a reference, whether it is the model's likeliest next token.
            ends: Ids that end an answer.
        """
        answers: dict[int, list[int]] = {}
        limits: dict[int, int] = {}  # row to generate -> number of tokens
        for row in rows:
            if _is_known(expected[row], likeliest[row], ends):
                answers[row] = expected[row]
            else:
                limits[row] = len(expected[row]) + self.spare_tokens
        if limits:
            generated = decode_answers(asked.take(list(limits)), max(limits.values())).tolist()
            for row, new in zip(limits, generated, strict=True):
                answers[row] = new[: limits[row]]
        return [_cut_at_end(answers[row], ends) for row in rows]


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
