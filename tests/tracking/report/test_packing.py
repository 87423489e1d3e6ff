"""What is packed is what is read back: numbers within half a level, words exactly."""

from __future__ import annotations

import base64
import json
import struct
import zlib
from typing import Any

import numpy as np
import pytest

from lightning_mllm.store.sample_maps import SampleMaps, ValueMap, make_word_map
from lightning_mllm.tracking.report.packing import (
    MISSING,
    PackingDetail,
    WordDictionary,
    choose_layers,
    pack_sample_maps,
    quantise_layers,
)


def unpack(packed: str) -> tuple[dict[str, Any], bytes]:
    content = zlib.decompress(base64.b64decode(packed), -zlib.MAX_WBITS)
    (length,) = struct.unpack("<I", content[:4])
    return json.loads(content[4 : 4 + length]), content[4 + length :]


@pytest.mark.parametrize("levels", [2, 16, 255])
def test_a_number_is_off_by_half_a_level_at_most(levels: int) -> None:
    values = np.random.default_rng(0).normal(0, [[1e-6], [1.0], [1e6]], (3, 50))
    values[1, :5] = np.nan

    codes, ends = quantise_layers(values, levels)

    low, high = (np.array(ends[name])[:, None] for name in ("low", "high"))
    step = (high - low) / (levels - 1)
    there = ~np.isnan(values)
    off = np.abs(low + codes * step - values)
    assert (off <= step / 2 * (1 + 1e-6))[there].all()
    assert (codes[~there] == MISSING).all() and (codes[there] < levels).all()


def test_layers_without_a_number_or_with_one_are_packed() -> None:
    codes, ends = quantise_layers(np.array([[np.nan, np.nan], [0.3, 0.3]]), 16)

    assert codes.tolist() == [[MISSING, MISSING], [0, 0]]
    assert ends == {"low": [0.0, 0.3], "high": [0.0, 0.3]}


@pytest.mark.parametrize("vocabulary", [10, 70_000])
def test_words_come_back(vocabulary: int) -> None:
    ids = np.random.default_rng(0).integers(0, vocabulary, (2, 5, 3))
    ids[0, 0, 0] = vocabulary - 1
    words = make_word_map(ids, -np.ones(ids.shape), "w{}".format, (0, 4), "log-p")
    dictionary = WordDictionary()
    dictionary.find_places([f"other {k}" for k in range(vocabulary)])

    packed = pack_sample_maps(SampleMaps("s", words={"lens": words}), PackingDetail(), dictionary)

    header, body = unpack(packed)
    about = header["words"]["lens"]
    planes = np.frombuffer(body, np.uint8, ids.size * about["bytes"], about["at"])
    places = (planes.reshape(about["bytes"], 2, 3, 5).T * 256 ** np.arange(about["bytes"])).sum(-1)
    found = np.array(dictionary.words)[np.moveaxis(places, (0, 1, 2), (1, 2, 0))]
    assert (found == np.char.add("w", ids.astype(str))).all()


def test_the_layers_that_are_kept_hold_first_and_last() -> None:
    assert choose_layers(range(33), 9) == [0, 4, 8, 12, 16, 20, 24, 28, 32]
    assert choose_layers(range(7), 9) == choose_layers(range(7), None) == [*range(7)]


def test_maps_of_all_layers_together_stay_whole() -> None:
    maps = SampleMaps("s", {"all": ValueMap(np.array([[0.5, 1.5]]), (), "lost")})

    header, body = unpack(pack_sample_maps(maps, PackingDetail(2, 1, 1), WordDictionary()))

    about = header["values"]["all"]
    assert (about["layers"], about["low"], about["high"]) == ([], [0.5], [1.5])
    assert [*body[about["at"] :]] == [0, 1]
