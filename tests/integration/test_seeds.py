"""`--seed_everything` is the seed of all that has none of its own; the saved config names it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_mllm.callbacks import RunAnalysis
from lightning_mllm.cli.commands.model import ModelCLI
from lightning_mllm.cli.main import main
from lightning_mllm.data import Digits
from lightning_mllm.data.text.prompts import ClassificationPrompt
from lightning_mllm.trainer import Trainer
from tests.support.command_line import SHORT, SMALL_DIGITS, TRIAL, final_metrics, isolate

ASKED = ("--data.init_args.prompt", "ClassificationPrompt")


@pytest.fixture(autouse=True)
def _isolated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    isolate(monkeypatch, tmp_path)


def _trial(checkpoint: str, *options: str) -> ModelCLI:
    quiet = ("--model.scorers", "[]", "--trainer.enable_progress_bar", "false")
    return ModelCLI(
        ["fit", "--model.checkpoint", checkpoint, *SMALL_DIGITS, *TRIAL, *quiet, *options]
    )


def _drawn(cli: ModelCLI) -> tuple[Any, ...]:
    """Return what a seed decides: the split, and the order of the samples and of the class list."""
    data = cli.datamodule
    ids = [sample.id for sample in data.samples["train"]]
    batches = data.train_dataloader().batch_sampler.global_batches(0)
    sample, prompt = data.samples["val"][0], data.eval_collator.prompt
    assert isinstance(prompt, ClassificationPrompt)
    return ids, batches, prompt.class_order(sample, data.eval_collator.label_names, 0)


def test_the_seed_of_the_run_is_that_of_split_order_and_class_lists(tiny_llava: str) -> None:
    alone = _drawn(_trial(tiny_llava, "--seed_everything", "3"))
    said = _drawn(
        _trial(
            tiny_llava, "--data.init_args.seed", "3", *ASKED, "--data.init_args.prompt.seed", "3"
        )
    )
    other = _drawn(_trial(tiny_llava))

    assert alone == said
    assert all(own != others for own, others in zip(alone, other, strict=True))


def test_a_seed_that_is_given_is_kept_and_data_of_a_callback_get_that_of_the_run(
    tiny_llava: str,
) -> None:
    data = {"class_path": "Digits", "init_args": {"checkpoint": tiny_llava, "eval_batch_size": 2}}
    own: dict[str, Any] = {"data": data, "before_training": False}
    own |= {"analysis": {"class_path": "AnswerLens", "init_args": {"correct_only": False}}}
    config = {"trainer": {"callbacks": [{"class_path": "RunAnalysis", "init_args": own}]}}
    Path("analysis.yaml").write_text(yaml.safe_dump(config))
    given = (
        "--data.init_args.seed",
        "0",
        *ASKED,
        "--data.init_args.prompt.seed",
        "5",
        "--config",
        "analysis.yaml",
    )

    cli = _trial(tiny_llava, "--seed_everything", "3", *given)

    callbacks: list[Any] = cli.trainer.callbacks  # type: ignore[attr-defined]  # of Lightning's Trainer
    (callback,) = (each for each in callbacks if isinstance(each, RunAnalysis))
    assert callback.data is not None
    assert (cli.datamodule.seed, cli.datamodule.prompt) == (0, ClassificationPrompt(seed=5))
    assert callback.data.seed == 3


def test_the_saved_config_says_the_seed_and_gives_the_same_run_again(tiny_llava: str) -> None:
    quiet = ("--model.scorers", "[]", "--trainer.enable_progress_bar", "false")
    main(
        [
            "fit",
            "--model.checkpoint",
            tiny_llava,
            *SMALL_DIGITS,
            *SHORT,
            *ASKED,
            *quiet,
            "--seed_everything",
            "3",
        ]
    )

    saved = yaml.safe_load(Path("runs/run/config.yaml").read_text())["data"]["init_args"]
    main(["fit", "--config", "runs/run/config.yaml"])

    assert (saved["seed"], saved["prompt"]["init_args"]["seed"]) == (3, 3)
    assert final_metrics(Path("runs/run-2")) == final_metrics(Path("runs/run"))


def test_data_with_another_seed_than_the_training_had_warn(
    tiny_llava: str, caplog: pytest.LogCaptureFixture
) -> None:
    trained, same, other = (Digits(checkpoint=tiny_llava, seed=seed) for seed in (3, 3, 0))
    trained.setup("fit")
    trained.train_dataloader()
    for data in (same, other):
        data.trainer = Trainer(logger=False)  # which does not fit
        caplog.clear()
        data.load_state_dict(trained.state_dict())
        assert ("trained with seed" in caplog.text) == (data is other)

    assert "trained with seed 3 of Digits, which now has seed 0" in caplog.text
