"""Operations are those that a formula gives, and what is skipped is not among them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lightning_mllm.analysis.forward.decoder_costs import DecoderPassCosts
from lightning_mllm.analysis.skipping.skip import Skip
from lightning_mllm.analysis.skipping.skipping import skipped
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.types import Segment
from tests.support.decoders import LAYERS, make_backbone, make_batch

WIDTH, MLP, KEYS = 64, 256, 32  # of the tiny checkpoint; two key heads for four heads
FFN = 2 * 3 * WIDTH * MLP  # operations per token: gate, up and down
PROJECTIONS = 2 * (2 * WIDTH * WIDTH + 2 * WIDTH * KEYS)


def attention(queries: int, keys: int) -> int:
    return 2 * 2 * queries * keys * WIDTH  # scores, and what they mix


@pytest.fixture
def backbone(tiny_llava: str) -> Backbone:
    return make_backbone(tiny_llava, dtype=torch.float32)


@pytest.fixture
def once(backbone: Backbone, tiny_llava: str) -> DecoderPassCosts[Skip]:
    return DecoderPassCosts.of(backbone, make_batch(tiny_llava, numbers=(0, 1)), skipped).alone(1)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_all_matrix_products_are_counted(tiny_llava: str, implementation: str) -> None:
    backbone = make_backbone(tiny_llava, implementation, torch.float32)
    once = DecoderPassCosts.of(backbone, make_batch(tiny_llava, numbers=(0,)), skipped)
    length = once.position_ids.shape[1]

    assert once.flops(backbone) == LAYERS * (
        length * (PROJECTIONS + FFN) + attention(length, length)
    )


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_a_share_of_the_tokens_saves_their_ffn(
    backbone: Backbone, once: DecoderPassCosts[Skip], share: float
) -> None:
    image = int(once.tokens.perceptual.sum())

    saved = once.flops(backbone) - once.flops(backbone, Skip(share=share, start=1))

    assert saved == (LAYERS - 1) * int(share * image) * FFN


def test_a_skipped_block_saves_all_but_what_the_others_compute(
    backbone: Backbone, once: DecoderPassCosts[Skip]
) -> None:
    length, image = once.position_ids.shape[1], int(once.tokens.perceptual.sum())
    kept = length - image // 2
    skip = Skip(computation="block", share=0.5, start=3)

    saved = once.flops(backbone) - once.flops(backbone, skip)

    assert saved == (length - kept) * (PROJECTIONS + FFN) + attention(length, length) - attention(
        kept, length
    )
    seen = once.flops(backbone, replace(skip, visible=True)) - once.flops(backbone, skip)
    assert seen == (length - kept) * 2 * 2 * WIDTH * KEYS  # their keys and values


def test_a_parallel_layer_saves_nothing(backbone: Backbone, once: DecoderPassCosts[Skip]) -> None:
    skip = Skip(computation="parallel", share=1.0, tokens="all", phase="both")

    assert once.flops(backbone, skip) == once.flops(backbone)


def test_padding_costs_a_sample_nothing(backbone: Backbone, tiny_llava: str) -> None:
    batch = make_batch(tiny_llava, "right", numbers=(0, 1))
    alone = make_batch(tiny_llava, "left", numbers=(0,))

    padded, own = (
        DecoderPassCosts.of(backbone, batch, skipped).alone(0),
        DecoderPassCosts.of(backbone, alone, skipped),
    )

    torch.testing.assert_close(padded.embeddings, own.embeddings)
    assert torch.equal(
        padded.tokens.perceptual[:, : own.tokens.perceptual.shape[1]], own.tokens.perceptual
    )
    for skip in (None, Skip(), Skip(computation="attention", tokens="all", phase="both")):
        assert padded.flops(backbone, skip) == own.flops(backbone, skip)


def test_the_decoder_gets_what_it_gets_in_the_model(backbone: Backbone, tiny_llava: str) -> None:
    batch = make_batch(tiny_llava)
    encoded = backbone.encode_images(batch.images)

    embeddings = DecoderPassCosts.of(backbone, batch, skipped).embeddings

    tokens = torch.cat([image.tokens for image in encoded])
    torch.testing.assert_close(embeddings[batch.spans[Segment.IMAGE]], tokens)


def test_each_has_its_time(backbone: Backbone, once: DecoderPassCosts[Skip]) -> None:
    times = once.seconds(backbone, [None, Skip(), Skip(computation="block")], repetitions=2)

    assert len(times) == 3
    assert min(times) > 0
