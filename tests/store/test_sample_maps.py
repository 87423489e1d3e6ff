"""Laws of the maps of single samples: what is written is what is read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lightning_mllm.errors import DataError
from lightning_mllm.store.sample_maps import (
    MAPS,
    MapFolder,
    SampleMaps,
    ValueMap,
    choose_map_samples,
    make_word_map,
    read_sample_maps,
)


def _maps(sample_id: str = "scene/1") -> SampleMaps:
    draw = np.random.default_rng(0)
    values = draw.random((2, 4)).astype(np.float32)
    values[1, 2] = np.nan
    ids = draw.integers(5, 9, (3, 4, 2))
    words = make_word_map(ids, -draw.random((3, 4, 2)), "word {}".format, (0, 1, 2), "log-p")
    return SampleMaps(
        sample_id,
        {"attention": ValueMap(values, (0, 3), "share"), "all": ValueMap(values[:1], (), "lost")},
        {"lens": words},
        {"answer": "</script>"},
        {"object": np.array([True, False, True, False])},
    )


def test_maps_come_back_as_they_were_written(tmp_path: Path) -> None:
    written = _maps()
    folder = MapFolder(tmp_path)
    folder.write(written)

    (read,) = read_sample_maps(tmp_path)

    assert (read.sample_id, read.tokens, read.notes) == ("scene/1", 4, {"answer": "</script>"})
    assert list(read.values) == ["attention", "all"]
    assert read.sets["object"].tolist() == [True, False, True, False]
    for name, each in written.values.items():
        np.testing.assert_array_equal(read.values[name].values, each.values)
        assert (read.values[name].layers, read.values[name].label) == (each.layers, each.label)
    lens, words = read.words["lens"], written.words["lens"]
    np.testing.assert_array_equal(lens.ids, words.ids)
    assert (lens.words, lens.layers) == (words.words, (0, 1, 2))
    assert lens.words[int(lens.ids[0, 0, 0])] == f"word {5 + int(lens.ids[0, 0, 0])}"


def test_a_folder_knows_which_samples_it_has(tmp_path: Path) -> None:
    folder = MapFolder(tmp_path)
    folder.write(_maps("a"))

    assert "a" in folder and "b" not in folder


def test_maps_without_a_folder_stay_in_memory() -> None:
    kept = MapFolder(None)
    kept.write(_maps("a"))

    assert "a" in kept and "b" not in kept
    assert [each.sample_id for each in kept.read()] == ["a"]


def test_the_chosen_samples_do_not_depend_on_their_order() -> None:
    ids = [f"sample {k}" for k in range(100)]

    chosen = choose_map_samples(ids, 10)

    assert len(chosen) == 10 and chosen == choose_map_samples(reversed(ids), 10)
    assert chosen > choose_map_samples(ids, 5)


def test_maps_of_different_grids_are_refused() -> None:
    with pytest.raises(DataError, match=r"different numbers of visual tokens: .*'a': 4, 'b': 5"):
        SampleMaps(
            "s",
            {"a": ValueMap(np.zeros((1, 4)), (), "v"), "b": ValueMap(np.zeros((1, 5)), (), "v")},
        )
    with pytest.raises(DataError, match=r"the shape .2, 4. for 3 layers"):
        SampleMaps("s", {"a": ValueMap(np.zeros((2, 4)), (0, 1, 2), "v")})


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    MapFolder(tmp_path).write(_maps())
    (path,) = (tmp_path / MAPS).iterdir()
    path.write_bytes(path.read_bytes()[:100])

    with pytest.raises(DataError, match=rf"{path.name} can't be read"):
        read_sample_maps(tmp_path)
