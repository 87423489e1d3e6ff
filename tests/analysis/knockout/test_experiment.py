"""The information flow against knockouts by hand, and what its rows and numbers say."""

from __future__ import annotations

from dataclasses import replace
from math import exp, log
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lightning_mllm.analysis import (
    Block,
    Bootstrap,
    Case,
    InformationFlow,
    Window,
    Windows,
    compare_flows,
    knockout,
)
from lightning_mllm.analysis.knockout.engine.suffix import EngineName, choose_engine
from lightning_mllm.analysis.knockout.experiment import BLOCKS
from lightning_mllm.analysis.knockout.measures import MEASURES
from lightning_mllm.batches import TokenSpans, map_image
from lightning_mllm.errors import ConfigError
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.types import AnswerForms, Segment
from tests.support.question_analysis_contract import AnalysisContract
from tests.support.questions import WITHOUT_BOX, WRONG, batches, question

DEPTH = 2  # of the tiny checkpoint
ONE = Windows(width=1)


class TestInformationFlow(AnalysisContract):
    def make(self, **options: Any) -> InformationFlow:
        options = {"windows": ONE, **options}
        return InformationFlow(bootstrap=Bootstrap(resamples=20), **options)

    @pytest.fixture
    def table(self, backbone: Backbone, tiny_llava: str) -> Any:
        return self.run(backbone, tiny_llava, batches(tiny_llava), correct_only=False).rows.table()

    def test_the_default_blocks_are_the_papers_six_and_a_control(self, table: Any) -> None:
        swept = {column: cells[~table["ceiling"]] for column, cells in table.items()}
        assert tuple(dict.fromkeys(swept["block"].tolist())) == BLOCKS
        assert len(swept["block"]) == 6 * len(BLOCKS) * DEPTH
        assert not table["token_differs"].any()
        assert {
            (c, s, e)
            for c, s, e in zip(swept["centre"], swept["start"], swept["stop"], strict=True)
        } == {
            (0, 0, 1),
            (1, 1, 2),
        }

    def test_each_question_has_a_ceiling_that_hides_the_picture_in_all_layers(
        self, table: Any
    ) -> None:
        ceiling = {column: cells[table["ceiling"]] for column, cells in table.items()}

        assert set(ceiling["block"]) == {"image->text"}
        assert (ceiling["start"].tolist(), ceiling["stop"].tolist()) == ([0] * 6, [DEPTH] * 6)
        assert len(set(ceiling["sample_id"])) == 6
        assert (ceiling["source_size"] > 0).all()

    def test_each_head_by_itself_is_a_block_of_its_own(
        self, backbone: Backbone, tiny_llava: str
    ) -> None:
        blocks = ["image->last", "question->last[1]"]
        swept = self.run(backbone, tiny_llava, batches(tiny_llava), blocks=blocks, each_head=True)
        table, result = swept.rows.table(), swept.compute()
        alone = self.run(
            backbone, tiny_llava, batches(tiny_llava), blocks=[*blocks, "image->last[2]"]
        ).compute()

        heads = [f"image->last[{head}]" for head in range(4)]
        found = dict.fromkeys(table["block"][table["measured"] & ~table["ceiling"]].tolist())
        assert list(found) == ["image->last", *heads, "question->last[1]"]
        for block in ("image->last[2]", "question->last[1]"):
            np.testing.assert_allclose(
                result.at(block=block), alone.at(block=block), rtol=1e-3, atol=1e-3
            )
        (plot,) = [plot for plot in result.plots if plot.name == "heads_image_to_last"]
        assert list(plot.shown) == ["image->last", *heads]
        curves = [plot for plot in result.plots if plot.name == "to_last"]
        assert list(curves[0].shown) == ["image->last", "question->last[1]", "ceiling"]

    @pytest.mark.parametrize("engine", ["suffix", "reference"])
    def test_below_the_ceiling_nothing_of_the_picture_is_read(
        self, backbone: Backbone, tiny_llava: str, engine: EngineName
    ) -> None:
        (batch,) = batches(tiny_llava, 6)
        others = replace(batch, images=tuple(map_image(torch.neg, each) for each in batch.images))
        ids = torch.arange(9).expand(6, -1)
        cases = [
            Case(Block.parse(f"image->{target}"), Window(0, 0, DEPTH))
            for target in ("text", "question")
        ]

        read, differently = (
            choose_engine(engine).run(backbone, each, cases, ids) for each in (batch, others)
        )

        torch.testing.assert_close(
            read.logprobs[:, 0, 1:], differently.logprobs[:, 0, 1:], atol=1e-5, rtol=0
        )
        assert (
            (read.logprobs - differently.logprobs)[:, 1, 1:].abs().amax(1) > 1e-4
        ).all()  # other ways are open

    @pytest.mark.parametrize("block", ["question->last", "image->question"])
    def test_a_row_is_what_a_knockout_by_hand_gives(
        self, backbone: Backbone, tiny_llava: str, table: Any, block: str
    ) -> None:
        (batch,) = batches(tiny_llava, 6)
        prompts = batch.prompts()
        (window, _) = ONE.of(DEPTH)
        with torch.no_grad():
            clean = backbone.model(**prompts.model_inputs()).logits[:, -1].double().log_softmax(-1)
            with knockout(backbone, prompts, [Block.parse(block)], window):
                blocked = (
                    backbone.model(**prompts.model_inputs()).logits[:, -1].double().log_softmax(-1)
                )

        for row, sample_id in enumerate(batch.sample_ids):
            (index,) = np.flatnonzero(
                (table["sample_id"] == sample_id)
                & (table["block"] == block)
                & (table["centre"] == 0)
            )
            found = {column: cells[index].item() for column, cells in table.items()}
            token = int(clean[row].argmax())
            before, after = (float(each[row, token].exp()) for each in (clean, blocked))
            assert found["token"] == token
            assert (found["p_before"], found["p_after"]) == pytest.approx((before, after), rel=1e-4)
            assert found["relative_change_percent"] == pytest.approx(
                100 * (after - before) / before, abs=1e-3
            )
            assert found["logprob_change"] == pytest.approx(log(after / before), abs=1e-5)
            assert found["flipped"] == (int(blocked[row].argmax()) != token)
            forms = batch.answers[row]
            if forms is not None and forms.false is not None:
                margin = by_hand(blocked[row].tolist(), forms)
                assert found["margin_after"] == pytest.approx(margin, abs=1e-4)
            else:
                assert np.isnan(found["margin_after"])

    def test_an_empty_set_is_flagged_and_counts_nowhere(
        self, backbone: Backbone, tiny_llava: str
    ) -> None:
        analysis = self.run(backbone, tiny_llava, batches(tiny_llava))
        table, result = analysis.rows.table(), analysis.compute()

        empty = table["empty"]
        assert set(table["sample_id"][empty]) == {WITHOUT_BOX[0]}
        assert (table["source_size"][empty] == 0).all()
        assert result.settings["found"]["without_a_set"] == dict.fromkeys(sorted(BLOCKS[4:]), 1)
        counts = result.at(kind="all", measure=MEASURES[0], statistic="n")
        assert counts[:, 0].tolist() == [
            5,
            5,
            5,
            5,
            4,
            4,
            4,
            5,
            4,
        ]  # the one before the last is the ceiling

    def test_blocks_that_hide_nothing_in_any_question_are_named(
        self, backbone: Backbone, tiny_llava: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        without = [
            replace(
                batch,
                spans=TokenSpans(
                    {**batch.spans.masks, Segment.IMAGE_OBJECT: batch.spans[Segment.LAST] & False}
                ),
            )
            for batch in batches(tiny_llava)
        ]
        blocks = ["image->last", "image object->question", "last->image"]

        analysis = self.run(backbone, tiny_llava, without, blocks=blocks)
        result = analysis.compute()  # of these blocks, and of the ceiling

        assert [
            record.getMessage() for record in caplog.records if record.levelname == "WARNING"
        ] == [
            "information_flow: image object->question blocks nothing in any of 5 questions: none "
            "has 'image object'.",
            "information_flow: last->image blocks nothing in any of 5 questions: 'last' comes "
            "after 'image' or is in other samples, so it is not attended to anyway.",
        ]
        assert result.at(kind="all", measure=MEASURES[0], statistic="n")[:, 0].tolist() == [
            5,
            0,
            0,
            5,
        ]
        assert np.isnan(result.at(kind="all", measure=MEASURES[0], statistic="value")[1:3]).all()

        caplog.clear()
        analysis.check([replace(question("test", number), boxes=()) for number in range(6)])
        analysis.compute()

        first, second = (record.getMessage() for record in caplog.records)  # nothing is said twice
        assert first.endswith("has boxes, so these blocks hide nothing: image object->question.")
        assert second.startswith("information_flow: last->image blocks nothing")

    def test_what_no_sample_has_is_told_before_anything_is_run(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        analysis = self.make(
            blocks=[
                "image object->question",
                "image object+last->last",
                "true option->last",
                "image other->question",
            ]
        )
        samples = [question("test", number) for number in range(6)]

        analysis.check(samples)
        assert not caplog.records
        analysis.check([replace(sample, boxes=(), options=None) for sample in samples])

        assert [record.getMessage() for record in caplog.records] == [
            "information_flow: none of the 6 samples has boxes, so these blocks hide nothing: "
            "image object->question, image other->question.",
            "information_flow: none of the 6 samples has options, so these blocks hide nothing: "
            "true option->last.",
        ]

    def test_the_control_is_as_large_as_the_object(self, table: Any) -> None:
        sizes = {
            block: table["source_size"][table["block"] == f"image {block}->question"]
            for block in ("object", "random")
        }

        assert sizes["object"].tolist() == sizes["random"].tolist()
        assert sizes["object"].max() > 0
        assert not table["control_overlap"].any()

    def test_a_control_that_can_not_avoid_the_object_is_told(
        self, backbone: Backbone, tiny_llava: str
    ) -> None:
        (batch,) = batches(tiny_llava, 6)
        own = batch.spans[Segment.IMAGE_OBJECT]
        forced = replace(batch, spans=TokenSpans({**batch.spans.masks, Segment.IMAGE_RANDOM: own}))

        analysis = self.run(backbone, tiny_llava, [forced], blocks=["image random->question"])

        table = analysis.rows.table()
        overlaps = dict(
            zip(table["sample_id"].tolist(), table["control_overlap"].tolist(), strict=True)
        )
        assert overlaps == {
            name: int(own[k].sum()) for k, name in enumerate(batch.sample_ids) if name not in WRONG
        } | {WRONG[0]: 0}
        assert analysis.compute().settings["found"]["with_control_overlap"] == 4

    def test_numbers_are_those_of_a_loop_over_the_rows(
        self, backbone: Backbone, tiny_llava: str
    ) -> None:
        analysis = self.run(backbone, tiny_llava, batches(tiny_llava))
        table, result = analysis.rows.table(), analysis.compute()

        where = (
            table["measured"]
            & ~table["empty"]
            & (table["block"] == "image->question")
            & (table["centre"] == 0)
        )
        where &= table["kind"] == "choose/attr"
        own = {column: cells[where] for column, cells in table.items()}
        ratios = 100 * (own["p_after"] / own["p_before"] - 1)
        expected = [
            ratios.mean(),
            100 * (own["p_after"].mean() / own["p_before"].mean() - 1),
            np.median(ratios),
            own["logprob_change"].mean(),
            own["flipped"].mean(),
            (own["margin_after"] - own["margin_before"]).mean(),
        ]
        found = result.at(kind="choose/attr", block="image->question", centre=0)
        ceiling = table["ceiling"] & (table["kind"] == "choose/attr") & table["measured"]
        above = {column: cells[ceiling] for column, cells in table.items()}
        expected.append(100 * ratios.mean() / above["relative_change_percent"].mean())
        expected.append(100 * own["flipped"].mean() / above["flipped"].mean())
        np.testing.assert_allclose(found[:, 0], expected, rtol=1e-6)
        there = ~np.isnan(found[:, 1])
        assert there[:6].all()
        assert (found[there, 1] <= found[there, 0]).all()
        assert (found[there, 0] <= found[there, 2]).all()
        assert found[:, 3].tolist() == [4] * len(MEASURES)

    def test_a_contrast_is_of_the_questions_that_have_both_blocks(
        self, backbone: Backbone, tiny_llava: str
    ) -> None:
        pair = ("image->question", "image object->question")
        analysis = self.run(backbone, tiny_llava, batches(tiny_llava), contrasts=[pair])
        table, result = analysis.rows.table(), analysis.compute()

        both = table["measured"] & (table["sample_id"] != WITHOUT_BOX[0]) & (table["centre"] == 0)
        ours, theirs = (
            table["relative_change_percent"][both & (table["block"] == block)] for block in pair
        )
        found = result.at(kind="all", block=" minus ".join(pair), centre=0, measure=MEASURES[0])
        assert found[0] == pytest.approx((ours - theirs).mean())
        assert found[3] == 4

    def test_a_common_subset_makes_the_curves_of_two_runs_be_of_the_same_questions(
        self, backbone: Backbone, tiny_llava: str, tmp_path: Path
    ) -> None:
        (batch,) = batches(tiny_llava, 6)
        self.run(backbone, tiny_llava, [batch.take([0, 1, 2, 3])], tmp_path / "small").merge()
        self.run(backbone, tiny_llava, [batch.take([1, 2, 3, 4])], tmp_path / "large").merge()
        files = {name: tmp_path / name / "rows.csv" for name in ("small", "large")}

        apart, common = compare_flows(files, common=False), compare_flows(files)

        assert [result.n_samples for result in apart.values()] == [3, 3]
        assert [result.n_samples for result in common.values()] == [2, 2]
        np.testing.assert_array_equal(common["small"].values, common["large"].values)

    def test_there_is_a_figure_per_family_of_the_paper_and_one_of_all(
        self, backbone: Backbone, tiny_llava: str
    ) -> None:
        result = self.run(
            backbone,
            tiny_llava,
            batches(tiny_llava),
            blocks=[*BLOCKS, "suffix->last", "system->image"],
        ).compute()

        shown = {plot.name: list(plot.shown) for plot in result.plots}
        assert shown == {
            "to_last": [*BLOCKS[:3], "suffix->last", "ceiling"],
            "image_to_question": ["image->question", "ceiling"],
            "patches_to_question": [*BLOCKS[4:], "ceiling"],
            "other": ["system->image", "ceiling"],
            "contrasts": ["image object->question minus image random->question"],
            "heat_map": [*BLOCKS, "suffix->last", "system->image"],
        }

    def test_windows_around_one_layer_are_told_apart_by_their_layers(
        self, backbone: Backbone, tiny_llava: str
    ) -> None:
        ranges = Windows(layers=[(0, 2), (1, 2), (0, 2)])
        parts, pair = batches(tiny_llava), ["image->question", "image object->question"]

        result = self.run(backbone, tiny_llava, parts, windows=ranges, blocks=pair).compute()
        alone = self.run(
            backbone, tiny_llava, parts, windows=Windows(layers=[(1, 2)]), blocks=pair
        ).compute()

        assert result.coords["window"] == ("1 (0-1)", "1 (1-1)")
        assert alone.coords["centre"] == (1,)
        np.testing.assert_allclose(
            result.at(window="1 (1-1)"), alone.at(centre=1), rtol=1e-3, atol=1e-3
        )
        assert {plot.x for plot in result.plots} == {"window"}
        found = [each.settings["found"] for each in (result, alone)]
        assert [each["windows"] for each in found] == [[[1, 0, 2], [1, 1, 2]], [[1, 1, 2]]]
        assert [each["without_a_set"] for each in found] == [{"image object->question": 1}] * 2

    def test_intervals_are_of_pictures(self, backbone: Backbone, tiny_llava: str) -> None:
        (batch,) = batches(tiny_llava, 6)
        one = replace(batch, pictures=("only",) * 6)

        result = self.run(backbone, tiny_llava, [one]).compute()

        assert result.settings["found"]["pictures"] == {
            "all": 1,
            "choose/attr": 1,
            "logical/obj": 1,
        }
        value, low, high, n = np.moveaxis(
            result.at(kind="all", block="image->question", measure=MEASURES[0]), -1, 0
        )
        assert np.isfinite(value).all()
        assert np.isnan([low, high]).all()
        assert n.tolist() == [5, 5]


def by_hand(logprobs: list[float], forms: AnswerForms) -> float:
    """The margin; "Red" and "Blue" begin with the same piece, which so counts for neither."""
    assert forms.false is not None
    true, false = ({each.lower[0], each.capitalised[0]} for each in (forms.true, forms.false))
    own, other = (
        sum(exp(logprobs[token]) for token in tokens) for tokens in (true - false, false - true)
    )
    return log(own) - log(other)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"blocks": ["image->last", "image -> last"]},
            r"needs blocks, each once; found image->last, image->last",
        ),
        ({"blocks": []}, r"found none"),
        (
            {"blocks": ["image->last"], "contrasts": [("image->last", "last->last")]},
            r"names 'last->last'.*Add it",
        ),
        ({"blocks": ["imagge->last"]}, 'Did you mean "image"'),
    ],
)
def test_what_can_not_be_is_refused_before_any_forward(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        InformationFlow(**options)
