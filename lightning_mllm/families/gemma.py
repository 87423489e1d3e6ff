"""Gemma 3 and 4, PaliGemma: positions see later ones, in an image or in the whole prompt."""

from lightning_mllm.families.family import Family

GEMMA = {
    "gemma3": Family(sees="images whole", token_types="image", grid="square"),
    "gemma4": Family(
        # sound is not read: its tower counts as vision, and is idle
        vision=("model.vision_tower.", "model.audio_tower.", "model.embed_audio."),
        projector=("model.embed_vision.",),
        sees="images whole",
        token_types="mm image",
        head="capped",
    ),
    "paligemma": Family(sees="prompt whole", token_types="suffix", head="capped", grid="square"),
}
