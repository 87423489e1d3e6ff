"""Types that can't be worked with are refused by name, before anything but config.json is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig
from transformers.models.auto.image_processing_auto import (  # type: ignore[attr-defined]
    IMAGE_PROCESSOR_MAPPING_NAMES,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from lightning_mllm.data import load_processor
from lightning_mllm.data.images import processor as processor_module
from lightning_mllm.errors import CheckpointError
from lightning_mllm.families import FAMILIES
from lightning_mllm.families.refused import REFUSED
from lightning_mllm.models.backbone import Backbone

KNOWN = set(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)
# the image processors that their own checkpoints name: Qwen2-VL's and GLM-4V's
NAMED_IN_THE_FILES = {"qwen3_vl_moe", "glm4v_moe", "glm_ocr"}


def test_the_table_names_types_of_transformers_that_are_no_family() -> None:
    assert set(REFUSED) <= KNOWN
    assert not set(REFUSED) & set(FAMILIES)


def test_torchvision_is_named_where_there_is_no_pil_image_processor() -> None:
    without_pil = {
        name
        for name in KNOWN & set(IMAGE_PROCESSOR_MAPPING_NAMES)
        if not IMAGE_PROCESSOR_MAPPING_NAMES[name].get("pil")
    }

    assert without_pil <= set(REFUSED)
    needing = {name for name, why in REFUSED.items() if "pixels with torchvision only" in why}
    assert needing == without_pil - {"perception_lm", "pi0", "pp_formulanet"}


@pytest.mark.parametrize(
    ("model_type", "why"),
    [
        ("llama4", "pixels with torchvision only"),
        ("kimi_k25", "pixels with torchvision only"),
        ("gemma3n", "timm, which needs torchvision"),
        ("mllama", "images are not tokens of its decoder"),
        ("florence2", "images are not tokens of its decoder"),
        ("blip-2", "Q-Former"),
        ("fuyu", "no vision tower"),
        ("llama", "text-only model"),
        ("glm5_next", r"another family.*docs/add_a_family\.md"),
    ],
)
def test_data_and_model_refuse_a_type_with_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_type: str, why: str
) -> None:
    config: Any = AutoConfig.for_model(model_type)
    config.save_pretrained(tmp_path)
    monkeypatch.setattr(
        processor_module, "open_processor", lambda *_, **__: pytest.fail("It was opened.")
    )

    for open_it in (load_processor, Backbone.from_pretrained):
        with pytest.raises(CheckpointError, match=why) as caught:
            open_it(str(tmp_path))

        said = str(caught.value)
        assert str(tmp_path) in said
        assert repr(model_type) in said
        assert all(name in said for name in FAMILIES)
