"""At the last layer a lens is the model, whatever that does to the logits of its head."""

from __future__ import annotations

import json

import torch
from torch import Tensor

from lightning_mllm.analysis import AnswerLens
from lightning_mllm.analysis.core.token_sets import TokenSets
from lightning_mllm.analysis.forward.float32_head import next_token_head_logits
from lightning_mllm.analysis.lens.vocabulary import Vocabulary
from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.models.hooks import hook_outputs
from lightning_mllm.models.layers import decoder_layers
from lightning_mllm.types import Segment
from tests.conftest import FamilyBuilder
from tests.support.family_questions import ask, load
from tests.support.questions import tokenizer


@torch.no_grad()
def own_logits(backbone: Backbone, batch: MultimodalBatch) -> Tensor:
    """Return the model's own logits, which are not those of its head."""
    of_head: list[Tensor] = []
    with hook_outputs({0: backbone.lm_head}, lambda _, logits: of_head.append(logits)):
        own: Tensor = backbone.model(**batch.model_inputs()).logits
    assert (of_head[0] - own).abs().amax() > 0.1
    return own


def test_what_leaves_the_last_layer_says_what_the_model_says(tiny_family: FamilyBuilder) -> None:
    backbone, batch = (
        load(tiny_family("paligemma2"), "eager", torch.float32),
        ask(tiny_family("paligemma2")),
    )
    leaving: list[Tensor] = []
    last = decoder_layers(backbone)[-1]

    with hook_outputs({0: last}, lambda _, states: leaving.append(states)):
        expected = own_logits(backbone, batch)

    with torch.no_grad():
        found = next_token_head_logits(backbone, leaving[0])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_the_answer_lens_reads_the_model_s_own_distribution(tiny_family: FamilyBuilder) -> None:
    checkpoint = tiny_family("paligemma2")
    backbone, batch = load(checkpoint, "eager", torch.float32), ask(checkpoint)
    expected = own_logits(backbone, batch)[batch.spans[Segment.LAST]].softmax(-1).topk(3).values
    lens = AnswerLens(correct_only=False, top=3)
    lens.prepare(tokenizer(checkpoint))

    lens.update(backbone, batch)

    table = lens.rows.table()
    at_last = table["layer"] == len(decoder_layers(backbone))
    found = [json.loads(cell) for cell in table["top_probabilities"][at_last]]
    torch.testing.assert_close(torch.tensor(found), expected, rtol=1e-3, atol=1e-4)


def test_the_vocabulary_is_that_of_the_model_s_own_distribution(tiny_family: FamilyBuilder) -> None:
    checkpoint = tiny_family("paligemma2")
    backbone, batch = load(checkpoint, "eager", torch.float32), ask(checkpoint)
    sets = TokenSets(sink_ratio=None)
    masks = sets.of(batch)
    own = own_logits(backbone, batch).double().log_softmax(-1)
    entropies = -(own.exp() * own).sum(-1)
    depth = len(decoder_layers(backbone))
    words = Vocabulary(layers=[depth], gaps=(), sets=sets)
    words.prepare(tokenizer(checkpoint))

    found = words.measure(backbone, batch, masks)["numbers"][:, 0, -2:]  # of both sets

    expected = (entropies[:, None] * masks).sum(-1) / masks.sum(-1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
