"""Next-token loss with logits only where a label is."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.models.backbone import Backbone, Part
from lightning_mllm.models.hooks import hook_result
from lightning_mllm.types import IGNORE_INDEX


@dataclass(frozen=True)
class AnswerLoss:
    """Summed loss of a batch.

    Attributes:
        total: Scalar, the sum of the cross-entropies of all answer tokens, in nats, float32.
        tokens: Scalar, the number of those tokens.
        greedy: (batch, sequence) bool, the answer tokens that are the model's likeliest next token
            given all tokens before them; None if it was not asked for.
    """

    total: Tensor
    tokens: Tensor
    greedy: Tensor | None = None

    @property
    def mean(self) -> Tensor:
        """Mean loss per answer token."""
        return self.total / self.tokens


def answer_loss(
    backbone: Backbone,
    batch: MultimodalBatch,
    *,
    with_greedy: bool = False,
    hidden: Tensor | None = None,
) -> AnswerLoss:
    """Compute the cross-entropy of the answer tokens, each given all tokens before it.

    The decoder runs over the whole sequence, the head only over the (answer tokens, width) states
    that predict a label: nothing of vocabulary size exists for prompt, image or padding positions.
    Loss and gradients are those of the full (batch, sequence, vocabulary) logits.

    Args:
        backbone: The model.
        batch: Prompts and answers.
        with_greedy: Whether to return which answer tokens are the likeliest.
        hidden: (batch, sequence, width), the decoder's last states of the batch, where they are
            known.
    """
    if hidden is None:
        output = backbone.model.base_model(**batch.model_inputs(), use_cache=False)
        hidden = output.last_hidden_state
        assert hidden is not None
    next_tokens = batch.labels[:, 1:]
    carries_loss = next_tokens != IGNORE_INDEX
    logits = backbone.logits(hidden[:, :-1][carries_loss])  # (answer tokens, vocabulary)
    expected = next_tokens[carries_loss]
    total = cross_entropy(logits.float(), expected, reduction="sum")
    greedy = None
    if with_greedy:
        greedy = torch.zeros_like(batch.labels, dtype=torch.bool)
        greedy[:, 1:][carries_loss] = logits.argmax(dim=1) == expected
    return AnswerLoss(total, carries_loss.sum(), greedy)


def keep_in_graph(backbone: Backbone, value: Tensor) -> Tensor:
    """Add trained vision and projector weights, times 0, to a value of a batch without images.

    Without this, such a batch would give them no gradient at all instead of a zero gradient: the
    optimiser would skip them, and under DDP the other processes would wait for ever.
    """
    before_llm = backbone.parameters(Part.VISION, Part.VISION_LORA, Part.PROJECTOR)
    unused = [parameter for _, parameter in before_llm if parameter.requires_grad]
    return value + sum((0.0 * parameter.sum() for parameter in unused), torch.zeros_like(value))


def sharded_answer_loss(backbone: Backbone, batch: MultimodalBatch) -> Tensor:
    """Return `AnswerLoss.total` of a model that is sharded, in a forward of it.

    A process without an image must go backwards through as many layers as the others, which would
    wait for it for ever: also a frozen LLM takes a gradient at its input then.
    """
    if batch.images:
        return answer_loss(backbone, batch).total
    embedding = backbone.model.get_input_embeddings()
    with hook_result(embedding, lambda embedded: keep_in_graph(backbone, embedded)):
        return answer_loss(backbone, batch).total
