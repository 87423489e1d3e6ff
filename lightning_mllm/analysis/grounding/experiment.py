"""Is what the model says grounded in the picture? Its own picture against others'.

Each sample's reference answer is scored with its own picture and with others' in its place; all
else stays the same. A model that reads its pictures finds the answer likelier with its own. How
much likelier says how much the picture tells it, in nats per answer, and how often one of several
pictures can be matched with its text by the answer's likelihood alone.

Two controls need no other picture: one of the same size that shows nothing (`blind`), and the own
one with its visual tokens in another order (`shuffled`).

The tower and the projector run once per picture. All pictures must be known before others can be
drawn, so answers are scored when the last batch has come. Until then each picture's features are in
memory, on the CPU: 0.1 MB for 64 tokens of 576 numbers in 16 bits, 4.7 MB for 576 of 4,096.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lightning_mllm.analysis.core.analysis import Analysis
from lightning_mllm.analysis.core.result import AnalysisResult
from lightning_mllm.analysis.forward.out_of_memory import MemoryPieces
from lightning_mllm.analysis.grounding.likelihood import (
    answer_log_likelihoods,
    count_answer_tokens,
)
from lightning_mllm.analysis.grounding.pictures import (
    PictureEncoder,
    SeenPicture,
    draw_others,
    move_encoded,
)
from lightning_mllm.analysis.grounding.rows import BLIND, OWN, SHUFFLED, GroundingRow
from lightning_mllm.analysis.grounding.splicing import (
    cut_picture,
    replace_picture,
    stack_samples,
    take_unpadded,
)
from lightning_mllm.analysis.grounding.summary import summarise_grounding
from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.errors import ConfigError
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.models.vision import EncodedImage
from lightning_mllm.progress import show_progress
from lightning_mllm.statistics.picture_bootstrap import Bootstrap
from lightning_mllm.store.rows import Rows
from lightning_mllm.types import Sample


class _Showing(NamedTuple):
    """A sample with a picture in the place of its own."""

    condition: str
    shown: str
    tokens: MultimodalBatch
    encoded: EncodedImage


class Grounding(Analysis):
    """Scores each sample's answer with its own picture, and with others'.

    Samples without an image, with several, or without an answer are left out; they keep a row that
    says so.
    The others are the next ones in a circle of all pictures that is drawn by seed. Where several
    processes share the data, each draws a circle of the pictures that it has.

    Args:
        others: With how many other pictures each answer is scored; with 9, the own one is to be
            found among 10.
        seed: Seed of the circle, and of the order of shuffled tokens.
        kind_depth: How many parts of a kind's name, between slashes, tell kinds apart; by default
            all.
        bootstrap: How intervals are drawn.
        label: A name of your own for this analysis and its folder.

    Raises:
        ConfigError: There is no other picture to compare with, or the label is no folder name.
    """

    default_name: ClassVar[str] = "grounding"
    rows: Rows[GroundingRow]
    _backbone: Backbone | None  # which the last batch came with
    _size: int  # samples in the largest batch
    _waiting: dict[str, MultimodalBatch]  # sample id -> its text
    _pictures: dict[str, SeenPicture]
    _encoder: PictureEncoder

    def __init__(
        self,
        *,
        others: int = 9,
        seed: int = 0,
        kind_depth: int | None = None,
        bootstrap: Bootstrap = Bootstrap(),
        label: str = "",
    ) -> None:
        super().__init__(label=label)
        if others < 1:
            raise ConfigError(f"Grounding.others must be at least 1, not {others}.")
        self.others, self.seed = others, seed
        self.kind_depth, self.bootstrap = kind_depth, bootstrap
        self.reset()

    @property
    def settings(self) -> Mapping[str, Any]:
        """What decides the rows."""
        return {"others": self.others, "seed": self.seed}

    def check(self, samples: Iterable[Sample]) -> None:
        """Refuse too few pictures."""
        alone = (sample for sample in samples if len(sample.images) == 1)
        self._check_pictures(len({sample.picture or sample.id for sample in alone}))

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
        self._tokenizer, self._source = tokenizer, source or {}
        self.rows = Rows(GroundingRow, folder, self.making, rank)

    @torch.no_grad()
    def update(self, backbone: Backbone, batch: MultimodalBatch) -> None:
        """Look at the pictures of a batch, and keep its text until all pictures are known."""
        self._backbone, self._size = backbone, max(self._size, len(batch))
        texts, tokens = replace(batch, images=()).to("cpu"), count_answer_tokens(batch)
        new: dict[str, int] = {}  # picture -> row
        left_out: dict[str, list[GroundingRow]] = {}
        for row, (name, kind) in enumerate(zip(batch.sample_ids, batch.kinds, strict=True)):
            picture = batch.pictures[row]
            if batch.image_counts[row] == 1 and tokens[row]:
                if picture not in self._pictures:
                    new.setdefault(picture, row)
                if name not in self.rows.done:
                    self._waiting[name] = take_unpadded(texts, row)
            elif name not in self.rows.done:
                only = GroundingRow(
                    sample_id=name, kind=kind or "", picture=picture, measured=False
                )
                left_out[name] = [only]
        self.rows.append(left_out)
        rows = list(new.values())
        self._looks.run(rows, len(batch), lambda some: self._look_at(backbone, batch.take(some)))

    @torch.no_grad()
    def settle(self) -> None:
        """Score the answers of all samples that have no rows yet.

        Raises:
            ConfigError: There are too few pictures to compare with.
        """
        if not self._waiting:
            self._forget()
            return
        self._check_pictures(len(self._pictures))
        circle = draw_others(self._pictures, self.others, self.seed)
        waiting = list(self._waiting.values())
        with show_progress(f"{self.name}: scoring answers", len(waiting)) as bar:
            for start in range(0, len(waiting), self._size):
                some = waiting[start : start + self._size]
                self._score(some, circle)
                bar.advance(len(some))
        self._forget()

    def merge(self) -> None:
        """Make one file of the rows of all processes."""
        self.settle()
        self.rows.merge()

    def compute(self) -> AnalysisResult:
        """Return the result of all rows."""
        self.settle()
        return summarise_grounding(
            self.name,
            self.rows.table(),
            self.making,
            others=self.others,
            kind_depth=self.kind_depth,
            bootstrap=self.bootstrap,
        )

    def reset(self) -> None:
        """Forget all samples; rows in a folder stay there."""
        self.rows = Rows(GroundingRow)
        self._looks, self._pieces = MemoryPieces("pictures"), MemoryPieces("answers")
        self._forget()

    def _forget(self) -> None:
        """Forget what is kept until all pictures are known."""
        self._backbone, self._size = None, 1
        self._waiting, self._pictures = {}, {}
        self._encoder = PictureEncoder()

    def _check_pictures(self, count: int) -> None:
        if count <= self.others:
            raise ConfigError(
                f"{self.name} compares each picture with {self.others} others, but the samples "
                f"with one image have {count} pictures. Use more samples, or fewer others "
                "(--analysis.others)."
            )

    def _look_at(self, backbone: Backbone, batch: MultimodalBatch) -> None:
        """Encode the pictures of a batch, of whose samples each has one."""
        texts = replace(batch, images=()).to("cpu")
        encoded = self._encoder.encode(backbone, batch.images)
        for row, picture in enumerate(batch.pictures):
            tokens = cut_picture(take_unpadded(texts, row))
            blind = self._encoder.encode_blind(backbone, batch.images[row])
            self._pictures[picture] = SeenPicture(tokens, encoded[row], blind)

    def _score(
        self, samples: Sequence[MultimodalBatch], circle: Mapping[str, Sequence[str]]
    ) -> None:
        """Write the rows of some samples."""
        shown: list[_Showing] = []
        for sample in samples:
            shown += self._show(sample, circle[sample.pictures[0]])
        scores = torch.cat(self._pieces.run(shown, self._size, self._run)).view(len(samples), -1)
        rows: dict[str, list[GroundingRow]] = {}
        each = len(shown) // len(samples)
        for number, sample in enumerate(samples):
            (name,), (kind,), (picture,) = sample.sample_ids, sample.kinds, sample.pictures
            (tokens,) = count_answer_tokens(sample)
            rows[name] = []
            for showing, score in zip(
                shown[each * number : each * (number + 1)], scores[number].tolist(), strict=True
            ):
                rows[name].append(
                    GroundingRow(
                        sample_id=name,
                        kind=kind or "",
                        picture=picture,
                        condition=showing.condition,
                        shown=showing.shown,
                        log_likelihood=score,
                        tokens=tokens,
                    )
                )
        self.rows.append(rows)

    def _show(self, sample: MultimodalBatch, others: Sequence[str]) -> Iterator[_Showing]:
        """Yield a sample with each of the pictures that it is scored with."""
        (name,) = sample.pictures
        own = self._pictures[name]
        yield _Showing(OWN, name, sample, own.encoded)
        yield _Showing(BLIND, name, sample, own.blind)
        yield _Showing(SHUFFLED, name, sample, own.shuffle(name, self.seed))
        for number, other in enumerate(others, 1):
            seen = self._pictures[other]
            tokens = replace_picture(sample, seen.tokens)
            yield _Showing(str(number), other, tokens, seen.encoded)

    def _run(self, shown: Sequence[_Showing]) -> Tensor:
        """Return the log-likelihood of each answer, (shown,)."""
        assert self._backbone is not None  # `update` has brought the samples
        device = self._backbone.model.device
        batch = stack_samples([each.tokens for each in shown]).to(device)
        images = [move_encoded(each.encoded, device) for each in shown]
        return answer_log_likelihoods(self._backbone, batch, images)
