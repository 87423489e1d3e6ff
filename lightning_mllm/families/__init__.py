"""What data and models must know of a Hugging Face model type: one entry per type, one registry.

An entry says only what can't be found in a checkpoint's config. Nothing of a family's arithmetic
is here: its own processor makes its inputs, and its own model encodes pictures.
"""

from lightning_mllm.families.family import Family, Grid, Head, Sees
from lightning_mllm.families.head import finish_logits
from lightning_mllm.families.registry import FAMILIES, family_of, register_family

__all__ = [
    "FAMILIES",
    "Family",
    "Grid",
    "Head",
    "Sees",
    "family_of",
    "finish_logits",
    "register_family",
]
