"""Where features are tapped in an MLLM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lightning_mllm.errors import ConfigError
from lightning_mllm.probing.features.pooling import PoolingName

Place = Literal["tower", "pre", "post", "image", "text", "prompt", "last"]
IN_LLM: tuple[Place, ...] = ("image", "text", "prompt", "last")
OF_PICTURES: tuple[Place, ...] = ("tower", "pre", "post", "image")


@dataclass(frozen=True)
class Point:
    """Where features are tapped, and how a sample's tokens become one vector.

    With LLaVA-NeXT, pooled features before and after the projection are not of the same tokens:
    "pre" has all patches of all views, also those of the padding around the picture; "post" and
    "image" have the packed tokens, without the padding and with row separators. Where a projector
    merges or pools patches (Qwen-VL, Gemma 3), "pre" has more of them than there are tokens.

    Attributes:
        place: "tower" (patches in the vision tower), "pre" (what enters the projector), "post"
            (what the LLM gets for the image), "image" (image positions in the LLM), "text" (the
            prompt's other positions), "prompt" (both) or "last" (the position whose logits give
            the first token of the answer; nothing to pool). None of them has the answer in it.
        layer: Layer of the tower for "tower", of the LLM for "image", "text", "prompt" and "last":
            0 is what enters the first layer, k what layer k puts out, before any norm.
        pooling: How tokens are pooled; `none` keeps each of them, which `lightning extract` can.
            All images of a sample are pooled together. `grid` and `cls` (for "tower" and "pre")
            read the view that is the whole picture, and `grid` needs a family whose patches form a
            square, row by row. In the tower, a class token and registers count for `cls` and
            `none` only.
        cells: Number of cells per side of pooling `grid`.

    Raises:
        ConfigError: The fields do not go together.
    """

    place: Place
    layer: int | None = None
    pooling: PoolingName = "mean"
    cells: int = 2

    def __post_init__(self) -> None:
        """Check the fields against each other."""
        has_layers = self.place not in ("pre", "post")
        if has_layers != (self.layer is not None) or (self.layer or 0) < 0 or self.cells < 1:
            raise ConfigError(
                f"{self} can't be tapped: the places 'pre' and 'post' have no layers, the others "
                "need a layer from 0 on, and cells is at least 1."
            )
        if self.pooling == "cls" and self.place not in ("tower", "pre"):
            raise ConfigError(
                f"{self} can't be tapped: only before the projector is there a class token."
            )
        if self.pooling == "grid" and self.place in ("text", "prompt"):
            raise ConfigError(
                f"{self} can't be tapped: text has no grid. Use pooling mean, max or none."
            )

    @property
    def name(self) -> str:
        """Short and unique: `pre-mean`, `post-grid2`, `layer12-image-max`, `layer32-last`.

        Without pooling it is the place alone: `layer12-image`; in the tower `tower3-mean`.
        """
        if self.place == "tower":
            place = f"tower{self.layer}"
        else:
            place = self.place if self.layer is None else f"layer{self.layer}-{self.place}"
        cells = self.cells if self.pooling == "grid" else ""
        has_all = self.place == "last" or self.pooling == "none"
        return place if has_all else f"{place}-{self.pooling}{cells}"
