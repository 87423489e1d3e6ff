from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch.distributed as dist
from PIL import Image

from lightning_mllm.callbacks import predictions
from lightning_mllm.callbacks.processes import gather_from_processes
from lightning_mllm.evaluation import AnswerParser
from lightning_mllm.tracking.figures.predictions import PredictedAnswer
from lightning_mllm.types import Sample
from tests.callbacks.conftest import EVALUATED, Study

STAGES = ("val-step0", "zero_shot-step0", "val-step2", "val-step4", "test-step4")


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_each_evaluation_has_a_table_and_the_sanity_check_has_none(study: Study) -> None:
    assert {path.parent.name for path in study.folder.glob("evaluation/*/predictions.csv")} == set(
        STAGES
    )
    pictures = {path.parent.name for path in study.folder.glob("evaluation/*/predictions.png")}
    assert pictures == {stage for stage in STAGES if not stage.startswith("val")}


@pytest.mark.parametrize("stage", STAGES)
def test_the_table_has_every_evaluated_sample_in_the_order_of_the_data(
    study: Study, stage: str
) -> None:
    table = rows(study.folder / "evaluation" / stage / "predictions.csv")
    samples = study.data.samples["val" if stage.startswith("val") else "test"]
    labels = {sample.id: sample.label for sample in samples}
    order = [sample.id for sample in samples]
    positions = [order.index(row["sample_id"]) for row in table]

    assert len(table) == EVALUATED
    assert positions == sorted(positions)
    assert [row["target"] for row in table] == [labels[row["sample_id"]] for row in table]


def test_answer_prediction_and_correctness_agree(study: Study) -> None:
    names = study.data.label_set.names if study.data.label_set else ()
    parser = AnswerParser(names)
    for row in rows(study.folder / "evaluation" / "test-step4" / "predictions.csv"):
        for scorer in ("generation", "likelihood"):
            parsed = parser.parse(row[f"{scorer}/answer"])
            assert row[f"{scorer}/prediction"] == ("" if parsed < 0 else names[parsed])
            assert row[f"{scorer}/correct"] == str(row[f"{scorer}/prediction"] == row["target"])


def test_the_table_gives_the_accuracy_of_the_module(study: Study) -> None:
    table = rows(study.folder / "evaluation" / "test-step4" / "predictions.csv")
    for scorer, result in study.module.results.items():
        share = sum(row[f"{scorer}/correct"] == "True" for row in table) / len(table)
        assert share == pytest.approx(result.accuracy)


def test_the_sheet_is_a_picture(study: Study) -> None:
    with Image.open(study.folder / "evaluation" / "test-step4" / "predictions.png") as sheet:
        assert len(sheet.convert("RGB").getcolors(maxcolors=10**6) or []) > 50


def test_the_rows_of_all_processes_are_gathered(tmp_path: Path) -> None:
    row = predictions.PredictionRow(
        "a", "What?", "zero", (PredictedAnswer("likelihood", "zero", "zero", True),)
    )
    dist.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    try:
        assert gather_from_processes([row]) == [row]
    finally:
        dist.destroy_process_group()
    assert gather_from_processes([row]) == [row]


@pytest.mark.parametrize(
    ("pictures", "column"), [("aab", ["a", "a", "b"]), ("abc", [None, None, None])]
)
def test_pictures_are_named_where_samples_share_them(
    pictures: str, column: list[str | None]
) -> None:
    samples = {str(k): Sample(id=str(k), picture=name) for k, name in enumerate(pictures)}
    verdict = PredictedAnswer("exact_match", "red", "", True)
    rows = [predictions.PredictionRow(name, "?", "red", (verdict,), "colour") for name in samples]

    written = predictions._cells_with_shared_pictures(rows, samples)

    assert [cells.get("picture") for cells in written] == column
