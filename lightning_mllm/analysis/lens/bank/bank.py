"""A bank: states of words in texts, in which the nearest to any state are looked up by cosine.

LatentLens (arXiv 2602.00462) reads a visual token by the words of the contextual text states that
are nearest to it. A bank is a folder:

- `making.json`: which LLM, layers and texts it is of;
- `contexts.csv`: a row per state: its token, the whole word, and the text up to the word;
- `layer-<k>.safetensors`: (states, width), float16, of length 1, in front of layer k.

The states stay in their files, which are mapped into memory. They are searched piece by piece.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lightning_mllm.errors import ConfigError, DataError
from lightning_mllm.models.backbone import Backbone, fingerprint_backbone
from lightning_mllm.store.files import read_json
from lightning_mllm.store.manifest import MANIFEST

CONTEXTS = "contexts.csv"
CONTEXT_COLUMNS = ("token_id", "token", "word", "position", "context")
STATES = "states"  # the tensor in each file
_PIECE = 1 << 24  # numbers of a bank that are searched at once
_TIE = 1e-10  # by which the first of equal cosines goes before the last of a layer


class NearestStates(NamedTuple):
    """The nearest states of a bank to n states.

    Attributes:
        cosines: (n, top), float32, the largest first.
        indices: (n, top), which rows of `contexts.csv`.
        layers: (n, top), in front of which layer the state of the bank is.
    """

    cosines: Tensor
    indices: Tensor
    layers: Tensor


class Bank:
    """A bank that was built by `lightning bank`.

    Args:
        path: Folder of the bank.

    Attributes:
        making: How it was made.
        words: The whole word of each state.
        contexts: The text up to each word.
        layers: Numbers of the layers that it has states of.

    Raises:
        ConfigError: There is no bank in the folder.
        DataError: A file of it is damaged.
    """

    def __init__(self, path: str | Path) -> None:
        self.folder = Path(path)
        if not (self.folder / MANIFEST).is_file() or not (self.folder / CONTEXTS).is_file():
            raise ConfigError(
                f"There is no bank of text states in {self.folder}. Build it: lightning bank "
                f"--model.checkpoint ... --texts captions.txt --output {self.folder}"
            )
        self.making: Mapping[str, Any] = read_json(self.folder / MANIFEST)
        self.layers: tuple[int, ...] = tuple(self.making["layers"])
        with (self.folder / CONTEXTS).open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        self.words = [row["word"] for row in rows]
        self.contexts = [row["context"] for row in rows]
        for layer in self.layers:
            self._check_file(layer)

    def __len__(self) -> int:
        """Return the number of states of each layer."""
        return len(self.words)

    def check_model(self, backbone: Backbone) -> None:
        """Refuse a model that the bank was not made of.

        Vision tower and projection may differ: texts do not pass them.

        Raises:
            ConfigError: The LLM has other weights.
        """
        own = fingerprint_language_model(backbone)
        if own != self.making["language_model"]:
            raise ConfigError(
                f"The bank in {self.folder} is of an LLM with other weights (digest "
                f"{self.making['language_model']}, here {own}), whose states can't be compared "
                "with this one's. Build one of this model: lightning bank."
            )

    @torch.no_grad()
    def search(self, states: Tensor, top: int, piece: int | None = None) -> NearestStates:
        """Return the nearest states of all layers of the bank together.

        Args:
            states: (n, width), of any length.
            top: How many to return; fewer where the bank has fewer.
            piece: How many states of the bank are compared at once; by default 64 MB of them.
        """
        asked = torch.nn.functional.normalize(states.float(), dim=-1)
        rows = piece or max(1, _PIECE // asked.shape[1])
        parts = asked.split(max(1, _PIECE // rows))  # no more products at once than numbers
        none = asked.new_zeros((len(asked), 0), dtype=torch.float64).split(len(parts[0]))
        # per part the best cosines, and where: place of the layer * states + row
        found = [(each, each.long()) for each in none]
        for place, layer in enumerate(self.layers):
            with safe_open(self._file(layer), framework="pt") as file:
                stored = file.get_slice(STATES)
                for first in range(0, len(self), rows):
                    some = stored[first : first + rows].to(asked.device).float()
                    numbers = (
                        torch.arange(len(some), device=asked.device) + place * len(self) + first
                    )
                    # of equal ones the first: in front of layer 0, a token has one state
                    ties = numbers * (_TIE / len(self))
                    for index, part in enumerate(parts):
                        ordered = (part @ some.T).double() - ties
                        found[index] = _keep_nearest(found[index], ordered, numbers, top)
        best, where = (torch.cat(each) for each in zip(*found, strict=True))
        cosines = (best + where * (_TIE / len(self))).float()
        layers = torch.tensor(self.layers, device=where.device)
        return NearestStates(cosines, where % len(self), layers[where // len(self)])

    def _file(self, layer: int) -> Path:
        return self.folder / name_of_layer_file(layer)

    def _check_file(self, layer: int) -> None:
        expected = [len(self), self.making["width"]]
        try:
            with safe_open(self._file(layer), framework="pt") as file:
                shape = list(file.get_slice(STATES).get_shape())
        except (OSError, SafetensorError) as error:
            raise DataError(
                f"{self._file(layer)} can't be read ({error}). Build the bank again."
            ) from error
        if shape != expected:
            raise DataError(
                f"{self._file(layer)} holds {shape} numbers, not {expected}. Build the bank again."
            )


def _keep_nearest(
    found: tuple[Tensor, Tensor], cosines: Tensor, numbers: Tensor, top: int
) -> tuple[Tensor, Tensor]:
    """Return the nearest of those found so far, (n, k) cosines and numbers, and of a piece."""
    best, where = found
    new = cosines.topk(min(top, cosines.shape[1]), dim=-1)
    every = torch.cat([best, new.values], dim=1)
    best, kept = every.topk(min(top, every.shape[1]), dim=1)
    return best, torch.cat([where, numbers[new.indices]], dim=1).gather(1, kept)


def name_of_layer_file(layer: int) -> str:
    """Return the name of the file with the states in front of a layer."""
    return f"layer-{layer}.safetensors"


def fingerprint_language_model(backbone: Backbone) -> str:
    """Hash the LLM's weights as they are now, without those of vision tower and projection."""
    decoder: Any = backbone.decoder
    return fingerprint_backbone(decoder)
