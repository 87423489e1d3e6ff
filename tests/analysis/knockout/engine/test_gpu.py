"""What only an accelerator can show."""

from __future__ import annotations

import pytest
import torch

from lightning_mllm.analysis import ReferenceEngine, SuffixEngine
from lightning_mllm.models.free_memory import free_memory
from tests.support.decoders import OTHERS, PAPER, apart, make_backbone, make_batch, sweep

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 1e-3)])
def test_engines_agree_on_the_device(
    tiny_llava_next: str, attention: str, dtype: torch.dtype, tolerance: float
) -> None:
    backbone, batch = make_backbone(tiny_llava_next, attention, dtype), make_batch(tiny_llava_next)
    backbone.model.to(torch.device("cuda"))  # type: ignore[arg-type]
    cases = sweep([*PAPER, *OTHERS], 2)

    reference = ReferenceEngine().run(backbone, batch, cases)
    suffix = SuffixEngine(strict=True).run(backbone, batch, cases)

    assert reference.logprobs.is_cuda
    assert apart(reference, suffix) < tolerance


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_in_half_precision_engines_differ_as_little_as_their_clean_runs(
    tiny_llava_next: str, attention: str
) -> None:
    backbone, batch = (
        make_backbone(tiny_llava_next, attention, torch.bfloat16),
        make_batch(tiny_llava_next),
    )
    backbone.model.to(torch.device("cuda"))  # type: ignore[arg-type]
    cases, ids = sweep([*PAPER, *OTHERS], 2), torch.arange(64).expand(len(batch), -1)

    reference = ReferenceEngine().run(backbone, batch, cases, ids)
    suffix = SuffixEngine(strict=True).run(backbone, batch, cases, ids)

    noise = float((reference.clean_logprobs - suffix.clean_logprobs).abs().max())
    one, two = (each.logprobs - each.clean_logprobs for each in (reference, suffix))
    assert float((one - two).abs().max()) <= 4 * noise
    assert float(one.abs().max()) > 16 * noise


def test_what_torch_has_reserved_but_does_not_use_counts_as_free() -> None:
    device = torch.device("cuda", 0)
    before = free_memory(device)
    torch.empty(2**28, dtype=torch.uint8, device=device)  # freed at once, but kept by torch

    assert abs(free_memory(device) - before) < 2**26
