"""Which engine runs a knockout."""

from __future__ import annotations

from typing import Literal

from lightning_mllm.analysis.knockout.engine.interface import KnockoutEngine
from lightning_mllm.analysis.knockout.engine.reference import ReferenceEngine
from lightning_mllm.analysis.knockout.engine.suffix import SuffixEngine

EngineName = Literal["auto", "suffix", "reference"]


def choose_engine(name: EngineName = "auto", memory: int | None = None) -> KnockoutEngine:
    """Make an engine.

    Args:
        name: "reference": full forwards. "suffix": only what can change; a model that does not allow it is refused.
            "auto": the same, but for such a model the reference engine does the work, and the log says so.
        memory: Bytes that the suffix engine may use besides the weights; half of what is free if not given.
    """
    if name == "reference":
        return ReferenceEngine()
    return SuffixEngine(memory, strict=name == "suffix")
