"""Puts a vision tower, an untrained projection and a language model into one LLaVA checkpoint."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import ModelCardData
from torch import Tensor, nn
from transformers import LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from lightning_mllm.errors import CheckpointError, ConfigError
from lightning_mllm.models.assemble.chat import IMAGE_TOKEN, add_place_for_images
from lightning_mllm.models.assemble.language_model import LanguageModel, open_language_model
from lightning_mllm.models.assemble.tower import Tower, open_tower
from lightning_mllm.store.files import read_json, replacing_folder, write_json, write_text

Projection = Literal["mlp", "linear"]

_ACTIVATION = {"mlp": "gelu", "linear": "linear"}
_TIED = "embed_tokens.weight"  # the embedding that a LLaVA can share with its head

logger = logging.getLogger(__name__)


def assemble_checkpoint(
    *,
    vision: str,
    llm: str,
    output: Path,
    projector: Projection = "mlp",
    image_size: int | None = None,
    vision_feature_layer: int = -2,
    seed: int = 0,
) -> Path:
    """Make a LLaVA of a vision tower and a language model, with an untrained projection.

    The folder is opened by `from_pretrained` like any other checkpoint (model type `llava`). On
    text it computes what the language model computes, and its visual features are the tower's.
    Train the projection first: until then a picture is noise to the LLM.

    Args:
        vision: Hub id or folder of an image tower with one token per patch, such as a CLIP, a
            SigLIP, a DINOv2 or a ViT.
        llm: Hub id or folder of a causal language model with a chat template.
        output: Folder to create; it must not exist, or be empty.
        projector: What maps the tower's features to the LLM's embeddings: `mlp`, two layers with a
            GELU between them, as in LLaVA-1.5; or `linear`, the same without the GELU, which is one
            linear map.
        image_size: Height and width in pixels of the pictures that the tower is to read; by default
            what its own image processor makes. Position embeddings are resampled where the tower
            was trained with another size.
        vision_feature_layer: Layer of the tower whose states go to the projection: -1 is the last,
            -2 the one before it, as in LLaVA-1.5; 0 is the input of the first layer.
        seed: Seed of the projection's weights; the global random state does not change.

    Returns:
        The folder.

    Raises:
        ConfigError: The folder has something in it, or a number is out of its range.
        CheckpointError: A part is missing, damaged, or can't be part of a LLaVA.
    """
    _check_options(output, image_size)
    tower = open_tower(vision, image_size)
    _check_layer(vision, tower, vision_feature_layer)
    language = open_language_model(llm)
    config = _make_config(tower, language, projector, vision_feature_layer)
    model = _join(config, tower, language, seed)
    processor = _make_processor(config, tower, language)
    try:
        with replacing_folder(output) as folder:
            model.save_pretrained(folder)
            # else it would be that of the first weights, which are the tower's
            written = read_json(folder / "config.json") | {"dtype": _dtype_name(language.model)}
            write_json(folder / "config.json", written)
            processor.save_pretrained(folder)
            write_text(folder / "README.md", _write_card(vision, llm, config, projector, seed))
    except OSError as error:
        raise CheckpointError(
            f"{output} could not be written: {error}. Nothing was left behind. Free some space, or "
            "choose an --output on another disk."
        ) from error
    return output


def _check_options(output: Path, image_size: int | None) -> None:
    """Refuse what can be seen before anything is opened."""
    if output.exists() and (output.is_file() or any(output.iterdir())):
        raise ConfigError(
            f"{output} is there and not an empty folder, and nothing is overwritten. Choose "
            "another --output."
        )
    if image_size is not None and image_size < 1:
        raise ConfigError(f"--image_size must be at least 1 pixel, not {image_size}.")


def _check_layer(vision: str, tower: Tower, vision_feature_layer: int) -> None:
    depth = tower.model.config.num_hidden_layers
    if not -depth - 1 <= vision_feature_layer <= depth:
        raise ConfigError(
            f"--vision_feature_layer is {vision_feature_layer}, but the tower of {vision!r} has "
            f"{depth} layers: expected {-depth - 1} to {depth}."
        )


def _make_config(
    tower: Tower, language: LanguageModel, projector: Projection, vision_feature_layer: int
) -> LlavaConfig:
    llm: Any = language.model
    return LlavaConfig(
        vision_config=_describe_part(tower.model),
        text_config=_describe_part(llm),
        image_token_index=language.image_token_id,
        projector_hidden_act=_ACTIVATION[projector],
        vision_feature_layer=vision_feature_layer,
        vision_feature_select_strategy="default" if tower.has_class_token else "full",
        image_seq_length=tower.patches,
        tie_word_embeddings=_is_tied(llm),
    )


def _describe_part(model: Any) -> dict[str, Any]:
    """Return the config of a part, without where it lay on this machine."""
    described: dict[str, Any] = model.config.to_dict()
    return {name: value for name, value in described.items() if name != "_name_or_path"}


def _is_tied(llm: Any) -> bool:
    """Return whether head and embedding are one, under the name that a LLaVA ties."""
    embedding = llm.get_input_embeddings().weight
    named = dict(llm.base_model.named_parameters())
    return llm.get_output_embeddings().weight is embedding and named.get(_TIED) is embedding


def _join(config: LlavaConfig, tower: Tower, language: LanguageModel, seed: int) -> Any:
    """Return the model; its parts keep their dtypes, and nothing is copied."""
    llm: Any = language.model
    with torch.device("meta"):
        model: Any = LlavaForConditionalGeneration(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = LlavaMultiModalProjector(config)
    parts: dict[str, nn.Module] = {
        "model.vision_tower": tower.model,
        "model.multi_modal_projector": fresh.to(llm.dtype),
        "model.language_model": llm.base_model,
    }
    state: dict[str, Tensor] = {"lm_head.weight": llm.get_output_embeddings().weight}
    for prefix, part in parts.items():
        for name, weights in part.state_dict().items():
            state[f"{prefix}.{name}"] = weights
    model.load_state_dict(state, assign=True)
    if config.tie_word_embeddings:
        model.tie_weights()
    model.generation_config = llm.generation_config
    return model


def _dtype_name(model: Any) -> str:
    return str(model.dtype).removeprefix("torch.")


def _make_processor(config: LlavaConfig, tower: Tower, language: LanguageModel) -> LlavaProcessor:
    return LlavaProcessor(
        image_processor=tower.image_processor,
        tokenizer=language.tokenizer,
        patch_size=tower.model.config.patch_size,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        chat_template=add_place_for_images(language.tokenizer.chat_template),
        image_token=IMAGE_TOKEN,
        num_additional_image_tokens=int(tower.has_class_token),
    )


def _write_card(
    vision: str, llm: str, config: LlavaConfig, projector: Projection, seed: int
) -> str:
    """Return the README of the folder: what it is made of."""
    on_hub = [each for each in (llm, vision) if not Path(each).exists()]
    data = ModelCardData(
        base_model=on_hub or None,
        library_name="transformers",
        pipeline_tag="image-text-to-text",
        tags=["lightning-mllm"],
    )
    side: Any = config.vision_config
    text = (
        "A LLaVA of a vision tower and a language model that were trained apart. Its projection "
        "is **untrained**.\n\n"
        "| part | from |\n| --- | --- |\n"
        f"| vision tower | `{_name(vision)}`, layer {config.vision_feature_layer}, pictures of "
        f"{side.image_size} x {side.image_size} pixels, {config.image_seq_length} visual tokens |\n"
        f"| projection | {projector}, random, seed {seed} |\n"
        f"| LLM | `{_name(llm)}` |"
    )
    return f"---\n{data.to_yaml()}\n---\n\n{text}\n"


def _name(checkpoint: str) -> str:
    """Return a hub id, or the name of a folder, without where it lies on this machine."""
    return Path(checkpoint).resolve().name if Path(checkpoint).exists() else checkpoint
