"""An export has the processor's files as the checkpoint has them, but for what must be changed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, get_args

import pytest
from huggingface_hub import constants
from PIL import Image

from lightning_mllm.batches import join_images
from lightning_mllm.data import Collator, ConversationPrompt, load_processor
from lightning_mllm.data.images.geometry import Geometry, apply_geometry, default_geometry
from lightning_mllm.data.images.portable import portable_processor
from lightning_mllm.models.tiny import TinyFamily
from tests.conftest import FamilyBuilder
from tests.data.conftest import chat_sample, collate, picture
from tests.data.images.test_opening import call
from tests.data.images.test_visual_tokens import edit
from tests.support.old_layout import write_old_layout

MODEL_FILES = {"config.json", "generation_config.json", "model.safetensors"}
PADDED_SQUARES = {"llava", "llava_dinov2", "llava_siglip", "llava_vit", "vipllava"}
NATIVE = sorted(set(get_args(TinyFamily)) - PADDED_SQUARES)


def files_of(folder: str | Path) -> dict[str, bytes]:
    found = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def save(checkpoint: str, folder: Path, geometry: Any = None) -> dict[str, bytes]:
    """Write the processor as an export does; the config beside it is the model's own."""
    folder.mkdir()
    portable_processor(checkpoint, geometry=geometry).save(folder)
    written = files_of(folder)
    shutil.copy(Path(checkpoint, "config.json"), folder)
    return written


@pytest.mark.parametrize("layout", ["new", "old"])
@pytest.mark.parametrize("family", NATIVE)
def test_the_files_of_a_sound_processor_are_copied_as_they_are(
    tiny_family: FamilyBuilder, tmp_path: Path, family: str, layout: str
) -> None:
    path = tiny_family(family)
    if layout == "old":
        path = write_old_layout(path, tmp_path / "old")

    written = save(path, tmp_path / "out")

    expected = files_of(path)
    assert written == {name: expected[name] for name in expected.keys() - MODEL_FILES}


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # transformers leaves it open
def test_additional_templates_and_vocabularies_are_copied_and_nothing_else(
    tiny_llava_next: str, tmp_path: Path
) -> None:
    source = Path(shutil.copytree(tiny_llava_next, tmp_path / "source"))
    (source / "additional_chat_templates").mkdir()
    more = ("additional_chat_templates/tools.jinja", "merges.txt", "tokenizer.model", "vocab.json")
    for name in more:
        (source / name).write_text("{}")
    for name in ("optimizer.pt", "README.md", "projector.safetensors", "code.py"):
        (source / name).write_text("no part of a processor")

    written = save(str(source), tmp_path / "out")

    assert set(more) < written.keys()
    assert not written.keys() & {"optimizer.pt", "README.md", "projector.safetensors", "code.py"}
    files = portable_processor(str(source), trust_remote_code=True)
    (tmp_path / "trusted").mkdir()
    files.save(tmp_path / "trusted")
    assert files_of(tmp_path / "trusted").keys() - written.keys() == {"code.py"}


def test_only_the_repaired_keys_are_changed(tiny_llava_next: str, tmp_path: Path) -> None:
    source = Path(shutil.copytree(tiny_llava_next, tmp_path / "source"))
    edit(str(source), {"patch_size": 14, "something_of_theirs": [1]})
    edit(str(source), {"image_grid_pinpoints": [[28, 28]], "ours": "ü"}, "image_processor")
    before = json.loads((source / "processor_config.json").read_text())

    written = save(str(source), tmp_path / "out")

    after = json.loads(written["processor_config.json"])
    model = json.loads((source / "config.json").read_text())
    before["patch_size"] = model["vision_config"]["patch_size"]
    before["image_processor"]["image_grid_pinpoints"] = model["image_grid_pinpoints"]
    assert after == before
    assert "ü" in written["processor_config.json"].decode()


@pytest.mark.parametrize("family", ["llava", "llava_next"])
def test_a_repair_reaches_the_files_of_an_old_checkpoint(
    tiny_family: FamilyBuilder, tmp_path: Path, family: str
) -> None:
    source = write_old_layout(tiny_family(family), tmp_path / "old")
    Path(source, "processor_config.json").unlink()  # who counts visual tokens is not said

    written = save(source, tmp_path / "out")

    assert json.loads(written["processor_config.json"])["patch_size"] == 7
    repaired, expected = (
        collate(Collator(load_processor(path), ConversationPrompt()), chat_sample())
        for path in (str(tmp_path / "out"), tiny_family(family))
    )
    assert repaired.input_ids.tolist() == expected.input_ids.tolist()
    ours, theirs = join_images(repaired.images), join_images(expected.images)
    assert ours["pixel_values"].equal(theirs["pixel_values"])


@pytest.mark.parametrize("geometry", ["pad", "crop", "squash"])
@pytest.mark.parametrize("family", ["qwen2_vl", "internvl", "gemma3", "mistral3"])
def test_another_geometry_is_kept_and_what_is_left_to_do_is_said(
    tiny_family: FamilyBuilder,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    family: str,
    geometry: str,
) -> None:
    path = tiny_family(family)
    if geometry == "crop":  # both layouts of files, with each family
        path = write_old_layout(path, tmp_path / "old")

    save(path, tmp_path / "out", geometry)

    does_it_itself = (family, geometry) == ("gemma3", "squash")
    assert ("can't say" in caplog.text) == (not does_it_itself)
    reopened = load_processor(str(tmp_path / "out"))
    assert default_geometry(reopened) == geometry
    wide: Image.Image = picture(90, 30)
    prepared = apply_geometry(wide, Geometry(geometry), reopened.image_processor)
    assert prepared.size == ((90, 30) if does_it_itself else (prepared.width, prepared.width))
    assert call(reopened.hf, (40, 40)).keys() == call(load_processor(path).hf, (40, 40)).keys()


@pytest.mark.parametrize("layout", ["new", "old"])
@pytest.mark.parametrize("revision", [None, "v1", "0" * 40])
def test_files_of_a_hub_id_come_from_the_cache(
    tiny_family: FamilyBuilder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    revision: str | None,
    layout: str,
) -> None:
    source = tiny_family("qwen2_vl")
    if layout == "old":
        source = write_old_layout(source, tmp_path / "old")
    commit = "0" * 40
    repository = tmp_path / "cache" / "models--someone--tiny"
    shutil.copytree(source, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    for name in ("main", "v1"):
        (repository / "refs" / name).write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    (tmp_path / "out").mkdir()

    portable_processor("someone/tiny", revision).save(tmp_path / "out")

    expected, written = files_of(source), files_of(tmp_path / "out")
    assert written == {name: expected[name] for name in expected.keys() - MODEL_FILES}
