"""Which class a sample is of: its right answer, or its kind of question."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from transformers import PreTrainedTokenizerBase

from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.evaluation.classification.answer_parser import normalise
from lightning_mllm.statistics.question_table import kind_in_question_table
from lightning_mllm.types import Segment

ClassBy = Literal["answer", "kind"]


@dataclass(frozen=True)
class SampleClasses:
    """The classes of a batch's samples.

    Attributes:
        names: Class of each sample: its right answer in lower case, or its kind.
        first_tokens: Id of the token with which each right answer begins; -1 without one.
    """

    names: tuple[str, ...]
    first_tokens: tuple[int, ...]

    @classmethod
    def of(
        cls,
        batch: MultimodalBatch,
        tokenizer: PreTrainedTokenizerBase,
        by: ClassBy = "answer",
        kind_depth: int | None = None,
    ) -> SampleClasses:
        """Find the classes of a batch with answers.

        Args:
            batch: Samples, not only their prompts.
            tokenizer: The model's tokenizer.
            by: What tells classes apart.
            kind_depth: How many parts of a kind's name, between slashes, tell kinds apart.
        """
        last = batch.spans[Segment.LAST].int()
        after = ((last.cumsum(1) - last) * batch.attention_mask).bool()
        answers = [ids[mask].tolist() for ids, mask in zip(batch.input_ids, after, strict=True)]
        names: Sequence[str]
        if by == "answer":
            texts = tokenizer.batch_decode(answers, skip_special_tokens=True)
            names = [normalise(text.strip()) for text in texts]
        else:
            names = [kind_in_question_table(kind or "", kind_depth) for kind in batch.kinds]
        return cls(tuple(names), tuple(ids[0] if ids else -1 for ids in answers))
