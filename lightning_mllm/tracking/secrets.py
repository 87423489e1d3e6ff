"""Keeps keys and passwords out of everything that a run saves."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_MASK = "********"
_SECRET_KEY = re.compile(
    r"token(?!i[sz])|secret|passw|api_?key|credential", re.IGNORECASE
)  # not: tokenizer
_SHORTEST_SECRET = 8  # a shorter value of a secret environment variable would mask innocent text


def mask_secrets(config: Any) -> Any:
    """Return a copy of nested dicts and lists in which no secret is left.

    Masked are text under a key that names a secret (`hf_token`, `api_key`, ...) and, wherever it stands, the value of
    an environment variable with such a name. Numbers stay: `max_new_tokens: 8` is no secret.
    """
    values = [
        v for key, v in os.environ.items() if _SECRET_KEY.search(key) and len(v) >= _SHORTEST_SECRET
    ]
    return _masked(config, secret=False, values=values)


def _masked(node: Any, secret: bool, values: list[str]) -> Any:
    if isinstance(node, Mapping):
        return {
            k: _masked(v, secret or bool(_SECRET_KEY.search(str(k))), values)
            for k, v in node.items()
        }
    if isinstance(node, list | tuple):
        return [_masked(item, secret, values) for item in node]
    if isinstance(node, str | Path):
        text = str(node)
        return _MASK if secret or any(value in text for value in values) else node
    return node
