"""The grid of skips as an analysis: its rows, its numbers, and the laws of all analyses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from lightning_mllm.analysis import Bootstrap
from lightning_mllm.analysis.forward.decoder_costs import DecoderPassCosts
from lightning_mllm.analysis.skipping import experiment as computation_skipping
from lightning_mllm.analysis.skipping.experiment import ComputationSkipping
from lightning_mllm.analysis.skipping.skip import Skip
from lightning_mllm.analysis.skipping.skipping import skipped, skipping
from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.errors import ConfigError
from lightning_mllm.evaluation import OpenAnswer
from lightning_mllm.models.backbone import Backbone
from tests.support.question_analysis_contract import AnalysisContract
from tests.support.questions import batches, tokenizer

GRID: dict[str, Any] = {"computations": ("ffn", "block"), "shares": (0.0, 0.5), "starts": (0,)}


class Parity:
    """Calls an answer right if its first token is even, so that skipping changes what is right."""

    def __init__(self, match: str = "") -> None: ...

    def evaluate(self, model: Any, tokenizer: Any, batch: MultimodalBatch) -> list[OpenAnswer]:
        tokens = model(**batch.prompts().model_inputs()).logits[:, -1].argmax(-1).tolist()
        found = zip(batch.sample_ids, tokens, strict=True)
        return [
            OpenAnswer(sample_id, "", "", "", not token % 2, token) for sample_id, token in found
        ]


class TestComputationSkipping(AnalysisContract):
    def make(self, **options: Any) -> ComputationSkipping:
        chosen = {
            "correct_only": True,
            "repetitions": 0,
            "bootstrap": Bootstrap(resamples=20),
            **GRID,
            **options,
        }
        return ComputationSkipping(**chosen)

    @pytest.mark.parametrize("options", [{}, {"tokens": "all", "phase": "both"}])
    def test_a_row_is_what_skipping_by_hand_gives(
        self, backbone: Backbone, tiny_llava: str, monkeypatch: pytest.MonkeyPatch, options: Any
    ) -> None:
        monkeypatch.setattr(computation_skipping, "ExactMatch", Parity)
        (batch,) = batches(tiny_llava, 6)
        skip = Skip(computation="block", share=0.5, **options)
        grid: dict[str, Any] = {
            "computations": ("block",),
            "starts": (0, 0.5),
            "correct_only": False,
        }
        table = self.run(backbone, tiny_llava, [batch], skip=skip, **grid).rows.table()
        once = DecoderPassCosts.of(backbone, batch, skipped)

        with skipping(backbone, batch, skip):
            answers = Parity().evaluate(backbone.model, tokenizer(tiny_llava), batch)

        case = (table["percent"] == 50) & (table["start"] == 0)
        assert table["sample_id"][case].tolist() == sorted(batch.sample_ids)
        by_id = dict(zip(table["sample_id"][case], np.flatnonzero(case), strict=True))
        for row, answer in enumerate(answers):
            at = by_id[answer.sample_id]
            assert table["right"][at] == answer.correct
            assert table["flops"][at] == once.alone(row).flops(backbone, skip)
            assert table["flops_clean"][at] == once.alone(row).flops(backbone)
        assert np.isnan(table["seconds"]).all()
        cases = [
            table["right"][(table["percent"] == share) & (table["start"] == 0)] for share in (0, 50)
        ]
        assert not np.array_equal(*cases)

    def test_cases_that_skip_no_token_are_named(
        self, backbone: Backbone, tiny_llava: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        analysis = self.run(
            backbone,
            tiny_llava,
            batches(tiny_llava),
            shares=(0.0, 0.001, 0.5),
            computations=("ffn",),
        )

        analysis.compute()

        (message,) = [
            record.getMessage() for record in caplog.records if record.levelname == "WARNING"
        ]
        assert message == (
            "computation_skipping: ffn from layer 0 on is skipped for none of the perceptual "
            "tokens of 5 samples: 0.1 % of them is less than one token."
        )

    def test_numbers_are_means_of_the_rows(self, backbone: Backbone, tiny_llava: str) -> None:
        analysis = self.run(backbone, tiny_llava, batches(tiny_llava), repetitions=1)
        table, result = analysis.rows.table(), analysis.compute()

        own = (
            table["measured"]
            & (table["computation"] == "ffn")
            & (table["percent"] == 50)
            & (table["start"] == 0)
        )
        found = result.at(kind="all", computation="ffn", percent=50.0, start="0", statistic="value")
        sums = {
            name: np.nansum(table[name][own])
            for name in ("flops", "flops_clean", "seconds", "seconds_clean")
        }
        passes = int(np.isfinite(table["seconds"][own]).sum())
        assert found.tolist() == pytest.approx(
            [
                100 * table["right"][own].mean(),
                100 * (table["right"][own] - 1).mean(),  # all of these were right before
                100 * sums["flops"] / sums["flops_clean"],
                100 * sums["seconds"] / sums["seconds_clean"],
                1000 * sums["seconds"] / passes,
            ]
        )
        assert (
            result.at(kind="all", percent=0.0, measure="flops_percent", statistic="value") == 100
        ).all()
        assert (
            result.at(kind="all", percent=50.0, measure="flops_percent", statistic="high_95") < 100
        ).all()
        one_kind = result.at(kind="choose/attr", statistic="n").reshape(-1, 5)
        assert (one_kind == [4, 4, 4, 0, 0]).all()  # of whose passes are other kinds' too
        counts = result.at(kind="all", statistic="n").reshape(-1, 5)
        assert passes == 2  # a time is one of its batch
        assert (counts == [5, 5, 5, 2, 2]).all()

    def test_more_is_saved_the_earlier_it_begins(self, backbone: Backbone, tiny_llava: str) -> None:
        result = self.run(backbone, tiny_llava, batches(tiny_llava), starts=(0, 0.5)).compute()

        first, later = result.at(
            kind="all", computation="ffn", percent=50.0, measure="flops_percent"
        )[:, 0]
        block = result.at(
            kind="all", computation="block", percent=50.0, measure="flops_percent", start="0"
        )[0]
        assert block < first < later < 100

    def test_questions_without_a_kind_have_operations_but_no_score(
        self, backbone: Backbone, tiny_llava: str
    ) -> None:
        nameless = [replace(batch, kinds=(None,) * len(batch)) for batch in batches(tiny_llava)]

        result = self.run(backbone, tiny_llava, nameless, correct_only=False).compute()

        counts = result.at(statistic="n")[0, 0, 0, 0]
        assert dict(zip(result.coords["measure"], counts.tolist(), strict=True)) == {
            "accuracy_percent": 0,
            "accuracy_change_points": 0,
            "flops_percent": 6,
            "time_percent": 0,
            "milliseconds": 0,
        }

    def test_two_starts_that_are_one_layer_are_refused(
        self, backbone: Backbone, tiny_llava: str
    ) -> None:
        with pytest.raises(ConfigError, match=r"are the layers \[1, 1\] of 2, one of them twice"):
            self.run(backbone, tiny_llava, batches(tiny_llava), starts=(1, 0.5))

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"shares": ()}, r"shares needs values, each once; found \[\]"),
            ({"shares": (0.5, 0.5)}, r"each once; found \[0\.5, 0\.5\]"),
            ({"repetitions": -1}, r"repetitions must be at least 0, not -1"),
            ({"computations": ("parallel_blocks",)}, r"pair of parallel blocks"),
            ({"skip": Skip(choice="lowest_change", start=1)}, r"starts has layer 0; .* Start at 1"),
        ],
    )
    def test_a_grid_that_can_not_be_is_refused(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            self.make(**options)
