"""The callbacks that follow the features, in one short real fit with W&B offline, read back from its run file."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import lightning as L
import pytest
import torch
import wandb
from PIL import Image

from lightning_mllm.callbacks import ProbeEachEpoch, RepresentationDrift, SaveFeatures
from lightning_mllm.data import MLLMDataModule
from lightning_mllm.errors import ConfigError
from lightning_mllm.models.module import MLLMModule
from lightning_mllm.models.schedule import LearningRates
from lightning_mllm.probing import FeatureCache, MLPProbe, NearestCentroid, Point, Training, load_features
from lightning_mllm.tracking.log import finish, make_loggers
from lightning_mllm.types import Sample, Turn
from tests.callbacks.conftest import make_trainer
from tests.running import picture
from tests.tracking.run_file import history

SEEDS = (0, 1)
POINTS = (Point("pre"), Point("post"))


class Blotches(MLLMDataModule):
    """Pictures of noise around one of two greys."""

    def load(self, split: str) -> list[Sample]:
        def blotch(index: int) -> Image.Image:
            return Image.blend(picture(index), Image.new("RGB", (24, 20), ("black", "white")[index % 2]), 0.8)

        first = {"train": 0, "val": 16, "test": 24}[split]
        count = 16 if split == "train" else 8
        return [
            Sample(id=f"{split}-{index}", images=[blotch(index)], label=("dark", "light")[index % 2])
            for index in range(first, first + count)
        ]


@dataclass
class Followed:
    folder: Path
    before: dict[str, torch.Tensor]
    module: MLLMModule


def callbacks(cache: FeatureCache | None = None) -> list[L.Callback]:
    probes = (MLPProbe(training=Training(max_epochs=2), control=True), NearestCentroid())
    return [
        ProbeEachEpoch(points=POINTS, probes=probes, seeds=SEEDS, cache=cache),
        SaveFeatures(points=POINTS, cache=cache),
        RepresentationDrift(cache=cache),
    ]


def make_module(checkpoint: str) -> MLLMModule:
    return MLLMModule(checkpoint, learning_rates=LearningRates(projector=0.1), scorers=())


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory, tiny_llava: str) -> Followed:
    folder = tmp_path_factory.mktemp("followed")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("WANDB_MODE", raising=False)
        trainer = make_trainer(
            folder, callbacks(FeatureCache(folder / "cache")), max_epochs=2, max_steps=-1, limit_val_batches=1.0
        )
        trainer.loggers = make_loggers(folder, name="run", mode="offline")
        module, data = make_module(tiny_llava), Blotches(checkpoint=tiny_llava, batch_size=8, eval_batch_size=8)
        module.configure_model()
        before = {name: each.detach().clone() for name, each in module.backbone.projector.named_parameters()}
        trainer.fit(module, datamodule=data)
        trainer.test(module, datamodule=data, verbose=False)
        finish(trainer.loggers)
        wandb.teardown()  # waits until the background process has written everything
    return Followed(folder, before, module)


def test_probes_are_scored_before_training_each_epoch_and_after_the_test(followed: Followed) -> None:
    found = rows(followed.folder / "probes.csv")

    moments = dict.fromkeys((row["epoch"], row["step"], row["stage"]) for row in found)
    assert list(moments) == [("-1", "0", "val"), ("0", "2", "val"), ("1", "4", "val"), ("1", "4", "test")]
    assert len(found) == len(moments) * len(POINTS) * 2 * len(SEEDS)
    assert {(row["n_train"], row["n_test"]) for row in found} == {("16", "8")}
    assert {row["control_accuracy"] == "" for row in found if row["probe"] == "mlp"} == {False}


def test_what_enters_a_projection_that_is_trained_stays_and_what_leaves_it_moves(followed: Followed) -> None:
    before, after = (load_features(followed.folder / f"features/val-step{step}.safetensors") for step in (0, 4))

    assert torch.equal(before["pre-mean"].features, after["pre-mean"].features)
    assert not torch.equal(before["post-mean"].features, after["post-mean"].features)


def test_the_metrics_of_the_probes_are_in_the_csv_and_in_the_wandb_run(followed: Followed) -> None:
    keys = {
        f"probe/{stage}/post-mean/mlp/{measure}" for stage in ("val", "test") for measure in ("accuracy", "macro_f1")
    }
    keys |= {"probe/val/pre-mean/nearest-centroid/accuracy", "drift/post-mean/cka", "drift/projector_weights"}

    logged = history(followed.folder)
    assert keys <= {key for row in logged for key in row}
    assert any(key.startswith("probes/") for row in logged for key in row)  # the picture
    assert keys <= set(rows(followed.folder / "metrics.csv")[0])
    first = next(row for row in logged if "probe/val/post-mean/mlp/accuracy" in row)
    own = [row for row in rows(followed.folder / "probes.csv") if (row["point"], row["probe"]) == ("post-mean", "mlp")]
    mean = sum(float(row["accuracy"]) for row in own[: len(SEEDS)]) / len(SEEDS)
    assert first["probe/val/post-mean/mlp/accuracy"] == pytest.approx(mean)
    assert (followed.folder / "probes.png").stat().st_size > 10_000


def test_every_prediction_of_the_test_is_kept(followed: Followed) -> None:
    (path,) = followed.folder.glob("evaluation/test-step4/probe-predictions.csv")
    found = rows(path)
    scored = [row for row in rows(followed.folder / "probes.csv") if row["stage"] == "test"]

    assert [row["sample_id"] for row in found] == [f"test-{index}" for index in range(24, 32)]
    for score in scored:
        said = [row[f"{score['point']}/{score['probe']}/seed{score['seed']}"] for row in found]
        right = sum(one == row["target"] for one, row in zip(said, found, strict=True))
        assert right / len(found) == float(score["accuracy"])


def test_drift_is_measured_against_the_untrained_projection(followed: Followed) -> None:
    found = rows(followed.folder / "drift.csv")
    after = {name: each.detach() for name, each in followed.module.backbone.projector.named_parameters()}

    moved = sum(float((after[name] - each).double().square().sum()) for name, each in followed.before.items())
    size = sum(float(each.double().square().sum()) for each in followed.before.values())
    assert [row["epoch"] for row in found] == ["0", "1"]
    assert float(found[-1]["weight_change"]) == pytest.approx((moved / size) ** 0.5)
    assert 0 < float(found[-1]["cka"]) < 1
    assert {row["n"] for row in found} == {"8"}


def test_a_resumed_run_knows_what_was_before_it(followed: Followed, tiny_llava: str, tmp_path: Path) -> None:
    def fit(folder: Path, epochs: int, **options: object) -> L.Trainer:
        trainer = make_trainer(folder, callbacks(), max_epochs=epochs, max_steps=-1, limit_val_batches=1.0)
        data = Blotches(checkpoint=tiny_llava, batch_size=8, eval_batch_size=8)
        trainer.fit(make_module(tiny_llava), datamodule=data, **options)  # type: ignore[arg-type]
        return trainer

    first = fit(tmp_path / "first", 2)
    first.save_checkpoint(tmp_path / "last.ckpt")
    resumed = fit(tmp_path / "resumed", 2, ckpt_path=tmp_path / "last.ckpt", weights_only=True)

    one, other = (next(c for c in t.callbacks if isinstance(c, RepresentationDrift)) for t in (first, resumed))  # type: ignore[attr-defined]
    assert other.state_dict()["rows"] == one.state_dict()["rows"]
    assert torch.equal(other.state_dict()["features"]["post-mean"], one.state_dict()["features"]["post-mean"])
    probes = [next(c for c in t.callbacks if isinstance(c, ProbeEachEpoch)).state_dict() for t in (first, resumed)]  # type: ignore[attr-defined]
    assert probes[0] == probes[1]


def test_data_without_labels_is_refused(tiny_llava: str, tmp_path: Path) -> None:
    class Talk(MLLMDataModule):
        def load(self, split: str) -> list[Sample]:
            turns = [Turn("user", "What is it?", images=1), Turn("assistant", "noise")]
            return [Sample(id=f"{split}-0", images=[picture(0)], conversation=turns)]

    trainer = make_trainer(tmp_path, [ProbeEachEpoch()])
    with pytest.raises(ConfigError, match="Talk has no labels"):
        trainer.fit(make_module(tiny_llava), datamodule=Talk(checkpoint=tiny_llava, batch_size=1, eval_batch_size=1))


def test_options_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ConfigError, match="points, each once; found post-mean, post-mean"):
        ProbeEachEpoch(points=[Point("post"), Point("post")])
    with pytest.raises(ConfigError, match="every_n_epochs must be at least 1, not 0"):
        ProbeEachEpoch(every_n_epochs=0)
    with pytest.raises(ConfigError, match="one point or more"):
        SaveFeatures(points=[])
    with pytest.raises(ConfigError, match="one point or more"):
        RepresentationDrift(points=[])
