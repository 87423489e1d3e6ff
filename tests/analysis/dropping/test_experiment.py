"""Drops as an analysis: its rows, its numbers, its operations, and the laws of all analyses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from lightning_mllm.analysis import Bootstrap
from lightning_mllm.analysis.dropping import experiment as token_dropping
from lightning_mllm.analysis.dropping.drop import Drop
from lightning_mllm.analysis.dropping.dropping import dropped, dropping
from lightning_mllm.analysis.dropping.experiment import TokenDropping
from lightning_mllm.analysis.forward.decoder_costs import DecoderPassCosts
from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.errors import ConfigError
from lightning_mllm.evaluation import OpenAnswer
from lightning_mllm.models.backbone import Backbone
from tests.support.decoders import LAYERS, make_backbone, make_batch
from tests.support.question_analysis_contract import AnalysisContract
from tests.support.questions import batches, tokenizer

DROPS = (Drop(layer=1), Drop(layer=1, choice="random"), Drop(layer=1, share=1.0, choice="stride"))
WIDTH, MLP, KEYS = 64, 256, 32  # of the tiny checkpoint; two key heads for four heads


class Parity:
    """Calls an answer right if its first token is even, so that dropping changes what is right."""

    def __init__(self, match: str = "") -> None: ...

    def evaluate(self, model: Any, tokenizer: Any, batch: MultimodalBatch) -> list[OpenAnswer]:
        tokens = model(**batch.prompts().model_inputs()).logits[:, -1].argmax(-1).tolist()
        found = zip(batch.sample_ids, tokens, strict=True)
        return [
            OpenAnswer(sample_id, "", "", "", not token % 2, token) for sample_id, token in found
        ]


class TestTokenDropping(AnalysisContract):
    def make(self, **options: Any) -> TokenDropping:
        chosen = {
            "correct_only": True,
            "repetitions": 0,
            "bootstrap": Bootstrap(resamples=20),
            "drops": DROPS,
            "seeds": 2,
            **options,
        }
        return TokenDropping(**chosen)

    def test_a_row_is_what_dropping_by_hand_gives(
        self, backbone: Backbone, tiny_llava: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(token_dropping, "ExactMatch", Parity)
        (batch,) = batches(tiny_llava, 6)
        table = self.run(backbone, tiny_llava, [batch], correct_only=False).rows.table()
        once = DecoderPassCosts.of(backbone, batch, dropped)
        drop = Drop(layer=1, choice="random", seed=1)

        with torch.no_grad(), dropping(backbone, batch, drop):
            answers = Parity().evaluate(backbone.model, tokenizer(tiny_llava), batch)

        case = (table["choice"] == "random") & (table["seed"] == 1)
        by_id = dict(zip(table["sample_id"][case], np.flatnonzero(case), strict=True))
        for row, answer in enumerate(answers):
            at = by_id[answer.sample_id]
            assert table["right"][at] == answer.correct
            assert table["flops"][at] == once.alone(row).flops(backbone, drop)
            assert table["flops_clean"][at] == once.alone(row).flops(backbone)

    def test_numbers_are_means_of_the_rows_and_of_seeds(
        self, backbone: Backbone, tiny_llava: str
    ) -> None:
        analysis = self.run(backbone, tiny_llava, batches(tiny_llava), repetitions=1)
        table, result = analysis.rows.table(), analysis.compute()

        assert (result.coords["layer"], result.coords["percent"]) == ((1,), (0, 50, 100))
        own = table["measured"] & (table["choice"] == "random")
        found = result.at(kind="all", layer=1, percent=50, choice="random", statistic="value")
        assert found[:4].tolist() == pytest.approx(
            [
                100 * table["right"][own].mean(),
                100 * (table["right"][own] - 1).mean(),  # all of these were right before
                100 * table["flops"][own].sum() / table["flops_clean"][own].sum(),
                100 * np.nansum(table["seconds"][own]) / np.nansum(table["seconds_clean"][own]),
            ]
        )
        nothing = result.at(layer=1, percent=100, choice="attention", statistic="n")
        assert (nothing == 0).all()
        with_all = result.at(kind="all", percent=0, choice="random", statistic="value")[0]
        assert with_all[:4].tolist() == [100, 0, 100, 100]

    def test_questions_without_a_kind_have_operations_but_no_score(
        self, backbone: Backbone, tiny_llava: str
    ) -> None:
        nameless = [replace(batch, kinds=(None,) * len(batch)) for batch in batches(tiny_llava)]

        result = self.run(backbone, tiny_llava, nameless, correct_only=False).compute()

        counts = result.at(statistic="n", layer=1, percent=50, choice="attention")[0]
        assert counts.tolist() == [0, 0, 6, 0, 0]

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"drops": ()}, "drops needs drops, each once; .* Found 0"),
            ({"drops": (Drop(), Drop(seed=3))}, "Found 2, of which 1 differ"),
            ({"seeds": 0}, "seeds must be at least 1"),
            ({"repetitions": -1}, "repetitions at least 0, not seeds=2 and repetitions=-1"),
        ],
    )
    def test_a_list_that_can_not_be_is_refused(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            self.make(**options)


@pytest.mark.parametrize("choice", ["attention", "similarity", "random"])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_operations_are_those_of_each_layers_own_rows(
    tiny_llava: str, choice: Any, share: float
) -> None:
    """4 n d^2 + 2 n^2 d + 3 n d m multiplications per layer, with fewer of them for key heads."""
    backbone = make_backbone(tiny_llava, dtype=torch.float32)
    once = DecoderPassCosts.of(backbone, make_batch(tiny_llava, numbers=(0,)), dropped)
    full, image = once.position_ids.shape[1], int(once.tokens.perceptual.sum())
    kept = full - image + round((1 - share) * image)
    drop = Drop(layer=2, share=share, choice=choice)

    found = once.flops(backbone, drop)

    products = 0
    for rows in (full, full, *[kept] * (LAYERS - 2)):
        projections = 2 * rows * WIDTH * WIDTH + 2 * rows * WIDTH * KEYS
        products += projections + 2 * rows * rows * WIDTH + 3 * rows * WIDTH * MLP
    weights = 2 * full * WIDTH if choice == "attention" else 0  # of the last row
    assert found == 2 * products + weights
