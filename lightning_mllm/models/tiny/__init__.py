"""Builds small, complete checkpoints in the Hugging Face format offline, to try things out.

Weights are random. Everything else is real: `AutoModelForImageTextToText` and `AutoProcessor` open
the folder as they open `llava-hf/llava-1.5-7b-hf`.
"""

from lightning_mllm.models.tiny.checkpoint import build_tiny_checkpoint
from lightning_mllm.models.tiny.llava import SPECIAL_TOKENS, Chat
from lightning_mllm.models.tiny.names import TinyFamily
from lightning_mllm.models.tiny.size import TinySize
from lightning_mllm.models.tiny.templates import CHAT_TEMPLATES
from lightning_mllm.models.tiny.tokenizer import CORPUS

__all__ = [
    "CHAT_TEMPLATES",
    "CORPUS",
    "SPECIAL_TOKENS",
    "Chat",
    "TinyFamily",
    "TinySize",
    "build_tiny_checkpoint",
]
