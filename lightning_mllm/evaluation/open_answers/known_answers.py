"""What a model answers, found out once for all who ask."""

from __future__ import annotations

from collections import defaultdict

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lightning_mllm.evaluation.open_answers.exact_match import ExactMatch, OpenAnswer
from lightning_mllm.types import MultimodalBatch


class KnownAnswers:
    """The answers of one model, whose weights stay as they are, to the samples of one split: each is generated once."""

    def __init__(self) -> None:
        self._by_judge: defaultdict[ExactMatch, dict[str, OpenAnswer]] = defaultdict(dict)

    def of(
        self, judge: ExactMatch, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch: MultimodalBatch
    ) -> dict[str, OpenAnswer]:
        """Return sample id -> answer of the samples of a batch that have a kind.

        Args:
            judge: Says which answers are right; what another one has said counts for nothing.
            model: The MLLM.
            tokenizer: Its tokenizer.
            batch: Prompts and references.
        """
        known = self._by_judge[judge]
        if new := [row for row, sample_id in enumerate(batch.sample_ids) if sample_id not in known]:
            answers = judge.evaluate(model, tokenizer, batch.take(new))
            known.update((answer.sample_id, answer) for answer in answers)
        return {sample_id: known[sample_id] for sample_id in batch.sample_ids if sample_id in known}
