"""A checkpoint's processor, and what its config says of visual tokens."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from transformers import PretrainedConfig, ProcessorMixin

from lightning_mllm.families import Family, family_of


@dataclass(frozen=True)
class CheckpointProcessor:
    """Makes a checkpoint's inputs.

    Attributes:
        hf: The family's own processor, a class of transformers.
        config: The config of the checkpoint's model.
    """

    hf: ProcessorMixin
    config: PretrainedConfig

    @cached_property
    def family(self) -> Family:
        """What is known of the model's type."""
        return family_of(self.config)

    @property
    def tokenizer(self) -> Any:
        """The checkpoint's tokenizer, a fast one of transformers."""
        return self.hf.tokenizer

    @property
    def image_processor(self) -> Any:
        """The part that makes pixels; its options are those of the checkpoint's files."""
        return self.hf.image_processor

    @property
    def placeholder(self) -> str:
        """What the chat template writes for an image; the processor replaces it."""
        token: str = self.hf.image_token  # type: ignore[attr-defined]  # of each family's class
        return token

    @property
    def feature_token(self) -> str:
        """The token that stands for one visual feature; in some families not the placeholder."""
        return str(self.tokenizer.convert_ids_to_tokens(self.feature_token_id))

    @property
    def feature_token_id(self) -> int:
        """The id of the token that stands for one visual feature."""
        return int(self.config.image_token_id)

    @property
    def chat_template(self) -> str:
        """The checkpoint's chat template, the default one where there are several."""
        template = self.hf.chat_template
        return str(template["default"] if isinstance(template, dict) else template)
