"""From the command line: read states on one split, steer on another; shifts of two models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lightning_mllm.cli.main import main
from tests.support.command_line import CONFIGS, isolate
from tests.support.shipped_configs import STEERING, STEERING_ON_THE_TESTBED

QUIET = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]


@pytest.fixture(autouse=True)
def _isolated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    isolate(monkeypatch, tmp_path)


def settings(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "settings.json").read_text())
    return content


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Mean of empty slice", "ignore:invalid value")
def test_the_configs_of_the_testbed_steer_red_to_blue_and_shift_before_to_after() -> None:
    found: dict[str, dict[str, Any]] = {}
    for config, (few, run, names) in STEERING_ON_THE_TESTBED.items():
        main(["analyze", "--config", str(CONFIGS / config), *few, *QUIET])
        (folder,) = Path("runs", run, "analysis").iterdir()
        assert {path.name for path in folder.iterdir()} == names
        found |= {f"{run}/{name}": settings(folder / name) for name in names}

    assert found["testbed-steering/layers"]["n_samples"] > 0
    assert found["testbed-shift/shift_sweep"]["n_samples"] == 17  # wordings
    assert found["testbed-shift-after/types"]["before"]["weights"]


@pytest.mark.slow
def test_the_shipped_configs_read_steer_and_shift() -> None:
    def data(split: str, count: int, **more: str) -> list[str]:
        options = {"types": "[QueryAttr]", split: str(count), "eval_batch_size": "32", **more}
        return [
            *("--data", "WorldQuestions", "--data.init_args.parts", "[seen]"),
            *(f"--data.init_args.{name}={value}" for name, value in options.items()),
        ]

    def model(stage: str) -> list[str]:
        return ["--model.checkpoint", "${testbed:" + stage + "}", *QUIET]

    states, steer, shift = (["--config", str(CONFIGS / name)] for name in STEERING)
    read = [*data("train_per_kind", 24), *states]
    folder = "analysis/train-step0/mean_states"
    main(["analyze", *model("instructed"), *read])
    by_kind = [*read, "--analysis.by", "kind", "--analysis.segments", "[last]"]
    main(["analyze", *model("aligned"), *by_kind, "--trainer.run.name", "before"])
    main(["analyze", *model("instructed"), *by_kind, "--trainer.run.name", "after"])

    main(["analyze", *model("instructed"), *data("per_kind", 24), *steer])
    tuned = ["--analysis.fine_tuned", "${testbed:instructed}", "--analysis.random_vectors", "2"]
    main(["analyze", *model("aligned"), *data("per_kind", 4), *shift, *tuned])

    assert Path("runs/mean-states", folder, "norm_image_object.png").is_file()
    out = Path("runs/steering/analysis/test-step0/steering_sweep")
    assert {"rows.csv", "summary.csv", "layers_image_object.png"} <= {
        path.name for path in out.iterdir()
    }
    given = settings(Path("runs/shift/analysis/test-step0/shift_sweep"))
    assert given["n_samples"] == 12
    assert given["analysis"]["by"] == "kind"
