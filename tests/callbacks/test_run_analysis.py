"""Analyses during a short real fit: when they run, what they leave, that the fit is the same."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml
from PIL import Image

from lightning_mllm.analysis import AnswerLens, Bootstrap, PictureMaps
from lightning_mllm.callbacks import RunAnalysis
from lightning_mllm.cli.main import main
from lightning_mllm.errors import ConfigError
from lightning_mllm.models.module import MLLMModule
from lightning_mllm.store.files import read_json
from lightning_mllm.store.sample_maps import find_pictures_folder, list_map_samples
from lightning_mllm.tracking.analysis_curves import AnalysisCurveRow, replace_curve_step
from lightning_mllm.tracking.analysis_run import AnalysisRun
from lightning_mllm.types import Sample
from tests.callbacks.conftest import make_trainer
from tests.support.command_line import SHORT, SMALL_DIGITS, isolate
from tests.support.feature_callbacks import Run, make_run
from tests.support.questions import Questions, question

NO_ANALYSIS: list[Any] = []


def lens(label: str = "") -> AnswerLens:
    return AnswerLens(correct_only=False, bootstrap=Bootstrap(resamples=10), top=1, label=label)


def folders(run: Run) -> set[str]:
    return {
        path.relative_to(run.folder / "analysis").as_posix()
        for path in run.folder.glob("analysis/*/*")
        if path.is_dir()
    }


def rows(run: Run, when: str) -> list[dict[str, str]]:
    with (run.folder / "analysis" / when / "rows.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def analysed(tmp_path_factory: pytest.TempPathFactory, tiny_llava: str) -> Run:
    run = make_run(tiny_llava, tmp_path_factory.mktemp("analysed"), [RunAnalysis(lens())])
    return run.fit().test()


def test_it_runs_before_training_at_each_epoch_and_after_the_test(analysed: Run) -> None:
    assert folders(analysed) == {
        f"{when}/answer_lens" for when in ("val-step0", "val-step2", "val-step4", "test-step4")
    }


def test_each_time_it_is_of_the_weights_at_hand(analysed: Run) -> None:
    numbers = [
        [row["reference_logprob"] for row in rows(analysed, f"val-step{k}/answer_lens")]
        for k in (0, 2, 4)
    ]

    assert len(numbers[0]) == 8 * 3  # samples and layers
    assert numbers[0] != numbers[1] != numbers[2]


def test_its_main_numbers_over_the_steps_are_a_table_and_a_figure(analysed: Run) -> None:
    folder = analysed.folder / "analysis"
    with (folder / "val-training" / "answer_lens.csv").open(newline="") as file:
        curves = list(csv.DictReader(file))

    assert (folder / "val-training" / "answer_lens.png").is_file()
    assert {row["step"] for row in curves} == {"0", "2", "4"}
    for step in ("0", "2", "4"):
        with (folder / f"val-step{step}" / "answer_lens" / "summary.csv").open(newline="") as file:
            summary = list(csv.DictReader(file))
        there = {(row["kind"], row["word"], row["layer"], row["value"]) for row in summary}
        own = [row for row in curves if row["step"] == step]
        shown = {(row["panel"], row["line"], row["place"], row["value"]) for row in own}
        assert len(shown) == len(own) > 2
        assert shown <= there


def test_the_curves_go_on_where_a_resumed_run_was_stopped() -> None:
    row = AnalysisCurveRow(2, "all", "answer", "0", 1.0, 0.5, 1.5, 8)
    stopped, resumed = RunAnalysis(lens()), RunAnalysis(lens())
    stopped._curves = {"answer_lens": [row]}

    resumed.load_state_dict(yaml.safe_load(yaml.safe_dump(stopped.state_dict())))

    assert resumed._curves == stopped._curves
    assert replace_curve_step([row], [replace(row, value=3.0)]) == [replace(row, value=3.0)]
    assert stopped.state_key != RunAnalysis(lens("again")).state_key


def test_the_fit_is_that_without_it(analysed: Run, tiny_llava: str, tmp_path: Path) -> None:
    alone = make_run(tiny_llava, tmp_path, NO_ANALYSIS).fit()

    for name, weights in alone.projector().items():
        assert torch.equal(weights, analysed.projector()[name]), name


def test_epochs_can_be_left_out_but_for_the_last(tiny_llava: str, tmp_path: Path) -> None:
    callback = RunAnalysis([lens(), lens("again")], every_n_epochs=5, before_training=False)

    run = make_run(tiny_llava, tmp_path, [callback]).fit()

    assert folders(run) == {"val-step4/answer_lens", "val-step4/again"}


@pytest.mark.parametrize(
    ("analyses", "options", "message"),
    [
        ([], {}, r"Expected one analysis or more.*found none"),
        ([lens(), lens()], {}, r"each with a name of its own; found answer_lens, answer_lens"),
        ([lens()], {"every_n_epochs": 0}, r"every_n_epochs must be at least 1, not 0"),
        (
            [lens()],
            {"split": "val"},
            r"split is 'val', which is a split of `data`, and there is no data",
        ),
    ],
)
def test_what_can_not_be_is_refused(
    analyses: list[Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        RunAnalysis(analyses, **options)


# ---- other data than those of the fit ------------------------------------------------------------


@pytest.fixture(scope="module")
def beside(tmp_path_factory: pytest.TempPathFactory, tiny_llava: str) -> Run:
    """On pictures of noise, which have labels and no kinds, questions are followed."""
    callback = RunAnalysis(lens(), data=Questions(checkpoint=tiny_llava, eval_batch_size=4))
    return make_run(tiny_llava, tmp_path_factory.mktemp("beside"), [callback]).fit().test()


def test_data_of_its_own_are_gone_through_whole_at_the_same_times_but_for_the_test(
    beside: Run,
) -> None:
    assert folders(beside) == {f"Questions-test-step{step}/answer_lens" for step in (0, 2, 4)}
    for step in (0, 2, 4):
        found = rows(beside, f"Questions-test-step{step}/answer_lens")
        assert {row["sample_id"] for row in found} == {f"test-{number}" for number in range(6)}


def test_data_of_its_own_are_dissected_as_by_analyze(
    beside: Run, tiny_llava: str, tmp_path: Path
) -> None:
    analysis = lens()
    analysis.prepare(beside.module.tokenizer, tmp_path)
    beside.module.eval()
    for batch in Questions(checkpoint=tiny_llava, eval_batch_size=4).plain_dataloader("test"):
        analysis.update(beside.module.backbone, batch)
    analysis.merge()

    written = beside.folder / "analysis/Questions-test-step4/answer_lens/rows.csv"
    assert (tmp_path / "rows.csv").read_text() == written.read_text()


def test_the_fit_does_not_feel_other_data(beside: Run, analysed: Run) -> None:
    for name, weights in analysed.projector().items():
        assert torch.equal(weights, beside.projector()[name]), name


def test_a_trial_takes_a_batch_of_other_data(tiny_llava: str, tmp_path: Path) -> None:
    analysis = lens()
    callback = RunAnalysis(
        analysis, data=Questions(checkpoint=tiny_llava, eval_batch_size=4), split="val"
    )

    make_run(tiny_llava, tmp_path, [callback], fast_dev_run=True).fit()

    assert analysis.rows.done == {f"val-{number}" for number in range(4)}


def test_data_for_another_checkpoint_are_refused_at_set_up(
    tiny_llava: str, tiny_llava_next: str, tmp_path: Path
) -> None:
    callback = RunAnalysis(lens(), data=Questions(checkpoint=tiny_llava_next))

    with pytest.raises(
        ConfigError, match=r"Questions is prepared for .* Give these data the model's checkpoint"
    ):
        make_run(tiny_llava, tmp_path, [callback]).fit()


class Nameless(Questions):
    """Questions without kinds."""

    def load(self, split: str) -> list[Sample]:
        return [replace(sample, kind=None) for sample in super().load(split)]


@pytest.mark.parametrize("beside", [False, True])
def test_samples_without_a_kind_are_refused_before_the_model_is_loaded(
    tiny_llava: str, tmp_path: Path, beside: bool
) -> None:
    callback = RunAnalysis(AnswerLens(), data=Nameless(checkpoint=tiny_llava) if beside else None)
    run = make_run(tiny_llava, tmp_path, [callback])

    with pytest.raises(
        ConfigError, match=r"has no kind, so its answer is not scored. Set correct_only to false"
    ):
        run.fit()

    assert not hasattr(run.module, "adapted")


def test_callbacks_whose_files_would_be_the_same_are_refused(
    tiny_llava: str, tmp_path: Path
) -> None:
    data = Questions(checkpoint=tiny_llava)
    beside = [RunAnalysis(lens(), data=data), RunAnalysis(lens(), before_training=False)]

    make_run(tiny_llava, tmp_path / "apart", beside, fast_dev_run=True).fit()
    with pytest.raises(ConfigError, match="found answer_lens, answer_lens"):
        make_run(
            tiny_llava, tmp_path / "same", [*beside, RunAnalysis(lens())], fast_dev_run=True
        ).fit()


def test_several_processes_without_a_folder_are_refused_before_the_model_is_loaded(
    tiny_llava: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(tmp_path, [callback := RunAnalysis(lens())])
    trainer.logger = None
    monkeypatch.setattr(type(trainer), "world_size", 2)

    with pytest.raises(ConfigError, match="2 processes collect what they find"):
        callback.setup(trainer, MLLMModule(tiny_llava), "fit")


@pytest.mark.parametrize("beside", [False, True])
def test_a_fit_without_validation_is_refused_before_the_model_is_loaded(
    tiny_llava: str, tmp_path: Path, beside: bool
) -> None:
    callback = RunAnalysis(lens(), data=Questions(checkpoint=tiny_llava) if beside else None)
    run = make_run(tiny_llava, tmp_path, [callback], limit_val_batches=0)

    with pytest.raises(
        ConfigError, match=r"has none: trainer.limit_val_batches is 0. Set it to 1 or more"
    ):
        run.fit()

    assert not hasattr(run.module, "adapted")


def test_a_trial_without_a_limit_is_not_refused(tiny_llava: str, tmp_path: Path) -> None:
    analysis = lens()

    make_run(
        tiny_llava, tmp_path, [RunAnalysis(analysis)], limit_val_batches=None, fast_dev_run=True
    ).fit()

    assert len(analysis.rows.done) == 8


class Broken(AnswerLens):
    """Fails in the middle of the data."""

    def update(self, backbone: Any, batch: Any) -> None:
        raise ValueError("no numbers")


def failures(monkeypatch: pytest.MonkeyPatch) -> list[AnalysisRun]:
    """Return a list in which runs will be that are told of a failure."""
    told: list[AnalysisRun] = []

    def fail(run: AnalysisRun) -> None:
        told.append(run)

    monkeypatch.setattr(AnalysisRun, "fail", fail)
    return told


def test_a_process_that_fails_tells_the_others(
    tiny_llava: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = failures(monkeypatch)
    run = make_run(tiny_llava, tmp_path, [RunAnalysis(Broken(correct_only=False))])

    with pytest.raises(ValueError, match="no numbers"):
        run.fit()

    assert [each.folder for each in told] == [tmp_path / "analysis/val-step0"]


class Clumsy(L.Callback):
    """Fails when the training begins."""

    def on_train_start(self, *_: Any) -> None:
        raise ValueError("fell")


def test_a_fit_that_fails_elsewhere_leaves_no_word_with_the_analysis(
    tiny_llava: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = failures(monkeypatch)
    run = make_run(tiny_llava, tmp_path, [RunAnalysis(lens()), Clumsy()])

    with pytest.raises(ValueError, match="fell"):
        run.fit()

    assert folders(run) == {"val-step0/answer_lens"}
    assert not told


def test_a_config_can_name_other_data(
    tiny_llava: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    isolate(monkeypatch, tmp_path)
    data = {
        "class_path": "WorldQuestions",
        "init_args": {
            "checkpoint": tiny_llava,
            "parts": ["presence"],
            "train_per_kind": 1,
            "val_per_kind": 1,
        },
    }
    analysis = {
        "class_path": "AnswerLens",
        "init_args": {"correct_only": False, "bootstrap": {"resamples": 10}},
    }
    arguments = {"analysis": analysis, "data": data, "split": "val", "before_training": False}
    callback = {"class_path": "RunAnalysis", "init_args": arguments}
    (tmp_path / "watch.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": [callback]}}))

    main(["fit", "--model.checkpoint", tiny_llava, *SMALL_DIGITS, "--config", "watch.yaml", *SHORT])

    (folder,) = Path("runs/run/analysis").iterdir()
    assert folder.name == "WorldQuestions-val-step3"
    with (folder / "answer_lens/rows.csv").open(newline="") as file:
        assert {row["kind"].split("/")[0] for row in csv.DictReader(file)} == {"presence"}


def test_samples_with_maps_have_picture_grid_and_question(tiny_llava: str, tmp_path: Path) -> None:
    maps = PictureMaps(samples=3, maps=["attention"])
    callback = RunAnalysis(maps, data=Questions(checkpoint=tiny_llava), before_training=False)
    run = make_run(tiny_llava, tmp_path, [callback]).fit()

    (folder,) = run.folder.glob("analysis/Questions-test-step4")
    pictures = find_pictures_folder(folder)
    abouts = [read_json(path) for path in sorted(pictures.glob("*.json"))]
    found = {each["sample_id"]: each for each in abouts}
    assert set(found) == set(list_map_samples(folder)) and len(found) == 3
    for sample_id, about in found.items():
        own = question("test", int(sample_id[-1]))
        (picture,), (box,) = about["pictures"], about["boxes"] or [None]
        assert about["question"].startswith(own.conversation[0].text)
        assert about["reference"] == own.conversation[1].text
        (view,) = picture["views"]
        tokens = len(view["across"]) * len(view["down"])
        assert picture["tokens"] == list_map_samples(folder)[sample_id] == tokens
        with Image.open(pictures / picture["file"]) as stored:
            assert list(stored.size) == picture["size"] == list(own.images[0].size)  # type: ignore[union-attr]
        if box is not None:
            width, height = picture["size"]
            assert box == pytest.approx([2 / width, 2 / height, 12 / width, 12 / height])
