"""One contract for every family: each feature works, or is refused by name, as the docs say."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest

from tests.families.checkpoints import ALL_NAMES, ASSEMBLED, NAMES, TinyModel, build_checkpoint
from tests.families.features import FEATURES
from tests.families.table import REFUSED, read_tables, try_feature

FAST = [name for name, feature in FEATURES.items() if feature.fast]
SLOW = [name for name in FEATURES if name not in FAST]
LARGE = "got_ocr2"  # its tower has 4,096 patches even when it is tiny

Models = Callable[[str], TinyModel]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    @cache
    def build(name: str) -> TinyModel:
        scratch = tmp_path_factory.mktemp(name)
        return TinyModel(name, build_checkpoint(scratch / "checkpoint", name), scratch)

    return build


def test_the_page_has_a_cell_for_each_checkpoint_and_feature() -> None:
    table = read_tables()
    assert list(table) == list(ALL_NAMES)
    assert {tuple(row) for row in table.values()} == {tuple(FEATURES)}


@pytest.mark.parametrize("feature", FAST)
@pytest.mark.parametrize("name", [name for name in NAMES if name != LARGE])
def test_the_feature_works_or_is_refused_as_the_page_says(
    models: Models, name: str, feature: str
) -> None:
    _check(models(name), feature)


@pytest.mark.slow
@pytest.mark.parametrize("feature", SLOW)
@pytest.mark.parametrize("name", ALL_NAMES)
def test_the_slower_feature_works_or_is_refused_as_the_page_says(
    models: Models, name: str, feature: str
) -> None:
    _check(models(name), feature)


@pytest.mark.slow
@pytest.mark.parametrize("feature", FAST)
@pytest.mark.parametrize("name", [LARGE, *ASSEMBLED])
def test_the_feature_works_in_a_large_tower_and_behind_each_llm(
    models: Models, name: str, feature: str
) -> None:
    _check(models(name), feature)


def _check(tiny: TinyModel, feature: str) -> None:
    cell, refusal = try_feature(tiny, feature)
    assert cell == read_tables()[tiny.name][feature], refusal
    if cell == REFUSED:
        assert len(refusal) > 60, f"a refusal says the reason and a way out, not only {refusal!r}"
