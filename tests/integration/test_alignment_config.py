"""From the command line: four analyses of one pass over the data."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from lightning_mllm.cli.main import main
from tests.support.command_line import CONFIGS, files_below, isolate, write_llava_json
from tests.support.shipped_configs import ALIGNMENT, MODALITY_GAP

KEPT = {"making.json", "sums.safetensors", "summary.csv", "settings.json"}
PICTURES = {  # of each analysis
    "alignment": {
        "alignment.png",
        "alignment_without_sinks.png",
        "consecutive.png",
        "modes.png",
        "norms.png",
        "paired.png",
        "update_ratios.png",
    },
    "vocabulary": {"consecutive.png", "divergence.png", "entropy.png"},
    "distinguishability": {"distinguishability.png"},
    "token_map": {"map.png"},
}


@pytest.fixture(autouse=True)
def _isolated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    isolate(monkeypatch, tmp_path)


@pytest.fixture
def asked(tiny_llava: str, tmp_path: Path) -> list[str]:
    """The command on twelve questions, each about a picture."""
    rows = [
        {
            "id": f"q-{k}",
            "image": [f"{k}.png"],
            "conversations": [
                {"from": "human", "value": f"<image>\nIs it red or blue or {k}?"},
                {"from": "gpt", "value": "red"},
            ],
        }
        for k in range(12)
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


@pytest.mark.slow
def test_the_shipped_config_leaves_sums_summary_settings_and_pictures(asked: list[str]) -> None:
    main(["analyze", *asked, "--config", str(CONFIGS / ALIGNMENT)])

    folder = Path("runs/alignment/analysis/test-step0")
    for name, pictures in PICTURES.items():
        assert files_below(folder / name) == KEPT | pictures
        settings = json.loads((folder / name / "settings.json").read_text())
        assert (settings["n_samples"], settings["source"]["split"]) == (12, "test")
        with (folder / name / "summary.csv").open(newline="") as file:
            assert list(csv.DictReader(file))


@pytest.mark.slow
def test_the_modality_gap_leaves_its_score_and_a_picture(asked: list[str]) -> None:
    main(["analyze", *asked, "--config", str(CONFIGS / MODALITY_GAP)])

    folder = Path("runs/modality-gap/analysis/test-step0/modality_gap")
    assert files_below(folder) == KEPT | {"modality_gap.png"}
    settings = json.loads((folder / "settings.json").read_text())
    assert settings["found"]["mir"]["n"] == settings["n_samples"] == 12
