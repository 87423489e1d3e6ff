"""Keeps keys and passwords out of everything that a run saves."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_MASK = "********"
_SECRET_KEY = re.compile(  # not: tokenizer
    r"token(?!i[sz])|secret|passw|api_?key|credential", re.IGNORECASE
)
_REFERENCE = re.compile(r"\$\{oc\.env:\w+\}")  # says where the secret is, and not what it is
_SHORTEST_SECRET = 8  # a shorter value of a secret environment variable would mask innocent text


def mask_secrets(config: Any) -> Any:
    """Return a copy of nested dicts and lists in which no secret is left.

    Masked are texts under a key that names a secret (`hf_token`, `api_key`, ...), and all texts
    with the value of an environment variable of such a name. Numbers stay: `max_new_tokens: 8` is
    not a secret.
    """
    secrets = []
    for name, value in os.environ.items():
        if _SECRET_KEY.search(name) and len(value) >= _SHORTEST_SECRET:
            secrets.append(value)
    return _mask(config, secret=False, values=secrets)


def _mask(node: Any, secret: bool, values: list[str]) -> Any:
    if isinstance(node, Mapping):
        masked = {}
        for key, value in node.items():
            masked[key] = _mask(value, secret or bool(_SECRET_KEY.search(str(key))), values)
        return masked
    if isinstance(node, list | tuple):
        return [_mask(item, secret, values) for item in node]
    if isinstance(node, str | Path):
        text = str(node)
        if _REFERENCE.fullmatch(text):
            return node
        return _MASK if secret or any(value in text for value in values) else node
    return node
