"""What is dropped: how many visual tokens, in front of which layer, and which of them.

From the layer on the dropped tokens are gone: the others can't attend to them, and neither keys nor
values of them are kept. What stays keeps its own position. With `attention` this is FastV (Chen et
al., "An Image is Worth 1/2 Tokens After Layer 2", ECCV 2024, arXiv 2403.06764), as its released
code ranks tokens. With a share of 1 no visual token is left (VTW, arXiv 2405.05803).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from lightning_mllm.analysis.core.windows import Windows
from lightning_mllm.errors import ConfigError

DropChoice = Literal["attention", "norm", "similarity", "stride", "random"]
KeptEnd = Literal["most", "least"]


@dataclass(frozen=True, kw_only=True)
class Drop:
    """Which visual tokens are dropped.

    Attributes:
        layer: In front of which layer they are dropped, counted from 0: this is the first layer
            without them; a number with a decimal point is a fraction of the depth.
        share: Share of each sample's visual tokens that are dropped, from 0 to 1; of n tokens
            round((1 - share) * n) stay.
        choice: What decides which tokens stay: `attention`, the weights that the last position of
            the prompt gives them in the layer before, mean of its heads; `norm` of the state that
            enters the layer; `similarity`, the mean cosine with the sample's other visual tokens
            there; `stride`, evenly spaced; `random`, by the seed and the sample's id.
        keep: Whether those stay of which this is the `most` or the `least`. With `similarity`,
            `least` keeps those that differ from the others.
        seed: Seed of the random choice.

    Raises:
        ConfigError: An option has no such value, or two of them do not go together.
    """

    layer: int | float = 2
    share: float = 0.5
    choice: DropChoice = "attention"
    keep: KeptEnd = "most"
    seed: int = 0

    def __post_init__(self) -> None:
        kinds: dict[str, Any] = {"choice": DropChoice, "keep": KeptEnd}
        for option, kind in kinds.items():
            if (value := getattr(self, option)) not in get_args(kind):
                raise ConfigError(
                    f"Drop.{option} is {value!r}; it can be {', '.join(get_args(kind))}."
                )
        if not 0 <= self.share <= 1:
            raise ConfigError(f"Drop.share must lie between 0 and 1, not {self.share}.")
        if self.seed < 0:
            raise ConfigError(f"Drop.seed must be at least 0, not {self.seed}.")
        if self.keep == "least" and self.choice in ("stride", "random"):
            raise ConfigError(
                f"Drop.choice {self.choice} ranks no tokens, so there are no least ones. Leave "
                "keep out."
            )

    @property
    def choice_name(self) -> str:
        """What decides, and which end of it stays: `attention`, `least attention`."""
        return self.choice if self.keep == "most" else f"least {self.choice}"

    def first_layer(self, depth: int) -> int:
        """Return the number of the first layer without the tokens.

        Raises:
            ConfigError: A decoder of this depth has no such layer, or there is none before it.
        """
        (window,) = Windows(layers=[(self.layer, 1.0)]).of(depth)
        if not window.start:
            raise ConfigError(
                "Drop.layer is 0, but the first layer has to see all tokens: a cache counts its "
                "positions there. Set it to 1, or remove tokens from all layers with Skip("
                "computation='block', share=...)."
            )
        return window.start
