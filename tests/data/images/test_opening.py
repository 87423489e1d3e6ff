"""Every family's own processor opens, without torchvision, and makes what the family makes."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from transformers import AutoProcessor, SmolVLMProcessor, dynamic_module_utils
from transformers.models.smolvlm.processing_smolvlm import get_image_prompt_string

from lightning_mllm.data import load_processor
from lightning_mllm.data.images.checkpoint_processor import CheckpointProcessor
from lightning_mllm.data.images.opening import processor_needs_torchvision
from lightning_mllm.data.images.processor import limit_length
from lightning_mllm.errors import CheckpointError, ConfigError
from lightning_mllm.models.tiny import TinyFamily
from tests.conftest import FamilyBuilder
from tests.data.conftest import picture
from tests.data.images.test_processor import copy
from tests.support.old_layout import write_old_layout

FAMILIES = get_args(TinyFamily)
# these have neither a video part nor a class that needs torchvision
OPENED_BY_TRANSFORMERS = (
    *("llava", "llava_next", "llava_siglip", "vipllava", "granite_vision", "idefics3", "gemma3"),
    *("paligemma", "aya_vision", "got_ocr2"),
)
SIZES = ((60, 40), (31, 100), (28, 28))


def call(processor: Any, size: tuple[int, int]) -> dict[str, torch.Tensor]:
    """What a processor of transformers makes of a text with one picture."""
    text = f"Look: {processor.image_token} What?"
    made = processor(images=[picture(*size)], text=[text], return_tensors="pt")
    return {name: value for name, value in made.items() if isinstance(value, torch.Tensor)}


def check_equal(found: CheckpointProcessor, expected: Any) -> None:
    for size in SIZES:
        ours, theirs = call(found.hf, size), call(expected, size)
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            assert torch.equal(ours[name], value), f"{name} of {size}"


@pytest.mark.parametrize("family", OPENED_BY_TRANSFORMERS)
def test_a_processor_makes_what_that_of_transformers_makes(
    tiny_family: FamilyBuilder, family: str
) -> None:
    path = tiny_family(family)
    expected = AutoProcessor.from_pretrained(path)

    found = load_processor(path)

    assert type(found.hf) is type(expected)
    assert not processor_needs_torchvision(type(found.hf))
    assert found.chat_template == expected.chat_template
    check_equal(found, expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_processor_opens_from_both_layouts_of_files(
    tiny_family: FamilyBuilder, tmp_path: Path, family: str
) -> None:
    path = tiny_family(family)
    found = load_processor(path)

    old = load_processor(write_old_layout(path, tmp_path / "old"))

    assert type(old.hf) is type(found.hf)
    assert type(old.image_processor).__name__.endswith("Pil")
    assert old.chat_template == found.chat_template
    check_equal(old, found.hf)


@pytest.mark.parametrize("family", ["llava", "qwen2_vl", "mistral3", "smolvlm"])
def test_files_that_name_no_class_have_that_of_their_model_type(
    tiny_family: FamilyBuilder, tmp_path: Path, family: str
) -> None:
    path = copy(tiny_family(family), tmp_path / "nameless")
    for file in (Path(path, "processor_config.json"), Path(path, "tokenizer_config.json")):
        settings = json.loads(file.read_text())
        settings.pop("processor_class", None)
        file.write_text(json.dumps(settings))

    check_equal(load_processor(path), load_processor(tiny_family(family)).hf)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_processor_makes_features_of_a_picture_and_reaches_a_worker(
    tiny_family: FamilyBuilder, family: str
) -> None:
    found = load_processor(tiny_family(family))

    arrived = pickle.loads(pickle.dumps(found))

    assert found.feature_token_id in call(found.hf, (60, 40))["input_ids"]
    check_equal(arrived, found.hf)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_context_is_what_the_language_model_reads(
    tiny_family: FamilyBuilder, family: str
) -> None:
    path = tiny_family(family)
    processor = load_processor(path)
    processor.tokenizer.model_max_length = int(1e30)
    reads = json.loads(Path(path, "config.json").read_text())["text_config"]

    found = limit_length(None, processor, path)

    assert found == reads["max_position_embeddings"]
    with pytest.raises(ConfigError, match=f"reads {found} tokens at most"):
        limit_length(found + 1, processor, path)


@pytest.mark.parametrize("family", ["llava_pixtral", "mistral3"])
def test_pixtral_breaks_rows_and_ends_the_last(tiny_family: FamilyBuilder, family: str) -> None:
    processor = load_processor(tiny_family(family))
    hf: Any = processor.hf

    made = call(hf, (60, 40))

    side = hf.patch_size * hf.spatial_merge_size
    height, width = (int(length) // side for length in made["image_sizes"][0])
    rows = [hf.image_token * width + hf.image_break_token] * height
    text = "".join(rows).removesuffix(hf.image_break_token) + hf.image_end_token
    expected = processor.tokenizer.encode(text, add_special_tokens=False)
    ids = made["input_ids"][0].tolist()
    start = ids.index(processor.feature_token_id)
    assert ids[start : start + len(expected)] == expected


def test_smolvlm_opens_without_what_its_videos_need(tiny_family: FamilyBuilder) -> None:
    processor = load_processor(tiny_family("smolvlm"))
    hf: Any = processor.hf

    replaced = hf.replace_image_token({"rows": [[2]], "cols": [[1]]}, 0)

    assert isinstance(hf, SmolVLMProcessor)
    assert replaced == get_image_prompt_string(
        2, 1, hf.image_seq_len, hf.fake_image_token, hf.image_token, hf.global_image_token
    )


def test_a_prefix_lm_without_chat_template_is_told_one(
    tiny_family: FamilyBuilder, tmp_path: Path
) -> None:
    original = tiny_family("paligemma")
    path = copy(original, tmp_path / "bare", "chat_template.jinja")

    with pytest.raises(CheckpointError, match=r"no chat template.*chat_template\.jinja") as caught:
        load_processor(path)

    template = str(caught.value).partition("in its folder: ")[2].removesuffix(".")
    Path(path, "chat_template.jinja").write_text(template)
    question = [{"type": "image"}, {"type": "text", "text": "Which colour?"}]
    answer = [{"type": "text", "text": "red"}]
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    texts = []
    for folder in (path, original):
        processor = load_processor(folder)
        render: Any = processor.tokenizer.apply_chat_template
        texts.append(render(messages, chat_template=processor.chat_template, tokenize=False))
    assert texts[0] == texts[1]


REMOTE_CODE = """
from transformers import LlavaProcessor

class MyProcessor(LlavaProcessor):
    is_mine = True
"""


@pytest.mark.parametrize("trusted", [True, False])
def test_code_of_a_checkpoint_runs_only_if_it_is_trusted(
    tiny_llava: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trusted: bool
) -> None:
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    path = copy(tiny_llava, tmp_path / "remote")
    Path(path, "processing_mine.py").write_text(REMOTE_CODE)
    file = Path(path, "processor_config.json")
    auto_map = {"auto_map": {"AutoProcessor": "processing_mine.MyProcessor"}}
    file.write_text(json.dumps(json.loads(file.read_text()) | auto_map))

    processor = load_processor(path, trust_remote_code=trusted)

    assert hasattr(processor.hf, "is_mine") == trusted
    check_equal(processor, load_processor(tiny_llava).hf)
