"""`lightning data check`: what a dataset holds, without a model."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lightning_mllm.cli.main import main
from tests.support.command_line import CONFIGS, isolate, refusal
from tests.support.published_datasets import PLANTDOC, write_plantdoc

ROOT = "--data.init_args.root"


@pytest.fixture(autouse=True)
def _isolated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    isolate(monkeypatch, tmp_path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_plantdoc(tmp_path / "PlantDoc-Dataset")


def config(name: str) -> tuple[str, str]:
    return "--config", str(CONFIGS / name)


def check(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    main(["data", "check", *arguments])
    return capsys.readouterr().out


def test_it_says_what_there_is_and_what_differs(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = check(capsys, *config("data/plantdoc.yaml"), ROOT, str(root))

    assert re.search(r"class .*train .*val .*test", text)
    assert re.search(r"Bell pepper leaf spot\W+4\W+1\W+2\W", text)
    assert re.search(r"train\W+images\W+2,342\W+17\W+-2,325", text)
    assert "23 image files, all sound" in text


def test_the_shipped_config_finds_the_folder_that_it_names(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "Apple Scab Leaf" in check(capsys, *config("data/plantdoc.yaml"))


def test_all_configs_of_a_fit_will_do(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit = (
        *config("model/llava-1.5-7b.yaml"),
        *config("data/plantdoc.yaml"),
        *config("presets/released_code/ft_proj.yaml"),
    )

    assert "Apple Scab Leaf" in check(capsys, *fit)


def test_values_that_refer_to_the_test_bed_are_no_obstacle(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "fit.yaml").write_text(
        "model: {checkpoint: '${testbed:instructed}'}\ndata: {class_path: Digits}\n"
    )

    assert "seven" in check(capsys, "--config", "fit.yaml", "--splits", "[test]")


def test_splits_can_be_left_out(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = check(capsys, "--data", "ImageFolder", ROOT, str(root), "--splits", "[train,test]")

    assert "val" not in text
    assert "Against the published counts" not in text


def test_a_dataset_that_cannot_be_used_is_one_message_and_status_1(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "test" / PLANTDOC[0] / "0.png").write_bytes(b"no image")

    message = refusal(capsys, ["data", "check", *config("data/plantdoc.yaml")])

    assert message.startswith(
        "error: 1 of 23 image files can't be used"
    )  # text as the code: status 1


def test_nothing_there_is_one_message(capsys: pytest.CaptureFixture[str]) -> None:
    message = refusal(capsys, ["data", "check", *config("data/dtd.yaml")])

    assert message.startswith("error: dtd has no folder 'images'. Set `root`")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--data", "PlantDok"], 'Did you mean "PlantDoc"?'),
        (["--data", "PlantDoc", "--data.init_args.rot", "x"], 'Did you mean "root"?'),
        (["--data", "PlantDoc", "--split", "[train]"], 'Did you mean "splits"?'),
        ([], "needs data"),
    ],
    ids=["class", "option of the class", "option", "nothing"],
)
def test_a_mistake_is_answered(
    arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert expected in refusal(capsys, ["data", "check", *arguments])


def test_the_list_of_commands_names_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert "data check" in refusal(capsys, ["data", "chekc"]).partition("Commands: ")[2]
