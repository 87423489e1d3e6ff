"""Qwen-VL and its kin: flat patches that a merger joins, and positions of three axes.

The merger is the projector; as a rule it lies in the tower.
"""

from dataclasses import replace

from lightning_mllm.families.family import Family

_QWEN2 = Family(
    vision=("model.visual.",), projector=("model.visual.merger.",), axes=3, grid="merged"
)
_QWEN3 = Family(
    vision=("model.visual.",),
    projector=("model.visual.merger.", "model.visual.deepstack_merger_list."),
    axes=3,
    grid="merged",
)

QWEN = {
    "qwen2_vl": _QWEN2,
    "qwen2_5_vl": _QWEN2,
    "qwen3_vl": _QWEN3,
    "qwen3_vl_moe": _QWEN3,
    "qwen3_5": _QWEN2,
    # these round sizes in ways of their own
    "glm4v": replace(_QWEN2, grid=None),
    "paddleocr_vl": Family(vision=("model.visual.",), projector=("model.projector.",), axes=3),
}
