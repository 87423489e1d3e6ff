"""What the README promises, run."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from PIL import Image

from lightning_mllm.cli import main
from tests.running import isolate

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_a_dataset_class_of_ones_own_is_one_method(
    tiny_llava: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (code,) = re.findall(r"```python\n# my_data\.py\n(.*?)```", README, flags=re.DOTALL)
    (tmp_path / "my_data.py").write_text(code)
    (tmp_path / "leaves").mkdir()
    for split in ("train", "val", "test"):
        rows = [(f"{split}-{k}.png", disease) for k, disease in enumerate(["rust", "leaf_spot"] * 2)]
        for k, (file, _) in enumerate(rows):
            Image.new("RGB", (30, 40), (60 * k, 100, 20)).save(tmp_path / "leaves" / file)
        (tmp_path / "leaves" / f"{split}.tsv").write_text("".join(f"{file}\t{label}\n" for file, label in rows))
    isolate(monkeypatch, tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    main(["fit", "--model.checkpoint", tiny_llava, "--data", "my_data.Leaves", "--trainer.fast_dev_run", "1"])


def test_every_config_that_is_named_exists() -> None:
    root = Path(__file__).parents[1]
    named = set(re.findall(r"`?(configs/[\w./-]+\.yaml)", README)) | {
        f"configs/{name}" for name in re.findall(r"`(policy/\w+\.yaml)`", README)
    }

    assert len(named) > 10
    assert [name for name in named if not (root / name).is_file()] == []


def test_every_policy_is_in_the_table() -> None:
    for path in (Path(__file__).parents[1] / "configs" / "policy").glob("*.yaml"):
        assert path.name in README or path.stem in ("lora_vision",), path


def test_nothing_is_left_to_fill_in_and_every_picture_is_there() -> None:
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README)

    assert "@@" not in README
    assert pictures
    assert [name for name in pictures if not (Path(__file__).parents[1] / name).is_file()] == []
