"""Zero-shot classification by a dual encoder such as CLIP, given nothing but the class names.

A picture gets the class whose text is nearest, by the cosine of their embeddings. Scale and bias,
with which the model makes logits of cosines, are the same for all classes and do not matter here.
With several templates, a class has the mean of the unit embeddings of its texts (Radford et al.,
2021, section 3.1.4).
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

from lightning_mllm.checkpoint_files import check_checkpoint_available, why_checkpoint_fails
from lightning_mllm.errors import CheckpointError, ConfigError

# of the projection study; it is the default of Hugging Face's pipeline
TEMPLATE = "This is a photo of {label}."

_EXAMPLE = "openai/clip-vit-large-patch14-336"
_TEXTS_AT_ONCE = 256


class ClipClassifier:
    """A dual encoder and the classes that it distinguishes. It is never trained.

    Texts are embedded once, when they are first needed.

    Args:
        model: A model with `get_text_features` and `get_image_features`, such as CLIP or SigLIP.
        tokenizer: The model's tokenizer.
        image_processor: The model's image processor.
        names: Class names.
        templates: Descriptions of a picture, with `{label}` in the place of the class name.

    Raises:
        ConfigError: A template is not valid, a text is longer than what the model reads, or two
            texts have the same tokens.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        image_processor: Any,
        names: Sequence[str],
        templates: Sequence[str] = (TEMPLATE,),
    ) -> None:
        check_clip_templates(templates)
        self.names = tuple(names)
        self._model = model.eval().requires_grad_(False)
        self._image_processor = image_processor
        self._templates = len(templates)
        texts: list[str] = []
        for name in names:
            texts += [template.format(label=name) for template in templates]
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

        The weights of OpenAI's own checkpoints are not safetensors; they are read as data only,
        never as code.

        Args:
            checkpoint: Hub id or folder.
            names: Class names.
            templates: Descriptions of a picture, with `{label}` in the place of the class name.
            revision: Branch, tag or commit on the hub.

        Raises:
            CheckpointError: There is no such checkpoint, it is not a dual encoder, or a part of it
                is missing.
            ConfigError: A template is not valid, a text is longer than what the model reads, or two
                texts have the same tokens.
        """
        check_clip_templates(templates)  # before anything is fetched
        return cls(*_load(checkpoint, revision), names, templates)

    def to(self, device: torch.device | str) -> ClipClassifier:
        """Move the model, and return the classifier."""
        self._model.to(device)
        return self

    def prepare(self, pictures: Sequence[Image.Image]) -> dict[str, Tensor]:
        """Return the model's inputs for RGB pictures: resized, cropped, scaled as in training."""
        return dict(self._image_processor(list(pictures), return_tensors="pt"))

    @torch.no_grad()
    def similarities(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return the cosine of each picture and class, (pictures, classes), on the CPU.

        Args:
            inputs: From `prepare`.

        Raises:
            CheckpointError: The embeddings are not finite.
        """
        images = self._model.get_image_features(**self._move(inputs))
        cosines = _normalise(images) @ self._classes.T
        if not cosines.isfinite().all():
            raise CheckpointError(
                "The embeddings of CLIP are not finite: its weights are broken. Fetch them again."
            )
        return cosines

    @cached_property
    def _classes(self) -> Tensor:
        """Embeddings of the classes, (classes, width), of unit length."""
        embeddings = []
        for start in range(0, len(self.names) * self._templates, _TEXTS_AT_ONCE):
            rows = slice(start, start + _TEXTS_AT_ONCE)
            chunk = self._move({name: tokens[rows] for name, tokens in self._tokens.items()})
            embeddings.append(_normalise(self._model.get_text_features(**chunk)))
        per_class = torch.cat(embeddings).view(len(self.names), self._templates, -1)
        return normalize(per_class.mean(dim=1), dim=-1)

    def _move(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor.to(self._model.device) for name, tensor in inputs.items()}


def check_clip_templates(templates: Sequence[str]) -> None:
    """Check the templates of texts.

    Raises:
        ConfigError: There is no template, or one of them does not have `{label}` as its only field.
    """
    if isinstance(templates, str) or not templates:
        raise ConfigError(
            f"templates must be a list of one text or more with {{label}} in it, not {templates!r}."
        )
    for template in templates:
        try:
            fields = {field for _, field, _, _ in string.Formatter().parse(template)} - {None}
        except ValueError:  # a single brace
            fields = set()
        if fields != {"label"}:
            raise ConfigError(
                f"The template {template!r} must have {{label}}, where the class name goes, and no "
                f"other field; e.g. {TEMPLATE!r}."
            )


def _load(
    checkpoint: str, revision: str | None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, Any]:
    """Return model, tokenizer and image processor."""
    options: dict[str, Any] = {"revision": revision}
    check_checkpoint_available(checkpoint, revision)
    try:
        config = AutoConfig.from_pretrained(checkpoint, **options)
        _check_is_dual_encoder(config, checkpoint)  # before gigabytes of weights are loaded
        tokenizer = AutoTokenizer.from_pretrained(checkpoint, **options)
        # pixels always come from Pillow, as the MLLM's do
        image_processor = AutoImageProcessor.from_pretrained(checkpoint, backend="pil", **options)
        loaded: Any = AutoModel.from_pretrained(
            checkpoint, dtype=torch.float32, output_loading_info=True, **options
        )
    except CheckpointError:
        raise
    except Exception as error:  # transformers raises whatever a damaged file provokes
        raise CheckpointError(
            f"No CLIP can be read from {checkpoint!r}: "
            f"{why_checkpoint_fails(checkpoint, revision, error)}. Give a hub id such as "
            f"{_EXAMPLE}, or a folder with config.json, weights, tokenizer and processor files."
        ) from error
    known, embedded = len(tokenizer), config.text_config.vocab_size
    if known < embedded / 2:  # transformers makes an empty tokenizer where there are no files
        raise CheckpointError(
            f"The tokenizer of {checkpoint!r} knows {known} tokens, its text tower {embedded}. Put "
            "its tokenizer.json, or vocab.json and merges.txt, beside config.json."
        )
    model, info = loaded
    if lacking := sorted(info["missing_keys"]):
        raise CheckpointError(
            f"Checkpoint {checkpoint!r} lacks {len(lacking)} weights of a {config.model_type} "
            f"model; the first is {lacking[0]}. They would be random. Use a complete checkpoint."
        )
    return model, tokenizer, image_processor


def _check_is_dual_encoder(config: PretrainedConfig, checkpoint: str) -> None:
    model_class = MODEL_MAPPING.get(type(config), None)
    if not all(hasattr(model_class, f"get_{tower}_features") for tower in ("text", "image")):
        raise CheckpointError(
            f"{checkpoint!r} is of model type {config.model_type!r}, which is not a dual encoder: "
            "without a text tower beside the vision tower classes can't be recognised by their "
            f"names. Choose e.g. {_EXAMPLE}."
        )


def _tokenise(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], length: int
) -> dict[str, Tensor]:
    """Return the tokens of the texts, (texts, length) each, padded as SigLIP was trained with.

    Raises:
        ConfigError: A text is longer, or two texts have the same tokens.
    """
    seen: dict[tuple[int, ...], str] = {}
    for text, ids in zip(texts, tokenizer(list(texts))["input_ids"], strict=True):
        if len(ids) > length:
            raise ConfigError(
                f"{text!r} has {len(ids)} tokens, but this CLIP reads {length} at most: what is "
                "cut off could be what distinguishes two classes. Shorten the template or the "
                "class name."
            )
        other = seen.setdefault(tuple(ids), text)
        if other != text:
            raise ConfigError(
                f"{other!r} and {text!r} are the same tokens for this CLIP, which can't tell them "
                "apart. Rename one of the classes, or choose a checkpoint that knows their script."
            )
    padded = tokenizer(list(texts), padding="max_length", max_length=length, return_tensors="pt")
    return dict(padded)


def _normalise(features: Any) -> Tensor:
    """Return embeddings of unit length, on the CPU."""
    return normalize(features.pooler_output.float().cpu(), dim=-1)
