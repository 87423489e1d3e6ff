"""From the command line: calibrate on one split, ask on another, export what is kept."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from lightning_mllm.analysis.subnetwork.accuracy import PrunedAccuracy
from lightning_mllm.analysis.subnetwork.activated_weights import ActivatedWeights
from lightning_mllm.analysis.subnetwork.matrices import matrices
from lightning_mllm.cli.main import main
from lightning_mllm.models.backbone import Backbone
from tests.support.command_line import CONFIGS, files_below, isolate, refusal, write_llava_json
from tests.support.shipped_configs import SUBNETWORKS

KINDS = ("colour", "shape")


@pytest.fixture(autouse=True)
def _isolated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    isolate(monkeypatch, tmp_path)


@pytest.fixture
def asked(tiny_llava: str, tmp_path: Path) -> list[str]:
    """The command on eight questions of two kinds."""
    rows = [
        {
            "id": f"q-{k}",
            "kind": KINDS[k % 2],
            "image": [f"{k}.png"],
            "conversations": [
                {"from": "human", "value": f"<image>\nIs it red or blue or {k}?"},
                {"from": "gpt", "value": "red"},
            ],
        }
        for k in range(8)
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


def test_the_shipped_configs_calibrate_and_ask_and_what_is_kept_is_exported(
    asked: list[str], tiny_llava: str
) -> None:
    calibrate, ask = (str(CONFIGS / name) for name in SUBNETWORKS)
    main(["analyze", *asked, "--config", calibrate, "--analysis.samples", "2"])
    folder = f"runs/subnetwork/analysis/train-step0/{ActivatedWeights.default_name}"

    main(["analyze", *asked, "--config", ask, "--analysis.calibrations", folder])

    vectors = {
        f"{kind}.{tokens}.{k}.safetensors"
        for kind in KINDS
        for tokens in ("perceptual", "textual")
        for k in "01"
    }
    tables = {"rows.csv", "making.json", "summary.csv", "settings.json"}
    assert files_below(Path(folder)) == vectors | tables | {"iou.png"}
    out = Path("runs/pruned-accuracy/analysis/test-step0", PrunedAccuracy.default_name)
    assert files_below(out) == tables | {"transfer.png"}
    with (out / "summary.csv").open(newline="") as file:
        found = {(row["subnetwork"], row["kind"]): row["n"] for row in csv.DictReader(file)}
    assert found["alpha 0.5", "all"] == "8"
    assert found["of shape 0.5", "colour"] == "4"
    sparsity = json.loads((out / "settings.json").read_text())["found"]["sparsity"]["alpha 0.5"]
    assert sparsity > 0.5

    main(
        [
            "export",
            "--model.checkpoint",
            tiny_llava,
            "--subnetwork.path",
            folder,
            "--output",
            "alpha",
        ]
    )

    weights = [module.weight for module in matrices(Backbone.from_pretrained("alpha")).values()]
    assert sum(int((w == 0).sum()) for w in weights) == round(
        sparsity * sum(w.numel() for w in weights)
    )


def test_a_sub_network_that_is_not_there_is_not_exported(
    tiny_llava: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["export", "--model.checkpoint", tiny_llava, "--output", "out", "--subnetwork.path"]

    assert "no sub-network file nowhere" in refusal(capsys, [*arguments, "nowhere"])
    assert "has no rows.csv with samples" in refusal(capsys, [*arguments, "."])
    assert not Path("out").exists()


def test_the_calibrations_have_to_be_named(
    asked: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert "calibrations" in refusal(
        capsys, ["analyze", *asked, "--config", str(CONFIGS / SUBNETWORKS[1])]
    )


def test_what_stands_behind_the_limit_is_not_asked_for(asked: list[str]) -> None:
    """The calibration needs images in each task that it reads, and only there."""
    calibrate = [
        "analyze",
        *asked,
        "--config",
        str(CONFIGS / SUBNETWORKS[0]),
        "--analysis.samples",
        "1",
    ]
    file = next(
        Path(option.partition("=")[2])
        for option in asked
        if option.startswith("--data.init_args.train=")
    )
    rows = json.loads(file.read_text())
    blind = {"conversations": [{**turn, "value": "Is it?"} for turn in rows[0]["conversations"]]}
    file.write_text(
        json.dumps([*rows, *({"id": f"late-{k}", "kind": "late", **blind} for k in range(4))])
    )

    main([*calibrate, "--trainer.limit_predict_batches", "2"])  # of four samples

    folder = Path(f"runs/subnetwork/analysis/train-step0/{ActivatedWeights.default_name}")
    assert "late" not in {name.split(".")[0] for name in files_below(folder)}
