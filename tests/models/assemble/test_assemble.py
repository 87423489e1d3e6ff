"""A LLaVA of two parts computes what its parts compute."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    CLIPVisionModel,
)

from lightning_mllm.data.images.opening import open_processor
from lightning_mllm.errors import CheckpointError, ConfigError
from lightning_mllm.models.assemble.checkpoint import assemble_checkpoint
from lightning_mllm.models.backbone import Backbone
from tests.support.parts_apart import SIDE, build_language_model, build_vision_tower

PAIRS = (
    ("clip", "llama"),
    ("siglip", "qwen2"),
    ("dinov2", "gpt_neox"),
    ("whole_clip", "gemma"),
    ("vit", "llama"),
    ("dinov2", "qwen2"),
)
Part = Callable[[str], str]


@pytest.fixture(scope="module")
def part(tmp_path_factory: pytest.TempPathFactory) -> Part:
    """Build a tower or language model, once per kind."""

    @cache
    def build(kind: str) -> str:
        folder = tmp_path_factory.mktemp(kind)
        if kind in ("llama", "qwen2", "gpt_neox", "gemma", "gemma2", "phi"):
            return build_language_model(folder, kind, spare=30 if kind == "qwen2" else 0)
        return build_vision_tower(folder, kind)

    return build


def reopen(folder: Path) -> Any:
    return AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float64)


@pytest.mark.parametrize("image_size", [None, 42])
@pytest.mark.parametrize(("vision", "llm"), PAIRS)
@torch.no_grad()
def test_text_logits_and_visual_features_are_those_of_the_parts(
    part: Part, tmp_path: Path, vision: str, llm: str, image_size: int | None
) -> None:
    folder = assemble_checkpoint(
        vision=part(vision), llm=part(llm), output=tmp_path / "both", image_size=image_size
    )
    both = reopen(folder)
    alone = AutoModelForCausalLM.from_pretrained(part(llm), dtype=torch.float64)
    tokens = torch.arange(20)[None]
    logits = both(input_ids=tokens).logits[..., : alone.config.vocab_size]
    assert (logits - alone(tokens).logits).abs().max() < 1e-12

    kind: Any = CLIPVisionModel if vision == "whole_clip" else AutoModel
    tower = kind.from_pretrained(part(vision), dtype=torch.float64)
    side = image_size or SIDE
    pixels = torch.randn(2, 3, side, side, dtype=torch.float64)
    options = {"interpolate_pos_encoding": True} if image_size and vision != "dinov2" else {}
    states = tower(pixels, output_hidden_states=True, **options).hidden_states[-2]
    own = both.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-2]
    assert (own - states).abs().max() < (1e-6 if image_size else 1e-12)
    patches = states[:, states.shape[1] - (side // 7) ** 2 :]
    features = torch.stack(list(both.model.get_image_features(pixels).pooler_output))
    projected = both.model.multi_modal_projector(patches)
    assert (features - projected).abs().max() < (1e-6 if image_size else 1e-12)


def test_the_framework_opens_it_with_its_processor(part: Part, tmp_path: Path) -> None:
    folder = assemble_checkpoint(
        vision=part("dinov2"), llm=part("llama"), output=tmp_path / "both", image_size=42
    )
    backbone = Backbone.from_pretrained(str(folder), dtype=torch.float32)
    processor: Any = open_processor(str(folder), backbone.model.config)
    batch = processor(
        images=[Image.new("RGB", (90, 60))], text="<image>\nIs it red?", return_tensors="pt"
    )
    assert batch["pixel_values"].shape[-2:] == (42, 42)
    assert int((batch["input_ids"] == backbone.model.config.image_token_id).sum()) == 36
    assert backbone.model(**batch).logits.isfinite().all()


def test_on_plain_texts_the_template_writes_what_the_language_model_s_own_does(
    part: Part, tmp_path: Path
) -> None:
    folder = assemble_checkpoint(vision=part("clip"), llm=part("llama"), output=tmp_path / "both")
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    own: Any = AutoTokenizer.from_pretrained(part("llama"))
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Is it red?"},
        {"role": "assistant", "content": "yes"},
    ]
    parts = [turn | {"content": [{"type": "text", "text": turn["content"]}]} for turn in turns]
    template = (folder / "chat_template.jinja").read_text()
    for more in (True, False):
        expected = own.apply_chat_template(turns, tokenize=False, add_generation_prompt=more)
        for messages in (turns, parts):
            found = tokenizer.apply_chat_template(
                messages, chat_template=template, tokenize=False, add_generation_prompt=more
            )
            assert found == expected


def test_a_picture_before_the_text_has_its_own_line_and_one_in_it_keeps_its_place(
    part: Part, tmp_path: Path
) -> None:
    folder = assemble_checkpoint(vision=part("clip"), llm=part("llama"), output=tmp_path / "both")
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    image = {"type": "image"}
    content = [image, {"type": "text", "text": "Is it older than "}, image]
    content.append({"type": "text", "text": "?"})
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}],
        chat_template=(folder / "chat_template.jinja").read_text(),
        tokenize=False,
    )
    assert text == "<|im_start|>user\n<image>\nIs it older than <image>?<|im_end|>\n"


@pytest.mark.parametrize(("kind", "activation"), [("mlp", "GELUActivation"), ("linear", "Linear")])
def test_the_projection_is_drawn_from_the_seed_alone(
    part: Part, tmp_path: Path, kind: Any, activation: str
) -> None:
    found = []
    for number, seed in enumerate((3, 3, 4)):
        torch.manual_seed(number)
        folder = assemble_checkpoint(
            vision=part("clip"),
            llm=part("llama"),
            output=tmp_path / str(number),
            projector=kind,
            seed=seed,
        )
        assert torch.initial_seed() == number
        found.append(reopen(folder).model.multi_modal_projector)
    assert type(found[0].act).__name__.startswith(activation)
    assert torch.equal(found[0].linear_1.weight, found[1].linear_1.weight)
    assert not torch.equal(found[0].linear_1.weight, found[2].linear_1.weight)


def test_parts_of_two_dtypes_keep_every_bit_and_the_checkpoint_is_named_after_the_llm(
    tmp_path: Path,
) -> None:
    vision = build_vision_tower(tmp_path / "vision", "clip", torch.float16)
    llm = build_language_model(tmp_path / "llm", "llama", torch.bfloat16)
    folder = assemble_checkpoint(vision=vision, llm=llm, output=tmp_path / "both")
    weights = load_file(folder / "model.safetensors")
    assert {str(tensor.dtype) for tensor in weights.values()} == {"torch.float16", "torch.bfloat16"}
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
    assert str(tmp_path) not in (folder / "config.json").read_text()


def test_a_new_token_is_no_likelier_than_the_average_one(part: Part, tmp_path: Path) -> None:
    folder = assemble_checkpoint(
        vision=part("clip"), llm=part("gpt_neox"), output=tmp_path / "both"
    )
    head = reopen(folder).lm_head.weight.detach()
    assert torch.allclose(head[-1], head[:-1].mean(dim=0), atol=1e-12)


@pytest.mark.parametrize(
    ("vision", "llm", "why"),
    [
        ("clip", "gemma2", "soft cap"),
        ("dinov2_with_registers", "llama", "one token per patch"),
        ("llama", "llama", "not an image tower"),
        ("clip", "clip", "not a causal language model|tokenizer of"),
    ],
)
def test_a_part_that_a_llava_can_not_have_is_refused_by_name(
    part: Part, tmp_path: Path, vision: str, llm: str, why: str
) -> None:
    with pytest.raises(CheckpointError, match=why):
        assemble_checkpoint(vision=part(vision), llm=part(llm), output=tmp_path / "both")
    assert not (tmp_path / "both").exists()


def test_a_bias_of_the_head_would_be_lost_and_is_refused(tmp_path: Path) -> None:
    llm = build_language_model(tmp_path / "llm", "phi")
    weights = load_file(Path(llm) / "model.safetensors")
    weights["lm_head.bias"] += 1
    save_file(weights, Path(llm) / "model.safetensors", metadata={"format": "pt"})
    vision = build_vision_tower(tmp_path / "vision", "clip")
    with pytest.raises(CheckpointError, match="a bias, a scale or a soft cap"):
        assemble_checkpoint(vision=vision, llm=llm, output=tmp_path / "both")


def test_what_is_missing_is_named_with_the_way_out(part: Part, tmp_path: Path) -> None:
    llm = build_language_model(tmp_path / "llm", "llama")
    vision = build_vision_tower(tmp_path / "vision", "clip")
    output = tmp_path / "both"

    def refuse(why: str, **options: Any) -> None:
        parts: dict[str, Any] = {"vision": vision, "llm": llm, "output": output} | options
        with pytest.raises((CheckpointError, ConfigError), match=why):
            assemble_checkpoint(**parts)

    refuse("multiple of 7", image_size=30)
    refuse("expected -4 to 3", vision_feature_layer=7)
    refuse("not a folder on this machine|can't be opened", llm=str(tmp_path / "nowhere"))
    (Path(vision) / "preprocessor_config.json").unlink()
    refuse("no image processor", vision=vision)
    (Path(llm) / "chat_template.jinja").unlink()
    refuse("no chat template", vision=part("clip"))
    output.mkdir()
    (output / "mine").touch()
    refuse("nothing is overwritten")
