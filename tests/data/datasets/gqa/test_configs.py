"""The shipped configs of GQA's tasks, through the real command line."""

from pathlib import Path

import pytest

from lightning_mllm import testbed
from lightning_mllm.cli.commands.model import ModelCLI
from lightning_mllm.testbed.language.gqa import IMAGES, write_questions_as_gqa
from tests.support.command_line import CONFIGS, TRIAL, isolate
from tests.support.shipped_configs import GQA


@pytest.mark.parametrize("files", [GQA[:1], GQA], ids=["vicuna", "llama3"])
def test_a_model_is_tested_once_the_files_are_known(
    tiny_llava: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: tuple[str, ...]
) -> None:
    isolate(monkeypatch, tmp_path)
    asked = [each for each in testbed.examination("seen", 1) if each.kind == "seen/ChooseAttr/0"]
    file = write_questions_as_gqa(asked, tmp_path / "tasks")
    configs = [part for name in files for part in ("--config", str(CONFIGS / name))]

    cli = ModelCLI(
        [
            *(
                "test",
                "--model.checkpoint",
                tiny_llava,
                *configs,
                *TRIAL,
                "--data.init_args.num_workers",
                "0",
            ),
            *(
                "--data.init_args.files",
                f"[{file}]",
                "--data.init_args.image_root",
                str(file.parent / IMAGES),
            ),
        ]
    )

    assert any("ChooseAttr" in name for name in cli.trainer.callback_metrics)
    assert cli.datamodule.prompt.cue == (" \n" if len(files) > 1 else "")
    assert cli.datamodule.prompt.joint == " \n"
