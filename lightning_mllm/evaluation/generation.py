"""Classification by what the model says: greedy generation, then the class that the answer names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lightning_mllm.evaluation.answers import AnswerParser
from lightning_mllm.evaluation.scoring import Predictions, Scorer
from lightning_mllm.types import LabelSet, MultimodalBatch

_SLACK = 4  # tokens beyond the longest label: a leading article, a quote, a full stop
_LIMIT = 32


@dataclass(frozen=True)
class Generation(Scorer):
    """Greedy decoding and an `AnswerParser`.

    Attributes:
        max_new_tokens: Length at which an answer is cut; by default four tokens more than the longest label has, but
            no more than 32 unless the label itself is longer.
    """

    name: ClassVar[str] = "generation"
    max_new_tokens: int | None = None

    @torch.no_grad()
    def predict(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch: MultimodalBatch, labels: LabelSet
    ) -> Predictions:
        """Generate an answer to each prompt and read the class from it; `scores` stays empty."""
        prompts = batch.prompts()
        generate: Callable[..., Tensor] = model.generate  # type: ignore[assignment]  # a mixin's
        tokens = generate(  # (batch, prompt + new)
            input_ids=prompts.input_ids,
            attention_mask=prompts.attention_mask,
            **prompts.vision,
            **self._options(model, prompts, labels),
        )
        new_tokens = tokens[:, prompts.input_ids.shape[1] :]
        answers = tuple(text.strip() for text in tokenizer.batch_decode(new_tokens, skip_special_tokens=True))
        parser = AnswerParser(labels.names)
        predicted = torch.tensor([parser.parse(answer) for answer in answers], device=prompts.input_ids.device)
        return Predictions(answers, predicted)

    def _options(self, model: PreTrainedModel, prompts: MultimodalBatch, labels: LabelSet) -> dict[str, Any]:
        ends = model.generation_config.eos_token_id
        ends = [ends] if isinstance(ends, int) else list(ends or ())
        longest = max(map(len, labels.token_ids))
        return {
            "max_new_tokens": self.max_new_tokens or max(longest, min(longest + _SLACK, _LIMIT)),
            "do_sample": False,
            "num_beams": 1,
            "pad_token_id": prompts.pad_id,
            "eos_token_id": sorted({*ends, prompts.end_id}),
        }
