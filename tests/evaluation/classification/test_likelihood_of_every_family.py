"""Packed label scores are those of one forward per label, for every family, or are refused."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import AutoTokenizer, PreTrainedModel

from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.errors import ConfigError
from lightning_mllm.evaluation import Likelihood
from lightning_mllm.models.tiny import build_tiny_checkpoint
from lightning_mllm.types import LabelSet
from tests.support.tiny_families import ANSWERS, TINY_FAMILIES, open_backbone, unequal_pictures

REFUSED = {"gemma3_narrow": "a sliding window of 8", "qwen3_5": "have no keys: linear attention"}


@torch.no_grad()
def score_labels_separately(
    model: PreTrainedModel, batch: MultimodalBatch, labels: LabelSet
) -> Tensor:
    """One forward of the model over prompt and label for each label, (batch, classes)."""
    scores = []
    for token_ids in labels.token_ids:
        new = len(token_ids)
        prompts = batch.prompts()
        longer = replace(
            prompts,
            input_ids=torch.cat([prompts.input_ids, _repeat(token_ids, len(batch))], dim=1),
            attention_mask=pad(prompts.attention_mask, (0, new), value=1),
            spans=prompts.spans.map(partial(pad, pad=(0, new), value=False)),
            steps=pad(prompts.steps, (0, new), value=1),
            offsets=None if prompts.offsets is None else pad(prompts.offsets, (0, new)),
        )
        logits = model(**longer.model_inputs()).logits[:, -new - 1 : -1].double().log_softmax(-1)
        own = _repeat(token_ids, len(batch))[..., None]
        scores.append(logits.gather(2, own).sum(dim=(1, 2)))
    return torch.stack(scores, dim=1)


def _repeat(token_ids: tuple[int, ...], rows: int) -> Tensor:
    return torch.tensor(token_ids).expand(rows, -1)


@pytest.mark.slow
@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_packed_labels_score_as_one_forward_each_or_are_refused(
    family: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("families") / family
    checkpoint = str(build_tiny_checkpoint(folder, family))
    model, batch = open_backbone(checkpoint).model, unequal_pictures(checkpoint)
    tokenizer: Any = AutoTokenizer.from_pretrained(checkpoint)
    ids = tokenizer([f" {answer}" for answer in ANSWERS], add_special_tokens=False)["input_ids"]
    labels = LabelSet(ANSWERS, tuple(tuple(each) for each in ids))

    if family in REFUSED:
        with pytest.raises(ConfigError, match=REFUSED[family]):
            Likelihood().predict(model, tokenizer, batch, labels)
        return
    for limit in (1024, 3):
        scores = Likelihood(limit).predict(model, tokenizer, batch, labels).scores
        assert scores is not None
        expected = score_labels_separately(model, batch, labels)
        torch.testing.assert_close(scores.double(), expected, rtol=0, atol=1e-5)
