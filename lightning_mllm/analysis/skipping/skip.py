"""What is skipped: which computation, in which layers, for which tokens.

The computations are those of Shukor and Cord, "Skipping Computations in Multimodal LLMs" (2024,
arXiv 2410.09454), the share of tokens is that of "Implicit Multimodal Alignment" (NeurIPS 2024,
arXiv 2405.16700, figure 11). X is the residual stream that enters a layer. Nothing skipped,
X' = X + SA(LN1(X)), and X' + FFN(LN2(X')) leaves it:

| computation       | what leaves the layer instead, at a token that is chosen                    |
|-------------------|-----------------------------------------------------------------------------|
| `block`           | X                                                                           |
| `ffn`             | X'                                                                          |
| `attention`       | X + FFN(LN2(X))                                                             |
| `parallel`        | X + SA(LN1(X)) + FFN(LN1(X)): as many operations, but side by side          |
| `parallel_blocks` | two layers get the same X, and the mean of their outputs leaves the second  |

The papers leave open which tokens of a share are skipped, whether each layer skips other tokens,
and whether others can attend to a token that skips attention. These are options.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from lightning_mllm.analysis.core.windows import Windows
from lightning_mllm.errors import ConfigError

Computation = Literal["block", "ffn", "attention", "parallel", "parallel_blocks"]
Modality = Literal["perceptual", "textual", "all"]
Phase = Literal["prefill", "decode", "both"]
Choice = Literal["random", "strided", "lowest_change"]


@dataclass(frozen=True, kw_only=True)
class Skip:
    """What is skipped.

    Attributes:
        computation: Which computation is skipped: `ffn` (the feed-forward network), `attention`,
            `block` (both, the whole layer), or run side by side: `parallel`, `parallel_blocks`.
        share: Share of each sample's tokens that skip it, from 0 to 1; of n tokens that qualify
            floor(share * n) do.
        tokens: Which tokens qualify: `perceptual`, those of images, `textual`, all others, or
            `all`. Padding never counts.
        phase: Which positions qualify: `prefill`, the prompt, up to the position that predicts the
            answer; `decode`, all after it, whether generated or given, as in training; or `both`.
        choice: How tokens are chosen: `random`, by the seed and the sample's id; `strided`, evenly
            spaced; `lowest_change`, those whose residual stream the layer before has changed least,
            ||dX|| / ||X||. After the prompt, where tokens come one by one, each is drawn for
            itself, with the share as its probability.
        start: First layer, from 0; a number with a decimal point is a fraction of the depth.
        stop: First layer that skips nothing again; a number with a decimal point is a fraction of
            the depth.
        interval: Distance between two layers that skip: 1 for each layer, 2 for each second one;
            of parallel blocks, from pair to pair.
        per_layer: Whether each layer chooses its own tokens; otherwise they are chosen once for all
            layers.
        visible: Whether other tokens can attend to a token that skips attention. Its keys and
            values are then computed; otherwise nothing is, and a token that skips attention in all
            layers from one on is removed from there on.
        seed: Seed of the random choice.

    Raises:
        ConfigError: An option has no such value, or two of them do not go together.
    """

    computation: Computation = "ffn"
    share: float = 0.5
    tokens: Modality = "perceptual"
    phase: Phase = "prefill"
    choice: Choice = "random"
    start: int | float = 0
    stop: int | float = 1.0
    interval: int = 1
    per_layer: bool = False
    visible: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        kinds: dict[str, Any] = {
            "computation": Computation,
            "tokens": Modality,
            "phase": Phase,
            "choice": Choice,
        }
        for option, kind in kinds.items():
            if (value := getattr(self, option)) not in get_args(kind):
                raise ConfigError(
                    f"Skip.{option} is {value!r}; it can be {', '.join(get_args(kind))}."
                )
        if not 0 <= self.share <= 1:
            raise ConfigError(f"Skip.share must lie between 0 and 1, not {self.share}.")
        if self.interval < 1:
            raise ConfigError(f"Skip.interval must be at least 1, not {self.interval}.")
        if self.seed < 0:
            raise ConfigError(f"Skip.seed must be at least 0, not {self.seed}.")
        if self.tokens == "perceptual" and self.phase == "decode":
            raise ConfigError(
                "Skip: no perceptual token is decoded. Set tokens: textual, or phase: prefill."
            )
        if self.choice == "lowest_change" and self.phase != "prefill":
            raise ConfigError(
                "Skip.choice lowest_change ranks the tokens of a prompt, but after it they come "
                "one by one. Set phase: prefill, or choice: random or strided."
            )
        if self.computation == "parallel_blocks":
            self._check_pairs()

    def layers(self, depth: int) -> tuple[int, ...]:
        """Return the layers that skip something; of parallel blocks the first of each pair.

        Raises:
            ConfigError: A decoder of this depth has no such layers, or `lowest_change` has no layer
                before the first.
        """
        (window,) = Windows(layers=[(self.start, self.stop)]).of(depth)
        found = range(window.start, window.stop, self.interval)
        if self.computation == "parallel_blocks":
            found = range(window.start, window.stop - 1, self.interval)
        if not found:
            raise ConfigError(
                f"There is no pair of blocks from layer {window.start} to {window.stop - 1}. Let "
                "start and stop lie two layers or more apart."
            )
        if self.choice == "lowest_change" and not window.start:
            raise ConfigError(
                "Skip.choice lowest_change looks at the layer before, but layer 0 has none. Start "
                "at 1."
            )
        return tuple(found)

    def touched(self, depth: int) -> frozenset[int]:
        """Return the layers that skip something, and those that the choice looks at.

        Raises:
            ConfigError: A decoder of this depth has no such layers, see `layers`.
        """
        layers = self.layers(depth)
        if self.computation == "parallel_blocks":
            return frozenset({*layers, *(layer + 1 for layer in layers)})
        if self.choice == "lowest_change":
            ranking = layers if self.per_layer else layers[:1]
            return frozenset({*layers, *(layer - 1 for layer in ranking)})
        return frozenset(layers)

    def _check_pairs(self) -> None:
        if self.interval < 2:
            raise ConfigError(
                f"Skip.interval is {self.interval}, but a pair of parallel blocks takes two layers."
            )
        if (self.share, self.tokens, self.phase) != (1.0, "all", "both"):
            raise ConfigError(
                "Parallel blocks are for all tokens, since they change the inputs of all. Set "
                "share: 1.0, tokens: all and phase: both."
            )
