"""`lightning bank`, and `lightning analyze` with the configs of patch words."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from lightning_mllm.cli.main import main
from tests.conftest import TinyBuilder
from tests.support.command_line import CONFIGS, files_below, isolate, write_image_folder
from tests.support.shipped_configs import PATCH_WORDS, PATCH_WORDS_ON_THE_TESTBED

TABLES = {"making.json", "rows.csv", "settings.json", "summary.csv", "top_words.csv"}


@pytest.mark.slow
def test_the_configs_of_the_testbed_make_a_bank_and_find_words(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    isolate(monkeypatch, tmp_path)
    bank, words = PATCH_WORDS_ON_THE_TESTBED.items()

    main(["bank", "--config", str(CONFIGS / bank[0]), *bank[1], "--output", "bank"])
    assert "bank is a bank of" in " ".join(capsys.readouterr().out.split())
    main(["analyze", "--config", str(CONFIGS / words[0]), *words[1], "--analysis.bank", "bank"])

    (folder,) = Path("runs/testbed-patch-words/analysis").iterdir()
    drawn = {f"words-{lens}-{k}.png" for lens in ("bank", "logit-lens") for k in range(1, 5)}
    assert files_below(folder / "patch_words") == TABLES | drawn | {"patch_words.png"}
    settings: dict[str, Any] = json.loads((folder / "patch_words/settings.json").read_text())
    assert settings["found"]["scored"]["pictures"] == 17
    assert settings["analysis"]["bank"]["source"]["data"] == "WorldConversations"
    with (folder / "patch_words/summary.csv").open(newline="") as file:
        rows = {(row["measure"], row["share"], row["layer"]): row for row in csv.DictReader(file)}
    own, chance = (
        float(rows["bank: own words", share, "2"]["value"]) for share in ("own", "chance")
    )
    assert own > 2 * chance


@pytest.mark.slow
def test_pictures_without_boxes_have_the_words_of_their_class(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_checkpoint: TinyBuilder
) -> None:
    isolate(monkeypatch, tmp_path)
    write_image_folder(tmp_path / "pictures", {"train/leaf": 4, "train/fox": 4, "test/leaf": 2})
    Path("texts.txt").write_text("the leaf is green\nthe quick brown fox is here\n")
    model = ["--model.checkpoint", tiny_checkpoint("llava", "vicuna")]

    main(["bank", *model, "--texts", "texts.txt", "--output", "bank", "--contexts", "2"])
    data = ["--data", "ImageFolder", "--data.init_args.root", "pictures"]
    config = ["--config", str(CONFIGS / PATCH_WORDS), "--split", "train"]
    main(["analyze", *model, *data, *config, "--analysis.bank", "bank"])

    (folder,) = Path("runs/patch-words/analysis").iterdir()
    with (folder / "patch_words/top_words.csv").open(newline="") as file:
        assert {row["label"] for row in csv.DictReader(file)} == {"fox", "leaf"}
