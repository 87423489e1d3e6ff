"""LLaVA and its kin: a tower, a projector, and features that take the place of image tokens."""

from lightning_mllm.families.family import Family

_WITH_NEWLINE = ("model.multi_modal_projector.", "model.image_newline")

LLAVA = {
    "llava": Family(grid="fixed", native=False),
    "vipllava": Family(grid="fixed", native=False),
    "llava_next": Family(projector=_WITH_NEWLINE, grid="anyres"),
    "llava_onevision": Family(projector=_WITH_NEWLINE, grid="anyres", one_image=True),
    "mistral3": Family(grid="rows"),
    "lighton_ocr": Family(
        vision=("model.vision_encoder.",), projector=("model.vision_projection.",), grid="rows"
    ),
    "aria": Family(),
    "granite4_vision": Family(
        projector=(
            "model.layerwise_projectors.",
            "model.spatial_projectors.",
            "model.image_newline",
        ),
        head="scaled",
    ),
}
