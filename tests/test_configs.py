"""Every shipped YAML goes through the real command line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoConfig

from lightning_mllm import testbed
from lightning_mllm.callbacks import SkipComputations
from lightning_mllm.cli.commands.model import ModelCLI
from lightning_mllm.cli.main import main
from lightning_mllm.data import ClassificationPrompt, PlainPrompt
from lightning_mllm.data.datasets.crisismmd.dataset import FOUR_CLASSES
from lightning_mllm.evaluation import Generation
from lightning_mllm.models.freeze import ProjectorOnly
from lightning_mllm.models.module import MLLMModule
from tests.conftest import TinyBuilder
from tests.support.command_line import (
    CONFIGS,
    SMALL_DIGITS,
    TRIAL,
    conversation,
    isolate,
    write_image_folder,
    write_llava_json,
)
from tests.support.hf_tables import private_caches
from tests.support.shipped_configs import (
    COVERED,
    HUB,
    MODELS,
    NOT_FOR_FIT,
    OPTIMIZERS,
    POLICIES,
    PRESETS,
    PROJECTOR,
    PUBLISHED,
    QUICKSTART,
    SKIP_BLOCKS,
    START,
    TABLE,
    first_line,
    shipped_yaml,
    table,
)


@pytest.fixture(autouse=True)
def _isolated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    isolate(monkeypatch, tmp_path)


def config(name: str) -> tuple[str, str]:
    return "--config", str(CONFIGS / name)


def module_of(cli: ModelCLI) -> MLLMModule:
    assert isinstance(cli.model, MLLMModule)
    return cli.model


def test_each_shipped_yaml_is_a_test_case() -> None:
    assert shipped_yaml() == COVERED, "name each shipped config in tests/support/shipped_configs.py"


def test_the_first_line_of_a_config_says_what_it_is() -> None:
    for name in shipped_yaml():
        assert re.fullmatch(r"\S.{0,110}[.?]", first_line(name)), name


def test_the_readme_of_the_configs_lists_them_by_their_first_lines() -> None:
    assert TABLE.read_text() == table(), "write it again: python -m tests.support.shipped_configs"


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_trains_in_its_dtype(tiny_llava: str, name: str) -> None:
    torch.compiler.set_stance("force_eager")  # to compile a step takes long
    try:
        cli = ModelCLI(
            ["fit", "--model.checkpoint", tiny_llava, *config(name), *SMALL_DIGITS, *TRIAL]
        )
    finally:
        torch.compiler.set_stance("default")

    dtypes = {str(each.dtype) for each in module_of(cli).state_dict().values()}
    assert dtypes == {f"torch.{OPTIMIZERS[name]}"}


@pytest.mark.parametrize("family", ["llava", "llava_next"])
@pytest.mark.parametrize("name", POLICIES)
def test_a_policy_trains_the_parts_that_its_name_says(
    tiny_checkpoint: TinyBuilder, name: str, family: Any
) -> None:
    checkpoint = ("--model.checkpoint", tiny_checkpoint(family, "vicuna"))
    small = ("--data.init_args.batch_size", "4", "--data.init_args.eval_batch_size", "4")

    cli = ModelCLI(["fit", *checkpoint, *config("data/digits.yaml"), *config(name), *small, *TRIAL])

    report = module_of(cli).freeze_report
    assert report.trainable_parts == POLICIES[name]
    assert cli.trainer.global_step == 1


def test_lora_stays_out_of_the_vision_tower_and_lora_vision_stays_in_it(tiny_llava: str) -> None:
    def trained(name: str) -> tuple[str, ...]:
        cli = ModelCLI(
            ["fit", "--model.checkpoint", tiny_llava, *SMALL_DIGITS, *config(name), *TRIAL]
        )
        return module_of(cli).freeze_report.trainable_names

    assert not any("vision_tower" in name for name in trained("policy/lora.yaml"))
    assert all("vision_tower" in name for name in trained("policy/lora_vision.yaml"))


@pytest.mark.parametrize("family", ["llava", "llava_next"])
def test_zero_shot_trains_nothing_and_validates(tiny_checkpoint: TinyBuilder, family: Any) -> None:
    checkpoint = ("--model.checkpoint", tiny_checkpoint(family, "vicuna"))

    cli = ModelCLI(["validate", *checkpoint, *SMALL_DIGITS, *config(NOT_FOR_FIT), *TRIAL])

    assert not module_of(cli).freeze_report.trainable_names
    assert "val/likelihood/accuracy" in cli.trainer.callback_metrics


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_fits_with_the_policy_batch_and_rate_that_it_promises(
    tiny_llava: str, name: str
) -> None:
    policy, batch_size, rate = PRESETS[name]
    small = ("--data.init_args.eval_batch_size", "4", "--trainer.limit_train_batches", "0.01")

    cli = ModelCLI(
        [
            "fit",
            "--model.checkpoint",
            tiny_llava,
            *config("data/digits.yaml"),
            *config(name),
            *small,
            *TRIAL,
        ]
    )

    module = module_of(cli)
    assert type(module.policy) is policy
    assert cli.datamodule.batch_size == batch_size
    assert module.learning_rates.projector == rate
    assert policy is ProjectorOnly or module.learning_rates.llm == rate
    assert (module.warmup_ratio, module.decay) == (0.03, "cosine")
    assert cli.trainer.gradient_clip_val is None
    assert {group["weight_decay"] for group in cli.trainer.optimizers[0].param_groups} == {0.0}


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_does_not_change_what_the_data_is(
    tiny_llava: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    data = resolved(capsys, tiny_llava, name)["data"]

    assert data["class_path"] == "lightning_mllm.data.Digits"
    prompt = data["init_args"]["prompt"]
    assert prompt["class_path"].endswith("ClassificationPrompt")
    assert prompt["init_args"]["system"].startswith("A chat between a curious user")
    assert prompt["init_args"]["task"] == "handwritten digits"  # of configs/data/digits.yaml


def test_matched_presets_differ_in_the_policy_only(
    tiny_llava: str, capsys: pytest.CaptureFixture[str]
) -> None:
    projector, everything = (
        resolved(capsys, tiny_llava, f"presets/{name}.yaml")
        for name in ("matched/ft_proj", "paper/ft_e2e")
    )

    assert projector["model"].pop("policy") != everything["model"].pop("policy")
    assert projector == everything


def test_released_code_drops_the_question_and_crops_in_projector_training_only(
    tiny_llava: str,
) -> None:
    def run(name: str) -> ModelCLI:
        limits = ("--trainer.limit_train_batches", "0", "--trainer.limit_val_batches", "0")
        return ModelCLI(
            ["fit", "--model.checkpoint", tiny_llava, *SMALL_DIGITS, *config(name), *TRIAL, *limits]
        )

    projector = run("presets/released_code/ft_proj.yaml").datamodule
    both = run("presets/released_code/ft_e2e.yaml").datamodule

    assert isinstance(projector.collator.prompt, PlainPrompt)
    assert isinstance(projector.eval_collator.prompt, ClassificationPrompt)
    assert (projector.collator.geometry, projector.eval_collator.geometry) == ("crop", "pad")
    assert isinstance(both.collator.prompt, ClassificationPrompt)
    assert (both.collator.geometry, both.eval_collator.geometry) == ("pad", "pad")


def test_the_config_that_skips_blocks_skips_every_second_one_of_the_visual_tokens(
    tiny_llava: str,
) -> None:
    few = ("--data.init_args.batch_size", "4", "--data.init_args.eval_batch_size", "4")
    preset = (*config("data/digits.yaml"), *config("policy/ft_proj.yaml"), *config(SKIP_BLOCKS))

    cli = ModelCLI(["fit", "--model.checkpoint", tiny_llava, *preset, *few, *TRIAL])

    (callback,) = (each for each in cli.trainer.callbacks if isinstance(each, SkipComputations))  # type: ignore[attr-defined]
    assert (callback.skip.computation, callback.skip.tokens, callback.skip.share) == (
        "block",
        "perceptual",
        1.0,
    )
    assert callback.skip.layers(6) == (1, 3, 5)
    assert cli.trainer.global_step == 1


@pytest.mark.parametrize("name", PRESETS)
def test_only_the_released_code_samples_its_answers(
    tiny_llava: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    scorers = resolved(capsys, tiny_llava, name)["model"]["scorers"]

    temperatures = [
        s["init_args"]["temperature"]
        for s in scorers
        if s["class_path"].endswith(Generation.__name__)
    ]
    assert temperatures == [0.2 if "released_code" in name else 0.0]


@pytest.mark.parametrize(
    "name",
    [
        name
        if "llava-" in name or "smolvlm-" in name
        else pytest.param(name, marks=pytest.mark.slow)
        for name in MODELS
    ],
)
def test_a_model_config_names_a_hub_checkpoint_and_fits(
    tiny_checkpoint: TinyBuilder, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options = printed(capsys, "fit", *config(name), *SMALL_DIGITS)["model"]
    family, chat = MODELS[name]
    checkpoint = tiny_checkpoint(family, chat)  # type: ignore[arg-type]  # the table's strings

    cli = ModelCLI(["fit", *config(name), "--model.checkpoint", checkpoint, *SMALL_DIGITS, *TRIAL])

    assert options["checkpoint"].count("/") == 1
    assert module_of(cli).backbone.model.name_or_path == checkpoint
    assert module_of(cli).gradient_checkpointing == options["gradient_checkpointing"]


def test_the_image_folder_config_fits_once_it_knows_the_folder(
    tiny_llava: str, tmp_path: Path
) -> None:
    root = write_image_folder(tmp_path / "photos", {"red cat": 4, "dog": 4})

    cli = ModelCLI(
        [
            *("fit", "--model.checkpoint", tiny_llava, *config("data/image_folder.yaml"), *TRIAL),
            *("--data.init_args.root", str(root), "--data.init_args.num_workers", "0"),
        ]
    )

    assert cli.datamodule.label_set.names == ("dog", "red cat")


def test_the_llava_json_config_fits_once_it_knows_the_files(
    tiny_llava: str, tmp_path: Path
) -> None:
    file = write_llava_json(
        tmp_path / "talks", [conversation(f"p{k}", images=k % 3) for k in range(8)]
    )

    cli = ModelCLI(
        [
            *("fit", "--model.checkpoint", tiny_llava, *config("data/llava_json.yaml"), *TRIAL),
            *("--data.init_args.train", str(file), "--data.init_args.image_root", str(file.parent)),
            *("--data.init_args.num_workers", "0"),
        ]
    )

    assert cli.trainer.global_step == 1
    assert "val/loss" in cli.trainer.callback_metrics


@pytest.mark.parametrize("name", HUB)
def test_the_config_of_a_table_fits_once_it_knows_the_table(
    tiny_llava: str, name: str, tmp_path: Path
) -> None:
    path = HUB[name](tmp_path / "table")
    small = ("--data.init_args.path", path, "--data.init_args.num_workers", "0")

    with private_caches(tmp_path):
        cli = ModelCLI(["fit", "--model.checkpoint", tiny_llava, *config(name), *TRIAL, *small])

    assert cli.trainer.global_step == 1
    assert "val/loss" in cli.trainer.callback_metrics


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_config_of_a_published_dataset_fits_where_its_folder_is(
    tiny_llava: str, name: str, tmp_path: Path
) -> None:
    folder, write, classes = PUBLISHED[name]
    write(tmp_path / folder)

    cli = ModelCLI(
        [
            "fit",
            "--model.checkpoint",
            tiny_llava,
            *config(name),
            *TRIAL,
            "--data.init_args.num_workers",
            "0",
        ],
    )

    assert cli.trainer.global_step == 1
    assert len(cli.datamodule.label_set) == classes


def test_the_config_of_crisismmd_says_its_default_classes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = printed(capsys, "fit", "--model.checkpoint", "x", *config("data/crisismmd.yaml"))["data"]

    assert data["init_args"]["classes"] == FOUR_CLASSES


@pytest.mark.slow
def test_worker_processes_load_the_same_batches(tiny_llava: str, tmp_path: Path) -> None:
    root = write_image_folder(tmp_path / "photos", {"cat": 4, "dog": 4})

    def loss(workers: int) -> float:
        data = ("--data.init_args.root", str(root), "--data.init_args.num_workers", str(workers))
        cli = ModelCLI(
            [
                "fit",
                "--model.checkpoint",
                tiny_llava,
                *config("data/image_folder.yaml"),
                *TRIAL,
                *data,
            ]
        )
        return float(cli.trainer.callback_metrics["train/loss"])

    assert loss(0) == loss(2)


def test_the_quickstart_starts_from_the_instructed_model_of_the_testbed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    shown = printed(capsys, "fit", *config(QUICKSTART))

    assert shown["model"]["checkpoint"] == testbed.checkpoint("instructed")


def test_the_recipe_starts_from_a_checkpoint_of_the_shipped_shape(tmp_path: Path) -> None:
    main(["tiny", str(tmp_path / "start"), *config(START)])

    built, shipped = (
        AutoConfig.from_pretrained(path)
        for path in (tmp_path / "start", testbed.checkpoint("before"))
    )
    for part in ("vision_config", "text_config"):
        ours, theirs = (getattr(config, part).to_dict() for config in (built, shipped))
        assert {**ours, "dtype": None} == {
            **theirs,
            "dtype": None,
        }  # that of a model that was never trained is open


def test_the_quickstart_evaluates_before_and_after_the_fit(tiny_llava: str) -> None:
    cli = ModelCLI(["fit", *config(QUICKSTART), "--model.checkpoint", tiny_llava, *TRIAL])

    assert module_of(cli).freeze_report.trainable_parts == {PROJECTOR}
    assert cli.trainer.global_step == 1
    assert (
        "test/likelihood/accuracy" in cli.trainer.callback_metrics
    )  # the last evaluation was that of the test split


def resolved(capsys: pytest.CaptureFixture[str], checkpoint: str, name: str) -> dict[str, Any]:
    return printed(
        capsys, "fit", "--model.checkpoint", checkpoint, *config("data/digits.yaml"), *config(name)
    )


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        ModelCLI([*arguments, "--print_config"])
    assert caught.value.code == 0
    content: dict[str, Any] = yaml.safe_load(capsys.readouterr().out)
    return content
