"""What the README promises, run."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from PIL import Image

from lightning_mllm.cli.main import main
from tests.support.command_line import isolate

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_a_dataset_class_of_ones_own_is_one_method(
    tiny_llava: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (code,) = re.findall(r"```python\n# my_data\.py\n(.*?)```", README, flags=re.DOTALL)
    (tmp_path / "my_data.py").write_text(code)
    (tmp_path / "leaves").mkdir()
    for split in ("train", "val", "test"):
        rows = [
            (f"{split}-{k}.png", disease) for k, disease in enumerate(["rust", "leaf_spot"] * 2)
        ]
        for k, (file, _) in enumerate(rows):
            Image.new("RGB", (30, 40), (60 * k, 100, 20)).save(tmp_path / "leaves" / file)
        (tmp_path / "leaves" / f"{split}.tsv").write_text(
            "".join(f"{file}\t{label}\n" for file, label in rows)
        )
    isolate(monkeypatch, tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    (command,) = re.findall(r"\nlightning (fit .* my_data\.Leaves)\n", README)
    given = [str(ROOT / word) if word.startswith("configs/") else word for word in command.split()]
    main([*given, "--model.checkpoint", tiny_llava, "--trainer.fast_dev_run", "1"])


def test_every_config_that_is_named_exists() -> None:
    named = set(re.findall(r"`?(configs/[\w./-]+\.yaml)", README)) | {
        f"configs/{name}" for name in re.findall(r"`(policy/\w+\.yaml)`", README)
    }

    assert len(named) > 10
    assert [name for name in named if not (ROOT / name).is_file()] == []


def test_every_policy_is_in_the_table() -> None:
    for path in (ROOT / "configs" / "policy").glob("*.yaml"):
        assert path.name in README or path.stem in ("lora_vision",), path


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda path: path.name
)
def test_nothing_is_left_to_fill_in_and_every_file_that_is_linked_is_there(page: Path) -> None:
    text = page.read_text()
    linked = [
        name for name in re.findall(r"\]\(([^)#]+)[^)]*\)", text) if not name.startswith("http")
    ]

    assert "@@" not in text
    assert "docs/testbed.png" in linked or page.name != "README.md"
    assert [name for name in linked if not (page.parent / name).exists()] == []
