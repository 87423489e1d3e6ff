"""Where a model comes from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Source:
    """Where a model comes from.

    Attributes:
        checkpoint: Hub id or folder.
        revision: Branch, tag or commit on the hub.
        trust_remote_code: Whether code that comes with the checkpoint may run.
    """

    checkpoint: str
    revision: str | None = None
    trust_remote_code: bool = False

    @property
    def options(self) -> dict[str, Any]:
        """The keywords with which transformers opens the checkpoint."""
        return {"revision": self.revision, "trust_remote_code": self.trust_remote_code}

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """Return the checkpoint's tokenizer."""
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            self.checkpoint, **self.options
        )
        return tokenizer
