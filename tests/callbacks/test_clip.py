from __future__ import annotations

import json
from pathlib import Path

import pytest
from sklearn.metrics import f1_score  # type: ignore[import-untyped]

from lightning_mllm.callbacks import ClipZeroShot
from lightning_mllm.errors import CheckpointError, ConfigError
from lightning_mllm.evaluation import ClipClassifier
from tests.conftest import ClipBuilder
from tests.support.feature_callbacks import Run, make_run

FOLDER = Path("evaluation/test-step0")
TEMPLATES = ["{label}!"]


@pytest.fixture
def tested(tiny_clip: ClipBuilder, tiny_llava: str, tmp_path: Path) -> Run:
    """A run with four samples in two batches."""
    callback = ClipZeroShot(tiny_clip("clip"), TEMPLATES)
    return make_run(tiny_llava, tmp_path, [callback], eval_batch_size=2).test()


def test_each_tested_sample_gets_the_class_that_clip_gives_its_picture(
    tested: Run, tiny_clip: ClipBuilder
) -> None:
    samples = tested.data.samples["test"][:4]
    clip = ClipClassifier.from_pretrained(tiny_clip("clip"), ["dark", "light"], TEMPLATES)
    all_at_once = clip.similarities(
        clip.prepare([tested.data.picture(sample) for sample in samples])
    )

    rows = tested.rows(str(FOLDER / "clip-predictions.csv"))

    assert [(row["sample_id"], row["target"]) for row in rows] == [
        (each.id, each.label) for each in samples
    ]
    assert {row["prediction"] for row in rows} == {
        "dark",
        "light",
    }  # else an order would be no matter
    assert [row["prediction"] for row in rows] == [
        clip.names[index] for index in all_at_once.argmax(dim=1)
    ]


def test_scores_have_n_and_intervals_and_are_logged(tested: Run, tiny_clip: ClipBuilder) -> None:
    rows = tested.rows(str(FOLDER / "clip-predictions.csv"))
    target, said = ([row[side] for row in rows] for side in ("target", "prediction"))

    scores = json.loads((tested.folder / FOLDER / "clip.json").read_text())

    assert (scores["checkpoint"], scores["templates"], scores["n"]) == (
        tiny_clip("clip"),
        TEMPLATES,
        4,
    )
    assert scores["accuracy"] == sum(map(str.__eq__, target, said)) / 4
    assert scores["macro_f1"] == pytest.approx(f1_score(target, said, average="macro"))
    low, high = scores["accuracy_interval_95"]
    assert low <= scores["accuracy"] <= high
    assert [row["test/clip/accuracy"] for row in tested.rows("metrics.csv")][-1] == str(
        scores["accuracy"]
    )


def test_nothing_of_clip_is_trained_or_saved_with_the_model(
    tested: Run, tiny_llava: str, tmp_path: Path
) -> None:
    alone = make_run(tiny_llava, tmp_path / "alone", []).test()

    assert set(tested.module.state_dict()) == set(alone.module.state_dict())
    assert len(list(tested.module.parameters())) == len(list(alone.module.parameters()))


def test_what_cannot_work_is_refused_before_training(tiny_llava: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"must have \{label\}"):
        ClipZeroShot("clip", ["a photo"])
    run = make_run(tiny_llava, tmp_path, [ClipZeroShot(tiny_llava)])
    with pytest.raises(CheckpointError, match="not a dual encoder"):
        run.fit()
    assert not run.trainer.global_step
