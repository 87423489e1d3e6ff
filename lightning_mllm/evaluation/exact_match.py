"""Open answers: what the model says, greedily, and whether it is the reference.

An answer is right if it ends and equals its reference, both normalised (case, outer quotes, a full stop, spacing). The
reference is decoded from the answer's own tokens, so that a model which says exactly what it was trained on is right.

No more is generated than can matter: an answer that goes on for some tokens behind its reference's length is wrong
whatever follows. Each sample has a limit of its own, and an answer that reaches it is wrong even if what is left equals
the reference ("red" of "red and blue"): so the score depends neither on the other samples of a batch nor on how far
they are decoded.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lightning_mllm.evaluation.answers import normalise
from lightning_mllm.evaluation.decoding import continue_prompts, end_ids
from lightning_mllm.types import MultimodalBatch, Segment


@dataclass(frozen=True)
class OpenAnswer:
    """What the model answers to a sample that has a kind.

    Attributes:
        sample_id: The sample's.
        kind: Its kind of question.
        reference: The right answer.
        answer: The model's, up to its end or to where it has gone on for too long.
        correct: Whether it ends and is the reference, both normalised.
    """

    sample_id: str
    kind: str
    reference: str
    answer: str
    correct: bool


@dataclass(frozen=True)
class ExactMatch:
    """Greedy decoding, and comparison with the reference.

    Attributes:
        spare_tokens: How many tokens an answer may be longer than its reference: quotes, a full stop, and rare tokens
            for unusual capitals.
    """

    spare_tokens: int = 8

    def evaluate(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch: MultimodalBatch
    ) -> tuple[OpenAnswer, ...]:
        """Answer the (last) question of every sample that has a kind; the others are left out."""
        kinds = {row: kind for row, kind in enumerate(batch.kinds) if kind is not None}
        if not kinds:
            return ()
        asked = batch.take(list(kinds))
        prompts, expected = asked.prompts(), _answer_ids(asked)
        limits = [len(ids) + self.spare_tokens for ids in expected]
        ends = frozenset(end_ids(model, prompts))
        new_tokens = continue_prompts(model, prompts, max(limits)).tolist()
        said = [_until_end(tokens[:limit], ends) for tokens, limit in zip(new_tokens, limits, strict=True)]

        references, answers = (_texts(tokenizer, ids) for ids in (expected, said))
        verdicts = [
            tokens[-1] in ends and normalise(answer) == normalise(reference)
            for tokens, answer, reference in zip(said, answers, references, strict=True)
        ]
        return tuple(map(OpenAnswer, asked.sample_ids, kinds.values(), references, answers, verdicts))


def _answer_ids(batch: MultimodalBatch) -> list[list[int]]:
    """Return the tokens of each sample's last answer, its end included."""
    behind = torch.zeros_like(batch.attention_mask)
    behind[:, 1:] = batch.spans[Segment.LAST].cumsum(dim=1)[:, :-1]  # 1 behind LAST
    kept = (behind * batch.attention_mask).bool()
    return [ids[mask].tolist() for ids, mask in zip(batch.input_ids, kept, strict=True)]


def _until_end(tokens: list[int], ends: frozenset[int]) -> list[int]:
    """Return the tokens up to the first that ends the answer, that one included."""
    length = next((count for count, token in enumerate(tokens, 1) if token in ends), len(tokens))
    return tokens[:length]


def _texts(tokenizer: PreTrainedTokenizerBase, answers: list[list[int]]) -> list[str]:
    return [text.strip() for text in tokenizer.batch_decode(answers, skip_special_tokens=True)]
