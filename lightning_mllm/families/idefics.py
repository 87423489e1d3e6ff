"""Idefics 3 and SmolVLM: a picture is split, and a connector shuffles pixels into channels."""

from dataclasses import replace

from lightning_mllm.families.family import Family

_IDEFICS = Family(vision=("model.vision_model.",), projector=("model.connector.",), grid="splits")

IDEFICS = {"idefics3": _IDEFICS, "smolvlm": replace(_IDEFICS, mixes_dtypes=False)}
