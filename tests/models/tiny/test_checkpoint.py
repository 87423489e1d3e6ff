"""What holds for each family's tiny checkpoint, as transformers opens it."""

from __future__ import annotations

import hashlib
import inspect
import json
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import transformers
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
)
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

from lightning_mllm.errors import ConfigError
from lightning_mllm.models.tiny import TinyFamily, TinySize, build_tiny_checkpoint

FAMILIES = get_args(TinyFamily)
PIXTRAL = ("llava_pixtral", "mistral3")  # their processor's class is that of the tower
DIALOGUE: list[dict[str, Any]] = [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Which colour?"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "It is red."}]},
]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> TinyFamily:
    name: TinyFamily = request.param
    return name


@pytest.fixture(scope="module")
def folder(family: TinyFamily, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / family, family)


def written(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "processor_config.json").read_text())
    return content


def render(folder: Path, messages: list[dict[str, Any]], *, prompts: bool) -> str:
    """Text of a dialogue by the checkpoint's own template."""
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    text: str = tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=prompts
    )
    return text


def digests(folder: Path) -> dict[str, str]:
    files = sorted(folder.iterdir())
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def test_weights_are_finite_and_complete(folder: Path) -> None:
    loaded: Any = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)

    model, report = loaded
    assert not any(report.values())
    assert all(torch.isfinite(weight).all() for weight in model.parameters())
    assert sum(weight.numel() for weight in model.parameters()) < 600_000


def test_saving_a_loaded_model_changes_no_weight(folder: Path, tmp_path: Path) -> None:
    AutoModelForImageTextToText.from_pretrained(folder).save_pretrained(tmp_path)

    assert digests(tmp_path)["model.safetensors"] == digests(folder)["model.safetensors"]


def test_the_image_token_is_in_vocabulary_and_embedding(folder: Path) -> None:
    config, tokenizer = AutoConfig.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)

    image = tokenizer.convert_ids_to_tokens(config.image_token_id)
    assert tokenizer.is_fast
    assert tokenizer(image, add_special_tokens=False).input_ids == [config.image_token_id]
    assert len(tokenizer) == config.get_text_config().vocab_size
    assert config.image_token_id in tokenizer.all_special_ids


def test_the_prompt_begins_the_dialogue_and_shows_where_the_image_is(folder: Path) -> None:
    prompt = render(folder, DIALOGUE[:1], prompts=True)
    whole = render(folder, DIALOGUE, prompts=False)

    # LLaVA-OneVision's says "assistant " before an answer, and "assistant" to ask for one
    assert whole.replace(" \n", "\n").startswith(prompt)
    assert "It is red." in whole.removeprefix(prompt)
    assert not prompt.endswith("It is red.")
    special = AutoTokenizer.from_pretrained(folder).all_special_tokens
    assert any("im" in token.lower() for token in special if token in prompt)  # <image>, [IMG] ...


def test_the_processor_s_file_names_its_class_and_that_of_each_part(
    family: TinyFamily, folder: Path
) -> None:
    content = written(folder)

    processor: Any = PROCESSOR_MAPPING[type(AutoConfig.from_pretrained(folder))]
    expected = "PixtralProcessor" if family in PIXTRAL else processor.__name__
    assert content["processor_class"] == expected
    images = AutoImageProcessor.from_pretrained(folder, backend="pil")
    assert type(images).__name__ == content["image_processor"]["image_processor_type"] + "Pil"
    takes = inspect.signature(getattr(transformers, content["processor_class"])).parameters
    for part, named in (
        ("video_processor", "video_processor_type"),
        ("feature_extractor", "feature_extractor_type"),
    ):
        assert (part in takes) == (part in content)
        if part in takes:
            assert hasattr(transformers, content[part][named])


def test_the_processor_s_file_is_what_the_processor_itself_would_write(
    family: TinyFamily, folder: Path, tmp_path: Path
) -> None:
    ours = written(folder)
    if family in PIXTRAL or "video_processor" in ours:
        pytest.skip("the processor's class, or a part of it, needs torchvision")

    AutoProcessor.from_pretrained(folder).save_pretrained(tmp_path)

    theirs = written(tmp_path)
    if family == "aya_vision":  # it saves the product of two of its options
        ours["patch_size"] *= ours.pop("downsample_factor")
    assert theirs == theirs | ours
    assert set(AutoTokenizer.from_pretrained(tmp_path).get_vocab()) == set(
        AutoTokenizer.from_pretrained(folder).get_vocab()
    )


def test_a_seed_decides_every_byte(tmp_path: Path) -> None:
    state = torch.get_rng_state()

    first, again, other = (
        digests(build_tiny_checkpoint(tmp_path / name, "qwen3_5", seed=seed))
        for name, seed in (("first", 1), ("again", 1), ("other", 2))
    )

    assert first == again
    assert {name for name in first if first[name] != other[name]} == {"model.safetensors"}
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("family", ["llava_onevision", "qwen2_5_vl", "idefics3", "gemma4"])
def test_a_size_shapes_every_family(tmp_path: Path, family: TinyFamily) -> None:
    size = TinySize(
        image_size=56, vision_width=48, vision_layers=2, text_width=32, text_layers=3, heads=2
    )

    config = AutoConfig.from_pretrained(build_tiny_checkpoint(tmp_path / "x", family, size=size))

    text, vision = config.get_text_config(), config.vision_config
    assert (text.hidden_size, text.num_hidden_layers, text.num_attention_heads) == (32, 3, 2)
    assert getattr(vision, "depth", None) == 2 or vision.num_hidden_layers == 2
    assert 48 in (vision.hidden_size, getattr(vision, "embed_dim", None))


def test_a_size_that_a_family_can_t_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="multiple of 14"):
        build_tiny_checkpoint(tmp_path / "x", "internvl", size=TinySize(image_size=21))


def test_the_folder_holds_a_whole_checkpoint(folder: Path) -> None:
    assert {file.name for file in folder.iterdir()} == {
        *("chat_template.jinja", "config.json", "generation_config.json", "model.safetensors"),
        *("processor_config.json", "tokenizer.json", "tokenizer_config.json"),
    }
