from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers import CLIPImageProcessorPil, LlavaNextImageProcessorPil

from lightning_mllm.data import load_processor
from lightning_mllm.data.images.checkpoint_processor import CheckpointProcessor
from lightning_mllm.data.images.geometry import (
    Geometry,
    GeometryName,
    apply_geometry,
    check_geometry,
    default_geometry,
    fill_colour,
)
from lightning_mllm.errors import ConfigError
from tests.conftest import FamilyBuilder
from tests.data.conftest import picture

FILL = (122, 116, 104)
SIZES: dict[str, Any] = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}
CLIP = CLIPImageProcessorPil(**SIZES)
SIGLIP = CLIPImageProcessorPil(size={"height": 28, "width": 28}, do_center_crop=False)
TILES = LlavaNextImageProcessorPil(**SIZES)


def test_padding_centres_the_picture_on_the_mean_colour() -> None:
    image = Image.new("RGB", (7, 4), (1, 2, 3))

    padded = np.asarray(apply_geometry(image, Geometry.PAD, CLIP))

    assert padded.shape == (7, 7, 3)
    assert (padded[1:5] == (1, 2, 3)).all()  # offset floor((7 - 4) / 2) = 1
    assert (padded[[0, 5, 6]] == FILL).all()


def test_cropping_before_tiling_keeps_the_centre() -> None:
    image = Image.fromarray(np.arange(7, dtype=np.uint8).repeat(3).reshape(7, 3)).convert("RGB")

    assert np.asarray(apply_geometry(image, Geometry.CROP, TILES))[:, 0, 0].tolist() == [2, 3, 4]


def test_squashing_keeps_the_whole_picture() -> None:
    image = Image.new("RGB", (8, 4), (0, 0, 0))
    image.paste((255, 255, 255), (4, 0, 8, 4))

    squashed = np.asarray(apply_geometry(image, Geometry.SQUASH, TILES))

    assert squashed.shape == (8, 8, 3)
    assert squashed[:, 0].max() == 0
    assert squashed[:, -1].min() == 255


@pytest.mark.parametrize("geometry", Geometry)
def test_a_square_picture_stays_as_it_is(geometry: Geometry) -> None:
    image = Image.new("RGB", (5, 5))
    assert apply_geometry(image, geometry, CLIP) is image


def test_the_fill_is_clips_mean_colour(vicuna: CheckpointProcessor) -> None:
    assert fill_colour(vicuna.image_processor) == FILL


def test_defaults_are_those_of_the_family(processor: CheckpointProcessor) -> None:
    expected = Geometry.NATIVE if "Next" in type(processor.hf).__name__ else Geometry.PAD
    assert default_geometry(processor) is expected


def test_the_fill_is_grey_where_the_processor_names_no_mean() -> None:
    processor: Any = CLIPImageProcessorPil(**SIZES)
    processor.image_mean = None

    assert fill_colour(processor) == (127, 127, 127)


@pytest.mark.parametrize("name", ["llava", "llava_siglip", "vipllava"])
def test_pictures_of_any_shape_are_refused_where_the_tower_takes_padded_squares(
    tiny_family: FamilyBuilder, name: str
) -> None:
    processor = load_processor(tiny_family(name))

    assert default_geometry(processor) is Geometry.PAD
    with pytest.raises(ConfigError, match=r"'native' .* Use 'pad', 'crop' or 'squash'"):
        check_geometry(Geometry.NATIVE, processor)


@pytest.mark.parametrize("name", ["llava_pixtral", "qwen2_vl", "gemma3", "internvl", "idefics3"])
def test_other_families_take_pictures_as_they_are(tiny_family: FamilyBuilder, name: str) -> None:
    processor = load_processor(tiny_family(name))

    assert default_geometry(processor) is Geometry.NATIVE
    check_geometry(Geometry.NATIVE, processor)


@pytest.mark.parametrize("name", ["qwen2_vl", "llava_pixtral", "internvl", "idefics3"])
@pytest.mark.parametrize("geometry", ["pad", "crop", "squash"])
def test_a_picture_is_square_before_a_processor_that_keeps_its_shape(
    tiny_family: FamilyBuilder, name: str, geometry: GeometryName
) -> None:
    image_processor = load_processor(tiny_family(name)).image_processor
    if name == "internvl":
        image_processor.crop_to_patches = False  # of no effect: InternVL's processor cuts anyway

    width, height = apply_geometry(picture(61, 20), Geometry(geometry), image_processor).size

    assert width == height == (20 if geometry == "crop" else 61)


def test_cropping_is_the_processors_own() -> None:
    image = picture(101, 60)
    assert apply_geometry(image, Geometry.CROP, CLIP) is image


@pytest.mark.parametrize("processor", [CLIP, SIGLIP], ids=["clip", "siglip"])
def test_squashing_resamples_once(processor: Any) -> None:
    image = picture(101, 60)

    pixels = processor(
        [apply_geometry(image, Geometry.SQUASH, processor)], do_normalize=False, do_rescale=False
    )["pixel_values"]

    expected = np.asarray(image.resize((28, 28), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    assert np.array_equal(pixels[0], expected)
