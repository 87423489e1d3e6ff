"""The alignment score during a short real fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lightning_mllm.analysis.alignment.experiment import Alignment
from lightning_mllm.analysis.alignment.summary import alignment_score
from lightning_mllm.callbacks import AlignmentMonitor
from lightning_mllm.errors import ConfigError
from tests.support.feature_callbacks import Keep, Run, make_run

MOMENTS = [("-1", "0", "val"), ("0", "2", "val"), ("1", "4", "val"), ("1", "4", "test")]


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory, tiny_llava: str) -> Run:
    run = make_run(tiny_llava, tmp_path_factory.mktemp("followed"), [AlignmentMonitor(), Keep()])
    return run.fit().test()


def test_it_is_measured_before_training_at_each_epoch_and_after_the_test(followed: Run) -> None:
    rows = followed.rows("alignment.csv")

    assert list(dict.fromkeys((row["epoch"], row["step"], row["split"]) for row in rows)) == MOMENTS
    assert {row["score"] for row in rows} == {"ima_input", "ima_same_layer"}
    assert {row["n"] for row in rows} == {"8"}
    assert all(-1 <= float(row["value"]) <= 1 for row in rows)
    assert (
        len({row["value"] for row in rows if row["split"] == "val"}) == 6
    )  # of the weights at hand
    assert (followed.folder / "alignment.png").is_file()


def test_the_score_is_that_of_the_analysis_of_the_same_weights(followed: Run) -> None:
    module, analysis = followed.module, Alignment()
    analysis.prepare(module.tokenizer)
    for batch in followed.data.plain_dataloader("test"):
        analysis.update(module.backbone, batch)
    analysis.settle()

    score = alignment_score(analysis.compute(), "ima_same_layer")

    tested = {
        row["score"]: row["value"]
        for row in followed.rows("alignment.csv")
        if row["split"] == "test"
    }
    assert float(tested["ima_same_layer"]) == pytest.approx(score.value, abs=1e-6)


def test_the_scores_are_logged(followed: Run) -> None:
    logged = {key for row in followed.rows("metrics.csv") for key, value in row.items() if value}

    assert {
        f"alignment/{split}/ima_{kind}"
        for split in ("val", "test")
        for kind in ("input", "same_layer")
    } <= logged


def test_a_resumed_run_has_the_scores_of_the_earlier_one(
    followed: Run, tiny_llava: str, tmp_path: Path
) -> None:
    run = make_run(tiny_llava, tmp_path, [AlignmentMonitor()]).fit(
        ckpt_path=followed.folder / "step3.ckpt"
    )

    moments = [(row["epoch"], row["step"], row["split"]) for row in run.rows("alignment.csv")]
    assert list(dict.fromkeys(moments)) == MOMENTS[:3]
    first = (
        f"{row['score']} {row['value']}" for row in run.rows("alignment.csv") if row["step"] == "0"
    )
    before = (
        f"{row['score']} {row['value']}"
        for row in followed.rows("alignment.csv")
        if row["step"] == "0"
    )
    assert [*first] == [*before]


def test_a_test_before_the_fit_keeps_its_scores(tiny_llava: str, tmp_path: Path) -> None:
    run = make_run(tiny_llava, tmp_path, [AlignmentMonitor()], max_epochs=1).test().fit()

    moments = [(row["step"], row["split"]) for row in run.rows("alignment.csv")]
    assert list(dict.fromkeys(moments)) == [("0", "test"), ("0", "val"), ("2", "val")]


def test_one_reading_at_the_last_epoch_can_be_enough_and_another_training_has_no_part_in_it(
    tiny_llava: str, tmp_path: Path
) -> None:
    callback = AlignmentMonitor(
        Alignment(), scores=["ima_input"], mode="mean", every_n_epochs=5, before_training=False
    )
    callback.load_state_dict(
        {"rows": [[0, 2, "val", "ima_input", 0.5, 0.4, 0.6, 8]]}
    )  # of a training before this one

    rows = make_run(tiny_llava, tmp_path, [callback]).fit().rows("alignment.csv")

    assert [(row["step"], row["score"]) for row in rows] == [("4", "ima_input")]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scores": []}, r"scores is \[\]\. Name one or more"),
        ({"scores": ["ima_input"] * 2}, r"each once"),
        ({"mode": "max"}, r"mode is 'max', but its analysis compares tokens by avg, mean\."),
        ({"mode": "mode", "analysis": Alignment()}, r"by avg, mean, median, max, min, max_mean\."),
        ({"tokens": "without sinks"}, r"tokens is 'without sinks', but its analysis counts all\."),
    ],
)
def test_a_score_that_the_analysis_does_not_have_is_refused_before_the_fit(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        AlignmentMonitor(**options)
