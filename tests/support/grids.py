"""The tiny checkpoints of the families, by what is known of their visual tokens."""

SQUARE = ("gemma3", "paligemma")
FIXED = ("llava", "llava_siglip", "llava_dinov2", "vipllava")
ANYRES = ("llava_next", "granite_vision", "llava_onevision")
MERGED = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5")
ROWS = ("llava_pixtral", "mistral3")
TILES = ("internvl", "aya_vision")
SPLITS = ("idefics3", "smolvlm")
WITH_GRID = (*FIXED, *SQUARE, *ANYRES, *MERGED, *ROWS, *TILES, *SPLITS)
WITH_FRAME = ("gemma3", *ROWS, *TILES, *SPLITS)
