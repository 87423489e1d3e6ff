"""States are put where they belong: the padding of a run, and rows that are computed alone."""

from __future__ import annotations

import pytest
import torch

from lightning_mllm.analysis import Patch, PatchSource, Window, patching
from lightning_mllm.analysis.forward.suffix import edited_rows
from lightning_mllm.analysis.patching.engine.suffix import SuffixPatching
from lightning_mllm.errors import ConfigError, DataError
from tests.analysis.patching.pairs import cases, ids_of, picture_pair
from tests.support.decoders import make_backbone


def test_prompts_that_are_padded_otherwise_are_refused(tiny_llava: str) -> None:
    backbone = make_backbone(tiny_llava, "sdpa", torch.float32)
    clean, corrupted = picture_pair(tiny_llava)
    batch, patch = corrupted.prompts(), Patch.parse("image object @ residual")
    shorter = int(batch.attention_mask.sum(1).argmin())
    padded, trimmed = batch.take([shorter]), corrupted.take([shorter]).prompts()
    assert padded.input_ids.shape[1] > trimmed.input_ids.shape[1]
    source = PatchSource.of(backbone, clean.take([shorter]))

    with (
        pytest.raises(ConfigError, match="are padded in another way"),
        patching(backbone, trimmed, source, patch, Window(1, 1, 2)),
    ):
        backbone.model(**padded.model_inputs())
    with (
        pytest.raises(DataError, match=r"to \d+ and \d+ positions. Call prompts\(\) on both"),
        patching(backbone, padded, source, patch, Window(1, 1, 2)),
    ):
        pass


def test_rows_that_are_computed_wrong_are_noticed_before_the_first_result(
    tiny_llava: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = make_backbone(tiny_llava, "exact")
    clean, corrupted = picture_pair(tiny_llava)
    swept = cases("image object @ residual")
    see = edited_rows._find_mask  # of rows, where some see what is behind them
    monkeypatch.setattr(edited_rows, "_find_mask", lambda *given: torch.zeros_like(see(*given)))

    with pytest.raises(ConfigError, match="Use engine=auto or engine=reference"):
        SuffixPatching(strict=True).run(backbone, clean, corrupted, swept, ids_of(clean))
