"""`lightning analyze` from command line to files: one or several analyses, resumed, in W&B."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_mllm.analysis import AnswerLens, Bootstrap, InformationFlow, Windows
from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.cli.commands.model import ModelCLI
from lightning_mllm.cli.main import main
from lightning_mllm.data import LlavaJson
from lightning_mllm.errors import ConfigError
from lightning_mllm.evaluation import ExactMatch
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.models.module import MLLMModule
from lightning_mllm.run import Run
from lightning_mllm.testbed import QuestionType
from lightning_mllm.trainer import Trainer
from tests.support.command_line import (
    CONFIGS,
    TRIAL,
    conversation,
    files_below,
    isolate,
    refusal,
    write_llava_json,
)
from tests.support.fake_wandb import fake_wandb
from tests.support.shipped_configs import (
    ANALYSES,
    FLOW_ON_THE_TESTBED,
    GROUNDING,
    PICTURE_MAPS,
    SHALLOW,
)

LENS = (
    "--analysis",
    "AnswerLens",
    "--analysis.correct_only",
    "false",
    "--analysis.bootstrap.resamples",
    "20",
)
TABLES = {"rows.csv", "making.json", "summary.csv", "settings.json"}


@pytest.fixture(autouse=True)
def _isolated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    isolate(monkeypatch, tmp_path)


@pytest.fixture
def asked(tiny_llava: str, tmp_path: Path) -> list[str]:
    """The command on ten questions of two kinds; the last of each kind is about no picture."""
    rows = [
        {
            "id": f"{split}-{k}",
            "kind": ("colour", "shape")[k % 2],
            "conversations": [
                {"from": "human", "value": "<image>\n" * (k < 8) + f"Is it red or blue or {k}?"},
                {"from": "gpt", "value": "red"},
            ],
            **({"image": [f"{k}.png"]} if k < 8 else {}),
        }
        for split in ("test",)
        for k in range(10)
    ]
    file = write_llava_json(tmp_path / "questions", rows)
    data = [f"--data.init_args.{split}={file}" for split in ("train", "val", "test")]
    return [
        *(
            "--model.checkpoint",
            tiny_llava,
            "--data",
            "LlavaJson",
            *data,
            "--data.init_args.eval_batch_size",
            "4",
        ),
        *("--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"),
    ]


def analyze(asked: Sequence[str], *options: str, name: str = "run") -> Path:
    """Run the command; return the folder of the analyses."""
    main(["analyze", *asked, *options, "--trainer.run.name", name])
    (folder,) = Path("runs", name, "analysis").iterdir()
    return folder


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_maps_become_a_page(asked: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    analyze(asked, "--config", str(CONFIGS / PICTURE_MAPS), "--analysis.samples", "4")

    main(["report", "runs/run", "--output", "page.html"])

    assert len(files_below(Path("runs/run/pictures/test-step0"))) == 2 * 4
    assert files_below(Path("runs/run/analysis/test-step0/picture_maps")) >= {"summary.csv"}
    assert "4 samples with pictures" in capsys.readouterr().out
    assert Path("page.html").stat().st_size > 50_000


@pytest.mark.parametrize("config", ANALYSES)
def test_a_shipped_config_leaves_rows_summary_settings_and_pictures(
    asked: list[str], config: str
) -> None:
    name, pictures = ANALYSES[config]
    quick = ("--analysis.correct_only", "false", "--analysis.bootstrap.resamples", "20")

    folder = analyze(asked, "--config", str(CONFIGS / config), *quick, *SHALLOW.get(config, ()))

    assert folder.name == "test-step0"
    assert files_below(folder) == {f"{name}/{file}" for file in TABLES | pictures}
    rows = table(folder / name / "rows.csv")
    assert list(dict.fromkeys(row["sample_id"] for row in rows)) == [f"test-{k}" for k in range(10)]
    settings = json.loads((folder / name / "settings.json").read_text())
    assert settings["n_samples"] == 10
    assert settings["source"]["split"] == "test"
    assert settings["found"]["questions"] == {
        kind: {"asked": 5, "kept": 5} for kind in ("colour", "shape")
    }
    assert {row["kind"] for row in table(folder / name / "summary.csv")} == {
        "all",
        "colour",
        "shape",
    }
    saved = yaml.safe_load(Path("runs/run/config.yaml").read_text())
    assert saved["analysis"]["init_args"]["correct_only"] is False


def test_grounding_leaves_out_samples_without_a_picture(asked: list[str]) -> None:
    few = ("--analysis.others", "3", "--analysis.bootstrap.resamples", "20")

    folder = analyze(asked, "--config", str(CONFIGS / GROUNDING), *few)

    pictures = {"likelier_by.png", "likelier.png"}
    assert files_below(folder) == {f"grounding/{file}" for file in TABLES | pictures}
    rows = table(folder / "grounding" / "rows.csv")
    assert len(rows) == 8 * 6 + 2  # own, blank, shuffled and three others; and those left out
    settings = json.loads((folder / "grounding" / "settings.json").read_text())
    assert settings["n_samples"] == 8
    assert settings["found"]["samples"]["colour"] == {"asked": 5, "kept": 4}


def test_the_saved_config_repeats_the_run(asked: list[str]) -> None:
    first = analyze(asked, *LENS)

    main(["analyze", "--config", "runs/run/config.yaml", "--trainer.run.name", "again"])

    again = Path("runs/again/analysis/test-step0/answer_lens/rows.csv")
    assert again.read_text() == (first / "answer_lens" / "rows.csv").read_text()


def test_several_analyses_go_through_the_data_once_each_with_its_folder(
    asked: list[str], tmp_path: Path
) -> None:
    both = [
        {"class_path": "AnswerLens", "init_args": {"correct_only": False}},
        {
            "class_path": "AnswerLens",
            "init_args": {"correct_only": False, "norm": "none", "label": "raw"},
        },
    ]
    (tmp_path / "both.yaml").write_text(yaml.safe_dump({"analysis": both}))

    folder = analyze(asked, "--config", "both.yaml")

    assert {path.name for path in folder.iterdir()} == {"answer_lens", "raw"}


@pytest.mark.slow
def test_the_config_of_the_testbed_has_three_analyses_and_tells_six_tasks_apart() -> None:
    few = ("--data.init_args.per_kind", "1", "--trainer.enable_progress_bar", "false")

    main(
        [
            "analyze",
            "--config",
            str(CONFIGS / FLOW_ON_THE_TESTBED),
            *few,
            "--trainer.run.name",
            "run",
        ]
    )

    folder = Path("runs/run/analysis/test-step0")
    names = {"all_layers", "answer_lens", "information_flow"}
    assert {path.name for path in folder.iterdir()} == names
    tasks = {f"seen/{task}" for task in QuestionType}
    for name in names:
        assert {row["kind"] for row in table(folder / name / "summary.csv")} == {"all", *tasks}
    windows = json.loads((folder / "information_flow" / "settings.json").read_text())["found"][
        "windows"
    ]
    assert windows == [[layer, layer, layer + 1] for layer in range(6)]


def test_two_analyses_of_one_name_are_refused(
    asked: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    two = [{"class_path": "AnswerLens"}, {"class_path": "AnswerLens"}]

    message = refusal(capsys, ["analyze", *asked, "--analysis", json.dumps(two)])

    assert "found answer_lens, answer_lens" in message
    assert "Set the option label of an analysis" in message


def test_another_split_is_gone_through(asked: list[str]) -> None:
    assert analyze(asked, *LENS, "--split", "val").name == "val-step0"


def test_a_trial_leaves_nothing(asked: list[str]) -> None:
    main(["analyze", *asked, *LENS, *TRIAL])

    assert not Path("runs").exists()


def test_a_trained_checkpoint_is_analysed_with_its_weights(asked: list[str]) -> None:
    training = (
        "--trainer.max_steps",
        "1",
        "--trainer.limit_val_batches",
        "0",
        "--trainer.run.name",
        "fit",
    )
    main(
        [
            "fit",
            *asked,
            *training,
            "--model.learning_rates.projector",
            "0.1",
            "--model.warmup_ratio",
            "0",
        ]
    )

    untrained = analyze(asked, *LENS, name="before")
    trained = analyze(asked, *LENS, "--ckpt_path", "runs/fit/checkpoints/last.ckpt", name="after")

    assert (untrained.name, trained.name) == ("test-step0", "test-step1")
    sources = [
        json.loads((each / "answer_lens/making.json").read_text())["source"]
        for each in (untrained, trained)
    ]
    assert sources[0]["weights"] != sources[1]["weights"]
    numbers = [
        [row["p_lower"] for row in table(each / "answer_lens/rows.csv")]
        for each in (untrained, trained)
    ]
    assert numbers[0] != numbers[1]


# ---- stopped and resumed -------------------------------------------------------------------------


def stop_after(monkeypatch: pytest.MonkeyPatch, batches: int) -> list[int]:
    """Let the analysis fail after some batches; return how many questions of each were measured."""
    seen: list[int] = []
    measure = AnswerLens.measure

    def fails(self: AnswerLens, backbone: Backbone, batch: MultimodalBatch, questions: Any) -> Any:
        if len(seen) == batches:
            raise RuntimeError("the power is gone")
        seen.append(len(batch))
        return measure(self, backbone, batch, questions)

    monkeypatch.setattr(AnswerLens, "measure", fails)
    return seen


def test_a_run_that_was_stopped_is_resumed_into_a_new_folder_and_ends_as_an_uninterrupted_one(
    asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = analyze(asked, *LENS, name="whole")
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(RuntimeError, match="the power is gone"):
            analyze(asked, *LENS, name="stopped")
    left = files_below(Path("runs/stopped"))
    measured = stop_after(monkeypatch, batches=9)  # sees, and does not stop
    resumed = analyze(asked, *LENS, "--resume", "runs/stopped", name="resumed")

    assert measured == [2]  # of ten questions in batches of four
    assert files_below(resumed) == files_below(whole)
    for name in ("rows.csv", "summary.csv", "settings.json"):
        assert (resumed / "answer_lens" / name).read_text() == (
            whole / "answer_lens" / name
        ).read_text()
    assert files_below(Path("runs/stopped")) == left  # another's folder is never touched
    assert "analysis/test-step0/answer_lens/rows-0-000000.csv" in left


def test_what_was_made_otherwise_is_not_gone_on_with(
    asked: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    analyze(asked, *LENS, name="first")

    message = refusal(
        capsys, ["analyze", *asked, *LENS, "--analysis.norm", "none", "--resume", "runs/first"]
    )

    assert "analysis.norm was 'final', is 'none'" in message
    assert "start again in another folder" in message


def test_a_folder_with_nothing_to_go_on_from_is_refused(
    asked: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    message = refusal(capsys, ["analyze", *asked, *LENS, "--resume", "runs/other"])

    assert "runs/other/analysis/test-step0/answer_lens holds no rows of an analysis" in message


# ---- processes, notebooks, W&B -------------------------------------------------------------------


def test_a_notebook_analyses_with_three_objects(
    tiny_llava: str, asked: list[str], tmp_path: Path
) -> None:
    file = str(tmp_path / "questions" / "rows.json")
    data = LlavaJson(checkpoint=tiny_llava, train=file, val=file, test=file, eval_batch_size=4)
    trainer = Trainer(
        run=Run(root=str(tmp_path / "runs")), enable_progress_bar=False, accelerator="cpu"
    )
    flow = InformationFlow(
        blocks=["question->last"],
        windows=Windows(1),
        correct_only=False,
        bootstrap=Bootstrap(resamples=20),
    )

    (result,) = trainer.analyze(MLLMModule(tiny_llava), datamodule=data, analysis=flow)

    assert result.n_samples == 10
    assert result.at(kind="all", block="question->last", statistic="n")[:, 0].tolist() == [10, 10]
    assert (tmp_path / "runs/run/analysis/test-step0/information_flow/to_last.png").is_file()
    remaining: Any = trainer
    assert not any(type(each).__name__ == "Analyzing" for each in remaining.callbacks)


def test_analyses_of_one_run_ask_the_model_once(
    asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    evaluate = ExactMatch.evaluate

    def noted(self: ExactMatch, model: Any, tokenizer: Any, batch: MultimodalBatch) -> Any:
        seen.extend(batch.sample_ids)
        return evaluate(self, model, tokenizer, batch)

    monkeypatch.setattr(ExactMatch, "evaluate", noted)
    both = [
        {"class_path": name, "init_args": {"correct_only": False}}
        for name in ("AnswerLens", "InformationFlow")
    ]
    analyze(asked, "--analysis", json.dumps(both))

    assert sorted(seen) == [f"test-{k}" for k in range(10)]


def test_table_and_pictures_are_in_the_wandb_run(
    asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = fake_wandb(monkeypatch)

    analyze(asked, *LENS, "--trainer.run.wandb", "offline")

    assert runs[0].keys >= {"analysis/test/answer_lens/summary", "analysis/test/answer_lens/lens"}


# ---- what is wrong -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "needs analysis"),
        (("--analysis", "AnswerLnes"), 'Did you mean "AnswerLens"?'),
        ((*LENS, "--analysis.norn", "none"), 'Did you mean "norm"?'),
        ((*LENS, "--split", "tset"), "split"),
        (
            ("--analysis", "InformationFlow", "--analysis.blocks", "[imge->last]"),
            'Did you mean "image"?',
        ),
    ],
)
def test_what_is_misspelt_is_refused_with_the_nearest_right_name(
    asked: list[str], options: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refusal(capsys, ["analyze", *asked, *options])


def test_a_config_of_an_analysis_serves_data_check(
    asked: list[str], tmp_path: Path, capsys: Any
) -> None:
    file = tmp_path / "questions" / "rows.json"
    config: dict[str, Any] = {"analysis": {"class_path": "AnswerLens"}, "split": "test"}
    config["data"] = {
        "class_path": "LlavaJson",
        "init_args": {"train": str(file), "test": str(file)},
    }
    (tmp_path / "all.yaml").write_text(yaml.safe_dump(config))

    main(["data", "check", "--config", "all.yaml", "--splits", "[test]"])

    assert "10" in capsys.readouterr().out


def test_a_subcommand_of_lightning_goes_on_as_it_did(asked: list[str]) -> None:
    trainer: Any = ModelCLI(["predict", *asked, *TRIAL]).trainer

    assert not any("Analys" in type(callback).__name__ for callback in trainer.callbacks)


def test_an_analysis_without_data_says_what_it_needs(tiny_llava: str, tmp_path: Path) -> None:
    trainer = Trainer(
        run=Run(root=str(tmp_path / "runs")), enable_progress_bar=False, accelerator="cpu"
    )

    with pytest.raises(
        ConfigError, match=r"goes through the samples of a DataModule; name it: datamodule="
    ):
        trainer.analyze(MLLMModule(tiny_llava), analysis=AnswerLens())


def test_samples_without_a_kind_are_refused_before_the_model_is_loaded(
    tiny_llava: str, tmp_path: Path
) -> None:
    file = str(write_llava_json(tmp_path / "talks", [conversation("a")]))
    data, module = (
        LlavaJson(checkpoint=tiny_llava, train=file, val=file, test=file),
        MLLMModule(tiny_llava),
    )
    trainer = Trainer(logger=False, enable_progress_bar=False, accelerator="cpu")

    with pytest.raises(ConfigError, match="sample 'a' has no kind"):
        trainer.analyze(module, data, analysis=AnswerLens())

    assert not hasattr(module, "adapted")


def test_several_processes_without_a_folder_are_refused_before_the_model_is_loaded(
    tiny_llava: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = str(write_llava_json(tmp_path / "talks", [conversation("a")]))
    data, module = (
        LlavaJson(checkpoint=tiny_llava, train=file, val=file, test=file),
        MLLMModule(tiny_llava),
    )
    monkeypatch.setattr(Trainer, "world_size", 2)
    trainer = Trainer(logger=False, enable_progress_bar=False, accelerator="cpu")

    with pytest.raises(ConfigError, match="2 processes collect what they find"):
        trainer.analyze(module, data, analysis=AnswerLens(correct_only=False))

    assert not hasattr(module, "adapted")
