"""Patches before and behind a projection: each token is that of its patch, or they are refused."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_mllm.errors import ConfigError
from lightning_mllm.probing.features.extraction import extract_samples
from lightning_mllm.probing.features.points import Point
from tests.families.checkpoints import NAMES, BoxedShapes, Shapes, TinyModel, build_checkpoint

ONE_TO_ONE = {
    *("llava", "llava_dinov2", "llava_pixtral", "llava_siglip", "llava_vit", "vipllava"),
    *("internvl", "paligemma", "paligemma2", "gemma4", "ovis2", "glm4v"),
}


@contextmanager
def one_patch_changed(projector: nn.Module) -> Iterator[None]:
    """Change the patch in the middle of each view in front of the projector."""

    def move(states: Tensor) -> Tensor:
        moved = states.clone()
        if states.ndim > 1:  # Ovis 2 looks single words up, too
            moved[..., states.shape[-2] // 2, :] += 1
        return moved

    def change(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, Any]:
        if given:
            return (move(given[0]), *given[1:]), named
        name = next(iter(named))
        return given, {**named, name: move(named[name])}

    handle = projector.register_forward_pre_hook(change, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def check_family(model: TinyModel) -> bool:
    """Return whether patches are kept; check that each is that of its token."""
    backbone = model.load()
    shapes = BoxedShapes if backbone.family.grid else Shapes  # where boxes can be placed
    batch = model.batches(shapes)[0].take([0])
    points = [Point("pre"), Point("post")]
    try:
        (plain,) = extract_samples(backbone, [batch], points, patches=10**6).patches
    except ConfigError as error:
        assert "reconstruction: false" in str(error)
        return False
    assert len(plain.before) == len(plain.behind)
    if plain.shows is not None:
        assert 0 < int(plain.shows.sum()) < len(plain.shows)
    assert (plain.shows is not None) == (shapes is BoxedShapes)
    with one_patch_changed(backbone.projector):
        (moved,) = extract_samples(backbone, [batch], points, patches=10**6).patches
    changed = (moved.behind != plain.behind).any(dim=1)
    differs = (moved.before != plain.before).any(dim=1)
    assert torch.equal(changed, differs)
    assert differs.any()
    return True


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_each_token_is_that_of_its_patch_or_patches_are_refused(name: str, tmp_path: Path) -> None:
    model = TinyModel(name, build_checkpoint(tmp_path / "model", name), tmp_path)

    assert check_family(model) == (name in ONE_TO_ONE)


def test_patches_are_drawn_by_the_sample_alone_and_none_is_padding(tiny_llava: str) -> None:
    model = TinyModel("llava", tiny_llava, Path())
    backbone, batch = model.load(), model.batches(BoxedShapes)[1]  # the widest, with bars
    points = [Point("post")]

    def drawn(*rows: int, patches: int = 3) -> dict[str, Any]:
        found = extract_samples(backbone, [batch.take(list(rows))], points, patches=patches)
        return {each.sample_id: each for each in found.patches}

    alone, together = drawn(1), drawn(0, 1)
    assert set(together) == set(batch.sample_ids)
    (name,) = alone
    assert torch.equal(alone[name].before, together[name].before)
    assert torch.equal(alone[name].shows, together[name].shows)
    assert len(alone[name].before) == 3
    every = drawn(1, patches=10**6)[name]
    padding = int(batch.spans.masks["image padding"][1].sum())  # type: ignore[index]
    tokens = int(batch.spans.masks["image"][1].sum())  # type: ignore[index]
    assert len(every.before) == tokens - padding < tokens


def test_without_boxes_it_is_not_known_what_patches_show(tiny_llava: str) -> None:
    model = TinyModel("llava", tiny_llava, Path())

    found = extract_samples(model.load(), [model.batch], [Point("post")], patches=2)

    assert all(each.shows is None for each in found.patches)
