import numpy as np
import pytest
from PIL import Image
from transformers import ProcessorMixin

from lightning_mllm.data.geometry import Geometry, apply_geometry, default_geometry, fill_colour

FILL = (122, 116, 104)


def test_padding_centres_the_picture_on_the_mean_colour() -> None:
    image = Image.new("RGB", (7, 4), (1, 2, 3))

    padded = np.asarray(apply_geometry(image, Geometry.PAD, FILL))

    assert padded.shape == (7, 7, 3)
    assert (padded[1:5] == (1, 2, 3)).all()  # offset floor((7 - 4) / 2) = 1
    assert (padded[[0, 5, 6]] == FILL).all()


def test_cropping_keeps_the_centre() -> None:
    image = Image.fromarray(np.arange(7, dtype=np.uint8).repeat(3).reshape(7, 3)).convert("RGB")

    assert np.asarray(apply_geometry(image, Geometry.CROP, FILL))[:, 0, 0].tolist() == [2, 3, 4]


def test_squashing_keeps_the_whole_picture() -> None:
    image = Image.new("RGB", (8, 4), (0, 0, 0))
    image.paste((255, 255, 255), (4, 0, 8, 4))

    squashed = np.asarray(apply_geometry(image, Geometry.SQUASH, FILL))

    assert squashed.shape == (8, 8, 3)
    assert squashed[:, 0].max() == 0
    assert squashed[:, -1].min() == 255


@pytest.mark.parametrize("geometry", Geometry)
def test_a_square_picture_stays_as_it_is(geometry: Geometry) -> None:
    image = Image.new("RGB", (5, 5))
    assert apply_geometry(image, geometry, FILL) is image


def test_the_fill_is_clips_mean_colour(vicuna: ProcessorMixin) -> None:
    assert fill_colour(vicuna) == FILL


def test_defaults_are_those_of_the_family(processor: ProcessorMixin) -> None:
    expected = Geometry.TILES if "Next" in type(processor).__name__ else Geometry.PAD
    assert default_geometry(processor) is expected
