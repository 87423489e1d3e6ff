"""`lightning ask` answers as a test does, and says what is wrong before anything is loaded."""

from __future__ import annotations

import csv
import inspect
import logging
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from lightning_mllm.analysis.skipping.skip import Skip
from lightning_mllm.callbacks import PredictionTable, SkipComputations
from lightning_mllm.cli.commands import asking as asking_module
from lightning_mllm.cli.commands.asking import Asking, make_parser, make_skips
from lightning_mllm.cli.main import main
from lightning_mllm.data import ImageFolder
from lightning_mllm.errors import ConfigError, DataError
from lightning_mllm.evaluation import Likelihood
from lightning_mllm.messages import show_messages
from lightning_mllm.models.module import MLLMModule
from lightning_mllm.trainer import Trainer
from tests.conftest import FamilyBuilder
from tests.support.command_line import files_below, isolate, refusal, write_image_folder


@pytest.fixture(autouse=True)
def _isolated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    isolate(monkeypatch, tmp_path)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    counts = {f"{split}/{name}": 2 for split in ("train", "test") for name in ("cat", "red_fox")}
    return write_image_folder(tmp_path / "pictures", counts)


def test_an_answer_is_that_of_a_test_on_this_sample(
    tiny_llava: str, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module = MLLMModule(tiny_llava, warmup_ratio=0)
    data = ImageFolder(checkpoint=tiny_llava, root=str(pictures), batch_size=2, eval_batch_size=1)
    quick: dict[str, Any] = {"max_steps": 1, "limit_val_batches": 0, "enable_checkpointing": False}
    quick |= {"accelerator": "cpu", "enable_progress_bar": False}
    trainer = Trainer(callbacks=[PredictionTable()], **quick)
    trainer.fit(module, datamodule=data)
    trainer.save_checkpoint("trained.ckpt")
    trainer.test(module, datamodule=data, verbose=False)
    with Path("runs/run/evaluation/test-step1/predictions.csv").open(newline="") as file:
        tested = list(csv.DictReader(file))

    again = ImageFolder(checkpoint=tiny_llava, root=str(pictures), eval_batch_size=1)
    asking = Asking(MLLMModule(tiny_llava), again, "cpu")
    for row in tested[1:2]:  # the order of the classes in the question depends on the sample
        found = asking.ask([str(pictures / row["sample_id"])], ckpt_path="trained.ckpt")
        assert found.answer == row["generation/answer"]
        assert max(found.scores, key=found.scores.__getitem__) == row["likelihood/answer"]
        assert max(found.scores.values()) == float(row["likelihood/log_probability"])
    config = {
        "seed_everything": 0,
        "model": {"checkpoint": tiny_llava},
        "data": {"class_path": "ImageFolder", "init_args": {"root": str(pictures)}},
        "trainer": {"accelerator": "cpu", "callbacks": [{"class_path": "ProbeEachEpoch"}]},
        "checkpointing": {"save_last": True},
        "test_before": True,
    }
    Path("config.yaml").write_text(yaml.safe_dump(config))
    left = files_below(Path())
    capsys.readouterr()
    picture = ("--image", str(pictures / tested[-1]["sample_id"]))
    main(["ask", *picture, "--config", "config.yaml", "--ckpt_path", "trained.ckpt"])

    assert capsys.readouterr().out == tested[-1]["generation/answer"] + "\n"
    assert files_below(Path()) == left


def test_a_question_of_ones_own_needs_no_run_and_no_picture(
    tiny_llava: str, pictures: Path
) -> None:
    asking = Asking(MLLMModule(tiny_llava), None, "cpu")
    both = [str(pictures / "test/cat/0.png"), str(pictures / "test/red_fox/0.png")]

    free = asking.ask([], "What colour is the sky?", max_new_tokens=3)
    scored = asking.ask(both, "Which {is} it?", ["no", "yes"], max_new_tokens=3)
    again = asking.ask(both, "Which {is} it?", ["yes", "no"], max_new_tokens=3)

    assert not free.scores
    assert list(scored.scores) == ["no", "yes"]
    assert scored.scores == again.scores
    assert scored.answer == again.answer == max(scored.scores, key=scored.scores.__getitem__)
    with pytest.raises(ConfigError, match=r"one class to choose from, 'red fox'.* 'red fox' other"):
        asking.ask(both, "Which is it?", ["red fox"])


def test_on_a_pipe_there_is_one_of_the_classes_and_nothing_of_libraries(
    tiny_llava: str, capsys: pytest.CaptureFixture[str]
) -> None:
    library = logging.getLogger("lightning.pytorch")
    given = ("What?", "--model.checkpoint", tiny_llava, "--classes=[no, red fox]")
    with show_messages():
        library.addHandler(logging.StreamHandler(sys.stderr))  # as when it is imported
        main(["ask", *given, "--max_new_tokens", "1"])

    said = capsys.readouterr()
    assert said.out in ("no\n", "red fox\n")
    assert "GPU available" not in said.err


def test_what_arguments_and_files_show_is_refused_before_anything_is_loaded(
    pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("notes.txt").write_text("mine")
    Image.new("1", (20_000, 20_000)).save("bomb.png")
    image = ("--image", str(pictures / "test/cat/0.png"))
    cases = {
        "--image nowhere.jpg: does not exist": ["--image", "nowhere.jpg", "What?"],
        f"--image {pictures}: is a folder": [f"--image={pictures}", "What?"],
        "--image notes.txt is not a picture": ["--image", "notes.txt", "What?"],
        "--image bomb.png is not a picture that can be read": ["--image", "bomb.png", "What?"],
        "notes.txt is a file. Did you mean `--image notes.txt`?": ["notes.txt"],
        "There is no question": image,
        "There is no question. ": [*image, " "],
        "There are 2 questions: 'b.jpg', 'What?'": [*image, "b.jpg", "What?"],
        "The question 'What?' stands among the classes": [*image, "--classes", "a", "What?"],
    }
    for message, arguments in cases.items():
        assert message in refusal(capsys, ["ask", "--model.checkpoint", "x", *arguments])


def test_what_can_not_be_asked_is_said_in_a_sentence(
    tiny_family: FamilyBuilder, pictures: Path
) -> None:
    asking = Asking(MLLMModule(tiny_family("llava_onevision")), None, "cpu")
    both = [str(pictures / "test/cat/0.png"), str(pictures / "test/red_fox/0.png")]

    with pytest.raises(DataError, match="llava_onevision takes one per sample"):
        asking.ask(both, "Which is it?")
    with pytest.raises(ConfigError, match="--max_new_tokens is 0; give 1 or more"):
        asking.ask([], "Which is it?", max_new_tokens=0)


def test_what_a_run_skips_is_skipped(tiny_llava: str, pictures: Path) -> None:
    skip = Skip(computation="block", share=1.0, tokens="all", phase="both", start=1)
    module = MLLMModule(tiny_llava, scorers=Likelihood())
    data = ImageFolder(checkpoint=tiny_llava, root=str(pictures), eval_batch_size=1)
    callbacks = [PredictionTable(), SkipComputations(skip)]
    trainer = Trainer(accelerator="cpu", enable_progress_bar=False, callbacks=callbacks)
    trainer.test(module, datamodule=data, verbose=False)
    with Path("runs/run/evaluation/test-step0/predictions.csv").open(newline="") as file:
        row = next(csv.DictReader(file))
    said = {"class_path": "SkipComputations", "init_args": {"skip": asdict(skip)}}

    (own,) = make_skips([{"class_path": "ProbeEachEpoch"}, said])
    asking = Asking(MLLMModule(tiny_llava, scorers=Likelihood()), data, "cpu", skips=[own])
    found = asking.ask([str(pictures / row["sample_id"])])

    assert own.skip == skip
    assert max(found.scores.values()) == float(row["likelihood/log_probability"])
    assert make_skips(None) == []
    assert make_skips(said)[0].skip == skip


@pytest.mark.parametrize("verb", ["test", "validate", "predict", "analyze"])
def test_the_config_of_any_run_is_read(verb: str) -> None:
    data = {"class_path": "ImageFolder", "init_args": {"root": "pictures"}}
    said = {"model": {"checkpoint": "x"}, "data": data, "seed_everything": False}
    options = inspect.signature(getattr(Trainer, verb)).parameters
    of_lightning = {"self", "model", "dataloaders", "datamodule"}
    said |= dict.fromkeys(options.keys() - of_lightning)
    Path("config.yaml").write_text(yaml.safe_dump(said))

    config = make_parser("lightning ask").parse_args(["--config", "config.yaml"])

    assert config.seed_everything is False


@pytest.mark.slow
def test_a_missing_picture_is_answered_without_torch() -> None:
    program = """
import sys
sys.modules["torch"] = sys.modules["lightning"] = None
from lightning_mllm.cli.main import main
main(["ask", "--model.checkpoint", "x", "--image", "nowhere.jpg", "What?"])
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )

    assert done.returncode == 1
    assert done.stderr.startswith("error: --image nowhere.jpg: does not exist")


def test_what_lightning_says_of_devices_and_tips_is_not_shown() -> None:
    library = logging.getLogger("lightning")
    with show_messages():
        library.addHandler(logging.StreamHandler())  # as when it is imported
        with pytest.raises(SystemExit):
            asking_module.run("ask", ["--help"])
        assert not library.handlers
