"""A LLaVA with a SigLIP tower is counted, squared, tapped and trained like one with CLIP's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import SiglipImageProcessorPil

from lightning_mllm.data import Collator, ConversationPrompt, Digits, load_processor
from lightning_mllm.data.images.geometry import Geometry, GeometryName, apply_geometry, fill_colour
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.models.loss import answer_loss
from lightning_mllm.models.module import MLLMModule
from lightning_mllm.trainer import Trainer
from lightning_mllm.types import Segment
from tests.data.conftest import chat_sample, collate, picture
from tests.models.conftest import batch_of
from tests.models.test_backbone import fed_to_the_llm
from tests.support.siglip_checkpoints import build_siglip_llava

SIZES = ((28, 28), (90, 30), (31, 64), (900, 6))
PATCHES = {"full": 16, "default": 15}  # "default" leaves the first vector out, whatever the tower


@pytest.fixture(scope="module", params=["full", "default"])
def siglip(
    request: pytest.FixtureRequest, tiny_llava: str, tmp_path_factory: pytest.TempPathFactory
) -> str:
    return build_siglip_llava(
        tiny_llava, tmp_path_factory.mktemp("siglip") / request.param, request.param
    )


@pytest.mark.parametrize("geometry", ["pad", "crop", "squash"])
def test_what_is_counted_is_what_the_model_reads(siglip: str, geometry: GeometryName) -> None:
    collator = Collator(load_processor(siglip), ConversationPrompt(), geometry=geometry)

    counts = {len(collator.find_image_text(size)) for size in SIZES}
    batch = collate(collator, chat_sample())

    assert counts == {PATCHES[siglip.rpartition("/")[2]]}
    with torch.no_grad():
        assert (
            Backbone.from_pretrained(siglip).model(**batch.model_inputs()).logits.isfinite().all()
        )
    assert int(batch.spans[Segment.IMAGE].sum()) == sum(batch.image_counts) * counts.pop()


@pytest.mark.parametrize("geometry", [Geometry.PAD, Geometry.CROP, Geometry.SQUASH])
def test_a_picture_is_made_square_once_and_nothing_is_cropped_behind_it(
    siglip: str, geometry: Geometry
) -> None:
    image_processor: Any = load_processor(siglip).image_processor
    untouched: Any = SiglipImageProcessorPil(size={"height": 28, "width": 28})

    prepared = apply_geometry(picture(90, 30), geometry, image_processor)

    found, expected = (
        processor([prepared], return_tensors="np")["pixel_values"]
        for processor in (image_processor, untouched)
    )
    assert np.array_equal(found, expected)
    assert fill_colour(image_processor) == (127, 127, 127)
    assert (
        prepared.size
        == {Geometry.PAD: (90, 90), Geometry.CROP: (30, 30), Geometry.SQUASH: (90, 30)}[geometry]
    )


def test_the_tower_is_tapped_as_the_model_taps_it(siglip: str) -> None:
    backbone, batch = Backbone.from_pretrained(siglip), batch_of(siglip)
    for parameter in backbone.model.parameters():
        parameter.requires_grad_(True)

    answer_loss(backbone, batch).mean.backward()
    with torch.no_grad():
        encoded = torch.cat([image.tokens for image in backbone.encode_images(batch.images)])
        states = backbone.vision_path.observe(batch.images)[0]

    assert torch.equal(encoded, fed_to_the_llm(backbone, batch))
    assert backbone.idle_parameters() == {
        name for name, parameter in backbone.model.named_parameters() if parameter.grad is None
    }
    assert backbone.vision_path.class_token(states.tower) is None


def test_it_is_fitted(siglip: str, tmp_path: Path) -> None:
    trainer = Trainer(
        logger=False,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_checkpointing=False,
        limit_train_batches=2,
        limit_val_batches=1,
    )
    module = MLLMModule(siglip)

    trainer.fit(module, datamodule=Digits(checkpoint=siglip, batch_size=4, eval_batch_size=4))

    assert trainer.global_step == 2
    assert trainer.callback_metrics["val/loss"].isfinite()
