"""The laws of every analysis of questions; a subclass only makes its own."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lightning_mllm.analysis import AnalysisResult
from lightning_mllm.analysis.core.per_question import QuestionAnalysis
from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.errors import ConfigError
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.models.layers import decoder_layers
from tests.support.decoders import count_hooks
from tests.support.questions import WRONG, batches, load, question, tokenizer


class AnalysisContract:
    """Inherit, and make the analysis."""

    def make(self, **options: Any) -> QuestionAnalysis[Any]:
        raise NotImplementedError

    @pytest.fixture
    def backbone(self, tiny_llava: str, examined: None) -> Backbone:
        return load(tiny_llava)

    def run(
        self,
        backbone: Backbone,
        checkpoint: str,
        parts: Sequence[MultimodalBatch],
        folder: Path | None = None,
        **options: Any,
    ) -> QuestionAnalysis[Any]:
        analysis = self.make(**options)
        analysis.prepare(tokenizer(checkpoint), folder)
        for batch in parts:
            analysis.update(backbone, batch)
        return analysis

    def test_a_notebook_needs_no_trainer(
        self, backbone: Backbone, tiny_llava: str, tmp_path: Path
    ) -> None:
        in_memory = self.run(backbone, tiny_llava, batches(tiny_llava)).compute()
        on_disk = self.run(backbone, tiny_llava, batches(tiny_llava), tmp_path)
        on_disk.merge()

        assert in_memory.n_samples == 5
        assert in_memory.values.shape == tuple(
            len(in_memory.coords[axis]) for axis in in_memory.axes
        )
        assert (tmp_path / "rows.csv").is_file()
        same(on_disk.compute(), in_memory)

    def test_the_same_batch_twice_counts_once(self, backbone: Backbone, tiny_llava: str) -> None:
        once, twice = batches(tiny_llava), [*batches(tiny_llava), *batches(tiny_llava)]

        same(
            self.run(backbone, tiny_llava, twice).compute(),
            self.run(backbone, tiny_llava, once).compute(),
        )

    def test_neither_batches_nor_padding_matter(self, backbone: Backbone, tiny_llava: str) -> None:
        whole = self.run(backbone, tiny_llava, batches(tiny_llava, 6)).compute()

        for size, side in ((1, "right"), (2, "left"), (6, "left")):
            parts = batches(tiny_llava, size, padding_side=side)
            close(self.run(backbone, tiny_llava, parts).compute(), whole)

    def test_out_of_memory_fewer_questions_are_looked_into_at_a_time(
        self, backbone: Backbone, tiny_llava: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        (batch,) = batches(tiny_llava, 6)
        whole = self.run(backbone, tiny_llava, [batch]).compute()

        def full(module: nn.Module, inputs: Any) -> None:
            if inputs[0].shape[0] > 2:
                raise torch.OutOfMemoryError("full")

        handle = decoder_layers(backbone)[-1].register_forward_pre_hook(full)
        with caplog.at_level(logging.WARNING):
            halved = self.run(backbone, tiny_llava, [batch])
        handle.remove()

        assert "Out of memory with 6 questions at a time; going on with 3." in caplog.text
        close(halved.compute(), whole)

    def test_what_was_stopped_goes_on_and_ends_as_if_it_had_not(
        self, backbone: Backbone, tiny_llava: str, tmp_path: Path
    ) -> None:
        parts = batches(tiny_llava, 2)
        self.run(backbone, tiny_llava, parts, tmp_path / "whole").merge()
        stopped = self.run(backbone, tiny_llava, parts[:2], tmp_path / "stopped")
        (tmp_path / "stopped" / "rows-0-000002.csv.part").write_text("sample_id\ntest-5,half a ro")

        resumed = self.make()
        resumed.prepare(tokenizer(tiny_llava), tmp_path / "stopped")
        assert resumed.rows.done == stopped.rows.done == {f"test-{number}" for number in range(4)}
        for batch in parts:
            resumed.update(backbone, batch)
        resumed.merge()

        assert (tmp_path / "stopped" / "rows.csv").read_text() == (
            tmp_path / "whole" / "rows.csv"
        ).read_text()

    def test_other_settings_do_not_go_on(
        self, backbone: Backbone, tiny_llava: str, tmp_path: Path
    ) -> None:
        self.run(backbone, tiny_llava, batches(tiny_llava), tmp_path)

        with pytest.raises(ConfigError, match=r"analysis\.correct_only was True, is False"):
            self.run(backbone, tiny_llava, [], tmp_path, correct_only=False)

    def test_a_question_that_is_answered_wrongly_has_one_row_and_counts_nowhere(
        self, backbone: Backbone, tiny_llava: str
    ) -> None:
        kept = self.run(backbone, tiny_llava, batches(tiny_llava))
        every = self.run(backbone, tiny_llava, batches(tiny_llava), correct_only=False)

        table = kept.rows.table()
        assert (table["sample_id"] == WRONG[0]).sum() == 1
        assert set(table["sample_id"][~table["measured"]]) == {WRONG[0]}
        found = kept.compute().settings["found"]["questions"]
        assert found == {
            "choose/attr": {"asked": 4, "kept": 4},
            "logical/obj": {"asked": 2, "kept": 1},
        }
        assert (kept.compute().n_samples, every.compute().n_samples) == (5, 6)
        assert set(every.rows.table()["sample_id"][~every.rows.table()["correct"]]) == {WRONG[0]}

    def test_without_a_right_answer_there_is_a_result_without_numbers(
        self, backbone: Backbone, tiny_llava: str
    ) -> None:
        (only,) = [batch.take([2]) for batch in batches(tiny_llava, 6)]

        result = self.run(backbone, tiny_llava, [only]).compute()

        assert result.n_samples == 0
        assert not np.isfinite(result.values[..., :3]).any()
        assert not result.values[..., 3].any()
        assert result.settings["found"]["questions"] == {"logical/obj": {"asked": 1, "kept": 0}}

    def test_reset_forgets(self, backbone: Backbone, tiny_llava: str) -> None:
        analysis = self.run(backbone, tiny_llava, batches(tiny_llava))

        analysis.reset()

        assert analysis.compute().n_samples == 0

    def test_the_model_is_left_as_it_was(self, backbone: Backbone, tiny_llava: str) -> None:
        batch = batches(tiny_llava)[0]
        with torch.no_grad():
            before = backbone.model(**batch.model_inputs()).logits
            hooks = count_hooks(backbone)  # transformers has some of its own
            self.run(backbone, tiny_llava, [batch])
            after = backbone.model(**batch.model_inputs()).logits

        assert torch.equal(before, after)
        assert count_hooks(backbone) == hooks

    def test_samples_without_a_kind_are_refused_unless_all_count(
        self, backbone: Backbone, tiny_llava: str
    ) -> None:
        nameless = [replace(batch, kinds=(None,) * len(batch)) for batch in batches(tiny_llava)]

        with pytest.raises(ConfigError, match=r"'test-0' has no kind.*Set correct_only to false"):
            self.run(backbone, tiny_llava, nameless)

        assert self.run(backbone, tiny_llava, nameless, correct_only=False).compute().n_samples == 6

    def test_samples_without_a_kind_are_refused_before_the_first_batch_too(self) -> None:
        samples = [question("test", 0), replace(question("test", 1), kind=None)]

        with pytest.raises(ConfigError, match=r"'test-1' has no kind.*Set correct_only to false"):
            self.make().check(samples)

        self.make().check(samples[:1])
        self.make(correct_only=False).check(samples)

    def test_what_counts_as_right_can_be_chosen_and_is_a_setting(self) -> None:
        assert [self.make(**options).settings["match"] for options in ({}, {"match": "paper"})] == [
            "normalised",
            "paper",
        ]
        with pytest.raises(ConfigError, match="match is 'exact'; it can be"):
            self.make(match="exact")

    def test_the_tokenizer_is_asked_for(self, backbone: Backbone, tiny_llava: str) -> None:
        with pytest.raises(ConfigError, match=r"call prepare\(tokenizer\) before the first batch"):
            self.make().update(backbone, batches(tiny_llava)[0])

    def test_a_label_that_is_no_folder_name_is_refused(self) -> None:
        with pytest.raises(ConfigError, match="names a folder"):
            self.make(label="a/b")

    def test_settings_are_plain_data(self, backbone: Backbone, tiny_llava: str) -> None:
        result = self.run(backbone, tiny_llava, batches(tiny_llava)).compute()

        assert json.loads(json.dumps(result.settings))["analysis"] == json.loads(
            json.dumps(self.make().settings)
        )


def same(found: AnalysisResult, expected: AnalysisResult) -> None:
    assert (found.name, found.axes, found.coords) == (expected.name, expected.axes, expected.coords)
    assert (found.n_samples, found.plots) == (expected.n_samples, expected.plots)
    np.testing.assert_array_equal(found.values, expected.values)


def close(found: AnalysisResult, expected: AnalysisResult) -> None:
    assert found.coords == expected.coords
    np.testing.assert_allclose(found.values, expected.values, rtol=1e-3, atol=1e-3)
