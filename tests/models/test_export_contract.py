"""An exported folder gives plain transformers the trained model: pixels, tokens, logits."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from lightning_mllm.batches import join_images
from lightning_mllm.data import Collator, ConversationPrompt, load_processor
from lightning_mllm.data.images.geometry import (
    Geometry,
    GeometryName,
    apply_geometry,
    default_geometry,
)
from lightning_mllm.models import freeze
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.models.tiny import Chat, TinyFamily
from lightning_mllm.types import Sample, Segment, Turn
from tests.conftest import FamilyBuilder, TinyBuilder
from tests.models.conftest import export_from, trained
from tests.support.command_line import picture
from tests.support.old_layout import write_old_layout

SHAPES = {"wide": (90, 30), "tall": (31, 100), "square": (40, 40)}
QUESTION = "What is shown in this picture?"
FT_PROJ = freeze.ProjectorOnly()
Case = tuple[TinyFamily, Chat, freeze.FreezePolicy, GeometryName]
# each family, chat template, policy and geometry at least once
CASES: list[Case] = [
    ("llava", "vicuna", freeze.ZeroShot(), "pad"),
    ("llava", "vicuna", freeze.ProjectorOnly(), "crop"),
    ("llava", "llama3", freeze.ProjectorAndLLM(), "squash"),
    ("llava", "vicuna", freeze.Lora(rank=2, target="both"), "pad"),
    ("llava", "llama3", freeze.Lora(rank=2, projector=True), "pad"),
    ("llava", "vicuna", freeze.Everything(), "squash"),
    ("llava_next", "vicuna", freeze.ProjectorOnly(), "tiles"),
    ("llava_next", "llama3", freeze.Lora(rank=2, projector=True), "tiles"),
]
ALL: list[Any] = [
    (family, chat, policy, geometry)
    for family, geometries in (("llava", ("pad", "crop", "squash")), ("llava_next", ("tiles",)))
    for geometry in geometries
    for chat in ("vicuna", "llama3")
    for policy in (
        *dict.fromkeys(case[2] for case in CASES),
        freeze.LLMOnly(),
        freeze.ProjectorAndVision(),
    )
]


def _own(
    backbone: Backbone, checkpoint: str, geometry: GeometryName | None, image: Image.Image
) -> Any:
    """Pixels, tokens of the prompt, and logits behind it, as in training and validation."""
    conversation = [Turn("user", QUESTION, images=1), Turn("assistant", "yes")]
    collator = Collator(load_processor(checkpoint), ConversationPrompt(), geometry=geometry)
    batch = collator([(0, Sample(id="one", images=[image], conversation=conversation))])
    last = int(batch.spans[Segment.LAST][0].nonzero())
    with torch.no_grad():
        logits = backbone.model(**batch.model_inputs()).logits[0, last]
    return join_images(batch.images)["pixel_values"], batch.input_ids[0, : last + 1], logits


def _anyones(folder: Path, images: dict[str, Image.Image]) -> dict[str, Any]:
    """The same by plain transformers, of an opened folder."""
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder)
    found = {}
    for name, image in images.items():
        content = [{"type": "image", "image": image}, {"type": "text", "text": QUESTION}]
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        with torch.no_grad():
            found[name] = (
                inputs["pixel_values"],
                inputs["input_ids"][0],
                model(**inputs).logits[0, -1],
            )
    return found


def check_contract(
    checkpoint: str,
    folder: Path,
    policy: freeze.FreezePolicy = FT_PROJ,
    geometry: GeometryName | None = None,
) -> None:
    backbone = trained(checkpoint, policy)
    images = {name: picture(0, size) for name, size in SHAPES.items()}
    expected = {name: _own(backbone, checkpoint, geometry, image) for name, image in images.items()}

    export_from(checkpoint, backbone, folder, geometry=geometry)

    for name, (pixels, ids, logits) in _anyones(folder, images).items():
        assert torch.equal(pixels, expected[name][0]), f"{name}: other pixels"
        assert torch.equal(ids, expected[name][1]), f"{name}: other tokens"
        torch.testing.assert_close(logits, expected[name][2], rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_an_export_opens_as_what_was_trained(
    tiny_checkpoint: TinyBuilder, tmp_path: Path, case: Case
) -> None:
    family, chat, policy, geometry = case
    check_contract(tiny_checkpoint(family, chat), tmp_path / "out", policy, geometry)


@pytest.mark.slow
@pytest.mark.parametrize("case", ALL, ids=str)
def test_an_export_opens_as_what_was_trained_in_every_combination(
    tiny_checkpoint: TinyBuilder, tmp_path: Path, case: Case
) -> None:
    family, chat, policy, geometry = case
    check_contract(tiny_checkpoint(family, chat), tmp_path / "out", policy, geometry)


@pytest.mark.parametrize(
    "family", ["qwen2_5_vl", "internvl", "gemma3", "idefics3", "llava_pixtral"]
)
def test_an_export_of_any_family_is_opened_again_as_what_was_trained(
    tiny_family: FamilyBuilder, tmp_path: Path, family: str
) -> None:
    checkpoint = tiny_family(family)
    backbone = trained(checkpoint, FT_PROJ)

    export_from(checkpoint, backbone, tmp_path / "out")

    reopened = Backbone.from_pretrained(str(tmp_path / "out"))
    for size in SHAPES.values():
        image = picture(0, size)
        ours = _own(backbone, checkpoint, None, image)
        theirs = _own(reopened, str(tmp_path / "out"), None, image)
        for expected, found in zip(ours, theirs, strict=True):
            assert torch.equal(found, expected)
    for file in ("processor_config.json", "tokenizer.json", "chat_template.jinja"):
        assert (tmp_path / "out" / file).read_bytes() == Path(checkpoint, file).read_bytes()


def _changed(checkpoint: str, folder: Path, change: dict[str, Any], **image_options: Any) -> str:
    """A copy whose processor says something else."""
    shutil.copytree(checkpoint, folder)
    file = folder / "processor_config.json"
    found = json.loads(file.read_text())
    file.write_text(
        json.dumps(
            {**found, **change, "image_processor": {**found["image_processor"], **image_options}}
        )
    )
    return str(folder)


@pytest.mark.parametrize(
    ("family", "geometry"), [("llava", "pad"), ("llava", "squash"), ("llava_next", "tiles")]
)
def test_an_export_of_an_old_checkpoint_opens_as_what_was_trained(
    tiny_checkpoint: TinyBuilder, tmp_path: Path, family: TinyFamily, geometry: GeometryName
) -> None:
    checkpoint = write_old_layout(tiny_checkpoint(family, "vicuna"), tmp_path / "old")
    check_contract(checkpoint, tmp_path / "out", geometry=geometry)


SIGLIP = {
    "image_processor_type": "SiglipImageProcessor",
    "size": {"height": 28, "width": 28},
    "do_center_crop": None,
    "crop_size": None,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}


@pytest.mark.parametrize("geometry", ["pad", pytest.param("squash", marks=pytest.mark.slow)])
def test_an_export_of_siglips_processor_opens_as_what_was_trained(
    tiny_llava: str, tmp_path: Path, geometry: GeometryName
) -> None:
    checkpoint = _changed(tiny_llava, tmp_path / "siglip", {}, **SIGLIP)
    check_contract(checkpoint, tmp_path / "out", geometry=geometry)


@pytest.mark.parametrize("geometry", ["crop", pytest.param("squash", marks=pytest.mark.slow)])
def test_an_export_is_exported_again_with_any_geometry(
    tiny_llava: str, tmp_path: Path, geometry: GeometryName
) -> None:
    first = tmp_path / "first"
    export_from(tiny_llava, trained(tiny_llava, freeze.ProjectorOnly()), first, geometry="pad")

    check_contract(str(first), tmp_path / "second", geometry=geometry)


@pytest.mark.parametrize(
    ("family", "change", "image_options"),
    [
        ("llava", {"patch_size": None}, {}),
        pytest.param(
            "llava",
            {"vision_feature_select_strategy": "full", "num_additional_image_tokens": 0},
            {},
            marks=pytest.mark.slow,
        ),
        pytest.param("llava_next", {"patch_size": None}, {}, marks=pytest.mark.slow),
        ("llava_next", {}, {"image_grid_pinpoints": [[28, 28]]}),
    ],
)
def test_the_processor_is_exported_as_it_was_repaired(
    tiny_checkpoint: TinyBuilder,
    tmp_path: Path,
    family: TinyFamily,
    change: Any,
    image_options: Any,
) -> None:
    checkpoint = _changed(
        tiny_checkpoint(family, "vicuna"), tmp_path / "old", change, **image_options
    )
    check_contract(checkpoint, tmp_path / "out")


@pytest.mark.parametrize(
    ("case", "to_do"),
    [
        (
            ("llava", "crop", SIGLIP),
            "SiglipImageProcessor can't say.*cut out the square in its centre",
        ),
        (
            ("llava_next", "pad", {}),
            r"pad it to a square, centred, with the colour \(122, 116, 104\)",
        ),
        pytest.param(("llava_next", "crop", {}), "cut out the square", marks=pytest.mark.slow),
        (
            ("llava_next", "squash", {}),
            "LlavaNextImageProcessor can't say.*square of its longer edge",
        ),
    ],
)
def test_what_a_processor_cannot_say_is_said(
    tiny_checkpoint: TinyBuilder,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    case: tuple[TinyFamily, GeometryName, Any],
    to_do: str,
) -> None:
    family, geometry, image_options = case
    checkpoint = _changed(tiny_checkpoint(family, "vicuna"), tmp_path / "old", {}, **image_options)
    backbone = trained(checkpoint, freeze.ProjectorOnly())

    export_from(checkpoint, backbone, tmp_path / "out", geometry=geometry)

    (message,) = [
        record.getMessage() for record in caplog.records if record.name.endswith("images.portable")
    ]
    assert re.search(to_do, message)
    exported = load_processor(str(tmp_path / "out"))
    assert default_geometry(exported) == geometry
    wide = picture(0, SHAPES["wide"])
    done = {"wide": apply_geometry(wide, Geometry(geometry), exported.image_processor)}
    assert torch.equal(
        _anyones(tmp_path / "out", done)["wide"][0], _own(backbone, checkpoint, geometry, wide)[0]
    )
