"""Families whose processor cuts a picture into tiles and adds the whole picture after them."""

from lightning_mllm.families.family import Family

TILED = {
    "internvl": Family(grid="tiles"),
    "aya_vision": Family(grid="tiles"),
    "got_ocr2": Family(grid="tiles"),
    "ovis2": Family(projector=("model.visual_embeddings_table.",)),
}
