"""Counts the words of patches, sample by sample."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lightning_mllm.analysis.lens.patches.own_words import (
    FirstTokens,
    OwnWords,
    find_attribute_tokens,
    fold_patch_word,
)
from lightning_mllm.analysis.lens.patches.reading import (
    LogitPatchLens,
    SaidWords,
    find_patches,
)
from lightning_mllm.analysis.lens.patches.rows import (
    ANY,
    PatchWordsRow,
    count_patch_words,
    write_patch_list,
    write_top_patch_words,
)
from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.types import Segment


@dataclass(frozen=True, eq=False)
class PatchSets:
    """Which positions of a batch are which patches, (batch, sequence) bool each, on the CPU.

    Attributes:
        patches: All patches.
        own: Those that show the sample's boxes and no other object; without boxes all but padding.
        free: Those that show a part of the picture and no object; without boxes none.
    """

    patches: Tensor
    own: Tensor
    free: Tensor

    @classmethod
    def of(cls, batch: MultimodalBatch, boxed: set[str]) -> PatchSets:
        """Find them.

        Args:
            batch: The samples.
            boxed: Ids of those with boxes.
        """
        spans = batch.spans
        patches = find_patches(batch)
        shown = patches & ~spans[Segment.IMAGE_PADDING]
        others, its = spans[Segment.IMAGE_DISTRACTORS], spans[Segment.IMAGE_OBJECT]
        has_boxes = torch.tensor([[each in boxed] for each in batch.sample_ids]).to(shown.device)
        own = (shown & its & ~others).where(has_boxes, shown)
        free = shown & ~its & ~others & has_boxes
        return cls(patches.cpu(), own.cpu(), free.cpu())


class PatchCounts:
    """Turns what patches say into rows.

    Args:
        own: What the samples show.
        tokenizer: The model's.

    Attributes:
        candidates: The tokens whose scores decide among the values of attributes.
    """

    def __init__(self, own: OwnWords, tokenizer: PreTrainedTokenizerBase) -> None:
        self._own, self._first = own, FirstTokens(tokenizer)
        self._attributes = find_attribute_tokens(own.attributes, self._first)
        tokens = chain.from_iterable(each.tokens for each in self._attributes)
        self.candidates = torch.tensor([*tokens], dtype=torch.long)
        self._words: dict[str, set[str]] = {}  # lens -> words of all samples
        for lens in (LogitPatchLens.name, ""):
            every = [self._words_of(lens, each) for each in own.of_sample]
            self._words[lens] = set().union(*every)

    def count(
        self,
        batch: MultimodalBatch,
        sets: PatchSets,
        lens: str,
        layer: int,
        said: SaidWords,
    ) -> Iterator[tuple[str, list[PatchWordsRow]]]:
        """Yield id and rows of each sample that has patches.

        Args:
            batch: The samples.
            sets: Which of their patches count.
            lens: Name of the lens.
            layer: In front of which layer it read.
            said: What the patches of all samples say.
        """
        first = 0
        for row, sample_id in enumerate(batch.sample_ids):
            patches = sets.patches[row]
            part = slice(first, first + int(patches.sum()))
            first = part.stop
            if part.start == part.stop:
                continue
            own, free = sets.own[row][patches].tolist(), sets.free[row][patches].tolist()
            one = _OneSample(
                sample_id,
                batch.pictures[row],
                self._own.label_of(sample_id),
                lens,
                layer,
                own,
                free,
            )
            rows = [self._count_any(one, said, part)]
            if lens == LogitPatchLens.name:
                rows += self._count_attributes(one, said.scores[part])
            yield sample_id, rows

    def _count_any(self, one: _OneSample, said: SaidWords, part: slice) -> PatchWordsRow:
        """Return the row of the likeliest words of all."""
        words = [each[0] for each in said.words[part]]
        counted = self._words.get(one.lens, self._words[""])
        return one.make_row(
            ANY,
            self._words_of(one.lens, one.sample_id),
            list(map(fold_patch_word, words)),
            counted,
            patch_words=write_patch_list(words),
            patch_values=write_patch_list(said.values[part][:, 0]),
        )

    def _count_attributes(self, one: _OneSample, scores: Tensor) -> Iterator[PatchWordsRow]:
        """Yield a row for each attribute that the sample has."""
        first = 0
        for each in self._attributes:
            own = scores[:, first : first + len(each.tokens)]  # (patches, tokens)
            first += len(each.tokens)
            value = self._own.of_sample[one.sample_id].get(each.name)
            if value is not None:
                chosen = [each.values[each.owner[token]] for token in own.argmax(1).tolist()]
                yield one.make_row(each.name, {value}, chosen, set(each.values))

    def _words_of(self, lens: str, sample_id: str) -> set[str]:
        """Return the folded texts that count as a sample's words."""
        words = self._own.words_of(sample_id)
        return self._first.folded(words) if lens == LogitPatchLens.name else words


@dataclass(frozen=True)
class _OneSample:
    """A sample at a layer.

    Attributes:
        sample_id: Id of the sample.
        picture: Name of the sample's picture.
        label: Class of the sample; empty without one.
        lens: Name of the lens.
        layer: Number of the layer.
        own: Per patch, whether it is one of the sample's own.
        free: Per patch, whether it shows no object.
    """

    sample_id: str
    picture: str
    label: str
    lens: str
    layer: int
    own: Sequence[bool]
    free: Sequence[bool]

    def make_row(
        self, measure: str, own: set[str], words: Sequence[str], counted: set[str], **more: str
    ) -> PatchWordsRow:
        """Return the row of a measure, given the word of each patch and those that are counted."""
        its = [word for word, counts in zip(words, self.own, strict=True) if counts]
        elsewhere = [word for word, counts in zip(words, self.free, strict=True) if counts]
        return PatchWordsRow(
            sample_id=self.sample_id,
            picture=self.picture,
            label=self.label,
            lens=self.lens,
            layer=self.layer,
            measure=measure,
            own=write_patch_list(sorted(own)),
            patches=len(its),
            said=count_patch_words(its, counted),
            free=len(elsewhere),
            said_free=count_patch_words(elsewhere, counted),
            top=write_top_patch_words(its),
            **more,
        )
