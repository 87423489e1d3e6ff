"""Numbers and words of each visual token of single samples: what is drawn on their pictures.

An analysis writes a file for each of some samples into the folder `maps` of its own folder, as it
goes; whoever shows them reads what is there. The files need neither model nor tokenizer, and none
belongs to a process, so nothing has to be merged, and what is killed continues.

    chosen = choose_map_samples((sample.id for sample in samples), 50)   # in `check`
    written = MapFolder(folder)                                          # in `prepare`
    if sample_id in chosen and sample_id not in written:                 # in `update`
        written.write(SampleMaps(sample_id, values={"attention from last": ValueMap(...)}))
"""

from __future__ import annotations

import hashlib
import heapq
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_mllm.errors import DataError
from lightning_mllm.store.files import write_tensor_file

MAPS = "maps"  # folder of the files, in that of an analysis
_PICTURES = "pictures"  # folder of a run, of what else is known of the samples


@dataclass(frozen=True, eq=False)
class ValueMap:
    """A number for each visual token of a sample, at some layers.

    Attributes:
        values: (layers, tokens), NaN where there is none; the tokens are the positions of
            `Segment.IMAGE`, in order.
        layers: Their numbers. Layer l is in front of decoder layer l, counted from 0, or inside it;
            the number of layers is behind the last. Empty for numbers of all layers together, whose
            values are (1, tokens).
        label: What a value is, e.g. "share of attention".
    """

    values: NDArray[np.floating[Any]]
    layers: tuple[int, ...]
    label: str


@dataclass(frozen=True, eq=False)
class WordMap:
    """The first few words for each visual token of a sample, at some layers.

    Attributes:
        words: All words that occur.
        ids: (layers, tokens, k) places in `words`, the best first; -1 for none.
        scores: (layers, tokens, k), how good each is.
        layers: As in `ValueMap`.
        label: What a score is, e.g. "log-probability".
    """

    words: tuple[str, ...]
    ids: NDArray[np.integer[Any]]
    scores: NDArray[np.floating[Any]]
    layers: tuple[int, ...]
    label: str


@dataclass(frozen=True, eq=False)
class SampleMaps:
    """What is drawn on the pictures of one sample.

    Attributes:
        sample_id: Id of the sample.
        values: Name, as people read it ("attention from last") -> numbers.
        words: Name ("logit lens") -> words.
        notes: What else is said of the sample, e.g. {"answer of the model": "red"}.
        sets: Name ("object") -> (tokens,) bool, tokens that are outlined.
    """

    sample_id: str
    values: Mapping[str, ValueMap] = field(default_factory=dict)
    words: Mapping[str, WordMap] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)
    sets: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        sizes = {name: len(inside) for name, inside in self.sets.items()}
        shapes = {name: (each.values.shape, each.layers) for name, each in self.values.items()}
        shapes |= {name: (each.ids.shape, each.layers) for name, each in self.words.items()}
        for name, (shape, layers) in shapes.items():
            if len(shape) < 2 or shape[0] != max(len(layers), 1):
                raise DataError(
                    f"The map {name!r} of sample {self.sample_id!r} has the shape {shape} for "
                    f"{len(layers)} layers. Give it a row for each layer, or one row and no layers."
                )
            sizes[name] = shape[1]
        if len(set(sizes.values())) > 1:
            raise DataError(
                f"The maps of sample {self.sample_id!r} have different numbers of visual tokens: "
                f"{sizes}. Give each a number for every visual token, NaN where there is none."
            )

    @property
    def tokens(self) -> int:
        """How many visual tokens the sample has; 0 without maps."""
        for value_map in self.values.values():
            return int(value_map.values.shape[1])
        for word_map in self.words.values():
            return int(word_map.ids.shape[1])
        return 0


class MapFolder:
    """The maps that one analysis writes.

    Args:
        folder: Folder of the analysis; None for one without, whose maps stay in memory.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._kept: dict[str, SampleMaps] = {}

    def __contains__(self, sample_id: str) -> bool:
        if self._folder is None:
            return sample_id in self._kept
        return _find_path(self._folder, sample_id).is_file()

    def write(self, maps: SampleMaps) -> None:
        """Write the maps of a sample; those of an earlier run are replaced."""
        if self._folder is None:
            self._kept[maps.sample_id] = maps
        else:
            _write(_find_path(self._folder, maps.sample_id), maps)

    def read(self) -> list[SampleMaps]:
        """Return all that is written, of all processes, sorted by the samples' ids."""
        if self._folder is None:
            return sorted(self._kept.values(), key=lambda maps: maps.sample_id)
        return read_sample_maps(self._folder)


def choose_map_samples(sample_ids: Iterable[str], count: int) -> frozenset[str]:
    """Return the ids of samples that are drawn: the same ones in each analysis and process.

    They are chosen by a hash of the id, so that sorted data give no sample an advantage.
    """
    return frozenset(heapq.nsmallest(count, sample_ids, key=digest_sample_id))


def digest_sample_id(sample_id: str) -> str:
    """Return a name of a file for a sample, whatever its id looks like."""
    return hashlib.sha256(sample_id.encode()).hexdigest()[:16]


def make_word_map(
    ids: NDArray[np.integer[Any]],
    scores: NDArray[np.floating[Any]],
    decode: Any,
    layers: Sequence[int],
    label: str,
) -> WordMap:
    """Return the words of token ids.

    Args:
        ids: (layers, tokens, k) ids of the tokenizer, the best first.
        scores: (layers, tokens, k), how good each is.
        decode: Makes the text of one id, such as `tokenizer.decode`.
        layers: Their numbers.
        label: What a score is.
    """
    found, places = np.unique(ids, return_inverse=True)
    words = tuple(str(decode(int(each))).strip() for each in found)
    return WordMap(words, places.reshape(ids.shape), scores, tuple(layers), label)


def read_sample_maps(folder: Path) -> list[SampleMaps]:
    """Return the maps that an analysis wrote into its folder, sorted by the samples' ids.

    Raises:
        DataError: A file is damaged.
    """
    found = [_read(path) for path in (folder / MAPS).glob("*.safetensors")]
    return sorted(found, key=lambda maps: maps.sample_id)


def find_pictures_folder(folder: Path) -> Path:
    """Return where pictures and questions of the samples are that have maps.

    Args:
        folder: Folder of a pass, `<run>/analysis/<pass>`.
    """
    return folder.parents[1] / _PICTURES / folder.name


def list_map_samples(folder: Path) -> dict[str, int]:
    """Return the samples of which any analysis in a folder has maps: id -> visual tokens."""
    found: dict[str, int] = {}
    for path in sorted(folder.glob(f"*/{MAPS}/*.safetensors")):
        with _open_maps(path) as file:
            metadata = file.metadata()
            found[metadata["sample_id"]] = int(metadata["tokens"])
    return found


def _find_path(folder: Path, sample_id: str) -> Path:
    return folder / MAPS / f"{digest_sample_id(sample_id)}.safetensors"


def _write(path: Path, maps: SampleMaps) -> None:
    import torch  # noqa: PLC0415 - whoever reads maps does without

    tensors: dict[str, Any] = {}
    values: list[dict[str, Any]] = []
    for k, (name, numbers) in enumerate(maps.values.items()):
        tensors[f"values.{k}"] = torch.from_numpy(np.asarray(numbers.values, dtype=np.float32))
        values.append({"name": name, "layers": numbers.layers, "label": numbers.label})
    words: list[dict[str, Any]] = []
    for k, (name, each) in enumerate(maps.words.items()):
        tensors[f"ids.{k}"] = torch.from_numpy(np.asarray(each.ids, dtype=np.int32))
        tensors[f"scores.{k}"] = torch.from_numpy(np.asarray(each.scores, dtype=np.float32))
        words.append(
            {"name": name, "layers": each.layers, "label": each.label, "words": each.words}
        )
    for k, inside in enumerate(maps.sets.values()):
        tensors[f"set.{k}"] = torch.from_numpy(np.asarray(inside, dtype=np.bool_))
    about = {"values": values, "words": words, "notes": {**maps.notes}, "sets": [*maps.sets]}
    metadata = {"sample_id": maps.sample_id, "tokens": str(maps.tokens)}
    write_tensor_file(path, tensors, {**metadata, "about": json.dumps(about)})


def _read(path: Path) -> SampleMaps:
    with _open_maps(path) as file:
        metadata = file.metadata()
        about = json.loads(metadata["about"])
        values: dict[str, ValueMap] = {}
        for k, each in enumerate(about["values"]):
            values[each["name"]] = ValueMap(
                file.get_tensor(f"values.{k}"), tuple(each["layers"]), each["label"]
            )
        words: dict[str, WordMap] = {}
        for k, each in enumerate(about["words"]):
            words[each["name"]] = WordMap(
                tuple(each["words"]),
                file.get_tensor(f"ids.{k}"),
                file.get_tensor(f"scores.{k}"),
                tuple(each["layers"]),
                each["label"],
            )
        sets = {name: file.get_tensor(f"set.{k}") for k, name in enumerate(about["sets"])}
        return SampleMaps(metadata["sample_id"], values, words, about["notes"], sets)


@contextmanager
def _open_maps(path: Path) -> Iterator[Any]:
    """Open a file of maps; whatever is wrong with it is a DataError that names it."""
    from safetensors import SafetensorError, safe_open  # noqa: PLC0415 - as in `store.files`

    try:
        with safe_open(path, "np") as file:
            yield file
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"The maps in {path} can't be read: {error}. Delete the file, and run the analysis "
            "again."
        ) from error
