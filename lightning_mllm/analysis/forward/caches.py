"""How many positions a cache holds, where it says so."""

from __future__ import annotations

from typing import Any

from lightning_mllm.errors import ConfigError


def positions_of_cache(cache: Any) -> int:
    """Return how many positions were run before, as the first layer keeps them all.

    Raises:
        ConfigError: The cache is static or slides, so that it does not tell.
    """
    if cache is None:
        return 0
    if cache.is_compileable or any(cache.is_sliding):
        raise ConfigError(
            f"Tokens are found by their position among the keys, which a {type(cache).__name__} "
            "does not keep. Generate with a dynamic cache (cache_implementation=None) and full "
            "attention, or with use_cache=False."
        )
    return int(cache.get_seq_length())
