"""Where features are tapped in an MLLM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lightning_mllm.errors import ConfigError
from lightning_mllm.probing.features.pooling import PoolingName

Place = Literal["pre", "post", "image", "last"]


@dataclass(frozen=True)
class Point:
    """Where features are tapped, and how a sample's tokens become one vector.

    With LLaVA-NeXT, pooled features before and after the projection are not of the same tokens:
    "pre" has all patches of all views, also those of the padding around the picture; "post" and
    "image" have the packed tokens, without the padding and with row separators. Where a projector
    merges or pools patches (Qwen-VL, Gemma 3), "pre" has more of them than there are tokens.

    Attributes:
        place: "pre" (what enters the projector), "post" (what the LLM gets for the image), "image"
            (image positions in the LLM) or "last" (the position whose logits give the first token
            of the answer; nothing to pool).
        layer: Layer of the LLM, for "image" and "last" only: 0 is what enters the first layer, k
            what layer k puts out, before any norm.
        pooling: How tokens are pooled; `cls` works for "pre" only. All images of a sample are
            pooled together. `grid` and `cls` read the view that is the whole picture, and `grid`
            needs a family whose patches form a square, row by row.
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
        in_llm = self.place in ("image", "last")
        if in_llm != (self.layer is not None) or (self.layer or 0) < 0 or self.cells < 1:
            raise ConfigError(
                f"{self} can't be tapped: the places 'image' and 'last' need a layer from 0 on, "
                "the others none, and cells is at least 1."
            )
        if self.pooling == "cls" and self.place != "pre":
            raise ConfigError(
                f"{self} can't be tapped: only before the projector is there a class token."
            )

    @property
    def name(self) -> str:
        """Short and unique, e.g. `pre-mean`, `post-grid2`, `layer12-image-max`, `layer32-last`."""
        place = self.place if self.layer is None else f"layer{self.layer}-{self.place}"
        cells = self.cells if self.pooling == "grid" else ""
        return place if self.place == "last" else f"{place}-{self.pooling}{cells}"
