"""The words that patches say, against chance: does an object's patch say the object's own words?

At each layer each visual token is read by the logit lens, head(norm(state)), and on request by the
nearest contextual text states of a bank (LatentLens, arXiv 2602.00462). Of samples with boxes those
patches count that show the box and no other object, else all patches. Two shares of them:

- own words: the likeliest (or nearest) word of all is one of the sample's own;
- an attribute: the likeliest of its values (all colours of the data) is the sample's.

Beside each stands what the same patches would get by chance: the words of the samples of other
pictures, on average; and how many patches of the picture that show no object say the words.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lightning_mllm.analysis.core.analysis import Analysis
from lightning_mllm.analysis.core.result import AnalysisResult
from lightning_mllm.analysis.forward.out_of_memory import MemoryPieces
from lightning_mllm.analysis.lens.bank.bank import Bank
from lightning_mllm.analysis.lens.patches.counting import PatchCounts, PatchSets
from lightning_mllm.analysis.lens.patches.own_words import OwnWords
from lightning_mllm.analysis.lens.patches.reading import (
    BankPatchLens,
    LogitPatchLens,
    PatchLens,
    choose_patch_layers,
    observe_patches,
)
from lightning_mllm.analysis.lens.patches.rows import MANY, PatchWordsRow
from lightning_mllm.analysis.lens.patches.summary import (
    TOP_WORDS,
    choose_patch_pictures,
    list_top_words,
    summarise_patch_words,
)
from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.errors import ConfigError
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.statistics.picture_bootstrap import Bootstrap
from lightning_mllm.store.files import write_csv_file
from lightning_mllm.store.rows import Rows
from lightning_mllm.types import Sample


class PatchWords(Analysis):
    """Reads the words that patches say, layer by layer.

    Args:
        layers: At which layers, 0 (what enters the LLM) to L; by default all, or nine of many.
        fields: Names of the samples' fields whose text says what they show, e.g. [color, shape];
            the name of a sample's class always does.
        bank: Folder of a bank of text states, from `lightning bank`; without one only the logit
            lens reads.
        draw: How many pictures are drawn with the words on their patches, by the samples' ids.
        draw_layer: At which layer; by default where most own words are said, else in the middle.
        bootstrap: How intervals are drawn.
        label: A name of your own for this analysis and its folder.

    Raises:
        ConfigError: There is no such bank, or `draw` is negative.
    """

    default_name: ClassVar[str] = "patch_words"
    rows: Rows[PatchWordsRow]
    _counts: PatchCounts | None  # from the first batch on

    def __init__(
        self,
        *,
        layers: Sequence[int] | None = None,
        fields: Sequence[str] = (),
        bank: str | None = None,
        draw: int = 4,
        draw_layer: int | None = None,
        bootstrap: Bootstrap = Bootstrap(),
        label: str = "",
    ) -> None:
        super().__init__(label=label)
        if draw < 0:
            raise ConfigError(f"PatchWords.draw is a number of pictures, 0 or more, not {draw}.")
        self.layers = None if layers is None else tuple(layers)
        self.fields = tuple(fields)
        self.bank = None if bank is None else Bank(bank)
        self.draw, self.draw_layer, self.bootstrap = draw, draw_layer, bootstrap
        self._own = OwnWords()
        self._folder: Path | None = None
        PatchWords.reset(self)

    @property
    def settings(self) -> Mapping[str, Any]:
        """What decides the rows."""
        return {
            "layers": None if self.layers is None else list(self.layers),
            "bank": None if self.bank is None else dict(self.bank.making),
            "attributes": self._own.attributes,
            "own_words": self._own.digest,
        }

    def check(self, samples: Iterable[Sample]) -> None:
        """Note what the samples show; refuse data without images."""
        known = list(samples)
        if not any(sample.images for sample in known):
            raise ConfigError(
                f"{self.name} reads the patches of pictures, but no sample has an image. Use data "
                "with images."
            )
        self._own = OwnWords.of(known, self.fields)

    def check_model(self, backbone: Backbone) -> None:
        """Refuse layers that are not there or not read, and a bank of another model."""
        layers = choose_patch_layers(backbone, self.layers)
        if self.draw and self.draw_layer is not None and self.draw_layer not in layers:
            raise ConfigError(
                f"PatchWords.draw_layer is {self.draw_layer}, but read are layers "
                f"{', '.join(map(str, layers))}. Name one of these, or add it to `layers`."
            )
        if self.bank is not None:
            self.bank.check_model(backbone)

    def prepare(
        self,
        tokenizer: PreTrainedTokenizerBase,
        folder: Path | None = None,
        source: Mapping[str, Any] | None = None,
        rank: int = 0,
        answers: object = None,
    ) -> None:
        """Get ready; see `Analysis.prepare`."""
        self.reset()
        self._tokenizer, self._source, self._folder = tokenizer, source or {}, folder
        self.rows = Rows(PatchWordsRow, folder, self.making, rank)

    @torch.no_grad()
    def update(self, backbone: Backbone, batch: MultimodalBatch) -> None:
        """Read the patches of the samples that have no rows yet.

        Out of memory, fewer of them are read at a time.
        """
        if self._counts is None:
            self.check_model(backbone)
            self._counts = PatchCounts(self._own, self.tokenizer)
        new = []
        for row, sample_id in enumerate(batch.sample_ids):
            if sample_id not in self._own.of_sample:
                raise ConfigError(
                    f"{self.name} does not know sample {sample_id!r}: call check(samples) with all "
                    "samples before the first batch, so that it knows what they show."
                )
            if sample_id not in self.rows.done:
                new.append(row)
        self._pieces.run(new, len(new), lambda rows: self._take_in(backbone, batch.take(rows)))

    def merge(self) -> None:
        """Make one file of the rows of all processes, and one of the top words of each class."""
        self.rows.merge()
        if self._folder is not None:
            table = self.rows.table(leave_out=MANY)
            write_csv_file(self._folder / "top_words.csv", TOP_WORDS, list_top_words(table))

    def compute(self) -> AnalysisResult:
        """Return shares of patches that say the samples' own words, and pictures to draw."""
        table = self.rows.table(leave_out=MANY)
        settings = {**self.making, "bootstrap": asdict(self.bootstrap)}
        result = summarise_patch_words(self.name, table, settings, self.bootstrap)
        read = table["layer"] >= 0
        _, first = np.unique(table["picture"][read], return_index=True)
        chosen = table["sample_id"][read][np.sort(first)[: self.draw]].tolist()
        words = self.rows.table(only=chosen)
        return choose_patch_pictures(result, words, self.draw_layer)

    def explain_nothing(self) -> str:
        """Return that no sample has a picture."""
        return f"{self.name} has read no patch, because no sample has an image. Use such data."

    def reset(self) -> None:
        """Forget all rows; rows in a folder stay there."""
        self.rows = Rows(PatchWordsRow)
        self._pieces = MemoryPieces("pictures")
        self._counts = None

    def _take_in(self, backbone: Backbone, batch: MultimodalBatch) -> None:
        """Read the patches of a batch; rows are written when all have been read."""
        assert self._counts is not None  # `update` has it so
        counts = self._counts
        sets = PatchSets.of(batch, self._own.boxed)
        rows: dict[str, list[PatchWordsRow]] = {each: [] for each in batch.sample_ids}
        lenses: list[PatchLens] = [LogitPatchLens(backbone, self.tokenizer)]
        if self.bank is not None:
            lenses.append(BankPatchLens(self.bank))

        def read(layer: int, states: Tensor) -> None:
            for lens in lenses:
                said = lens.read(states, 1, counts.candidates)
                for sample_id, own in counts.count(batch, sets, lens.name, layer, said):
                    rows[sample_id] += own

        if bool(sets.patches.any()):
            observe_patches(backbone, batch, choose_patch_layers(backbone, self.layers), read)
        for sample_id, picture in zip(batch.sample_ids, batch.pictures, strict=True):
            if not rows[sample_id]:
                label = self._own.label_of(sample_id)
                rows[sample_id] = [PatchWordsRow(sample_id=sample_id, picture=picture, label=label)]
        self.rows.append(rows)
