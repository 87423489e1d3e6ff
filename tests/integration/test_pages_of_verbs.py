"""The pages on `extract`, `ask` and `predict`: each command and each program in them runs."""

from __future__ import annotations

import csv
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

from lightning_mllm.cli.main import main
from lightning_mllm.data import Digits
from tests.support.command_line import isolate

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"(<!-- needs the hub -->\n)?```(bash|python)\n(.*?)```", re.DOTALL)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_what_the_pages_say_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    isolate(monkeypatch, tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    (tmp_path / "new_pictures").mkdir()
    scans: Any = Digits(checkpoint="", image_size=64).load("test")[:3]
    for scan in scans:
        scan.images[0].save(tmp_path / "new_pictures" / f"{scan.id}.png")
    shutil.copy(tmp_path / "new_pictures" / f"{scans[0].id}.png", tmp_path / "digit.png")
    quick = ("--trainer.max_epochs", "1", "--trainer.limit_train_batches", "4")
    untested = ("--test_before", "false", "--test_after", "false")
    main(["fit", "--config", "configs/quickstart.yaml", *quick, *untested])
    few = ("--trainer.limit_predict_batches", "1")

    names: dict[str, Any] = {}
    for page in ("extract.md", "ask_and_predict.md"):
        for needs_hub, language, text in BLOCK.findall((ROOT / "docs" / page).read_text()):
            if language == "python":
                exec(text, names)
            elif not needs_hub:
                for command in text.replace("\\\n", " ").strip().splitlines():
                    _, verb, *arguments = shlex.split(command)
                    main([verb, *arguments, *(() if verb == "ask" else few)])

    assert names["states"].shape[0] == len(names["index"]) == 64
    assert names["picture"].shape[:2] == (8, 8)
    tables = sorted(Path("runs").glob("*/predict/*/predictions.csv"))
    assert len(tables) == 5
    with tables[0].open(newline="") as file:
        assert next(csv.DictReader(file))["sample_id"]
