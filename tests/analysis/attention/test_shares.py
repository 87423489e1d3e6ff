"""Shares of attention against eager weights by hand; the parts are one whole."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from lightning_mllm.analysis import AttentionShares, Bootstrap
from lightning_mllm.analysis.attention.key_sets import CONTROLS, PARTS, KeySets
from lightning_mllm.errors import ConfigError
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.types import Segment
from tests.support.question_analysis_contract import AnalysisContract
from tests.support.questions import WITHOUT_BOX, batches, load
from tests.support.sinks import plant_sink

DEPTH, HEADS = 2, 4  # of the tiny checkpoint


class TestAttentionShares(AnalysisContract):
    def make(self, **options: Any) -> AttentionShares:
        chosen = {"correct_only": True, "bootstrap": Bootstrap(resamples=20), **options}
        return AttentionShares(**chosen)

    def test_the_parts_sum_to_1_and_the_mean_of_the_heads_is_their_mean(
        self, backbone: Backbone, tiny_llava: str
    ) -> None:
        targets = ["question", "last", "answer"]
        analysis = self.run(backbone, tiny_llava, batches(tiny_llava), targets=targets)

        table = analysis.rows.table()

        own = table["measured"]
        total = sum(np.nan_to_num(table[part][own]) for part in PARTS)
        np.testing.assert_allclose(total, 1, rtol=0, atol=1e-6)
        assert own.sum() == 5 * len(targets) * DEPTH * (1 + HEADS)
        heads = table["image"][own].reshape(-1, 1 + HEADS)
        np.testing.assert_allclose(heads[:, 0], heads[:, 1:].mean(1), rtol=0, atol=1e-6)
        without = np.isin(table["sample_id"], WITHOUT_BOX)
        assert np.isnan(table["object"][own & without]).all()
        assert np.isfinite(table["object"][own & ~without]).all()
        for control in CONTROLS:
            assert (np.nan_to_num(table[control]) <= table["other"] + 1e-6)[own].all()

    def test_the_parts_sum_to_1_under_autocast_too(
        self, backbone: Backbone, tiny_llava: str
    ) -> None:
        with torch.autocast("cpu", torch.bfloat16):
            analysis = self.run(backbone, tiny_llava, batches(tiny_llava))

        table = analysis.rows.table()

        own = table["measured"]
        total = sum(np.nan_to_num(table[part][own]) for part in PARTS)
        np.testing.assert_allclose(total, 1, rtol=0, atol=1e-6)

    @pytest.mark.parametrize("side", ["left", "right"])
    def test_a_row_is_what_eager_weights_sum_to(
        self, backbone: Backbone, tiny_llava: str, side: Any
    ) -> None:
        (batch,) = batches(tiny_llava, 6, padding_side=side)
        analysis = self.run(backbone, tiny_llava, [batch], correct_only=False)
        eager = load(tiny_llava, attention="eager")
        with torch.no_grad():
            every = eager.model(**batch.model_inputs(), output_attentions=True).attentions

        table = analysis.rows.table()

        looks, spans = batch.spans[Segment.QUESTION], batch.spans
        for row, sample_id in enumerate(batch.sample_ids):
            at = (table["sample_id"] == sample_id) & (table["target"] == "question")
            for layer, head in ((0, 2), (1, 0)):
                weights = every[layer][row, head][looks[row]].mean(0)
                (place,) = np.flatnonzero(at & (table["layer"] == layer) & (table["head"] == head))
                image = weights[spans[Segment.IMAGE][row]].sum()
                assert table["image"][place] == pytest.approx(float(image), abs=1e-5)
                first = int(batch.attention_mask[row].argmax())
                assert table["first"][place] == pytest.approx(float(weights[first]), abs=1e-5)
                for name, segment in (
                    ("object", Segment.IMAGE_OBJECT),
                    ("random", Segment.IMAGE_RANDOM),
                ):
                    if sample_id not in WITHOUT_BOX:
                        own = weights[spans[segment][row]].sum()
                        assert table[name][place] == pytest.approx(float(own), abs=1e-5)

    def test_differences_are_of_the_same_questions(
        self, backbone: Backbone, tiny_llava: str
    ) -> None:
        analysis = self.run(backbone, tiny_llava, batches(tiny_llava))
        table, result = analysis.rows.table(), analysis.compute()

        own = table["measured"] & (table["target"] == "last") & (table["head"] == 1)
        own &= (table["layer"] == 1) & (table["control_overlap"] == 0)
        difference = 100 * (table["object"] - table["random"])[own]
        at = {"kind": "all", "target": "last", "set": "object minus random"}
        value, _, _, n = result.at(**at, head="1", layer=1)
        assert n == np.isfinite(difference).sum()
        if n:
            assert value == pytest.approx(np.nanmean(difference))

    def test_without_heads_there_is_their_mean_alone(
        self, backbone: Backbone, tiny_llava: str
    ) -> None:
        every, mean = (
            self.run(backbone, tiny_llava, batches(tiny_llava), heads=heads).compute()
            for heads in (True, False)
        )

        assert every.coords["head"] == ("mean", *map(str, range(HEADS)))
        assert mean.coords["head"] == ("mean",)
        np.testing.assert_array_equal(mean.values, every.values[:, :, :, :1])
        assert [plot.name for plot in mean.plots] == ["shares_last", "shares_question"]

    def test_attention_that_rests_on_a_sink_is_counted_apart(
        self, backbone: Backbone, tiny_llava: str
    ) -> None:
        (batch,) = batches(tiny_llava, 6)
        question = batch.input_ids[0][batch.spans[Segment.QUESTION][0]]
        plant_sink(backbone, int(question[0]))

        with_sinks, without = (
            self.run(backbone, tiny_llava, [batch], sink_ratio=ratio).rows.table()
            for ratio in (10.0, None)
        )

        own = (with_sinks["sample_id"] == batch.sample_ids[0]) & (with_sinks["target"] == "last")
        own &= (with_sinks["layer"] == 0) & (with_sinks["head"] == -1)
        assert with_sinks["sink_tokens"][own].item() >= 1
        assert with_sinks["sinks"][own].item() > 0.9
        assert without["sinks"][own].item() == 0
        for part in ("object", "other", "first"):
            assert with_sinks[part][own].item() == without[part][own].item()
        assert without["text"][own].item() == pytest.approx(
            (with_sinks["text"] + with_sinks["sinks"])[own].item(), abs=1e-6
        )


def test_a_patch_with_a_massive_state_is_a_sink_and_of_no_other_part(tiny_llava: str) -> None:
    (batch,) = batches(tiny_llava, 6)
    keys = KeySets.of(batch, 10.0)
    place = int(batch.spans[Segment.IMAGE_OBJECT][0].nonzero()[0])
    norms = torch.ones(batch.input_ids.shape)
    norms[0, place] = 11.0

    sets = keys.at(norms)

    assert sets["sinks"].nonzero().tolist() == [[0, place]]
    assert not sets["object"][0, place]
    assert torch.equal(sum(sets[part].int() for part in PARTS), batch.attention_mask.int())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"targets": ["head"]}, "targets are segments, each once, not head. There are: text"),
        ({"targets": ["last", "last"]}, "targets are segments, each once, not last, last"),
        ({"targets": []}, "targets are segments, each once"),
        ({"sink_ratio": 1.0}, r"sink_ratio is 1.0; it must be above 1"),
    ],
)
def test_what_can_not_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AttentionShares(**options)
