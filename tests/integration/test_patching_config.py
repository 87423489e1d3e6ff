"""The config of patching on pairs of one's own, named by a column."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lightning_mllm.cli.main import main
from tests.support.command_line import CONFIGS, isolate, picture
from tests.support.shipped_configs import PATCHING


def test_pairs_that_rows_name_are_patched(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_llava: str
) -> None:
    isolate(monkeypatch, tmp_path)
    rows: list[dict[str, Any]] = []
    for number in range(4):
        picture(number, (24, 20)).save(tmp_path / f"{number}.png")
        answer = ("red", "blue")[number % 2]
        turns = [{"from": "human", "value": "<image>\nWhich?"}, {"from": "gpt", "value": answer}]
        row = {"id": str(number), "image": f"{number}.png", "kind": "colour"}
        partner = {} if number % 2 else {"partner": number + 1}
        rows.append({**row, **partner, "conversations": turns})
    Path("pairs.json").write_text(json.dumps(rows))

    data = ("--data", "LlavaJson", "--data.init_args.train", "pairs.json")
    main(
        [
            *("analyze", "--model.checkpoint", tiny_llava, "--model.policy", "ZeroShot", *data),
            *("--data.init_args.test", "pairs.json", "--config", str(CONFIGS / PATCHING)),
            *("--analysis.correct_only", "false", "--analysis.bootstrap.resamples", "20"),
            *("--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"),
        ]
    )

    folder = Path("runs/patching/analysis/test-step0/patching")
    names = {"rows.csv", "making.json", "summary.csv", "settings.json"}
    assert {path.name for path in folder.iterdir()} == {*names, "restored.png", "lost.png"}
    settings = json.loads((folder / "settings.json").read_text())
    assert settings["n_samples"] == 2
    assert settings["found"]["pairs"] == {"colour": {"asked": 2, "kept": 2}}
