"""The lens against hidden states taken by hand, in float64; at the last layer it is the model."""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import replace
from math import exp
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_mllm.analysis import AnswerLens, Bootstrap
from lightning_mllm.analysis.forward import float32_head
from lightning_mllm.analysis.forward.float32_head import head_logits
from lightning_mllm.analysis.lens import readout as lens
from lightning_mllm.analysis.lens.readout import Norm, ReadoutPositions, read_out, readout_states
from lightning_mllm.batches import MultimodalBatch, map_image
from lightning_mllm.errors import ConfigError, NotFiniteError
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.types import Segment
from tests.conftest import TinyBuilder
from tests.support.question_analysis_contract import AnalysisContract
from tests.support.questions import batches, load, tokenizer

DEPTH = 2  # of the tiny checkpoint
SIDES = pytest.mark.parametrize("side", ["left", "right"])


class TestAnswerLens(AnalysisContract):
    def make(self, **options: Any) -> AnswerLens:
        return AnswerLens(bootstrap=Bootstrap(resamples=20), **options)

    def test_numbers_are_means_and_medians_of_the_rows(
        self, backbone: Backbone, tiny_llava: str
    ) -> None:
        analysis = self.run(backbone, tiny_llava, batches(tiny_llava))
        table, result = analysis.rows.table(), analysis.compute()

        own = table["measured"] & (table["layer"] == 1)
        with_options = own & (table["kind"] == "choose/attr")
        found = result.at(kind="all", layer=1, statistic="value")
        words = result.coords["word"]
        assert words == ("answer", "Answer", "false option", "False option", "whole reference")
        assert found[0].tolist() == pytest.approx(
            [100 * table["p_lower"][own].mean(), np.median(table["rank_lower"][own])]
        )
        assert found[2, 0] == pytest.approx(100 * table["p_false_lower"][with_options].mean())
        assert found[4, 0] == pytest.approx(100 * np.exp(table["reference_logprob"][own]).mean())
        assert result.at(kind="all", layer=1, statistic="n")[:, 0].tolist() == [5, 5, 4, 4, 5]
        assert result.settings["found"]["pictures"] == {
            "all": 5,
            "choose/attr": 4,
            "logical/obj": 1,
        }

    def test_where_no_answer_word_is_known_it_says_so(
        self, backbone: Backbone, tiny_llava: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        labelled = [replace(batch, answers=(None,) * len(batch)) for batch in batches(tiny_llava)]

        result = self.run(backbone, tiny_llava, labelled, correct_only=False).compute()

        assert "reads the whole reference only" in caplog.text
        whole = result.at(kind="all", word="whole reference", statistic="n")
        assert (whole[..., 0] == result.n_samples).all()

    def test_intervals_are_of_pictures(self, backbone: Backbone, tiny_llava: str) -> None:
        (batch,) = batches(tiny_llava, 6)
        one = replace(batch, pictures=("only",) * 6)

        result = self.run(backbone, tiny_llava, [one]).compute()

        value, low, high, n = result.at(
            kind="all", word="answer", layer=1, measure="probability_percent"
        )
        assert (result.settings["found"]["pictures"]["all"], n) == (1, 5)
        assert np.isfinite(value)
        assert np.isnan([low, high]).all()

    def test_without_a_right_answer_nothing_is_drawn(
        self, backbone: Backbone, tiny_llava: str
    ) -> None:
        (wrong,) = [batch.take([2]) for batch in batches(tiny_llava, 6)]

        assert self.run(backbone, tiny_llava, [wrong]).compute().plots == ()

    def test_what_pads_the_head_is_left_out_if_the_vocabulary_is_the_tokenizers(
        self, backbone: Backbone, tiny_llava: str
    ) -> None:
        parts = batches(tiny_llava)
        only: dict[str, Any] = {"vocabulary": "tokenizer"}
        before = self.run(backbone, tiny_llava, parts, **only).rows.table()
        head: Tensor = backbone.lm_head.weight  # type: ignore[assignment]  # of a Linear
        padding = head.mean(0, keepdim=True).expand(8, -1)  # as checkpoints are padded
        padded = torch.nn.Linear(head.shape[1], head.shape[0] + 8, bias=False)
        padded.weight.data = torch.cat([head.data, padding.data])
        backbone.model.set_output_embeddings(padded)

        without, among = (
            self.run(backbone, tiny_llava, parts, **own).rows.table() for own in (only, {})
        )

        for column in ("p_lower", "rank_lower", "reference_logprob"):
            np.testing.assert_allclose(without[column], before[column], rtol=1e-6)
        assert (among["p_lower"] < before["p_lower"])[before["measured"]].all()


@torch.no_grad()
def by_hand(backbone: Backbone, batch: MultimodalBatch, norm: Norm) -> list[Tensor]:
    """Log-probabilities of all tokens at all positions, per layer: (batch, length, vocabulary)."""
    hidden = backbone.model(**batch.model_inputs(), output_hidden_states=True).hidden_states
    final: torch.nn.Module = backbone.decoder.norm  # type: ignore[assignment]
    *inner, last = hidden
    states = [
        *(final(each) if norm == "final" else each for each in inner),
        last,
    ]  # transformers norms the last one
    return [backbone.lm_head(each).double().log_softmax(-1) for each in states]


@SIDES
@pytest.mark.parametrize("family", ["llava", "llava_next"])
@pytest.mark.parametrize("norm", ["final", "none"])
def test_every_row_is_what_hidden_states_by_hand_give(
    tiny_checkpoint: TinyBuilder, family: Any, norm: Norm, side: Any, examined: None
) -> None:
    checkpoint = tiny_checkpoint(family, "vicuna")
    backbone = load(checkpoint, torch.float64)
    (batch,) = batches(checkpoint, 6, padding_side=side)
    analysis = AnswerLens(norm=norm, top=3, correct_only=False)
    analysis.prepare(tokenizer(checkpoint))

    analysis.update(backbone, batch)

    table, expected = analysis.rows.table(), by_hand(backbone, batch, norm)
    assert len(table["layer"]) == 6 * (DEPTH + 1)
    for row, (sample_id, forms) in enumerate(zip(batch.sample_ids, batch.answers, strict=True)):
        last = int(batch.spans[Segment.LAST][row].nonzero())
        reference = batch.input_ids[row, last + 1 :][
            batch.attention_mask[row, last + 1 :].bool()
        ].tolist()[:-1]
        for layer, logprobs in enumerate(expected):
            (index,) = np.flatnonzero((table["sample_id"] == sample_id) & (table["layer"] == layer))
            found = {column: cells[index].item() for column, cells in table.items()}
            here = logprobs[row, last]
            assert forms is not None
            words = {"lower": forms.true.lower, "capitalised": forms.true.capitalised}
            if forms.false is not None:
                words |= {
                    "false_lower": forms.false.lower,
                    "false_capitalised": forms.false.capitalised,
                }
            for name, tokens in words.items():
                assert found[f"p_{name}"] == pytest.approx(exp(here[tokens[0]]), rel=1e-9)
                assert found[f"rank_{name}"] == int((here > here[tokens[0]]).sum())
            if forms.false is None:
                assert np.isnan(found["p_false_lower"])
            joint = sum(float(logprobs[row, last + k, token]) for k, token in enumerate(reference))
            assert found["reference_logprob"] == pytest.approx(joint, rel=1e-9)
            assert found["reference_tokens"] == len(reference) >= 1
            best = here.topk(3)
            assert json.loads(found["top_words"]) == [
                tokenizer(checkpoint).decode([k]) for k in best.indices.tolist()
            ]
            assert json.loads(found["top_probabilities"]) == pytest.approx(
                best.values.exp().tolist(), rel=1e-3
            )


@SIDES
@pytest.mark.parametrize("norm", ["final", "none"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_at_the_last_layer_the_lens_is_the_model(
    tiny_llava: str, norm: Norm, attention: Any, side: Any
) -> None:
    backbone = load(tiny_llava, attention=attention)
    (batch,) = batches(tiny_llava, 6, padding_side=side)
    last = batch.spans[Segment.LAST]

    with torch.no_grad():
        states = readout_states(backbone, batch, last, norm)
        logits = backbone.model(**batch.model_inputs()).logits[last]

    assert len(states) == DEPTH + 1
    assert torch.equal(backbone.lm_head(states[-1]), logits)


def test_states_that_are_not_finite_are_refused_by_name(tiny_llava: str) -> None:
    """Of a NaN no logit would be larger, so that its rank were the first."""
    (batch,) = batches(tiny_llava, 6)
    images, last = list(batch.images), batch.spans[Segment.LAST]
    images[2] = map_image(lambda values: values * torch.nan, images[2])

    with pytest.raises(
        NotFiniteError, match=r"The LLM's states are NaN .* 1 of 6 samples, first for 'test-2'"
    ):
        readout_states(load(tiny_llava), replace(batch, images=tuple(images)), last, "none")


def test_norms_differ_everywhere_but_at_the_last_layer(tiny_llava: str) -> None:
    backbone = load(tiny_llava)
    (batch,) = batches(tiny_llava, 6)
    last = batch.spans[Segment.LAST]

    with torch.no_grad():
        final, raw = (readout_states(backbone, batch, last, norm) for norm in ("final", "none"))

    assert [torch.equal(a, b) for a, b in zip(final, raw, strict=True)] == [False, False, True]


def test_half_precision_of_a_head_does_not_round_what_it_says() -> None:
    head, states = torch.nn.Linear(8, 500, bias=False).bfloat16(), 20 * torch.randn(3, 8).bfloat16()
    ids = torch.randint(500, (3, 2))

    found = read_out(head, states, ids, top=4)

    exact = read_out(deepcopy(head).float(), states.float(), ids, top=4)
    for name in ("logprobs", "ranks", "top", "top_logprobs"):
        torch.testing.assert_close(getattr(found, name), getattr(exact, name))


def test_the_vocabulary_ends_where_it_is_said_to() -> None:
    head, short = (torch.nn.Linear(4, size, bias=False) for size in (50, 40))
    short.weight.data = head.weight.data[:40]
    states, ids = torch.randn(6, 4), torch.randint(40, (6, 2))

    found = read_out(head, states, ids, top=45, vocabulary=40)

    expected = read_out(short, states, ids, top=45)
    for name in ("logprobs", "ranks", "top", "top_logprobs"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name))


def test_the_vocabulary_is_met_by_few_states_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    head = torch.nn.Linear(4, 50, bias=False)
    states, ids = torch.randn(23, 4), torch.randint(50, (23, 2))
    ids[3] = -1
    whole = read_out(head, states, ids, top=2)
    met: list[int] = []

    def count(head: torch.nn.Module, some: Tensor) -> Tensor:
        met.append(len(some))
        return head_logits(head, some)

    monkeypatch.setattr(lens, "head_logits", count)
    monkeypatch.setattr(float32_head, "LOGITS", 250)
    parts = read_out(head, states, ids, top=2)

    assert met == [5, 5, 5, 5, 3]
    for name in ("logprobs", "ranks", "top", "top_logprobs"):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name), equal_nan=True)
    assert whole.logprobs[3].isnan().all()


def test_an_answer_without_tokens_has_no_joint_probability(tiny_llava: str) -> None:
    (batch,) = batches(tiny_llava, 6)
    prompts = batch.prompts()

    positions = ReadoutPositions.of(prompts)

    assert positions.lengths.tolist() == [0] * 6
    assert positions.joint(torch.zeros(6)).isnan().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": "layer"}, r"can be 'final' or 'none'"),
        ({"vocabulary": "words"}, r"can be 'head' or 'tokenizer'"),
        ({"top": -1}, r"must be at least 0"),
    ],
)
def test_what_can_not_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AnswerLens(**options)
