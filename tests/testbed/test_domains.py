import hashlib
import pickle
import re
from collections.abc import Callable
from functools import cache
from typing import Any, get_args

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped]
from sklearn.pipeline import make_pipeline  # type: ignore[import-untyped]
from sklearn.preprocessing import StandardScaler  # type: ignore[import-untyped]

from lightning_mllm.errors import ConfigError
from lightning_mllm.testbed.domains import glyphs, leaves, lesions, textures
from lightning_mllm.testbed.domains.datamodule import Domain, DomainName
from lightning_mllm.testbed.domains.fields import mark_stroke_in_field, smooth_noise_field
from lightning_mllm.testbed.domains.painting import measure_paint_coverage
from lightning_mllm.testbed.world.canvas import SHAPE_MASKS, TEXTURE_MASKS
from lightning_mllm.testbed.world.draws import Draw
from lightning_mllm.types import LazyImage
from tests.support.datamodule_contract import DataModuleContract

DOMAINS = {
    "glyphs": (glyphs.CLASSES, glyphs.draw_glyph),
    "textures": (textures.CLASSES, textures.draw_texture),
    "leaves": (leaves.CLASSES, leaves.draw_leaf),
    "lesions": (lesions.CLASSES, lesions.draw_lesion),
}
SHA256 = {  # over the pixels of one picture of each class, in order
    "glyphs": "f9ffeed752839958a87ddb345eb700629507f98b21b3c84a6a1098519985d4ef",
    "textures": "56f777e1d2ac2ae6398bc43be47599316ac20885758d402ac8d361740c24bbf3",
    "leaves": "6cbfe95102ff5372ae7a0de96cf4102a5e4402a22c858b51a4a6af2484b3b90c",
    "lesions": "8dc475952144576a70c7a2ed09046bcfa519a3528f832b3dd95c2a1e2f18f337",
}
TRAIN, TEST = 16, 8  # pictures of each class
Features = Callable[[NDArray[Any]], NDArray[Any]]

every_domain = pytest.mark.parametrize("name", DOMAINS)


class TestDomain(DataModuleContract):
    def make(self, checkpoint: str, **options: Any) -> Domain:
        return Domain(
            checkpoint=checkpoint,
            name="leaves",
            per_class=2,
            val_per_class=1,
            test_per_class=1,
            **options,
        )


@every_domain
def test_pictures_are_the_same_on_every_machine(name: str) -> None:
    classes, draw = DOMAINS[name]
    pixels = hashlib.sha256()
    for label in classes:
        image = draw(label, "pinned")
        assert (image.size, image.mode) == ((64, 64), "RGB")
        pixels.update(image.tobytes())

    assert pixels.hexdigest() == SHA256[name]


@every_domain
def test_pictures_of_a_class_differ(name: str) -> None:
    classes, draw = DOMAINS[name]
    for label in classes:
        assert len({draw(label, str(number)).tobytes() for number in range(4)}) == 4


@every_domain
def test_no_picture_is_in_two_splits(name: DomainName) -> None:
    module = Domain(checkpoint="unused", name=name, per_class=3, val_per_class=2, test_per_class=2)
    pixels = [
        pixels_of(sample.images[0])
        for split in ("train", "val", "test")
        for sample in module.load(split)
    ]

    assert len(pixels) == 7 * len(DOMAINS[name][0])
    assert len(set(pixels)) == len(pixels)


@every_domain
def test_class_names_can_be_told_apart_in_an_answer(name: str) -> None:
    classes, _ = DOMAINS[name]

    assert 10 <= len(set(classes)) == len(classes) <= 30
    for label in classes:
        assert re.fullmatch(r"[a-z]+( [a-z]+)?", label)
        assert not any(other != label and re.search(rf"\b{label}\b", other) for other in classes)


@every_domain
def test_no_class_is_named_like_a_part_of_the_world(name: str) -> None:
    words = {word for label in DOMAINS[name][0] for word in label.split()}

    assert not words & (SHAPE_MASKS.keys() | TEXTURE_MASKS.keys())


@pytest.mark.parametrize("name", ["glyphs", "textures"])
@pytest.mark.parametrize("features", ["mean", "histogram"])
def test_colours_say_next_to_nothing_about_the_class(name: str, features: str) -> None:
    found = accuracy(name, {"mean": mean_color, "histogram": histogram}[features])

    chance = 1 / len(DOMAINS[name][0])
    error = (chance * (1 - chance) / (TEST * len(DOMAINS[name][0]))) ** 0.5
    assert found < chance + 4 * error


@every_domain
def test_shapes_and_patterns_say_much_about_the_class(name: str) -> None:
    assert accuracy(name, spectrum) > 2 / len(DOMAINS[name][0])


@pytest.mark.parametrize("option", ["per_class", "val_per_class", "test_per_class"])
def test_a_split_without_pictures_is_refused(option: str) -> None:
    with pytest.raises(ConfigError, match=rf"{option} is 0: .*Set it to 1 or more"):
        Domain(checkpoint="unused", name="glyphs", **{option: 0})


def test_an_unknown_domain_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(
        ConfigError, match=r"no domain 'birds'\. Choose one of glyphs, textures, leaves, lesions"
    ):
        Domain(checkpoint="unused", name="birds")  # type: ignore[arg-type]


def test_options_name_all_domains() -> None:
    assert get_args(DomainName) == tuple(DOMAINS)


def test_seeds_give_other_pictures_of_the_same_classes() -> None:
    first, second = (
        Domain(checkpoint="unused", name="glyphs", domain_seed=seed).load("val") for seed in (0, 1)
    )

    assert [sample.label for sample in first] == [sample.label for sample in second]
    assert not {sample.id for sample in first} & {sample.id for sample in second}
    assert pixels_of(first[0].images[0]) != pixels_of(second[0].images[0])


def test_every_stretch_of_a_split_has_all_classes() -> None:
    samples = Domain(checkpoint="unused", name="glyphs").load("val")

    assert {sample.label for sample in samples[: len(glyphs.CLASSES)]} == set(glyphs.CLASSES)


def test_samples_reach_the_processes_that_load_data() -> None:
    sample = Domain(checkpoint="unused", name="lesions").load("train")[0]

    assert pixels_of(pickle.loads(pickle.dumps(sample)).images[0]) == pixels_of(sample.images[0])


class TestFields:
    def test_smooth_noise_stays_within_one_and_has_no_steps(self) -> None:
        noise = smooth_noise_field(Draw("noise"), 4, 8, fields=3, side=64)

        assert noise.shape == (3, 64, 64)
        assert abs(noise).max() <= 1
        assert abs(np.diff(noise, axis=1)).max() < 0.2
        assert abs(np.diff(noise, axis=2)).max() < 0.4

    def test_a_stroke_covers_its_length_and_width(self) -> None:
        mask = np.zeros((256, 256), dtype=np.bool_)

        mark_stroke_in_field(mask, [(-10.0, 5.0), (10.0, 5.0)], 4.0, samples=4)

        area = measure_paint_coverage(mask).sum() / 256
        assert area == pytest.approx(20 * 4 + 3.14 * 4, rel=0.02)  # with round ends
        assert measure_paint_coverage(mask)[:34].sum() == 0

    def test_a_stroke_may_leave_the_picture(self) -> None:
        mask = np.zeros((128, 128), dtype=np.bool_)

        mark_stroke_in_field(mask, [(-90.0, 0.0), (-40.0, 0.0)], 2.0)
        assert not mask.any()

        mark_stroke_in_field(mask, [(0.0, 0.0), (90.0, 90.0)], 2.0)
        assert mask[-1, -1]


def pixels_of(image: object) -> bytes:
    assert isinstance(image, LazyImage)
    return image.draw().tobytes()


@cache
def pictures(name: str) -> tuple[NDArray[Any], NDArray[Any]]:
    """(pictures, 64, 64, 3) and their classes; the first `TRAIN` of each class come first."""
    classes, draw = DOMAINS[name]
    images: list[Image.Image] = [
        draw(label, str(number)) for number in range(TRAIN + TEST) for label in classes
    ]
    return np.stack([np.asarray(image) for image in images]), np.tile(
        np.arange(len(classes)), TRAIN + TEST
    )


def accuracy(name: str, features: Features) -> float:
    """Accuracy of a linear classifier on pictures that it was not fitted to."""
    images, labels = pictures(name)
    known = TRAIN * len(DOMAINS[name][0])
    values = features(images)
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000, C=0.01))
    return float(
        classifier.fit(values[:known], labels[:known]).score(values[known:], labels[known:])
    )


def mean_color(images: NDArray[Any]) -> NDArray[Any]:
    mean: NDArray[Any] = images.mean(axis=(1, 2))
    return mean


def histogram(images: NDArray[Any]) -> NDArray[Any]:
    """Share of the pixels in each eighth of each channel."""
    return np.stack(
        [(images // 32 == level).mean(axis=(1, 2)) for level in range(8)], axis=1
    ).reshape(len(images), -1)


def spectrum(images: NDArray[Any]) -> NDArray[Any]:
    """Mean and spread of the amplitudes of each wavelength, which tell nothing about places.

    They are those of brightness, and of red minus blue.
    """
    waves = np.fft.fftfreq(64) * 64
    length = np.hypot(waves[:, None], waves[None, :]).astype(int)
    found = []
    for plane in (images.mean(axis=-1), images[..., 0] - 1.0 * images[..., 2]):
        amplitude = np.log(abs(np.fft.fft2(plane - plane.mean(axis=(1, 2), keepdims=True))) + 50)
        rings = [amplitude[:, length == k] for k in range(1, 32)]
        found += [ring.mean(axis=1) for ring in rings] + [ring.std(axis=1) for ring in rings]
    return np.stack(found, axis=1)
