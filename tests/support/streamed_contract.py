"""The laws of every analysis that keeps sums; a subclass only makes its own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lightning_mllm.analysis import AnalysisResult
from lightning_mllm.analysis.core.running_sums import RunningSums
from lightning_mllm.analysis.core.streamed import StreamedAnalysis
from lightning_mllm.batches import MultimodalBatch, TokenSpans
from lightning_mllm.errors import ConfigError, DataError
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.types import Sample, Segment
from tests.support.decoders import count_hooks, make_backbone
from tests.support.questions import batches, question, tokenizer


class StreamedContract:
    """Inherit, and make the analysis, which looks at six samples."""

    tolerance = 1e-9

    def make(self, **options: Any) -> StreamedAnalysis:
        raise NotImplementedError

    @pytest.fixture
    def backbone(self, tiny_llava: str) -> Backbone:
        return make_backbone(tiny_llava)

    def run(
        self,
        backbone: Backbone,
        checkpoint: str,
        parts: Sequence[MultimodalBatch],
        folder: Path | None = None,
        rank: int = 0,
        **options: Any,
    ) -> StreamedAnalysis:
        analysis = self.make(**options)
        analysis.prepare(tokenizer(checkpoint), folder, rank=rank)
        for batch in parts:
            analysis.update(backbone, batch)
        return analysis

    def close(self, found: AnalysisResult, expected: AnalysisResult) -> None:
        assert (found.name, found.axes, found.coords) == (
            expected.name,
            expected.axes,
            expected.coords,
        )
        assert (found.n_samples, found.plots) == (expected.n_samples, expected.plots)
        np.testing.assert_allclose(
            found.values, expected.values, rtol=self.tolerance, atol=self.tolerance
        )

    def test_neither_batches_nor_padding_matter(self, backbone: Backbone, tiny_llava: str) -> None:
        whole = self.run(backbone, tiny_llava, batches(tiny_llava, 6)).compute()

        assert whole.n_samples == 6
        assert whole.values.shape == tuple(len(whole.coords[axis]) for axis in whole.axes)
        for size, side in ((1, "right"), (4, "left"), (6, "right")):
            parts = batches(tiny_llava, size, padding_side=side)
            self.close(self.run(backbone, tiny_llava, parts).compute(), whole)

    def test_the_same_batch_twice_counts_once(self, backbone: Backbone, tiny_llava: str) -> None:
        once, twice = batches(tiny_llava), [*batches(tiny_llava), *batches(tiny_llava)]

        self.close(
            self.run(backbone, tiny_llava, twice).compute(),
            self.run(backbone, tiny_llava, once).compute(),
        )

    def test_a_sample_that_is_twice_in_a_batch_counts_once(
        self, backbone: Backbone, tiny_llava: str
    ) -> None:
        (batch,) = batches(tiny_llava, 6)

        found = self.run(backbone, tiny_llava, [batch.take([0, 1, 1, 2, 0, 3, 4, 5])]).compute()

        self.close(found, self.run(backbone, tiny_llava, [batch]).compute())

    def test_data_without_images_are_refused_at_set_up(self) -> None:
        with pytest.raises(ConfigError, match="no sample has an image"):
            self.make().check([Sample(id="text only")])

        self.make().check([question("test", number) for number in range(6)])

    def test_what_is_on_disk_is_what_is_in_memory(
        self, backbone: Backbone, tiny_llava: str, tmp_path: Path
    ) -> None:
        expected = self.run(backbone, tiny_llava, batches(tiny_llava)).compute()
        on_disk = self.run(backbone, tiny_llava, batches(tiny_llava), tmp_path)

        self.close(on_disk.compute(), expected)
        on_disk.merge()
        self.close(on_disk.compute(), expected)
        assert {path.name for path in tmp_path.iterdir()} == {"making.json", "sums.safetensors"}

    def test_what_was_killed_goes_on_and_ends_as_if_it_had_not(
        self, backbone: Backbone, tiny_llava: str, tmp_path: Path
    ) -> None:
        parts = batches(tiny_llava, 1)
        expected = self.run(backbone, tiny_llava, parts).compute()
        self.run(
            backbone, tiny_llava, parts[:3], tmp_path, snapshot_every=2
        )  # killed: the third is in no file

        resumed = self.make(snapshot_every=2)
        resumed.prepare(tokenizer(tiny_llava), tmp_path)
        assert resumed.found.done == {"test-0", "test-1"}
        for batch in parts:
            resumed.update(backbone, batch)
        resumed.merge()

        self.close(resumed.compute(), expected)

    def test_processes_put_together_what_they_have_found(
        self, backbone: Backbone, tiny_llava: str, tmp_path: Path
    ) -> None:
        parts = batches(tiny_llava, 1)
        expected = self.run(backbone, tiny_llava, parts, **self.one_process).compute()
        ranks = [
            self.run(backbone, tiny_llava, parts[k::2], tmp_path, k, **self.one_process)
            for k in (0, 1)
        ]
        for each in ranks:
            each.settle()

        ranks[0].merge()

        self.close(ranks[0].compute(), expected)
        assert RunningSums.read(tmp_path / "sums.safetensors").done == {
            f"test-{k}" for k in range(6)
        }

    one_process: dict[
        str, Any
    ] = {}  # options without which a result depends on who sees which sample  # noqa: RUF012

    def test_a_merge_that_was_killed_counts_nothing_twice(
        self, backbone: Backbone, tiny_llava: str, tmp_path: Path
    ) -> None:
        analysis = self.run(backbone, tiny_llava, batches(tiny_llava), tmp_path)
        analysis.settle()
        left = (tmp_path / "sums-0.safetensors").read_bytes()
        analysis.merge()
        expected = analysis.compute()

        (tmp_path / "sums-0.safetensors").write_bytes(left)
        again = self.run(backbone, tiny_llava, batches(tiny_llava), tmp_path)

        self.close(again.compute(), expected)

    def test_other_settings_do_not_go_on(
        self, backbone: Backbone, tiny_llava: str, tmp_path: Path
    ) -> None:
        self.run(backbone, tiny_llava, batches(tiny_llava), tmp_path)

        with pytest.raises(ConfigError, match=r"analysis\.seed was 0, is 1"):
            self.run(backbone, tiny_llava, [], tmp_path, seed=1)

    def test_a_broken_file_is_named(
        self, backbone: Backbone, tiny_llava: str, tmp_path: Path
    ) -> None:
        self.run(backbone, tiny_llava, batches(tiny_llava), tmp_path).settle()
        (tmp_path / "sums-0.safetensors").write_bytes(b"half")

        with pytest.raises(DataError, match=r"sums-0\.safetensors holds no sums"):
            self.run(backbone, tiny_llava, [], tmp_path)

    def test_samples_without_an_image_are_left_out(
        self, backbone: Backbone, tiny_llava: str
    ) -> None:
        (batch,) = batches(tiny_llava, 6)
        expected = self.run(backbone, tiny_llava, [batch.take([0, 1, 3, 4, 5])]).compute()
        masks = dict(batch.spans.masks)
        masks[Segment.IMAGE] = masks[Segment.IMAGE].clone()
        masks[Segment.IMAGE][2] = False

        found = self.run(backbone, tiny_llava, [replace(batch, spans=TokenSpans(masks))]).compute()

        assert found.settings["found"]["left_out"] == 1
        self.close(found, expected)

    def test_without_any_sample_there_is_no_result(
        self, backbone: Backbone, tiny_llava: str
    ) -> None:
        analysis = self.run(backbone, tiny_llava, batches(tiny_llava))

        analysis.reset()

        with pytest.raises(
            DataError, match="no sample with an image and text after it; 0 were left out"
        ):
            analysis.compute()

    def test_the_model_is_left_as_it_was(self, backbone: Backbone, tiny_llava: str) -> None:
        batch = batches(tiny_llava)[0]
        with torch.no_grad():
            before = backbone.model(**batch.model_inputs()).logits
            hooks = count_hooks(backbone)  # transformers has some of its own
            self.run(backbone, tiny_llava, [batch])
            after = backbone.model(**batch.model_inputs()).logits

        assert torch.equal(before, after)
        assert count_hooks(backbone) == hooks

    def test_settings_are_plain_data(self, backbone: Backbone, tiny_llava: str) -> None:
        result = self.run(backbone, tiny_llava, batches(tiny_llava)).compute()

        assert json.loads(json.dumps(result.settings))["analysis"] == json.loads(
            json.dumps(self.make().settings)
        )

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"label": "a/b"}, "names a folder"),
            ({"snapshot_every": 0}, "a snapshot every batch or less often"),
        ],
    )
    def test_what_can_not_be_is_refused(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            self.make(**options)
