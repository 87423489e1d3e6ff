"""Keeps the answers of a model, so that several analyses do not generate them again."""

from __future__ import annotations

from collections import defaultdict

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.evaluation.open_answers.exact_match import ExactMatch, OpenAnswer


class KnownAnswers:
    """The answers of one model, whose weights do not change, to a split: each is generated once."""

    def __init__(self) -> None:
        self._by_judge: defaultdict[ExactMatch, dict[str, OpenAnswer]] = defaultdict(dict)

    def of(
        self,
        judge: ExactMatch,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        batch: MultimodalBatch,
    ) -> dict[str, OpenAnswer]:
        """Return sample id -> answer of the samples of a batch that have a kind.

        Args:
            judge: Decides which answers are right; answers of another judge are not used.
            model: The MLLM.
            tokenizer: The model's tokenizer.
            batch: Prompts and references.
        """
        known = self._by_judge[judge]
        new = [row for row, sample_id in enumerate(batch.sample_ids) if sample_id not in known]
        if new:
            for answer in judge.evaluate(model, tokenizer, batch.take(new)):
                known[answer.sample_id] = answer
        return {sample_id: known[sample_id] for sample_id in batch.sample_ids if sample_id in known}
