"""Model types of transformers that can't be worked with here, and why."""

_CROSS = (
    "its decoder reads pictures by cross-attention, so images are not tokens of its decoder, and "
    "there is nothing to locate, block or follow"
)
_QUERIES = (
    "a model of its own (Q-Former) turns a picture into a few queries, so what stands for an image "
    "in its decoder are not tokens that show parts of it"
)
_MASKED = "no image tokens in its text say where features go, as they do in LLaVA or Qwen-VL"
_WORDS = "it has no vision tower and projector: a picture is cut up into tokens of its decoder"
_TORCHVISION = (
    "transformers makes its pixels with torchvision only, and here they always come from PIL, so "
    "that results do not depend on what is installed"
)
_TIMM = "its vision tower is one of timm, which needs torchvision, and here neither is used"

REFUSED: dict[str, str] = {
    **dict.fromkeys(("blip", "florence2", "idefics", "mllama", "pix2struct"), _CROSS),
    **dict.fromkeys(("pp_formulanet", "t5gemma2", "udop", "vision-encoder-decoder"), _CROSS),
    **dict.fromkeys(("blip-2", "instructblip", "instructblipvideo"), _QUERIES),
    **dict.fromkeys(("git", "kosmos-2", "kosmos-2.5"), _MASKED),
    **dict.fromkeys(("chameleon", "emu3", "fuyu"), _WORDS),
    **dict.fromkeys(("cohere2_vision", "gemma4_unified", "inkling2", "kimi_k25"), _TORCHVISION),
    **dict.fromkeys(("inkling_mm_model", "lfm2_vl", "llama4", "minicpm_ocr"), _TORCHVISION),
    **dict.fromkeys(("minimax_m3_vl", "molmo2", "muse_glimmer", "muse_spark"), _TORCHVISION),
    **dict.fromkeys(("nemotron_h_omni", "step3p7", "unlimited_ocr"), _TORCHVISION),
    **dict.fromkeys(("fast_vlm", "gemma3n", "perception_lm"), _TIMM),
    "diffusion_gemma": "it is a diffusion model, which does not write from left to right",
    "evolla": "it reads proteins, not pictures",
    "pi0": "it is the policy of a robot, which answers with movements",
    "video_llava": "it has a tower for pictures and another for videos",
}
