"""Opens a family's own processor: what it does with pictures and text, and nothing else of it."""

from __future__ import annotations

import inspect
import json
from functools import cache
from pathlib import Path
from typing import Any

from transformers import (
    AutoImageProcessor,
    AutoTokenizer,
    PretrainedConfig,
    ProcessorMixin,
    SmolVLMProcessor,
)
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING, processor_class_from_name
from transformers.utils.hub import cached_file

from lightning_mllm.errors import CheckpointError

# files that may name the processor's class, in the order in which transformers asks them
_NAMING = ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json")


def open_processor(
    checkpoint: str,
    config: PretrainedConfig,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> ProcessorMixin:
    """Open a processor as `AutoProcessor` does, but without its parts for video and sound.

    These need packages, and so does the torchvision image backend, which rounds pixels otherwise
    than PIL: the processor is the same whatever is installed.

    Args:
        checkpoint: Hub id or folder of the checkpoint.
        config: The config of its model.
        revision: Branch, tag or commit of a hub id.
        trust_remote_code: Whether code that comes with the checkpoint may run.

    Raises:
        CheckpointError: Neither a file of the checkpoint nor its model type names a processor.
    """
    options = {"revision": revision, "trust_remote_code": trust_remote_code}
    kind: Any = _find_class(checkpoint, config, revision, trust_remote_code)
    settings, _ = ProcessorMixin.get_processor_dict(checkpoint, revision=revision)
    taken = inspect.signature(kind.__init__).parameters
    parts: dict[str, Any] = dict.fromkeys(kind.get_attributes())
    own = {name: settings[name] for name in settings if name in taken and name not in parts}
    # the image processor alone takes a backend: AutoProcessor would pass it to the tokenizer
    parts["image_processor"] = AutoImageProcessor.from_pretrained(
        checkpoint, backend="pil", **options
    )
    parts["tokenizer"] = AutoTokenizer.from_pretrained(checkpoint, **options)
    processor: ProcessorMixin = _let_parts_be_missing(kind)(**parts, **own)
    processor.__class__ = kind  # made; from now on it is what it is in transformers
    return processor


def _find_class(
    checkpoint: str, config: PretrainedConfig, revision: str | None, trust_remote_code: bool
) -> type:
    """Return the class that the checkpoint's files name, else that of its model type."""
    name = None
    for file in _NAMING:
        path = cached_file(  # None if there is no such file, or it is not in the cache
            checkpoint, file, revision=revision, _raise_exceptions_for_missing_entries=False
        )
        named = json.loads(Path(path).read_text(encoding="utf-8")) if path else {}
        if trust_remote_code and (code := named.get("auto_map", {}).get("AutoProcessor")):
            remote: type = get_class_from_dynamic_module(code, checkpoint, revision=revision)
            return remote
        if name := named.get("processor_class"):
            break
    if name is None and type(config) in PROCESSOR_MAPPING:
        of_type: Any = PROCESSOR_MAPPING[type(config)]
        name = of_type.__name__
    if name in _OWN:
        return _OWN[name]
    found: type | None = processor_class_from_name(name) if name else None
    if found is None:
        raise CheckpointError(
            f"{checkpoint!r} has no processor that transformers knows (processor_class {name!r} in "
            f"its files, model_type {config.model_type!r}), so it is not a multimodal checkpoint. "
            "Choose one that is, e.g. llava-hf/llava-1.5-7b-hf."
        )
    return found


def processor_needs_torchvision(kind: type) -> bool:
    """Return whether `AutoProcessor` opens a processor of this class with torchvision only."""
    parts: Any = getattr(kind, "get_attributes", list)()
    return issubclass(kind, PixtralText) or "video_processor" in parts


@cache
def _let_parts_be_missing(kind: type) -> type:
    """Return a processor class that can be made without some of its parts."""

    def check(self: Any, name: str, part: Any) -> Any:
        checked: Any = super(lenient, self)
        return None if part is None else checked.check_argument_for_proper_class(name, part)

    lenient = type(kind.__name__, (kind,), {"check_argument_for_proper_class": check})
    return lenient


class PixtralText(ProcessorMixin):
    """What Pixtral puts in the place of a picture: a break after each row, an end after the last.

    transformers' own class can't be imported without torchvision.

    Args:
        image_processor: Makes pixels.
        tokenizer: The checkpoint's tokenizer.
        patch_size: Side of the tower's patches, in pixels.
        spatial_merge_size: How many patches along each side become one visual token.
        chat_template: The checkpoint's template.
        image_token: Stands for one visual token.
        image_break_token: Ends a row.
        image_end_token: Ends the last row.
    """

    def __init__(
        self,
        image_processor: Any,
        tokenizer: Any,
        *,
        patch_size: int = 16,
        spatial_merge_size: int = 1,
        chat_template: str | None = None,
        image_token: str = "[IMG]",
        image_break_token: str = "[IMG_BREAK]",
        image_end_token: str = "[IMG_END]",
    ) -> None:
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)
        self.patch_size, self.spatial_merge_size = patch_size, spatial_merge_size
        self.image_token, self.image_break_token = image_token, image_break_token
        self.image_end_token = image_end_token
        self.image_token_id = tokenizer.convert_tokens_to_ids(image_token)

    def _process_images(self, images: Any, **options: Any) -> Any:
        options["patch_size"] = self.patch_size * self.spatial_merge_size
        return super()._process_images(images, **options)

    def replace_image_token(self, image_inputs: Any, image_idx: int, **_: Any) -> str:
        """Return what stands for one of the pictures."""
        side = self.patch_size * self.spatial_merge_size
        rows, columns = (int(length) // side for length in image_inputs["image_sizes"][image_idx])
        row = self.image_token * columns
        return self.image_break_token.join([row] * rows) + self.image_end_token


class SmolText(SmolVLMProcessor):
    """SmolVLM's processor without its videos, for which its own constructor wants `num2words`.

    Args:
        image_processor: Makes pixels.
        tokenizer: The checkpoint's tokenizer.
        image_seq_len: How many visual tokens a view has.
        chat_template: The checkpoint's template.
    """

    def __init__(
        self,
        image_processor: Any,
        tokenizer: Any,
        image_seq_len: int = 169,
        chat_template: str | None = None,
    ) -> None:
        self.image_token = getattr(tokenizer, "image_token", "<image>")
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        self.fake_image_token = getattr(tokenizer, "fake_image_token", "<fake_token_around_image>")
        self.global_image_token = getattr(tokenizer, "global_image_token", "<global-img>")
        self.image_seq_len = image_seq_len
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)


_OWN: dict[str | None, type] = {"PixtralProcessor": PixtralText, "SmolVLMProcessor": SmolText}
