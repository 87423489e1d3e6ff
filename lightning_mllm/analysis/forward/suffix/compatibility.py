"""Whether a model can be run for single rows: tried on a prompt, before the first result.

The clean run is replayed with the rows' code. This shows, up to rounding, whether tokens see what
the model's family says, the cache is understood, and layers are called for rows as for all tokens.
Whether attention respects the rows' masks is checked to the bit, in any precision: of two rows that
stand side by side, when everything is hidden from the first, the first has to change and the second
must not.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_mllm.analysis.core.windows import Window
from lightning_mllm.analysis.forward.float32_head import next_token_head_logits
from lightning_mllm.analysis.forward.hidden_keys import HiddenKeys
from lightning_mllm.analysis.forward.prompts import Prompts, prompt_log_probabilities
from lightning_mllm.analysis.forward.suffix.clean_run import CleanRun, UnfitRunError
from lightning_mllm.analysis.forward.suffix.edited_rows import run_edited_rows
from lightning_mllm.analysis.forward.suffix.rows import RowVariant, run_rows
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.models.layers import attention_of_layers, decoder_layers, layer_mask_dtype

_REPLAYED_ROWS = 8
_UNCALLABLE = (TypeError, RuntimeError, IndexError, AttributeError)
# how far a replay may be off, relative to the largest logit; norms, and the softmax of eager
# attention, are in float32
_TOLERANCE = {
    torch.float64: 1e-5,
    torch.float32: 1e-3,
    torch.float16: 1e-2,
    torch.bfloat16: 5e-2,
}


def check_compatibility(backbone: Backbone, prompts: Prompts) -> None:
    """Try the rows' code on prompts.

    Raises:
        UnfitRunError: It does not give what the model does; the message says how.
    """
    if backbone.family.sees == "prompt whole":
        raise UnfitRunError(
            "each position of its prompts sees all others, so that all rows can change"
        )
    clean = _run_clean(backbone, prompts)
    try:
        _check_masks(backbone, clean)
        _replay(backbone, clean)
    except _UNCALLABLE as error:
        raise _explain_uncallable(error) from error


def check_edited_rows(backbone: Backbone, prompts: Prompts) -> None:
    """Try on prompts, best two, what `run_edited_rows` gives where nothing is edited.

    Raises:
        UnfitRunError: It is not what the model gives; the message says how far it is off.
    """
    clean, layers = _run_clean(backbone, prompts), decoder_layers(backbone)
    length, half = clean.real.shape[1], len(layers) // 2
    try:
        for start in (0, max(0, length - _REPLAYED_ROWS)):
            hidden = run_edited_rows(
                layers,
                clean,
                before=clean,
                start=start,
                firsts=[0, half],
                edit=lambda _, states: states,
            )
            check_replay(backbone, clean, hidden.transpose(0, 1), start)
    except _UNCALLABLE as error:
        raise _explain_uncallable(error) from error


def check_replay(backbone: Backbone, clean: CleanRun, hidden: Tensor, start: int) -> None:
    """Refuse what rows give, if it is further from the clean run than rounding explains.

    Args:
        backbone: The model.
        clean: The run that was replayed.
        hidden: (batch, variants, width), what leaves the last layer.
        start: The first position whose row was computed.

    Raises:
        UnfitRunError: It is.
    """
    expected = prompt_log_probabilities(clean.logits)[:, None]
    largest = float(clean.logits.abs().max().clamp(min=1))
    tolerance = _TOLERANCE[layer_mask_dtype(clean.residuals[0])] * largest
    off = float((_logprobs(backbone, hidden) - expected).abs().max())
    if not off <= tolerance:
        raise UnfitRunError(
            f"with {attention_of_layers(backbone)} attention, a clean run that was replayed "
            f"from position {start} on has log-probabilities that are off by {off:.2g}, more "
            f"than {tolerance:.2g}, so its layers see or compute something that is not known"
        )


def _run_clean(backbone: Backbone, prompts: Prompts) -> CleanRun:
    """Run prompts once, and refuse logits that are not finite."""
    clean = CleanRun.of(backbone, prompts, 0)
    if not clean.logits.isfinite().all():
        raise UnfitRunError(
            f"with {attention_of_layers(backbone)} attention its own logits are not finite, as "
            "happens in float64 beside padding"
        )
    return clean


def _explain_uncallable(error: Exception) -> UnfitRunError:
    """Return why rows can't be run; what is no fault of the model is raised again."""
    if isinstance(error, torch.OutOfMemoryError) or "CUDA error" in str(error):
        raise error
    return UnfitRunError(f"its layers can't be called for single rows ({error})")


def _replay(backbone: Backbone, clean: CleanRun) -> None:
    """Compute the clean logits from rows: all of them, and the last few in two variants."""
    layers, length = decoder_layers(backbone), clean.real.shape[1]
    nothing, half = HiddenKeys.nothing(clean.real), len(layers) // 2
    whole, later = (
        RowVariant(nothing, Window(0, 0, 1)),
        RowVariant(nothing, Window(half, half, half + 1)),
    )
    for start, variants in ((0, [whole]), (max(0, length - _REPLAYED_ROWS), [whole, later])):
        check_replay(backbone, clean, run_rows(layers, clean, start, variants), start)


def _check_masks(backbone: Backbone, clean: CleanRun) -> None:
    """Hide everything from one of two rows of LAST that stand side by side."""
    layers, last = decoder_layers(backbone), torch.zeros_like(clean.real)
    last[:, -1] = True
    before, everywhere = clean.real & ~last, Window(len(layers) // 2, 0, len(layers))
    if not before.any():
        return
    seeing = RowVariant(HiddenKeys.nothing(last), everywhere)
    blind = RowVariant(HiddenKeys(before, last), everywhere)
    start = clean.real.shape[1] - 1
    one, two = (run_rows(layers, clean, start, [first, seeing]) for first in (seeing, blind))
    attention = attention_of_layers(backbone)
    if torch.equal(one[:, 1], two[:, 1]):
        raise UnfitRunError(
            f"hiding the whole prompt changes nothing: attention {attention!r} ignores masks"
        )
    if not torch.equal(one[:, 2], two[:, 2]):
        raise UnfitRunError(
            f"attention {attention!r} ignores masks: rows attend to what stands beside them for "
            "another case"
        )


def _logprobs(backbone: Backbone, hidden: Tensor) -> Tensor:
    """Return what the model says after these states, (batch, variants, vocabulary)."""
    return prompt_log_probabilities(next_token_head_logits(backbone, hidden))
