"""Whether a model is one for the suffix engine: tried out on a prompt, before the first result.

Causality, caches and what stands between the layers are seen by replaying the clean run with the rows' code, up to
rounding. Whether attention heeds the rows' masks is seen to the bit, in any precision: of two rows that stand side by
side, when everything is hidden from the first, the first has to change and the second must not.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_mllm.analysis.core.windows import Window
from lightning_mllm.analysis.forward.float32_head import head_logits
from lightning_mllm.analysis.forward.prompts import Prompts, log_probabilities
from lightning_mllm.analysis.forward.suffix.clean_run import CleanRun, UnfitError
from lightning_mllm.analysis.forward.suffix.rows import Variant, run_rows
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.models.layers import attention_of, decoder_layers, mask_dtype

_REPLAYED_ROWS = 8
# how far a replay may be off, relative to the largest logit; norms, and the softmax of eager attention, are in float32
_TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 5e-2}


def check_rows(backbone: Backbone, prompts: Prompts) -> None:
    """Try the rows' code on prompts.

    Raises:
        UnfitError: It does not give what the model does; the message says how.
    """
    clean = CleanRun.of(backbone, prompts, 0)
    try:
        _check_masks(backbone, clean)
        _replay(backbone, clean)
    except (TypeError, RuntimeError, IndexError, AttributeError) as error:
        if isinstance(error, torch.OutOfMemoryError) or "CUDA error" in str(error):
            raise
        raise UnfitError(f"its layers can't be called for single rows ({error})") from error


def _replay(backbone: Backbone, clean: CleanRun) -> None:
    """Compute the clean logits from rows: all of them, and the last few in two variants."""
    layers, (length, nothing) = decoder_layers(backbone), (clean.real.shape[1], torch.zeros_like(clean.real))
    whole, later = (Variant(nothing, nothing, None, Window(start, start, start + 1)) for start in (0, len(layers) // 2))
    own = log_probabilities(clean.logits)
    tolerance = _TOLERANCE[mask_dtype(clean.residuals[0])] * float(clean.logits.abs().max().clamp(min=1))
    for start, variants in ((0, [whole]), (max(0, length - _REPLAYED_ROWS), [whole, later])):
        hidden = run_rows(layers, clean, start, variants)
        off = float((_read(backbone, hidden) - own[:, None]).abs().max())
        if not off <= tolerance:
            raise UnfitError(
                f"with {attention_of(backbone)} attention, a clean run that was replayed from position {start} on has "
                f"log-probabilities that are off by {off:.2g}, more than {tolerance:.2g}, so it is not causal or "
                "computes something between its layers"
            )


def _check_masks(backbone: Backbone, clean: CleanRun) -> None:
    """Hide everything from one of two rows of LAST that stand side by side."""
    layers, last = decoder_layers(backbone), torch.zeros_like(clean.real)
    last[:, -1] = True
    before, everywhere = clean.real & ~last, Window(len(layers) // 2, 0, len(layers))
    if not before.any():
        return
    seeing, blind = (Variant(source, last, None, everywhere) for source in (torch.zeros_like(last), before))
    start = clean.real.shape[1] - 1
    one, two = (run_rows(layers, clean, start, [first, seeing]) for first in (seeing, blind))
    if torch.equal(one[:, 1], two[:, 1]):
        raise UnfitError(f"hiding the whole prompt changes nothing: attention {attention_of(backbone)!r} ignores masks")
    if not torch.equal(one[:, 2], two[:, 2]):
        raise UnfitError(
            f"attention {attention_of(backbone)!r} ignores masks: rows see what stands beside them for another case"
        )


def _read(backbone: Backbone, hidden: Tensor) -> Tensor:
    """Return log-probabilities behind what leaves the last layer, (batch, variants, vocabulary)."""
    return log_probabilities(head_logits(backbone.lm_head, backbone.decoder.norm(hidden)))  # type: ignore[operator]
