"""Options of the feature callbacks in fits of a few steps, and what they refuse at the start."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import safetensors.torch

from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.callbacks import ProbeEachEpoch, RepresentationDrift, SaveFeatures
from lightning_mllm.data import MLLMDataModule
from lightning_mllm.errors import ConfigError, DataError
from lightning_mllm.models.freeze import Lora, ProjectorAndVision
from lightning_mllm.probing import FeatureCache, MLPProbe, Point
from lightning_mllm.probing.features.extraction import ExtractedSamples, extract_samples
from lightning_mllm.types import Sample, Turn
from tests.support.command_line import picture
from tests.support.feature_callbacks import all_callbacks, make_run, moments, quick_probes


class Seen(L.Callback):
    """Remembers what the model was evaluated on last."""

    def __init__(self) -> None:
        self.sample_ids: list[str] = []

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.sample_ids.clear()

    def on_test_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *rest: Any
    ) -> None:
        _, batch, *_ = rest
        assert isinstance(batch, MultimodalBatch)
        self.sample_ids += batch.sample_ids


def test_some_epochs_and_some_batches_are_enough(tiny_llava: str, tmp_path: Path) -> None:
    probes, save, seen = (
        quick_probes(every_n_epochs=2, before_training=False),
        SaveFeatures(every_n_epochs=2),
        Seen(),
    )
    run = make_run(
        tiny_llava,
        tmp_path,
        [probes, save, seen],
        max_epochs=3,
        eval_batch_size=2,
        limit_val_batches=3,
    )

    run.fit().test()  # of two batches, see make_trainer

    found = run.rows("probes.csv")
    assert moments(found) == [
        ("1", "4", "val"),
        ("2", "6", "val"),
        ("2", "6", "test"),
    ]  # the last epoch too
    assert {(row["stage"], row["n_train"], row["n_test"]) for row in found} == {
        ("val", "16", "6"),
        ("test", "16", "4"),
    }
    predictions = run.rows("evaluation/test-step6/probe-predictions.csv")
    assert [row["sample_id"] for row in predictions] == seen.sample_ids
    written = {
        f"{split}-step{step}.safetensors" for split in ("train", "val") for step in (0, 4, 6)
    }
    assert {path.name for path in (tmp_path / "features").iterdir()} == {
        *written,
        "test-step6.safetensors",
    }


def test_a_fit_without_validation_is_not_followed(tiny_llava: str, tmp_path: Path) -> None:
    run = make_run(
        tiny_llava,
        tmp_path,
        [quick_probes(), SaveFeatures(), RepresentationDrift()],
        limit_val_batches=0,
    )

    run.fit().test()

    assert moments(run.rows("probes.csv")) == [("1", "4", "test")]
    assert [path.name for path in (tmp_path / "features").iterdir()] == ["test-step4.safetensors"]


def test_a_trial_extracts_and_writes_nothing(
    tiny_llava: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extracted = []

    def extract(*args: Any, **options: Any) -> ExtractedSamples:
        found = extract_samples(*args, **options)
        extracted.append({len(found.sample_ids)})
        return found

    monkeypatch.setattr("lightning_mllm.callbacks.watched_split.extract_samples", extract)

    make_run(tiny_llava, tmp_path, all_callbacks(tmp_path)[:-1], fast_dev_run=1).fit().test()

    assert len(extracted) >= 3
    assert all(counts == {8} for counts in extracted)
    assert {path.name for path in tmp_path.iterdir()} == {"cache"}


def test_adapters_in_the_llm_move_what_is_behind_them(tiny_llava: str, tmp_path: Path) -> None:
    points = [Point("post"), Point("last", 2)]
    run = make_run(
        tiny_llava,
        tmp_path,
        [quick_probes(points=points), RepresentationDrift(points)],
        Lora(rank=2),
    )

    run.fit()

    post, last = run.rows("drift.csv")[-2:]
    assert (post["point"], last["point"]) == ("post-mean", "layer2-last")
    assert float(post["cosine"]) == pytest.approx(1)
    assert float(post["weight_change"]) == 0
    assert float(last["cosine"]) < 0.999
    assert {row["point"] for row in run.rows("probes.csv")} == {"post-mean", "layer2-last"}


@pytest.mark.parametrize(
    "follow",
    [
        lambda cache: quick_probes(cache=cache, before_training=False),
        lambda cache: SaveFeatures(cache=cache),
        lambda cache: RepresentationDrift(cache=cache),
    ],
    ids=["probes", "features", "drift"],
)
def test_a_cache_beside_a_trained_tower_is_refused_at_the_start(
    tiny_llava: str, tmp_path: Path, follow: Callable[[FeatureCache], L.Callback]
) -> None:
    run = make_run(
        tiny_llava, tmp_path, [follow(FeatureCache(tmp_path / "cache"))], ProjectorAndVision()
    )

    with pytest.raises(ConfigError, match="tower is trained, so its features change"):
        run.fit()
    assert run.trainer.global_step == 0


def test_data_without_labels_and_layers_that_are_not_there_are_refused_at_the_start(
    tiny_llava: str, tmp_path: Path
) -> None:
    class Talk(MLLMDataModule):
        def load(self, split: str) -> list[Sample]:
            turns = [Turn("user", "What is it?", images=1), Turn("assistant", "noise")]
            return [Sample(id=f"{split}-0", images=[picture(0)], conversation=turns)]

    run = make_run(tiny_llava, tmp_path, [quick_probes(before_training=False)])
    run.data = Talk(checkpoint=tiny_llava, batch_size=1, eval_batch_size=1)
    deep = [quick_probes(points=[Point("last", 9)], before_training=False)]

    with pytest.raises(ConfigError, match="Talk has no labels"):
        run.fit()
    with pytest.raises(ConfigError, match=r"layers 0 \(its input\) to 2"):
        make_run(tiny_llava, tmp_path, deep).fit()
    with pytest.raises(ConfigError, match=r"layers 0 \(its input\) to 2"):
        make_run(tiny_llava, tmp_path, deep).test()
    assert run.trainer.global_step == 0


def test_a_full_disk_ends_the_run_with_the_name_of_the_file(
    tiny_llava: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", full)

    with pytest.raises(
        DataError, match=r"features/train-step0\.safetensors: .*No space left on device"
    ):
        make_run(tiny_llava, tmp_path, [SaveFeatures()]).fit()
    assert not list((tmp_path / "features").iterdir())


def test_options_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ConfigError, match="points, each once; found post-mean, post-mean"):
        ProbeEachEpoch(points=[Point("post"), Point("post")])
    with pytest.raises(
        ConfigError,
        match=r"probes, each once; found mlp, mlp\. Give two probes of one kind different",
    ):
        ProbeEachEpoch(probes=[MLPProbe(), MLPProbe(control=True)])
    with pytest.raises(ConfigError, match="seeds, each once; found none"):
        ProbeEachEpoch(seeds=[])
    with pytest.raises(ConfigError, match="seeds, each once; found 1, 0, 1"):
        ProbeEachEpoch(seeds=[1, 0, 1])
    with pytest.raises(ConfigError, match="every_n_epochs must be at least 1, not 0"):
        ProbeEachEpoch(every_n_epochs=0)
    with pytest.raises(ConfigError, match="halves must be at least 0, not -1"):
        ProbeEachEpoch(halves=-1)
    with pytest.raises(ConfigError, match="one point or more"):
        SaveFeatures(points=[])
    with pytest.raises(ConfigError, match="one point or more"):
        RepresentationDrift(points=[])
    ProbeEachEpoch(probes=[MLPProbe(), MLPProbe(training="released-code"), MLPProbe(label="two")])
