"""What can be said about skipping, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from lightning_mllm.analysis.skipping.skip import Skip
from lightning_mllm.errors import ConfigError

PAIRS: dict[str, Any] = {
    "computation": "parallel_blocks",
    "share": 1.0,
    "tokens": "all",
    "phase": "both",
}


@pytest.mark.parametrize(
    ("options", "depth", "layers"),
    [
        ({}, 4, (0, 1, 2, 3)),
        ({"start": 1, "stop": 3}, 4, (1, 2)),
        ({"start": 0.5}, 4, (2, 3)),
        ({"start": 0.25, "stop": 0.75, "interval": 2}, 8, (2, 4)),
        ({**PAIRS, "interval": 2}, 4, (0, 2)),
        ({**PAIRS, "interval": 3}, 8, (0, 3, 6)),
        ({**PAIRS, "interval": 2, "start": 1}, 4, (1,)),
    ],
)
def test_layers_are_numbers_or_fractions_of_the_depth(
    options: Any, depth: int, layers: tuple[int, ...]
) -> None:
    assert Skip(**options).layers(depth) == layers


@pytest.mark.parametrize(
    ("options", "touched"),
    [
        ({"start": 1}, {1, 2, 3}),
        ({"choice": "lowest_change", "start": 1, "interval": 2}, {0, 1, 3}),
        ({"choice": "lowest_change", "start": 1, "interval": 2, "per_layer": True}, {0, 1, 2, 3}),
        ({**PAIRS, "interval": 3}, {0, 1}),
    ],
)
def test_other_layers_are_looked_at_too(options: Any, touched: set[int]) -> None:
    assert Skip(**options).touched(4) == touched


@pytest.mark.parametrize(
    ("first", "last", "interval", "count"),
    [(2, 31, 2, 15), (3, 31, 3, 10), (4, 31, 4, 7), (26, 31, 2, 3)],
)
def test_the_paper_s_layers_can_be_said(first: int, last: int, interval: int, count: int) -> None:
    assert len(Skip(start=first, stop=last, interval=interval).layers(32)) == count


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"computation": "mlp"}, r"Skip\.computation is 'mlp'; it can be block, ffn, attention"),
        ({"choice": "best"}, r"Skip\.choice is 'best'; it can be random, strided, lowest_change"),
        ({"share": 1.5}, r"Skip\.share must lie between 0 and 1, not 1\.5"),
        ({"seed": -1}, r"Skip\.seed must be at least 0, not -1"),
        ({"interval": 0}, r"Skip\.interval must be at least 1"),
        ({"tokens": "perceptual", "phase": "decode"}, r"no perceptual token is decoded"),
        ({"choice": "lowest_change", "tokens": "all", "phase": "both"}, r"Set phase: prefill"),
        ({**PAIRS, "interval": 1}, r"takes two layers"),
        ({**PAIRS, "interval": 2, "share": 0.5}, r"are for all tokens.*Set share: 1\.0"),
    ],
)
def test_what_can_not_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Skip(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": 4}, r"is not a range of layers"),
        ({"choice": "lowest_change"}, r"layer 0 has none\. Start at 1"),
        ({**PAIRS, "interval": 2, "start": 3}, r"no pair of blocks from layer 3 to 3"),
    ],
)
def test_layers_that_a_decoder_has_not_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Skip(**options).layers(4)
