"""Classification by generation: the model's answer, greedy or sampled, and the class it names."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import torch
from transformers import PreTrainedTokenizerBase

from lightning_mllm.errors import ConfigError
from lightning_mllm.evaluation.classification.answer_parser import AnswerParser
from lightning_mllm.evaluation.classification.scorer import Predictions, Scorer
from lightning_mllm.evaluation.decoding import decode_answers
from lightning_mllm.evaluation.prompt_pass import PromptPass
from lightning_mllm.store.seeds import seed_of
from lightning_mllm.types import LabelSet

_LIMIT = 32  # tokens of an answer


@cache
def _parser(names: tuple[str, ...]) -> AnswerParser:
    return AnswerParser(names)


@dataclass(frozen=True)
class Generation(Scorer):
    """Decodes an answer, greedily by default, and reads the class from it with an `AnswerParser`.

    Attributes:
        max_new_tokens: Number of tokens at which an answer is cut; by default 32, or the length of
            the longest label if that is more.
        temperature: 0 for greedy decoding; above 0, answers are sampled from the whole softmax at
            this temperature.
        seed: Seed of the sampling; the answers of a batch depend only on it and on the ids and
            prompts of its samples.

    Raises:
        ConfigError: The temperature is negative or not finite, or answers would have no token.
    """

    name: ClassVar[str] = "generation"
    max_new_tokens: int | None = None
    temperature: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise ConfigError(
                f"Generation: max_new_tokens must be at least 1, not {self.max_new_tokens}; leave "
                "it out for answers as long as the labels need."
            )
        if not 0 <= self.temperature < math.inf:
            raise ConfigError(
                f"Generation: temperature must be a number of at least 0, not {self.temperature}."
            )

    def classify(
        self, asked: PromptPass, tokenizer: PreTrainedTokenizerBase, labels: LabelSet
    ) -> Predictions:
        """Decode an answer to each prompt and read the class from it; `scores` stays empty."""
        device = asked.batch.input_ids.device
        limit = self.max_new_tokens or max(_LIMIT, *map(len, labels.token_ids))
        with torch.random.fork_rng(
            [device] if device.type == "cuda" else [], enabled=self.temperature > 0
        ):
            if self.temperature > 0:
                torch.manual_seed(seed_of(self.seed, asked.batch.sample_ids))
            new_tokens = decode_answers(asked, limit, self.temperature)
        texts = tokenizer.batch_decode(new_tokens, skip_special_tokens=True)
        answers = tuple(text.strip() for text in texts)
        parser = _parser(labels.names)
        predicted = torch.tensor([parser.parse(answer) for answer in answers], device=device)
        return Predictions(answers, predicted)
