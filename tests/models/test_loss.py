from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy

from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.data import Collator, ConversationPrompt, load_processor
from lightning_mllm.data.loading.batch import PaddingSide
from lightning_mllm.models.backbone import Backbone, Part
from lightning_mllm.models.freeze import Everything, ProjectorOnly
from lightning_mllm.models.layers import decoder_layers
from lightning_mllm.models.loss import answer_loss, keep_in_graph, sharded_answer_loss
from lightning_mllm.types import IGNORE_INDEX, Sample, Turn
from tests.conftest import TinyBuilder
from tests.models.conftest import batch_of, digits, logits
from tests.support.loaded import load_copy


def _full_loss(backbone: Backbone, batch: MultimodalBatch) -> torch.Tensor:
    """The textbook form: logits everywhere, then a mask."""
    full = backbone.model(**batch.model_inputs()).logits[:, :-1]
    return cross_entropy(full.flatten(0, 1), batch.labels[:, 1:].flatten())


@pytest.mark.parametrize("family", ["llava", "llava_next"])
def test_logits_at_label_positions_give_the_loss_and_gradients_of_full_logits(
    tiny_checkpoint: TinyBuilder, family: str
) -> None:
    checkpoint = tiny_checkpoint(family, "vicuna")  # type: ignore[arg-type]
    backbone = load_copy(checkpoint, dtype=torch.float64)
    Everything().apply(backbone)
    batch = batch_of(checkpoint)

    ours = answer_loss(backbone, batch).mean
    ours.backward()
    gradients = {name: p.grad.clone() for name, p in backbone.parameters() if p.grad is not None}
    backbone.model.zero_grad()
    full = _full_loss(backbone, batch)
    full.backward()

    torch.testing.assert_close(ours.double(), full, rtol=1e-6, atol=1e-6)  # ours ends in float32
    assert gradients.keys() == {name for name, p in backbone.parameters() if p.requires_grad}
    for name, parameter in backbone.parameters():
        if name in gradients:
            torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-5, atol=1e-7)


def test_nothing_of_vocabulary_size_exists_for_prompt_positions(tiny_llava: str) -> None:
    backbone = load_copy(tiny_llava)
    batch = batch_of(tiny_llava)
    rows = []
    backbone.lm_head.register_forward_hook(
        lambda _module, _inputs, output: rows.append(output.shape[0])
    )

    loss = answer_loss(backbone, batch)

    assert rows == [int(loss.tokens)]


def test_greedy_marks_the_answer_tokens_that_are_the_likeliest_behind_what_stands_before_them(
    tiny_llava: str,
) -> None:
    backbone = load_copy(tiny_llava)
    batch = batch_of(tiny_llava)
    carries_loss = batch.labels != IGNORE_INDEX
    likeliest = logits(backbone, batch)[:, :-1].argmax(dim=-1)
    half = carries_loss & (torch.arange(carries_loss.shape[1]) % 2 == 0)
    labels = batch.labels.clone()
    # what stands there is not changed
    labels[:, 1:] = torch.where(half[:, 1:], likeliest, labels[:, 1:])

    greedy = answer_loss(backbone, replace(batch, labels=labels), with_greedy=True).greedy

    assert greedy is not None
    assert torch.equal(greedy[half], torch.ones_like(greedy[half]))
    assert torch.equal(greedy[:, 1:], carries_loss[:, 1:] & (likeliest == labels[:, 1:]))


@pytest.mark.parametrize("family", ["llava", "llava_next"])
@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_padding_and_batch_composition_do_not_change_a_samples_logits(
    tiny_checkpoint: TinyBuilder, family: str, padding_side: PaddingSide
) -> None:
    checkpoint = tiny_checkpoint(family, "vicuna")  # type: ignore[arg-type]
    backbone = load_copy(checkpoint)
    collator = Collator(load_processor(checkpoint), ConversationPrompt(), padding_side=padding_side)
    samples = [
        replace(
            sample,
            label=None,
            conversation=(
                Turn("user", "What is this? " * (k + 1), images=1),
                Turn("assistant", "a digit"),
            ),
        )
        for k, sample in enumerate(digits(checkpoint).samples["train"][:4])
    ]

    together = collator([(0, sample) for sample in samples])
    alone = [collator([(0, sample)]) for sample in samples]

    assert not together.attention_mask.bool().all()
    expected = torch.cat([_real(backbone, batch) for batch in alone])
    torch.testing.assert_close(_real(backbone, together), expected, rtol=1e-5, atol=1e-5)


def test_a_text_only_batch_reaches_the_projector_with_gradient_zero(tiny_llava: str) -> None:
    backbone = load_copy(tiny_llava)
    Everything().apply(backbone)
    collator = Collator(load_processor(tiny_llava), ConversationPrompt())
    batch = collator(
        [(0, Sample(id="0", conversation=(Turn("user", "Hello?"), Turn("assistant", "Hi."))))]
    )
    loss = answer_loss(backbone, batch).total

    kept = keep_in_graph(backbone, loss)
    kept.backward()

    assert torch.equal(kept, loss)
    for _, parameter in backbone.parameters(Part.PROJECTOR):
        assert parameter.grad is not None
        assert not parameter.grad.any()


def test_a_text_only_batch_goes_backwards_through_a_frozen_llm_that_is_sharded(
    tiny_llava: str,
) -> None:
    backbone = Backbone.from_pretrained(tiny_llava)
    ProjectorOnly().apply(backbone)
    collator = Collator(load_processor(tiny_llava), ConversationPrompt())
    turns = (Turn("user", "Hello?"), Turn("assistant", "Hi."))
    batch = collator([(0, Sample(id="0", conversation=turns))])
    reached: list[int] = []
    layers = decoder_layers(backbone)
    for index, layer in enumerate(layers):
        layer.register_full_backward_hook(lambda *_, index=index: reached.append(index))

    loss = sharded_answer_loss(backbone, batch)
    loss.backward()

    assert torch.equal(loss, answer_loss(backbone, batch).total)
    assert sorted(reached) == list(range(len(layers)))
    for _, parameter in backbone.parameters(Part.PROJECTOR):
        assert parameter.grad is not None
        assert not parameter.grad.any()


def test_a_micro_batch_without_labels_adds_nothing(tiny_llava: str) -> None:
    backbone = Backbone.from_pretrained(tiny_llava)
    Everything().apply(backbone)
    batch = batch_of(tiny_llava)

    loss = answer_loss(
        backbone, replace(batch, labels=torch.full_like(batch.labels, IGNORE_INDEX))
    ).total
    loss.backward()

    assert not loss.detach()
    assert not any(each.grad.any() for _, each in backbone.parameters() if each.grad is not None)


def _real(backbone: Backbone, batch: MultimodalBatch) -> torch.Tensor:
    """(real tokens, vocabulary), sample after sample."""
    return logits(backbone, batch)[batch.attention_mask.bool()]
