"""The rate against all tokens at once, in float64; and what streaming it must not change."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_mllm.analysis.alignment.experiment import Alignment
from lightning_mllm.analysis.core.token_sets import TokenSets
from lightning_mllm.analysis.modality_gap import summary, token_sums
from lightning_mllm.analysis.modality_gap.experiment import MIR
from lightning_mllm.analysis.modality_gap.frechet import TokenMoments, frechet_distance
from lightning_mllm.analysis.modality_gap.summary import mir_score
from lightning_mllm.errors import DataError
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.types import Segment
from tests.support.decoders import LAYERS, make_backbone
from tests.support.questions import batches, tokenizer
from tests.support.streamed_contract import StreamedContract


class TestMIR(StreamedContract):
    def make(self, **options: Any) -> MIR:
        return MIR(**{"groups": 4, **options})


@pytest.fixture
def backbone(tiny_llava: str) -> Backbone:
    return make_backbone(tiny_llava)


@torch.no_grad()
def collect(backbone: Backbone, checkpoint: str) -> list[tuple[Tensor, Tensor]]:
    """All visual and textual tokens at each layer from 1 on; the last ones are normed."""
    (batch,) = batches(checkpoint, 6)
    output = backbone.model(**batch.model_inputs(), output_hidden_states=True)
    image = batch.spans[Segment.IMAGE]
    text = TokenSets().of(batch)[:, 1]
    return [(states[image], states[text]) for states in output.hidden_states[1:]]


def replace_outliers(tokens: Tensor) -> Tensor:
    norms = tokens.norm(dim=1)
    outliers = (norms - norms.median()).abs() > 3 * norms.std()
    return torch.where(outliers[:, None], tokens.median(0).values, tokens)


def measure(layers: list[tuple[Tensor, Tensor]]) -> float:
    total = 0.0
    for visual, textual in layers:
        scale = textual.norm(dim=1).mean()
        sets = [replace_outliers(each / scale) for each in (visual, textual)]
        total += frechet_distance(*(TokenMoments(len(x), x.sum(0), x.T @ x) for x in sets))
    return math.log10(total)


def run(backbone: Backbone, checkpoint: str, **options: Any) -> MIR:
    analysis = MIR(**{"groups": 4, **options})
    analysis.prepare(tokenizer(checkpoint))
    for batch in batches(checkpoint):
        analysis.update(backbone, batch)
    return analysis


def test_it_is_the_rate_of_all_tokens_at_once(backbone: Backbone, tiny_llava: str) -> None:
    layers = collect(backbone, tiny_llava)
    assert any((replace_outliers(each) != each).any() for layer in layers for each in layer)

    result = run(backbone, tiny_llava).compute()

    score = mir_score(result)
    assert score.value == pytest.approx(measure(layers), abs=1e-6)
    assert score.low_95 < score.value < score.high_95
    assert (score.perceptual, score.textual) == tuple(len(each) for each in layers[0])
    each_layer = result.at(measure="log10_distance", statistic="value")[0]
    assert each_layer[0] == score.value
    np.testing.assert_allclose(
        each_layer[1:], [measure([layer]) for layer in layers], rtol=0, atol=1e-6
    )
    assert len(each_layer) == 1 + LAYERS


def test_one_group_has_no_interval(backbone: Backbone, tiny_llava: str) -> None:
    score = mir_score(run(backbone, tiny_llava, groups=1).compute())

    assert score.value == mir_score(run(backbone, tiny_llava).compute()).value
    assert math.isnan(score.low_95)


def test_answers_can_be_left_out(backbone: Backbone, tiny_llava: str) -> None:
    with_answers = mir_score(run(backbone, tiny_llava).compute())
    without = mir_score(run(backbone, tiny_llava, answers=False).compute())

    (batch,) = batches(tiny_llava, 6)
    assert with_answers.textual - without.textual == int(batch.spans[Segment.ANSWER].sum())


def test_more_outliers_than_are_kept_are_refused(
    backbone: Backbone, tiny_llava: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_sums, "KEPT", 1)
    monkeypatch.setattr(summary, "_DEVIATIONS", 0.5)

    with pytest.raises(DataError, match=r"tokens are outliers at a layer.*Use fewer samples"):
        run(backbone, tiny_llava).compute()


def test_the_result_of_another_analysis_has_no_rate(backbone: Backbone, tiny_llava: str) -> None:
    other = Alignment(gaps=(), pair_budget=0)
    other.prepare(tokenizer(tiny_llava))
    other.update(backbone, batches(tiny_llava)[0])

    with pytest.raises(DataError, match="has no MIR"):
        mir_score(other.compute())
