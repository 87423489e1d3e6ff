"""Zero-shot classification by a dual encoder such as CLIP: it knows nothing of a dataset but the names of the classes.

A picture gets the class whose text is nearest, by the cosine of their embeddings. Scale and bias, which the model puts
on cosines to make logits, are the same for all classes and no matter here. Of several templates a class has the mean of
the unit embeddings of its texts (Radford et al., 2021, section 3.1.4).
"""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize
from transformers import (
    MODEL_MAPPING,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from lightning_mllm.checkpoint_files import check_available, reason
from lightning_mllm.errors import CheckpointError, ConfigError

TEMPLATE = "This is a photo of {label}."  # that of the projection study, being the default of Hugging Face's pipeline

_EXAMPLE = "openai/clip-vit-large-patch14-336"
_TEXTS_AT_ONCE = 256


class ClipClassifier:
    """A dual encoder and the classes that it tells apart. It is never trained.

    Texts are embedded once, when they are first needed.

    Args:
        model: With `get_text_features` and `get_image_features`: CLIP, SigLIP and their like.
        tokenizer: Its tokenizer.
        image_processor: Its image processor.
        names: Class names.
        templates: What is said of a picture, with `{label}` in the place of the class name.

    Raises:
        ConfigError: A template is no template, or a text is longer than what the model reads.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        image_processor: Any,
        names: Sequence[str],
        templates: Sequence[str] = (TEMPLATE,),
    ) -> None:
        check_templates(templates)
        self.names = tuple(names)
        self._model = model.eval().requires_grad_(False)
        self._image_processor = image_processor
        self._templates = len(templates)
        texts = [template.format(label=name) for name in names for template in templates]
        self._tokens = _tokenise(tokenizer, texts, model.config.text_config.max_position_embeddings)

    @classmethod
    def from_pretrained(
        cls,
        checkpoint: str,
        names: Sequence[str],
        templates: Sequence[str] = (TEMPLATE,),
        *,
        revision: str | None = None,
    ) -> ClipClassifier:
        """Load a checkpoint, in float32, from the hub or a folder.

        The weights of OpenAI's own checkpoints are no safetensors; those are read as data only, never as code.

        Raises:
            CheckpointError: There is no such checkpoint, it is no dual encoder, or a part of it is missing.
            ConfigError: A template is no template, or a text is longer than what the model reads.
        """
        check_templates(templates)  # before anything is fetched
        return cls(*_load(checkpoint, revision), names, templates)

    def to(self, device: torch.device | str) -> ClipClassifier:
        """Move the model, and return itself."""
        self._model.to(device)
        return self

    def prepare(self, pictures: Sequence[Image.Image]) -> dict[str, Tensor]:
        """Return what the model reads of RGB pictures: resized, cropped and scaled as it was trained with."""
        return dict(self._image_processor(list(pictures), return_tensors="pt"))

    @torch.no_grad()
    def similarities(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return the cosine of each picture and class, (pictures, classes), on the CPU.

        Args:
            inputs: What `prepare` made.

        Raises:
            CheckpointError: They are not finite.
        """
        cosines = _unit(self._model.get_image_features(**self._placed(inputs))) @ self._classes.T
        if not cosines.isfinite().all():
            raise CheckpointError("The embeddings of CLIP are not finite: its weights are broken. Fetch them again.")
        return cosines

    @cached_property
    def _classes(self) -> Tensor:
        """Embeddings of the classes, (classes, width), of unit length."""
        count = len(self.names) * self._templates
        chunks = [
            {name: tokens[start : start + _TEXTS_AT_ONCE] for name, tokens in self._tokens.items()}
            for start in range(0, count, _TEXTS_AT_ONCE)
        ]
        texts = torch.cat([_unit(self._model.get_text_features(**self._placed(chunk))) for chunk in chunks])
        return normalize(texts.view(len(self.names), self._templates, -1).mean(dim=1), dim=-1)

    def _placed(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor.to(self._model.device) for name, tensor in inputs.items()}


def check_templates(templates: Sequence[str]) -> None:
    """Refuse what is no template.

    Raises:
        ConfigError: There is none, or one of them does not have `{label}` as its only field.
    """
    if isinstance(templates, str) or not templates:
        raise ConfigError(f"templates must be a list of one text or more with {{label}} in it, not {templates!r}.")
    for template in templates:
        try:
            fields = {field for _, field, _, _ in string.Formatter().parse(template) if field is not None}
        except ValueError:  # a single brace
            fields = set()
        if fields != {"label"}:
            raise ConfigError(
                f"The template {template!r} must have {{label}}, where the class name goes, and no other field; e.g. "
                f"{TEMPLATE!r}."
            )


def _load(checkpoint: str, revision: str | None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, Any]:
    """Return model, tokenizer and image processor."""
    options: dict[str, Any] = {"revision": revision}
    check_available(checkpoint, revision)
    try:
        config = AutoConfig.from_pretrained(checkpoint, **options)
        _check_is_dual_encoder(config, checkpoint)  # before gigabytes of weights are loaded
        tokenizer = AutoTokenizer.from_pretrained(checkpoint, **options)
        # pixels always come from Pillow, as the MLLM's do
        image_processor = AutoImageProcessor.from_pretrained(checkpoint, backend="pil", **options)
        loaded: Any = AutoModel.from_pretrained(checkpoint, dtype=torch.float32, output_loading_info=True, **options)
    except CheckpointError:
        raise
    except Exception as error:  # transformers raises whatever a damaged file provokes
        raise CheckpointError(
            f"No CLIP can be read from {checkpoint!r}: {reason(checkpoint, revision, error)}. Give a hub "
            f"id such as {_EXAMPLE}, or a folder with config.json, weights, tokenizer and processor files."
        ) from error
    known, embedded = len(tokenizer), config.text_config.vocab_size
    if known < embedded / 2:  # transformers makes an empty tokenizer where there are no files
        raise CheckpointError(
            f"The tokenizer of {checkpoint!r} knows {known} tokens, its text tower {embedded}. Put its tokenizer.json, "
            "or vocab.json and merges.txt, beside config.json."
        )
    model, info = loaded
    if lacking := sorted(info["missing_keys"]):
        raise CheckpointError(
            f"Checkpoint {checkpoint!r} lacks {len(lacking)} weights of a {config.model_type} model; the first is "
            f"{lacking[0]}. They would be random. Use a complete checkpoint."
        )
    return model, tokenizer, image_processor


def _check_is_dual_encoder(config: PretrainedConfig, checkpoint: str) -> None:
    model_class = MODEL_MAPPING.get(type(config), None)
    if not all(hasattr(model_class, f"get_{tower}_features") for tower in ("text", "image")):
        raise CheckpointError(
            f"{checkpoint!r} is of model type {config.model_type!r}, which is no dual encoder: without a text tower "
            f"beside the vision tower classes can't be told by their names. Choose e.g. {_EXAMPLE}."
        )


def _tokenise(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], length: int) -> dict[str, Tensor]:
    """Return the tokens of the texts, (texts, length) each: SigLIP reads padding, and always has so much of it."""
    seen: dict[tuple[int, ...], str] = {}
    for text, ids in zip(texts, tokenizer(list(texts))["input_ids"], strict=True):
        if len(ids) > length:
            raise ConfigError(
                f"{text!r} has {len(ids)} tokens, but this CLIP reads {length} at most: what is cut off could be what "
                "tells two classes apart. Shorten the template or the class name."
            )
        if (other := seen.setdefault(tuple(ids), text)) != text:
            raise ConfigError(
                f"{other!r} and {text!r} are the same tokens for this CLIP, which can't tell them apart. Rename one of "
                "the classes, or choose a checkpoint that knows their script."
            )
    return dict(tokenizer(list(texts), padding="max_length", max_length=length, return_tensors="pt"))


def _unit(features: Any) -> Tensor:
    """Return embeddings of unit length, on the CPU."""
    return normalize(features.pooler_output.float().cpu(), dim=-1)
