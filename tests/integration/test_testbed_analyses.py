"""The configs of the implicit alignment on the test-bed, on a few of their samples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lightning_mllm.cli.main import main
from tests.support.command_line import CONFIGS, isolate

TESTBED_ANALYSES = {  # config -> options that make it small, its folders
    "analysis/testbed_alignment.yaml": (
        ["--data.init_args.test_scenes", "8"],
        {"alignment", "distinguishability", "token_map", "vocabulary"},
    ),
    "analysis/testbed_subnetwork.yaml": (
        ["--data.init_args.train_per_kind", "1"],
        {"sparsity_30", "sparsity_50", "sparsity_50_full", "sparsity_70"},
    ),
    "analysis/testbed_pruned_accuracy.yaml": (["--data.init_args.per_kind", "1"], {"pruned_accuracy"}),
    "analysis/testbed_skipping.yaml": (["--data.init_args.per_kind", "1"], {"perceptual", "textual"}),
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*has \\d+ samples")
def test_the_configs_of_the_testbed_find_what_they_say(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    isolate(monkeypatch, tmp_path)

    found: dict[str, dict[str, Any]] = {}
    for config, (few, names) in TESTBED_ANALYSES.items():
        main(["analyze", "--config", str(CONFIGS / config), *few, "--trainer.enable_progress_bar", "false"])
        (folder,) = Path("runs", f"{Path(config).stem.replace('_', '-')}", "analysis").iterdir()
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
