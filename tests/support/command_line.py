"""What tests of the command line share: running it in this process, and writing small datasets."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import pytest
from PIL import Image

from lightning_mllm.cli.main import main

CONFIGS = Path(__file__).parents[2] / "configs"
SMALL_DIGITS = (
    "--data",
    "Digits",
    "--data.init_args.batch_size",
    "4",
    "--data.init_args.eval_batch_size",
    "4",
)
TRIAL = ("--trainer.fast_dev_run", "1")
SHORT = (
    "--trainer.limit_train_batches",
    "3",
    "--trainer.limit_val_batches",
    "2",
    "--trainer.limit_test_batches",
    "2",
)


def isolate(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Work in an empty folder, without W&B and without the network."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr("sys.argv", ["lightning"])  # Lightning warns of those of pytest
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setenv(
        "JSONARGPARSE_DEPRECATION_WARNINGS", "off"
    )  # of lightning 2.6, out of our control
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def refusal(capsys: pytest.CaptureFixture[str], arguments: Sequence[object]) -> str:
    """Run the command line, which must end with an exit code not 0, and return the message."""
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    code = caught.value.code
    assert code not in (0, None)
    message = code if isinstance(code, str) else capsys.readouterr().err
    assert "Traceback" not in message
    return message


def files_below(folder: Path) -> set[str]:
    """Return the paths of all files, relative to the folder."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def final_metrics(run: Path) -> dict[str, float]:
    """Return the last value of each metric that does not depend on the clock."""
    with (run / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    last = {key: value for row in rows for key, value in row.items() if value}
    return {
        key: float(value)
        for key, value in last.items()
        if not key.startswith(("throughput", "lr-"))
    }


def picture(seed: int, size: tuple[int, int] = (24, 20)) -> Image.Image:
    """Return a picture of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def write_image_folder(root: Path, counts: Mapping[str, int], start: int = 0) -> Path:
    """Write `counts[folder]` pictures into each folder, e.g. `train/cat`."""
    for k, (folder, count) in enumerate(counts.items()):
        (root / folder).mkdir(parents=True)
        for i in range(count):
            picture(start + 1000 * k + i).save(root / folder / f"{i}.png")
    return root


def conversation(name: str, images: int = 1, **changes: Any) -> dict[str, Any]:
    """Return a row of a LLaVA file with its pictures called `<name>-<k>.png`."""
    row: dict[str, Any] = {
        "id": name,
        "conversations": [
            {"from": "human", "value": "<image>\n" * images + f"What is shown in {name}?"},
            {"from": "gpt", "value": f"It is the thing called {name}."},
        ],
    }
    if images:
        row["image"] = [f"{name}-{k}.png" for k in range(images)]
    return {**row, **changes}


def write_llava_json(folder: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write the rows, and the pictures that they name, into a folder; return the JSON file."""
    folder.mkdir(parents=True, exist_ok=True)
    for k, row in enumerate(rows):
        for i, name in enumerate(row.get("image", ())):
            if Path(name).name == name:
                picture(10 * k + i).save(folder / name)
    file = folder / "rows.json"
    file.write_text(json.dumps(rows, indent=1))
    return file
