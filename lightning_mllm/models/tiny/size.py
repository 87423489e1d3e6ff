"""How large a tiny checkpoint is."""

from __future__ import annotations

from dataclasses import dataclass

from lightning_mllm.errors import ConfigError


@dataclass(frozen=True)
class TinySize:
    """Shape of a tiny checkpoint; by default 0.2 million parameters and 16 visual tokens per view.

    Attributes:
        image_size: Side of the pictures that the tower reads, in pixels.
        patch_size: Side of a patch, in pixels.
        vision_width: Width of the vision tower.
        vision_layers: Number of layers of the vision tower.
        text_width: Width of the LLM.
        text_layers: Number of layers of the LLM.
        heads: Number of attention heads per layer, in tower and LLM.
        vocabulary: Largest number of tokens that the tokenizer learns, special ones included.
        context: Largest number of positions.
    """

    image_size: int = 28
    patch_size: int = 7
    vision_width: int = 32
    vision_layers: int = 3
    text_width: int = 64
    text_layers: int = 2
    heads: int = 4
    vocabulary: int = 512
    context: int = 1024

    @property
    def grid(self) -> int:
        """Number of patches along a side of a picture."""
        return self.image_size // self.patch_size

    @property
    def head_dim(self) -> int:
        """Width of a head of the LLM."""
        return self.text_width // self.heads

    def joined(self, side: int) -> int:
        """Return the number of tokens of a view where a square of patches becomes one token.

        Args:
            side: Number of patches along a side of that square.

        Raises:
            ConfigError: The patches of a view can't be divided so.
        """
        if self.grid % side:
            raise ConfigError(
                f"This family joins {side} x {side} patches to a token, and a view has {self.grid} "
                f"patches along a side: image_size {self.image_size}, patch_size "
                f"{self.patch_size}. Choose an image_size that is a multiple of "
                f"{side * self.patch_size}."
            )
        return (self.grid // side) ** 2
