"""What a checkpoint of one family holds, as data: its builder writes this and knows no family."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class SpecialTokens:
    """Special tokens of a family's tokenizer.

    Attributes:
        pad: What shorter texts are filled up with.
        eos: What ends an answer.
        bos: What begins a text, if anything does.
        named: Attribute of the tokenizer -> token.
        others: Special tokens without an attribute.
        plain: Whole tokens that are ordinary text, such as PaliGemma's places.
        adds_bos: Whether the tokenizer writes `bos` before each text; else the template does.
    """

    pad: str
    eos: str
    bos: str | None = None
    named: dict[str, str] = field(default_factory=dict)
    others: tuple[str, ...] = ()
    plain: tuple[str, ...] = ()
    adds_bos: bool = True

    @property
    def special(self) -> list[str]:
        """Each special token once, in the order of their ids."""
        bos = [self.bos] if self.bos else []
        tokens = [self.pad, *bos, self.eos, *self.named.values(), *self.others]
        return list(dict.fromkeys(tokens))

    @property
    def attributes(self) -> dict[str, str]:
        """Attribute of the tokenizer -> token; what has no attribute gets a number."""
        rest = {f"special_{number}_token": token for number, token in enumerate(self.others)}
        return self.named | rest


@dataclass(frozen=True)
class Blueprint:
    """A checkpoint of one family; ids of tokens are filled in when the tokenizer is trained.

    Attributes:
        tokens: Special tokens.
        template: Chat template, in Jinja.
        config: Options of the model's config, `model_type` among them.
        token_ids: Option of the config -> the token whose id it is, or a list of tokens.
        image_processor: Class of the image processor, as the Hugging Face Hub names it.
        image_options: Options of the image processor.
        processor: Class of the processor.
        options: Options of the processor.
        other_parts: Further parts of the processor, such as the one for videos, as their files
            have them.
        ends: Tokens that end an answer beside `tokens.eos`.
    """

    tokens: SpecialTokens
    template: str
    config: dict[str, Any]
    token_ids: dict[str, str | list[str]]
    image_processor: str
    image_options: dict[str, Any]
    processor: str
    options: dict[str, Any] = field(default_factory=dict)
    other_parts: dict[str, dict[str, Any]] = field(default_factory=dict)
    ends: tuple[str, ...] = ()
