"""Classification by what the model says: its answer, greedy or sampled, and the class that the answer names."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lightning_mllm.errors import ConfigError
from lightning_mllm.evaluation.answers import AnswerParser
from lightning_mllm.evaluation.scoring import Predictions, Scorer
from lightning_mllm.types import LabelSet, MultimodalBatch

_LIMIT = 32


@cache
def _parser(names: tuple[str, ...]) -> AnswerParser:
    return AnswerParser(names)


@dataclass(frozen=True)
class Generation(Scorer):
    """Decoding, greedy by default, and an `AnswerParser`.

    Attributes:
        max_new_tokens: Length at which an answer is cut; by default 32, or the longest label's if that is more.
        temperature: 0 for greedy decoding; above, answers are sampled from the whole softmax at this temperature.
        seed: Of the sampling; a batch's answers depend on it, the ids and the prompts of its samples alone.
    """

    name: ClassVar[str] = "generation"
    max_new_tokens: int | None = None
    temperature: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise ConfigError(f"Generation: temperature must be a number of at least 0, not {self.temperature}.")

    @torch.no_grad()
    def predict(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch: MultimodalBatch, labels: LabelSet
    ) -> Predictions:
        """Generate an answer to each prompt and read the class from it; `scores` stays empty."""
        prompts = batch.prompts()
        generate: Callable[..., Tensor] = model.generate  # type: ignore[assignment]  # a mixin's
        device = prompts.input_ids.device
        with torch.random.fork_rng([device] if device.type == "cuda" else [], enabled=self.temperature > 0):
            if self.temperature > 0:
                torch.manual_seed(random.Random(f"{self.seed}/{batch.sample_ids}").getrandbits(63))
            tokens = generate(  # (batch, prompt + new)
                input_ids=prompts.input_ids,
                attention_mask=prompts.attention_mask,
                **prompts.vision,
                **self._options(model, prompts, labels),
            )
        new_tokens = tokens[:, prompts.input_ids.shape[1] :]
        answers = tuple(text.strip() for text in tokenizer.batch_decode(new_tokens, skip_special_tokens=True))
        parser = _parser(labels.names)
        predicted = torch.tensor([parser.parse(answer) for answer in answers], device=prompts.input_ids.device)
        return Predictions(answers, predicted)

    def _options(self, model: PreTrainedModel, prompts: MultimodalBatch, labels: LabelSet) -> dict[str, Any]:
        ends = model.generation_config.eos_token_id
        ends = [ends] if isinstance(ends, int) else list(ends or ())
        longest = max(map(len, labels.token_ids))
        sampling = {"temperature": self.temperature, "top_k": 0, "top_p": 1.0, "typical_p": 1.0}
        return {  # all that the checkpoint's generation config could say otherwise is said here
            "max_new_tokens": self.max_new_tokens or max(longest, _LIMIT),
            "min_length": 0,
            "do_sample": self.temperature > 0,
            **(sampling if self.temperature > 0 else {}),
            "num_beams": 1,
            "repetition_penalty": 1.0,
            "no_repeat_ngram_size": 0,
            "pad_token_id": prompts.pad_id,
            "eos_token_id": sorted({*ends, prompts.end_id}),
        }
