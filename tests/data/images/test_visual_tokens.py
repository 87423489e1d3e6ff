"""Processors that count visual tokens otherwise than their model makes features."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText

from lightning_mllm.data import Collator, ConversationPrompt, load_processor
from lightning_mllm.errors import CheckpointError
from tests.conftest import FamilyBuilder, TinyBuilder
from tests.data.conftest import chat_sample, collate
from tests.data.images.test_processor import copy

PARTS = {"image_processor", "video_processor", "processor_class"}


def edit(path: str, change: dict[str, Any], part: str | None = None) -> None:
    """Set keys of a processor_config.json; None removes one."""
    file = Path(path, "processor_config.json")
    config = json.loads(file.read_text())
    target = config[part] if part else config
    target.update(change)
    for key in [key for key, value in target.items() if value is None]:
        del target[key]
    file.write_text(json.dumps(config))


@pytest.mark.parametrize("family", ["llava", "llava_next"])
@pytest.mark.parametrize(
    "change",
    [
        {"num_additional_image_tokens": None},
        {"vision_feature_select_strategy": None},
        {"patch_size": None},
        {
            "patch_size": None,
            "vision_feature_select_strategy": None,
            "num_additional_image_tokens": None,
        },
        {"patch_size": 14},
    ],
    ids="-".join,
)
def test_a_processor_counts_as_its_model_does(
    tiny_checkpoint: TinyBuilder,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    family: Any,
    change: dict[str, Any],
) -> None:
    original = tiny_checkpoint(family, "vicuna")
    path = copy(original, tmp_path / "legacy")
    edit(path, change)

    with caplog.at_level(logging.WARNING):
        processor = load_processor(path)

    assert (
        len(
            [
                record
                for record in caplog.records
                if "taken from the model's config" in record.message
            ]
        )
        == 1
    )
    assert all(key in caplog.text for key in change)
    batch = collate(Collator(processor, ConversationPrompt()), chat_sample())
    with torch.no_grad():
        model = AutoModelForImageTextToText.from_pretrained(original)
        assert (
            model(**batch.model_inputs()).logits.isfinite().all()
        )  # transformers compares the counts


def test_tiles_are_cut_where_the_model_expects_them(
    tiny_llava_next: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = copy(tiny_llava_next, tmp_path / "other")
    edit(path, {"image_grid_pinpoints": [[56, 56]]}, "image_processor")

    with caplog.at_level(logging.WARNING):
        processor = load_processor(path)

    assert len(processor.image_processor.image_grid_pinpoints) == 5
    assert "image_grid_pinpoints [[56, 56]] ->" in caplog.text


def test_a_sound_processor_is_left_as_it_is(
    tiny_llava_next: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        load_processor(tiny_llava_next)
    assert not caplog.records


def test_pictures_of_another_size_are_refused(tiny_llava: str, tmp_path: Path) -> None:
    path = copy(tiny_llava, tmp_path / "other")
    edit(path, {"crop_size": {"height": 56, "width": 56}}, "image_processor")

    with pytest.raises(
        CheckpointError,
        match=r"of crop_size {'height': 56, 'width': 56}, but .* takes 28 x 28 pixels",
    ):
        load_processor(path)


@pytest.mark.parametrize(
    ("family", "change"),
    [
        ("llava_dinov2", {"patch_size": None}),
        ("llava_vit", {"num_additional_image_tokens": 0}),
        ("llava_siglip", {"num_additional_image_tokens": 1}),
        ("granite_vision", {"vision_feature_select_strategy": "default"}),
        ("llava_onevision", {"num_image_tokens": None, "vision_feature_select_strategy": None}),
        ("llava_onevision", {"vision_aspect_ratio": "anyres_max_4"}),
    ],
    ids=str,
)
def test_towers_of_other_kinds_are_counted_as_their_model_does(
    tiny_family: FamilyBuilder,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    family: str,
    change: dict[str, Any],
) -> None:
    path = copy(tiny_family(family), tmp_path / "legacy")
    edit(path, change)

    with caplog.at_level(logging.WARNING):
        repaired = load_processor(path)

    assert all(f"{key} {value!r} ->" in caplog.text for key, value in change.items())
    sound = load_processor(tiny_family(family))
    assert repaired.hf.to_dict() == sound.hf.to_dict()
    assert len([r for r in caplog.records if "taken from the model's config" in r.message]) == 1


@pytest.mark.parametrize(
    "family", ["vipllava", "llava_pixtral", "mistral3", "internvl", "qwen2_vl"]
)
def test_what_does_not_count_by_a_strategy_is_left_alone(
    tiny_family: FamilyBuilder, caplog: pytest.LogCaptureFixture, family: str
) -> None:
    processor = load_processor(tiny_family(family))

    assert not caplog.records
    written = json.loads(Path(tiny_family(family), "processor_config.json").read_text())
    own = processor.hf.to_dict()
    assert all(own[name] == written[name] for name in written.keys() & own.keys() - PARTS)
