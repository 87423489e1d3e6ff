"""The command line from end to end: how configs compose, what a run leaves, how it is resumed."""

from __future__ import annotations

import csv
import json
import logging
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import wandb
import yaml
from huggingface_hub import ModelCard
from lightning.pytorch.callbacks import RichProgressBar
from PIL import Image
from torch.nn.functional import cross_entropy
from transformers import AutoModelForImageTextToText, AutoProcessor

from lightning_mllm.callbacks import TrainingBar
from lightning_mllm.cli.commands.model import ModelCLI
from lightning_mllm.cli.main import main
from lightning_mllm.models.module import MLLMModule
from lightning_mllm.testbed.training.checkpoints import ROOT
from tests.conftest import TinyBuilder
from tests.support.command_line import (
    CONFIGS,
    SHORT,
    SMALL_DIGITS,
    TRIAL,
    conversation,
    files_below,
    final_metrics,
    isolate,
    picture,
    refusal,
    write_llava_json,
)

_QUICKSTART = yaml.safe_load((CONFIGS / "quickstart.yaml").read_text())["data"]["init_args"]
FEW_DIGITS = (  # to train on: 5 % of them, which are enough for the probes
    *("--data.init_args.val_fraction", "0.05"),
    *("--data.init_args.test_fraction", "0.9"),
)
QUICKSTART_DATA = (
    *SMALL_DIGITS,
    *FEW_DIGITS,
    *("--data.init_args.image_size", str(_QUICKSTART["image_size"])),
    *("--data.init_args.prompt", json.dumps(_QUICKSTART["prompt"])),
)
SECRET = "sentinel-5f1d3c7e9ab24680"
SECRET_VARIABLES = ("HF_TOKEN", "WANDB_API_KEY", "MY_SERVICE_PASSWORD")


@pytest.fixture(autouse=True)
def _isolated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    isolate(monkeypatch, tmp_path)


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    """Return the resolved config."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main([*arguments, "--print_config"])
    assert caught.value.code == 0
    content: dict[str, Any] = yaml.safe_load(capsys.readouterr().out)
    return content


# ---- the programs --------------------------------------------------------------------------------


def test_both_scripts_are_the_same_program() -> None:
    project = tomllib.loads((CONFIGS.parent / "pyproject.toml").read_text())["project"]

    assert set(project["scripts"]) == {"lightning", "lightning-mllm"}
    assert set(project["scripts"].values()) == {"lightning_mllm.cli.main:main"}


@pytest.mark.slow
def test_python_m_is_that_program_too(tiny_llava: str, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "lightning_mllm",
        "fit",
        "--model.checkpoint",
        tiny_llava,
        *SMALL_DIGITS,
    ]

    done = subprocess.run(
        [*command, "--trainer.max_epoch", "1"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )

    assert done.returncode == 2
    assert 'Did you mean "trainer.max_epochs"?' in done.stderr
    assert "Traceback" not in done.stderr


def test_tiny_builds_a_checkpoint_that_transformers_opens(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(
        [
            "tiny",
            str(tmp_path / "small"),
            "--family",
            "llava_next",
            "--chat",
            "llama3",
            "--size.text_width",
            "32",
        ]
    )

    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "small")
    assert model.config.model_type == "llava_next"
    assert model.config.text_config.hidden_size == 32
    assert AutoProcessor.from_pretrained(tmp_path / "small").chat_template
    printed = capsys.readouterr().out
    assert f"lightning fit --model.checkpoint {tmp_path / 'small'} --data Digits" in printed


def test_tiny_overwrites_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "full").mkdir()
    write(tmp_path / "full" / "thesis.txt", "mine")

    message = refusal(capsys, ["tiny", tmp_path / "full"])

    assert "not empty" in message
    assert files_below(tmp_path) == {"full/thesis.txt"}


# ---- composing -----------------------------------------------------------------------------------


def test_a_later_config_and_then_the_command_line_win(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = write(tmp_path / "a.yaml", "model: {checkpoint: a, warmup_ratio: 0.1, decay: constant}")
    second = write(tmp_path / "b.yaml", "model: {checkpoint: b, warmup_ratio: 0.2}")

    model = printed(
        capsys,
        *(
            "fit",
            "--config",
            first,
            "--config",
            second,
            *SMALL_DIGITS,
            "--model.warmup_ratio",
            "0.3",
        ),
    )["model"]

    assert (model["checkpoint"], model["warmup_ratio"], model["decay"]) == ("b", 0.3, "constant")


def test_another_policy_drops_the_options_of_the_first(capsys: pytest.CaptureFixture[str]) -> None:
    policies = [
        ("--config", str(CONFIGS / "policy" / name))
        for name in ("lora_and_projector.yaml", "ft_proj.yaml")
    ]

    model = printed(
        capsys, "fit", "--model.checkpoint", "x", *SMALL_DIGITS, *policies[0], *policies[1]
    )["model"]

    assert model["policy"] == {"class_path": "lightning_mllm.models.freeze.ProjectorOnly"}


def test_short_class_names_and_their_options_work_on_the_command_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = printed(
        capsys,
        *(
            "fit",
            "--model.checkpoint",
            "x",
            *SMALL_DIGITS,
            "--model.policy",
            "Lora",
            "--model.policy.rank",
            "4",
        ),
        *("--model.scorers", "[{class_path: Likelihood}]"),
    )["model"]

    assert model["policy"]["init_args"]["rank"] == 4
    assert [scorer["class_path"].rpartition(".")[2] for scorer in model["scorers"]] == [
        "Likelihood"
    ]


def test_values_refer_to_other_values_and_to_the_environment(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLLM_TEST_NAME", "from-outside")
    monkeypatch.delenv("MLLM_TEST_ABSENT", raising=False)
    file = write(
        tmp_path / "a.yaml",
        "model: {checkpoint: '${oc.env:MLLM_TEST_ABSENT,fallback}', learning_rates: "
        "{projector: 0.5, llm: '${model.learning_rates.projector}'}}\n"
        "trainer: {run: {name: '${oc.env:MLLM_TEST_NAME}'}}\n",
    )

    config = printed(capsys, "fit", "--config", file, *SMALL_DIGITS)

    assert config["model"]["checkpoint"] == "fallback"
    assert config["model"]["learning_rates"]["llm"] == 0.5
    assert config["trainer"]["run"]["name"] == "from-outside"


def test_resolvers_work_on_the_command_line_too(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLLM_TEST_NAME", "from-outside")
    stage, name = "${testbed:aligned}", "--trainer.run.name=${oc.env:MLLM_TEST_NAME}"

    config = printed(capsys, "fit", "--model.checkpoint", stage, name, *SMALL_DIGITS)

    assert config["model"]["checkpoint"] == str(ROOT / "aligned")
    assert config["trainer"]["run"]["name"] == "from-outside"


def test_what_no_resolver_gives_is_refused_with_those_there_are(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLLM_TEST_ABSENT", raising=False)
    for value in ("${tesbed:aligned}", "${oc.env:MLLM_TEST_ABSENT}"):
        message = refusal(capsys, ["fit", "--model.checkpoint", value, *SMALL_DIGITS])
        assert value in message
        assert "Known are ${testbed:...}" in message


def test_the_checkpoint_is_named_once_for_model_and_data(tiny_llava: str) -> None:
    cli = ModelCLI(["validate", "--model.checkpoint", tiny_llava, *SMALL_DIGITS, *TRIAL])

    assert cli.datamodule.checkpoint == tiny_llava


# ---- misspelt options ----------------------------------------------------------------------------

MISSPELT_ARGUMENTS = {
    "model.learnin_rates.llm": "learning_rates.llm",
    "model.learning_rates.projectr": "learning_rates.projector",
    "model.warmup_rato": "warmup_ratio",
    "trainer.max_epoch": "max_epochs",
    "trainr.max_epochs": "max_epochs",
    "trainer.run.nmae": "name",
    "checkpointing.save_lasst": "save_last",
    "seed_everythin": "seed_everything",
    "test_befor": "test_before",
    "data.init_args.batchsize": "batch_size",
    "data.init_args.prompt.init_args.tsk": "task",
}
MISSPELT_YAML = {
    "modle: {warmup_ratio: 0.1}": "model.warmup_ratio",
    "model: {warmup_rato: 0.1}": "warmup_ratio",
    "model: {learning_rates: {projectr: 1}}": "learning_rates.projector",
    "model: {policy: {class_path: Lora, init_args: {rnk: 1}}}": "rank",
    "trainer: {max_epoch: 1}": "max_epochs",
    "trainer: {run: {nmae: a}}": "name",
    "data: {init_args: {batchsize: 1}}": "batch_size",
    "data: {init_args: {prompt: {class_path: ClassificationPrompt, init_args: {tsk: a}}}}": "task",
}
PROMPT = ("--data.init_args.prompt", "ClassificationPrompt")


def check_suggestion(message: str, right: str) -> None:
    assert "Did you mean" in message, message
    assert right in message.partition("Did you mean")[2], message
    assert "usage:" not in message
    assert len(message.splitlines()) <= 6, message
    assert "error:" in message


@pytest.mark.parametrize("wrong", MISSPELT_ARGUMENTS)
def test_a_misspelt_argument_is_answered_with_the_right_one(
    wrong: str, capsys: pytest.CaptureFixture[str]
) -> None:
    message = refusal(
        capsys, ["fit", "--model.checkpoint", "x", *SMALL_DIGITS, *PROMPT, f"--{wrong}", "1"]
    )

    check_suggestion(message, MISSPELT_ARGUMENTS[wrong])


@pytest.mark.parametrize("text", MISSPELT_YAML)
def test_a_misspelt_key_in_a_file_is_answered_with_the_right_one(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path / "a.yaml", text)

    message = refusal(capsys, ["fit", "--model.checkpoint", "x", *SMALL_DIGITS, "--config", file])

    check_suggestion(message, MISSPELT_YAML[text])


@pytest.mark.parametrize(
    ("arguments", "right"),
    [
        (["--model.policy", "ProjectorOnli"], "ProjectorOnly"),
        (["--data", "Digts"], "Digits"),
        (["--model.scorers", "[{class_path: Likelyhood}]"], "Likelihood"),
    ],
    ids=["policy", "data", "scorer"],
)
def test_a_misspelt_class_is_answered_with_the_right_one(
    arguments: list[str], right: str, capsys: pytest.CaptureFixture[str]
) -> None:
    message = refusal(capsys, ["fit", "--model.checkpoint", "x", *SMALL_DIGITS, *arguments])

    check_suggestion(message, right)


def test_misspelt_options_exit_with_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["fit", "--model.checkpoint", "x", *SMALL_DIGITS, "--trainer.max_epoch", "1"])

    assert caught.value.code == 2
    capsys.readouterr()


def test_a_misspelt_option_of_tiny_is_answered_with_the_right_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = refusal(capsys, ["tiny", tmp_path / "t", "--famly", "llava"])

    check_suggestion(message, "family")


# ---- what a run leaves behind --------------------------------------------------------------------


@dataclass
class Fitted:
    """A finished `lightning fit` with everything on."""

    runs: Path
    checkpoint: str
    arguments: list[str]

    @property
    def folder(self) -> Path:
        return self.runs / "study"

    @property
    def last(self) -> Path:
        return self.folder / "checkpoints" / "last.ckpt"


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory, tiny_llava: str) -> Iterator[Fitted]:
    folder = tmp_path_factory.mktemp("fitted")
    runs = folder / "runs"
    arguments = [
        *(
            "fit",
            "--config",
            str(CONFIGS / "quickstart.yaml"),
            "--model.checkpoint",
            tiny_llava,
            *SHORT,
            *FEW_DIGITS,
        ),
        *(
            "--data.init_args.batch_size",
            "4",
            "--data.init_args.eval_batch_size",
            "4",
            "--trainer.max_epochs",
            "2",
        ),
        *(
            "--trainer.run.root",
            str(runs),
            "--trainer.run.name",
            "study",
            "--trainer.log_every_n_steps",
            "1",
        ),
    ]
    with pytest.MonkeyPatch.context() as monkeypatch:
        isolate(monkeypatch, folder)
        for variable in SECRET_VARIABLES:
            monkeypatch.setenv(variable, SECRET)
        monkeypatch.setenv("WANDB_MODE", "offline")
        main(arguments)
    yield Fitted(runs, tiny_llava, arguments)


def test_a_run_leaves_config_metrics_scores_predictions_curve_and_checkpoints(
    fitted: Fitted,
) -> None:
    files = files_below(fitted.folder)

    assert {"config.yaml", "metrics.csv", "learning_curve.png", "checkpoints/last.ckpt"} <= files
    for stage in ("val-step0", "zero_shot-step0", "val-step3", "val-step6", "test-step6"):
        assert {
            f"evaluation/{stage}/{name}" for name in ("scores.json", "predictions.csv")
        } <= files
    assert "evaluation/test-step6/predictions.png" in files
    assert not [name for name in files if name.endswith(".part")]


def test_a_run_without_a_wandb_account_is_an_offline_run_in_its_folder(fitted: Fitted) -> None:
    offline = list((fitted.folder / "wandb").glob("offline-run-*/run-*.wandb"))

    assert len(offline) == 1
    assert {path.name for path in fitted.runs.parent.iterdir()} == {
        "runs"
    }  # nothing beside the run


def test_no_secret_of_the_environment_is_in_any_file(fitted: Fitted) -> None:
    leaks = [p for p in fitted.runs.rglob("*") if p.is_file() and SECRET.encode() in p.read_bytes()]

    assert not leaks


def test_no_secret_of_the_command_line_is_in_any_file(
    tiny_llava: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "hf_ThisMustNotBeSaved"
    arguments = [
        *(
            "fit",
            "--model.checkpoint",
            tiny_llava,
            *SMALL_DIGITS,
            *SHORT,
            "--trainer.run.wandb",
            "offline",
        ),
        *("--model.revision", secret),
    ]
    monkeypatch.setenv("HF_TOKEN", secret)  # its value is known to be one, wherever it stands
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setattr("sys.argv", ["lightning", *arguments])

    main()
    wandb.teardown()  # waits until the background process has written everything

    files = [path for path in (tmp_path / "runs").rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in files)
    assert not [path for path in files if secret.encode() in path.read_bytes()]


def test_scores_and_predictions_agree(fitted: Fitted) -> None:
    folder = fitted.folder / "evaluation" / "test-step6"
    scores = json.loads((folder / "scores.json").read_text())["scorers"]
    with (folder / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))

    for scorer in ("generation", "likelihood"):
        correct = [row[f"{scorer}/correct"] == "True" for row in rows]
        assert scores[scorer]["n"] == len(rows) == 8
        assert scores[scorer]["accuracy"] == pytest.approx(sum(correct) / len(rows))


@pytest.mark.slow
def test_the_saved_config_reproduces_the_run(fitted: Fitted) -> None:
    main(["fit", "--config", str(fitted.folder / "config.yaml"), "--trainer.run.name", "again"])

    assert final_metrics(fitted.runs / "again") == final_metrics(fitted.folder)
    first, second = (
        weights(fitted.runs / name / "checkpoints" / "last.ckpt") for name in ("study", "again")
    )
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_the_same_command_again_touches_nothing_of_the_first_run(fitted: Fitted) -> None:
    before = {path: path.stat().st_mtime_ns for path in fitted.folder.rglob("*")}

    quick = ("--test_before", "false", "--trainer.max_epochs", "1", "--trainer.callbacks", "[]")
    main([*fitted.arguments, *quick])

    assert {path: path.stat().st_mtime_ns for path in fitted.folder.rglob("*")} == before
    assert (fitted.runs / "study-2" / "metrics.csv").is_file()


def test_the_config_of_a_fit_serves_test_and_its_scores_are_those_of_the_fit(
    fitted: Fitted,
) -> None:
    main(
        [
            *(
                "test",
                "--config",
                str(fitted.folder / "config.yaml"),
                "--ckpt_path",
                str(fitted.last),
            ),
            *("--trainer.run.name", "tested"),
        ]
    )

    (scores,) = (fitted.runs / "tested" / "evaluation").glob("test-step6/scores.json")
    expected = fitted.folder / "evaluation" / "test-step6" / "scores.json"
    assert json.loads(scores.read_text())["scorers"] == json.loads(expected.read_text())["scorers"]


def test_test_of_a_checkpoint_scores_the_trained_weights(fitted: Fitted, tmp_path: Path) -> None:
    main(
        [
            *(
                "test",
                "--config",
                str(CONFIGS / "quickstart.yaml"),
                "--model.checkpoint",
                fitted.checkpoint,
                *SHORT,
                *FEW_DIGITS,
            ),
            *("--data.init_args.batch_size", "4", "--data.init_args.eval_batch_size", "4"),
            *("--ckpt_path", str(fitted.last)),
            *("--trainer.run.root", str(tmp_path), "--trainer.run.name", "tested"),
        ]
    )

    expected = final_metrics(fitted.folder)
    found = final_metrics(tmp_path / "tested")
    assert found["test/loss"] == pytest.approx(expected["test/loss"], abs=1e-6)
    assert found["test/loss"] != pytest.approx(expected["zero_shot/loss"], abs=1e-3)


def test_validate_works_on_an_untouched_checkpoint_and_shows_its_scores_once(
    fitted: Fitted, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(
        [
            *("validate", "--model.checkpoint", fitted.checkpoint, "--model.policy", "ZeroShot"),
            *(*QUICKSTART_DATA, *SHORT),
            *("--trainer.run.root", str(tmp_path), "--trainer.run.name", "zero"),
        ]
    )

    scores = (
        folder / "evaluation" / "val-step0" / "scores.json"
        for folder in (tmp_path / "zero", fitted.folder)
    )
    first, second = (json.loads(path.read_text())["scorers"] for path in scores)
    assert first == second
    shown = capsys.readouterr()
    assert shown.out.count("likelihood") == shown.out.count("validation, step 0, loss") == 1
    assert f"Results are in {tmp_path / 'zero'}" in shown.out
    assert "GPU" not in shown.err and "Tip" not in shown.err


def test_export_gives_a_folder_that_transformers_opens_with_the_fitted_weights(
    fitted: Fitted, tmp_path: Path
) -> None:
    arguments = ["--model.checkpoint", fitted.checkpoint, "--ckpt_path", str(fitted.last)]

    main(["export", *arguments, *SMALL_DIGITS, "--output", str(tmp_path / "model")])

    own = dict(AutoModelForImageTextToText.from_pretrained(tmp_path / "model").named_parameters())
    for name, tensor in weights(fitted.last).items():
        assert torch.equal(own[name], tensor), name
    assert (tmp_path / "model" / "projector.safetensors").is_file()


def test_an_export_says_what_was_trained_on_what_and_how_good_it_is(
    fitted: Fitted, tmp_path: Path
) -> None:
    arguments = ["--model.checkpoint", fitted.checkpoint, "--ckpt_path", str(fitted.last)]

    main(["export", *arguments, "--output", str(tmp_path / "model")])

    text = ModelCard.load(tmp_path / "model" / "README.md").text
    scores = json.loads((fitted.folder / "evaluation" / "test-step6" / "scores.json").read_text())
    accuracy = scores["scorers"]["likelihood"]["accuracy"]
    assert "`ProjectorOnly()`, 6 optimiser steps" in text
    assert "`Digits`, samples: " in text and "10 classes" in text
    assert re.search(rf"\| test \| likelihood \| \d+ \| {accuracy:.3f} \[", text)


def test_export_needs_no_data_and_says_what_it_does(
    fitted: Fitted,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO, "lightning_mllm"):
        main(["export", "--model.checkpoint", fitted.checkpoint, "--output", "model"])

    own = [each for each in caplog.records if each.name.startswith("lightning_mllm")]
    said = [each.getMessage().partition(" ")[0] for each in own]
    assert said == ["Loading", "Writing", "Writing"]
    printed = capsys.readouterr().out
    assert "Exported to model\n  projector.safetensors: the projector alone\n" in printed
    assert "torchvision" not in printed

    assert AutoProcessor.from_pretrained(tmp_path / "model").chat_template


def test_the_config_of_a_fit_serves_export(fitted: Fitted, tmp_path: Path) -> None:
    main(
        [
            *(
                "export",
                "--config",
                str(fitted.folder / "config.yaml"),
                "--ckpt_path",
                str(fitted.last),
            ),
            *("--output", str(tmp_path / "model")),
        ]
    )

    assert (tmp_path / "model" / "model.safetensors").is_file()


def _loss_of_anyones(folder: Path, rows: list[dict[str, Any]], images: Path) -> float:
    """The mean loss of the answers' tokens, by plain transformers of an opened folder."""
    processor, model = (
        AutoProcessor.from_pretrained(folder),
        AutoModelForImageTextToText.from_pretrained(folder),
    )
    losses = []
    for row in rows:
        question, answer = (
            turn["value"].removeprefix("<image>\n") for turn in row["conversations"]
        )
        content = [{"type": "image"}, {"type": "text", "text": question}]
        prompt = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )
        inputs, asked = (
            processor(text=text, images=Image.open(images / row["image"][0]), return_tensors="pt")
            for text in (f"{prompt} {answer}</s>", prompt)
        )
        with torch.no_grad():
            logits = model(**inputs).logits[0, :-1]
        start = asked["input_ids"].shape[1] - 1
        losses.append(
            cross_entropy(logits[start:], inputs["input_ids"][0, start + 1 :], reduction="none")
        )
    return float(torch.cat(losses).mean())


def test_anyone_gets_the_last_validations_loss_from_an_export(
    tiny_llava: str, tmp_path: Path
) -> None:
    rows = [conversation(f"p{k}") for k in range(3)]
    file = write_llava_json(tmp_path / "talks", rows)
    for k, size in enumerate([(90, 30), (31, 100), (40, 40)]):
        picture(k, size).save(file.parent / f"p{k}-0.png")

    main(
        [
            *(
                "fit",
                "--model.checkpoint",
                tiny_llava,
                "--model.policy",
                "ProjectorAndLLM",
                "--data",
                "LlavaJson",
            ),
            *("--data.init_args.train", str(file), "--data.init_args.val", str(file)),
            *("--data.init_args.geometry", "squash", "--model.warmup_ratio", "0"),
            *("--trainer.max_epochs", "1", "--trainer.run.root", str(tmp_path / "runs")),
        ]
    )
    last = tmp_path / "runs" / "run" / "checkpoints" / "last.ckpt"
    exporting = ("export", "--model.checkpoint", tiny_llava, "--model.policy", "ProjectorAndLLM")
    main([*exporting, "--ckpt_path", str(last), "--output", str(tmp_path / "model")])

    loss = _loss_of_anyones(tmp_path / "model", rows, file.parent)
    assert loss == pytest.approx(final_metrics(tmp_path / "runs" / "run")["val/loss"], abs=1e-5)


def test_an_exported_projector_starts_another_fit(fitted: Fitted, tmp_path: Path) -> None:
    arguments = ["--model.checkpoint", fitted.checkpoint, *SMALL_DIGITS]
    main(
        ["export", *arguments, "--ckpt_path", str(fitted.last), "--output", str(tmp_path / "model")]
    )

    cli = ModelCLI(
        [
            "validate",
            *arguments,
            *TRIAL,
            "--model.projector",
            str(tmp_path / "model" / "projector.safetensors"),
        ]
    )

    assert isinstance(cli.model, MLLMModule)
    own = dict(cli.model.backbone.model.named_parameters())
    assert all(torch.equal(own[name], tensor) for name, tensor in weights(fitted.last).items())


def test_a_trial_writes_nothing(tiny_llava: str, tmp_path: Path) -> None:
    main(
        [
            "fit",
            "--model.checkpoint",
            tiny_llava,
            *SMALL_DIGITS,
            *TRIAL,
            "--test_before",
            "true",
            "--test_after",
            "true",
        ]
    )

    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "bar"),
    [
        (("--trainer.enable_progress_bar", "false"), type(None)),
        (("--trainer.callbacks", "RichProgressBar"), RichProgressBar),
        ((), TrainingBar),
    ],
)
def test_the_progress_bar_can_be_switched_off_and_replaced(
    tiny_llava: str, options: tuple[str, ...], bar: type
) -> None:
    command = ["validate", "--model.checkpoint", tiny_llava, *SMALL_DIGITS, *TRIAL]

    cli = ModelCLI([*command, "--model.scorers", "[]", *options])

    assert type(cli.trainer.progress_bar_callback) is bar


def test_a_checkpoint_of_the_last_step_is_there_whatever_the_interval(
    tiny_llava: str, tmp_path: Path
) -> None:
    main(
        [
            *(
                "fit",
                "--model.checkpoint",
                tiny_llava,
                *SMALL_DIGITS,
                *SHORT,
                "--trainer.max_epochs",
                "1",
            ),
            *("--checkpointing.every_n_train_steps", "2", "--trainer.run.root", str(tmp_path)),
        ]
    )

    last = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 3


# ---- what can be fitted --------------------------------------------------------------------------


def fit(checkpoint: str, *arguments: str) -> MLLMModule:
    """Fit two steps on digits in the current folder, without scores and without writing."""
    options = (
        "--trainer.limit_train_batches",
        "2",
        "--trainer.limit_val_batches",
        "1",
        "--trainer.max_epochs",
        "1",
    )
    silent = (
        "--trainer.logger",
        "false",
        "--checkpointing.save_last",
        "false",
        "--checkpointing.save_top_k",
        "0",
        "--model.scorers",
        "[]",
    )
    cli = ModelCLI(
        ["fit", "--model.checkpoint", checkpoint, *SMALL_DIGITS, *options, *silent, *arguments]
    )
    assert isinstance(cli.model, MLLMModule)
    return cli.model


@pytest.mark.parametrize("images", ["mixed", "none"])
def test_conversations_without_labels_fit_and_validate_by_their_loss(
    tiny_llava: str, tmp_path: Path, images: str
) -> None:
    rows = [conversation(f"p{k}", images=k % 3 if images == "mixed" else 0) for k in range(12)]
    file = write_llava_json(tmp_path / "talks", rows)

    main(
        [
            *(
                "fit",
                "--model.checkpoint",
                tiny_llava,
                "--data",
                "LlavaJson",
                "--data.init_args.train",
                str(file),
            ),
            *(
                "--data.init_args.test",
                str(file),
                "--data.init_args.batch_size",
                "4",
                "--test_after",
                "true",
            ),
            *("--trainer.max_epochs", "1", "--trainer.run.root", str(tmp_path / "runs")),
            *("--model.policy", "ProjectorOnly" if images == "mixed" else "LLMOnly"),
        ]
    )

    metrics = final_metrics(tmp_path / "runs" / "run")
    assert metrics["val/loss"] > 0
    assert metrics["test/loss"] > 0
    assert not [key for key in metrics if "accuracy" in key]


@pytest.mark.parametrize("chat", ["vicuna", "llama3"])
def test_llava_next_runs_from_end_to_end(
    tiny_checkpoint: TinyBuilder, chat: Any, tmp_path: Path
) -> None:
    checkpoint = ("--model.checkpoint", tiny_checkpoint("llava_next", chat))

    main(
        [
            *(
                "fit",
                *checkpoint,
                *SMALL_DIGITS,
                *SHORT,
                "--trainer.max_epochs",
                "1",
                "--test_after",
                "true",
            ),
            *("--trainer.run.root", str(tmp_path / "runs")),
        ]
    )
    last = tmp_path / "runs" / "run" / "checkpoints" / "last.ckpt"
    main(
        [
            "export",
            *checkpoint,
            *SMALL_DIGITS,
            "--ckpt_path",
            str(last),
            "--output",
            str(tmp_path / "model"),
        ]
    )

    assert "model.image_newline" in weights(last)
    own = dict(AutoModelForImageTextToText.from_pretrained(tmp_path / "model").named_parameters())
    assert all(torch.equal(own[name], tensor) for name, tensor in weights(last).items())


@pytest.mark.parametrize("policy", ["ProjectorOnly", "Everything", "Lora"])
def test_gradient_checkpointing_changes_nothing_but_the_memory(
    tiny_llava: str, policy: str
) -> None:
    plain, checkpointed = (
        fit(tiny_llava, "--model.policy", policy, "--model.gradient_checkpointing", flag)
        for flag in ("false", "true")
    )

    assert checkpointed.backbone.model.is_gradient_checkpointing
    assert (
        plain.trainer.callback_metrics["train/loss"]
        == checkpointed.trainer.callback_metrics["train/loss"]
    )
    for (name, a), (_, b) in zip(
        plain.backbone.parameters(), checkpointed.backbone.parameters(), strict=True
    ):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("policy", ["ProjectorOnly", "Lora"])
def test_frozen_weights_in_bfloat16_leave_the_trained_ones_in_float32(
    tiny_llava: str, policy: str
) -> None:
    module = fit(tiny_llava, "--model.dtype", "bfloat16", "--model.policy", policy)

    for name, parameter in module.backbone.parameters():
        assert parameter.dtype == (torch.float32 if parameter.requires_grad else torch.bfloat16), (
            name
        )
    assert torch.isfinite(module.trainer.callback_metrics["train/loss"])


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # torch 2.13 warns of itself while it compiles
def test_a_compiled_model_trains_to_the_same_weights(tiny_llava: str) -> None:
    plain, compiled = (fit(tiny_llava, "--model.compile", flag) for flag in ("false", "true"))

    expected = plain.state_dict()
    for name, tensor in compiled.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], atol=1e-4, rtol=1e-4)


def test_a_run_says_once_how_to_sync_it_and_where_its_results_are(
    tiny_llava: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    with caplog.at_level(logging.INFO):
        main(
            [
                *(
                    "fit",
                    "--model.checkpoint",
                    tiny_llava,
                    *SMALL_DIGITS,
                    *SHORT,
                    "--trainer.max_epochs",
                    "1",
                ),
                *("--trainer.run.root", "runs"),
            ]
        )

    assert caplog.text.count("wandb sync") == 1
    assert "Results are in runs/run" in capsys.readouterr().out


def weights(path: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(path, weights_only=True)["state_dict"]
    return state
