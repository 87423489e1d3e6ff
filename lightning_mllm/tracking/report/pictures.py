"""What a run knows of single pictures: the maps of all analyses of a pass, packed for the page."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lightning_mllm.store.files import read_json
from lightning_mllm.store.sample_maps import (
    MAPS,
    SampleMaps,
    digest_sample_id,
    find_pictures_folder,
    read_sample_maps,
)
from lightning_mllm.tracking.report.packing import (
    PackingDetail,
    WordDictionary,
    choose_layers,
    pack_sample_maps,
)


@dataclass(frozen=True, eq=False)
class MapPass:
    """One pass of analyses over a split, with maps.

    Attributes:
        name: Name of its folder, e.g. `test-step320`.
        folder: The folder.
        samples: Maps of all analyses together, sorted by the samples' ids.
    """

    name: str
    folder: Path
    samples: tuple[SampleMaps, ...]

    @property
    def layers(self) -> int:
        """Most layers that any map has."""
        counts = [0]
        for sample in self.samples:
            counts += [len(each.layers) for each in sample.values.values()]
            counts += [len(each.layers) for each in sample.words.values()]
        return max(counts)


def find_map_passes(run: Path) -> list[MapPass]:
    """Return the passes of a run that have maps, in the order of their names.

    Raises:
        DataError: A file of maps is damaged.
    """
    passes = []
    for folder in sorted((run / "analysis").glob("*/")):
        found: dict[str, dict[str, SampleMaps]] = {}  # analysis -> sample -> maps
        for analysis in sorted(path.parent for path in folder.glob(f"*/{MAPS}")):
            found[analysis.name] = {maps.sample_id: maps for maps in read_sample_maps(analysis)}
        if joined := _join_analyses(found):
            passes.append(MapPass(folder.name, folder, joined))
    return passes


def pack_map_pass(
    found: MapPass, detail: PackingDetail, answers: Mapping[str, Mapping[str, str]]
) -> dict[str, Any]:
    """Return what the page needs to draw a pass, as plain data.

    Args:
        found: The pass.
        detail: How much of the maps is kept.
        answers: Sample id -> what else is said of a sample, by name.
    """
    chosen = found.samples if detail.samples is None else _spread(found.samples, detail.samples)
    dictionary = WordDictionary()
    samples: list[dict[str, Any]] = []
    for maps in chosen:
        packed = pack_sample_maps(maps, detail, dictionary)
        notes = {**maps.notes, **answers.get(maps.sample_id, {})}
        about = _read_about(find_pictures_folder(found.folder), maps)
        samples.append({**about, "notes": notes, "tokens": maps.tokens, "packed": packed})
    return {
        "name": found.name,
        "values": _list_values(chosen),
        "words": _list_words(chosen),
        "dictionary": dictionary.words,
        "samples": samples,
        "all_samples": len(found.samples),
        "left_out": _explain_left_out(found, detail),
    }


def _join_analyses(found: Mapping[str, Mapping[str, SampleMaps]]) -> tuple[SampleMaps, ...]:
    """Return the maps of several analyses as those of one; of equal names, the analysis is said."""
    joined: dict[str, SampleMaps] = {}
    for analysis, samples in found.items():
        for sample_id, maps in samples.items():
            before = joined.get(sample_id, SampleMaps(sample_id))
            joined[sample_id] = replace(
                before,
                values={**before.values, **_rename(maps.values, before.values, analysis)},
                words={**before.words, **_rename(maps.words, before.words, analysis)},
                notes={**before.notes, **maps.notes},
                sets={**before.sets, **maps.sets},
            )
    return tuple(joined[sample_id] for sample_id in sorted(joined))


def _rename(maps: Mapping[str, Any], taken: Mapping[str, Any], analysis: str) -> dict[str, Any]:
    renamed = {}
    for name, each in maps.items():
        renamed[f"{name} ({analysis})" if name in taken else name] = each
    return renamed


def _spread(samples: Sequence[SampleMaps], most: int) -> list[SampleMaps]:
    return [samples[place] for place in choose_layers(range(len(samples)), most)]


def _list_values(samples: Sequence[SampleMaps]) -> dict[str, dict[str, Any]]:
    """Return name -> what a value is, and the ends of all samples and layers."""
    found: dict[str, dict[str, Any]] = {}
    for maps in samples:
        for name, numbers in maps.values.items():
            finite = numbers.values[np.isfinite(numbers.values)]
            if not finite.size:
                continue
            ends = found.setdefault(name, {"label": numbers.label, "low": np.inf, "high": -np.inf})
            ends["low"] = min(ends["low"], float(finite.min()))
            ends["high"] = max(ends["high"], float(finite.max()))
    return found


def _list_words(samples: Sequence[SampleMaps]) -> dict[str, dict[str, Any]]:
    """Return name -> what a score is, and the ends of the first words' scores."""
    found: dict[str, dict[str, Any]] = {}
    for maps in samples:
        for name, words in maps.words.items():
            first = words.scores[..., 0]
            first = first[np.isfinite(first)]
            if not first.size:
                continue
            ends = found.setdefault(name, {"label": words.label, "low": np.inf, "high": -np.inf})
            ends["low"] = min(ends["low"], float(first.min()))
            ends["high"] = max(ends["high"], float(first.max()))
    return found


def _read_about(folder: Path, maps: SampleMaps) -> dict[str, Any]:
    """Return what the driver wrote of a sample; without it there is neither picture nor grid."""
    path = folder / f"{digest_sample_id(maps.sample_id)}.json"
    if not path.is_file():
        return {"sample_id": maps.sample_id, "pictures": []}
    about = read_json(path)
    pictures = []
    for picture in about["pictures"]:
        content = base64.b64encode((folder / picture["file"]).read_bytes()).decode()
        pictures.append({**picture, "source": f"data:image/webp;base64,{content}"})
    return {**about, "pictures": pictures}


def _explain_left_out(found: MapPass, detail: PackingDetail) -> list[str]:
    """Return, as sentences, what the page does not have of what the run has."""
    said = []
    if detail.samples is not None and len(found.samples) > detail.samples:
        said.append(f"{detail.samples} of {len(found.samples)} samples are here.")
    if detail.word_layers is not None and found.layers > detail.word_layers:
        said.append(f"Words are here at {detail.word_layers} of {found.layers} layers.")
    if detail.value_layers is not None and found.layers > detail.value_layers:
        said.append(f"Numbers are here at {detail.value_layers} of {found.layers} layers.")
    if detail.levels < PackingDetail().levels:
        said.append(
            f"Each number is one of {detail.levels} levels between the lowest and the highest of "
            "its layer, and so is off by half a level at most."
        )
    return said
