"""The configs of the implicit alignment on the test-bed, on a few of their samples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lightning_mllm.cli.main import main
from tests.support.command_line import CONFIGS, isolate
from tests.support.shipped_configs import OTHERS_ON_THE_TESTBED


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*has \\d+ samples")
def test_the_configs_of_the_testbed_find_what_they_say(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    isolate(monkeypatch, tmp_path)

    found: dict[str, dict[str, Any]] = {}
    for config, (few, run, names) in OTHERS_ON_THE_TESTBED.items():
        main(
            [
                "analyze",
                "--config",
                str(CONFIGS / config),
                *few,
                "--trainer.enable_progress_bar",
                "false",
            ]
        )
        (folder,) = Path("runs", run, "analysis").iterdir()
        assert {path.name for path in folder.iterdir()} == names
        found |= {name: settings(folder / name) for name in names}

    assert found["alignment"]["n_samples"] == 8
    assert set(found["alignment"]["found"]["scores"]) == {"all", "without sinks"}
    assert len(found["sparsity_50"]["found"]["calibrations"]) == 6 * 2  # tasks, and kinds of tokens
    assert {f"alpha 0.{k}" for k in (3, 5, 7)} < set(found["pruned_accuracy"]["found"]["sparsity"])
    assert found["perceptual"]["n_samples"] == found["textual"]["n_samples"] == 17  # wordings


def settings(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "settings.json").read_text())
    return content
