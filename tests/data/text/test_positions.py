"""Positions under M-RoPE are those that each family's own model computes."""

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel

from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.data import Collator, ConversationPrompt
from lightning_mllm.data.images.checkpoint_processor import CheckpointProcessor
from lightning_mllm.data.loading.batch import PaddingSide
from lightning_mllm.types import Sample, Segment, Turn
from tests.data.conftest import collate
from tests.support.families import FAMILIES, MROPE, ONE, TEXT, TURNS, WITHIN
from tests.support.feature_samples import picture

Processors = Callable[[Any], CheckpointProcessor]
Folders = Callable[[Any], str]

WIDE = Sample(  # its picture ends the prompt, and its longer side is that of the columns
    id="wide",
    images=[picture(8, (168, 56))],
    conversation=[
        Turn("user", "What is this: ", images=1, places=(14,)),
        Turn("assistant", "a long red line"),
    ],
)
SAMPLES = (WITHIN, TEXT, WIDE, TURNS, ONE)


@cache
def skeleton(folder: str) -> Any:
    """Return the family's own model without weights, to ask it for positions."""
    with torch.device("meta"):
        return AutoModel.from_config(AutoConfig.from_pretrained(folder))


def own_positions(folder: str, batch: MultimodalBatch) -> tuple[Tensor, Tensor]:
    """Return the model's own positions, (3, batch, sequence), and how far they end from tokens."""
    grids = [image["image_grid_thw"] for image in batch.images]
    positions, behind = skeleton(folder).get_rope_index(
        batch.input_ids,
        mm_token_type_ids=batch.spans[Segment.IMAGE].long(),
        image_grid_thw=torch.cat(grids) if grids else None,
        attention_mask=batch.attention_mask,
    )
    return positions, behind


def assert_own(folder: str, batch: MultimodalBatch) -> None:
    positions, behind = own_positions(folder, batch)
    real = batch.attention_mask.bool()
    ours = batch.text_inputs()["position_ids"]
    assert ours.shape == (3, *batch.input_ids.shape)
    assert torch.equal(ours[:, real], positions[:, real])
    after = batch.steps.sum(1, keepdim=True)
    assert torch.equal(after, real.sum(1, keepdim=True) + behind.view(-1, 1))


def batch_of(processor: CheckpointProcessor, side: PaddingSide = "right") -> MultimodalBatch:
    return collate(Collator(processor, ConversationPrompt(), padding_side=side), *SAMPLES)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", MROPE)
def test_positions_are_those_of_the_familys_own_model(
    family_processor: Processors, tiny_family: Folders, family: str, side: PaddingSide
) -> None:
    batch = batch_of(family_processor(family), side)

    assert_own(tiny_family(family), batch)
    assert_own(tiny_family(family), batch.prompts())


@pytest.mark.parametrize("family", MROPE)
def test_some_of_the_samples_keep_their_positions(
    family_processor: Processors, tiny_family: Folders, family: str
) -> None:
    batch = batch_of(family_processor(family))

    for rows in ([1], [3, 0], [1, 2, 3], [2, 2]):
        assert_own(tiny_family(family), batch.take(rows))
        assert_own(tiny_family(family), batch.prompts().take(rows))
    for part in batch.split(2):
        assert_own(tiny_family(family), part)


@pytest.mark.parametrize("family", MROPE)
def test_tokens_that_are_left_are_counted_again(
    family_processor: Processors, tiny_family: Folders, family: str
) -> None:
    """The text before an image goes, and the rows move to the other side."""
    batch = batch_of(family_processor(family), "left")
    length = batch.input_ids.shape[1]
    keeps = batch.attention_mask.bool() & (batch.attention_mask.cumsum(1) > 2)
    keeps[1, length // 2 :: 2] = False  # of the sample of text alone
    order = torch.argsort(~keeps, dim=1, stable=True)

    left = batch.gather(order, keeps.gather(1, order))

    assert int(left.attention_mask.sum()) == int(keeps.sum())
    assert_own(tiny_family(family), left)


@pytest.mark.parametrize("family", MROPE)
def test_an_image_takes_fewer_positions_than_it_has_tokens(
    family_processor: Processors, family: str
) -> None:
    """Positions of one axis would have the text go on behind all tokens of an image."""
    batch = batch_of(family_processor(family))
    one_axis = batch.attention_mask.cumsum(1) - 1

    moved = (batch.position_ids != one_axis) & batch.attention_mask.bool()

    assert moved.any(dim=2).all(dim=0).tolist() == [True, False, True, True, True]
    time, rows, columns = batch.position_ids[:, batch.spans[Segment.IMAGE]]
    assert not torch.equal(rows, time)
    assert not torch.equal(rows, columns)


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in MROPE])
def test_other_families_count_tokens(family_processor: Processors, family: str) -> None:
    processor = family_processor(family)
    collator = Collator(processor, ConversationPrompt(), padding_side="left")

    batch = collate(collator, ONE, TEXT)

    assert processor.family.axes == 1
    assert batch.position_ids[:, -1].tolist() == (batch.attention_mask.sum(1) - 1).tolist()
    assert batch.position_ids.shape == batch.input_ids.shape
