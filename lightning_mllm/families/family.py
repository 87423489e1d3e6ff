"""What is known of one model type."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lightning_mllm.types import TokenTypes

Sees = Literal["causal", "images whole", "prompt whole"]
Head = Literal["plain", "capped", "scaled"]
Grid = Literal["fixed", "anyres", "merged", "rows", "square", "tiles", "splits"]


@dataclass(frozen=True)
class Family:
    """One Hugging Face model type. What is neither vision nor projector is the LLM.

    Attributes:
        vision: Prefixes of the parameter names of the vision tower, as in
            `model.named_parameters()`; the first is the tower's module.
        projector: Prefixes of those of the projector; the first is the projector's module. It may
            lie inside the tower (Qwen's merger). LLaVA-NeXT's `image_newline` belongs to it: the
            connector, not the LLM, puts this vector between rows of visual tokens.
        sees: What a position of the prompt can see besides earlier ones: nothing (`causal`), all of
            its own image (`images whole`: Gemma 3), or the whole prompt (`prompt whole`: the
            prefix-LM PaliGemma).
        token_types: Which token types the model's forward takes: 1 at visual tokens, as
            `token_type_ids` (`image`) or as `mm_token_type_ids` (`mm image`), or 1 after the prompt
            (`suffix`); None where it takes none.
        head: What the model does to the logits of its output embedding: nothing, a soft cap at its
            config's `final_logit_softcapping` (PaliGemma 2), or a division by `logits_scaling`.
        axes: How many axes a rotary position has: 3 for M-RoPE (time, row and column), else 1.
        grid: Which closed form says what each visual token shows of a picture; None where it is not
            known. `fixed`: square patches of the one picture that the processor makes. `anyres`:
            LLaVA-NeXT's whole picture and tiles. `merged`: Qwen's merged patches of a resized
            picture. `rows`: Pixtral's patches of a picture of any size. `square`: a squashed
            picture with pooled patches (Gemma 3, PaliGemma). `tiles`: InternVL's tiles, then the
            whole picture. `splits`: Idefics 3's splits, then the whole picture.
        one_image: Whether a sample can have one image only, as the processor makes other views of a
            picture where there are several (LLaVA-OneVision).
        mixes_dtypes: Whether the model's forward can put image features of one dtype among text
            embeddings of another; else its tower and its input embedding are kept in one dtype.
        native: Whether pictures reach the processor as they are by default; else they are padded to
            squares first, as LLaVA-1.5 was trained.
    """

    vision: tuple[str, ...] = ("model.vision_tower.",)
    projector: tuple[str, ...] = ("model.multi_modal_projector.",)
    sees: Sees = "causal"
    token_types: TokenTypes | None = None
    head: Head = "plain"
    axes: Literal[1, 3] = 1
    grid: Grid | None = None
    one_image: bool = False
    mixes_dtypes: bool = True
    native: bool = True

    @property
    def tower_name(self) -> str:
        """Name of the vision tower's module."""
        return self.vision[0].rstrip(".")

    @property
    def projector_name(self) -> str:
        """Name of the projector's module."""
        return self.projector[0].rstrip(".")
