"""Whether the prompts of two runs have the same tokens in the same places, but for what is swapped.

States are put where they were in the other run. So both prompts have to be equally long, with the
same segments and positions, and may differ in the words of a question or in what a picture shows.
"""

from __future__ import annotations

from torch import Tensor

from lightning_mllm.analysis.core.positions import mask_positions
from lightning_mllm.analysis.patching.patch import Patch
from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.errors import DataError
from lightning_mllm.types import Segment

# where the tokens of both have to be alike; what boxes and options name may differ
_STRUCTURE = (
    Segment.SYSTEM,
    Segment.IMAGE,
    Segment.IMAGE_FRAME,
    Segment.IMAGE_NEWLINE,
    Segment.QUESTION,
    Segment.INSTRUCTION,
    Segment.SUFFIX,
    Segment.LAST,
)
_WAY_OUT = (
    "Swap words of as many tokens, and give both pictures one size, which for LLaVA-1.5 a geometry "
    "of pad or squash does."
)


def check_prompt_alignment(ours: MultimodalBatch, theirs: MultimodalBatch) -> None:
    """Refuse prompts whose positions do not correspond, row by row.

    Args:
        ours: Prompts, padded on the left.
        theirs: As many others.

    Raises:
        DataError: There are such; the message names samples and the first difference. Or the two
            batches are padded to different widths.
    """
    if len(ours) != len(theirs):
        raise DataError(
            f"{len(ours)} prompts can't be patched with the states of {len(theirs)}. Give each its "
            "partner, in the same order."
        )
    for row, (own_id, other_id) in enumerate(zip(ours.sample_ids, theirs.sample_ids, strict=True)):
        problem = _find_difference(ours, theirs, row)
        if problem:
            raise DataError(
                f"Samples {own_id!r} and {other_id!r} can't be patched into each other: {problem}. "
                f"{_WAY_OUT}",
                "pair",
            )
    widths = ours.input_ids.shape[1], theirs.input_ids.shape[1]
    if widths[0] != widths[1]:
        raise DataError(
            f"The prompts correspond, but are padded to {widths[0]} and {widths[1]} positions. "
            "Call prompts() on both batches, after taking the samples.",
            "pair",
        )


def mask_swapped(ours: MultimodalBatch, theirs: MultimodalBatch) -> Tensor:
    """Return the positions at which two prompts have different tokens, (batch, sequence)."""
    real = ours.attention_mask.bool()
    return (ours.input_ids != theirs.input_ids.to(ours.input_ids.device)) & real


def mask_patched(patch: Patch, ours: MultimodalBatch, theirs: MultimodalBatch) -> Tensor:
    """Return the positions of a patch, (batch, sequence) bool.

    Args:
        patch: What is patched.
        ours: The prompts whose segments count.
        theirs: Those of the other run.

    Raises:
        DataError: The batch lacks the positions of a segment.
    """
    if patch.positions is None:
        return mask_swapped(ours, theirs)
    return mask_positions(ours.spans, patch.positions)


def _find_difference(ours: MultimodalBatch, theirs: MultimodalBatch, row: int) -> str:
    """Return where two prompts do not correspond, as a clause; empty where they do."""
    count, others = (int(each.attention_mask[row].sum()) for each in (ours, theirs))
    swapped = _differ(ours.input_ids[row, -count:], theirs.input_ids[row, -others:])
    if count != others:
        first = int(swapped.int().argmax()) if swapped.any() else len(swapped)
        return f"they have {count} and {others} tokens, and differ from token {first} on"
    for segment in _STRUCTURE:
        differs = _differ(ours.spans[segment][row, -count:], theirs.spans[segment][row, -count:])
        if differs.any():
            return f"token {int(differs.int().argmax())} is in {str(segment)!r} in one of them only"
    places = _differ(ours.position_ids[..., row, -count:], theirs.position_ids[..., row, -count:])
    places = places.reshape(-1, count).any(0)
    if places.any():
        first = int(places.int().argmax())
        return f"token {first} has another position, as in pictures of two shapes"
    swapped &= ~ours.spans[Segment.QUESTION][row, -count:]
    if swapped.any():
        first = int(swapped.int().argmax())
        return f"token {first}, which is outside the question, differs"
    return ""


def _differ(ours: Tensor, theirs: Tensor) -> Tensor:
    """Return where two rows differ, as far as both go."""
    length = min(ours.shape[-1], theirs.shape[-1])
    return ours[..., :length] != theirs[..., :length].to(ours.device)
