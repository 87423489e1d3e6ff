"""Pairs of questions that differ in one thing, as a DataModule: data to patch with known truth."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from lightning_mllm.data.loading.datamodule import MLLMDataModule
from lightning_mllm.data.loading.splits import Split
from lightning_mllm.errors import ConfigError
from lightning_mllm.testbed.datamodules import check_datamodule_counts, make_exam_sample
from lightning_mllm.testbed.training.pairs import SWAPS, QuestionPair, Swap, make_question_pairs
from lightning_mllm.types import Sample


class WorldPairs(MLLMDataModule):
    """Pairs of questions about scenes that differ in one thing, and have different answers.

    The two samples of a pair follow each other, and the first names the second as its partner. A
    kind is swap, attribute, type and wording, e.g. "attribute/color/QueryAttr/1".

    Args:
        swap: What differs. "attribute": the colour, texture or shape of the object that is asked
            for it, and no pixel outside its box. "words": which object of the picture is asked
            about, in as many words.
        per_kind: Number of test questions per wording from which pairs are made; some can't be one.
        val_per_kind: Number of validation questions per wording.
        train_per_kind: Number of training questions per wording.
        world_seed: Seed of the scenes.
        **kwargs: Options of `MLLMDataModule`.

    Raises:
        ConfigError: There is no such swap, a split would be empty, or batches would part pairs.
    """

    def __init__(
        self,
        *,
        swap: Swap = "attribute",
        per_kind: int = 40,
        val_per_kind: int = 12,
        train_per_kind: int = 12,
        world_seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if swap not in SWAPS:
            raise ConfigError(f"swap is {swap!r}; it can be {' or '.join(map(repr, SWAPS))}.")
        if self.eval_batch_size % 2:
            raise ConfigError(
                f"eval_batch_size is {self.eval_batch_size}, which parts the samples of a pair. "
                "Use an even number."
            )
        self.swap, self.world_seed = swap, world_seed
        self.counts = check_datamodule_counts(
            {
                "train": ("train_per_kind", train_per_kind),
                "val": ("val_per_kind", val_per_kind),
                "test": ("per_kind", per_kind),
            }
        )

    def setup(self, stage: str) -> None:
        """Load and check what a stage needs; refuse processes whose shares part pairs."""
        processes = self.trainer.world_size if self.trainer else 1
        if self.eval_batch_size % (2 * processes):
            raise ConfigError(
                f"eval_batch_size is {self.eval_batch_size}, shared by {processes} processes, "
                f"which parts the samples of a pair. Use a multiple of {2 * processes}."
            )
        super().setup(stage)

    def load(self, split: Split) -> Sequence[Sample]:
        """Return the samples of a split, the kinds in turn: the first batches have all kinds."""
        found: list[tuple[int, QuestionPair]] = []
        seen: Counter[str] = Counter()
        made = make_question_pairs(self.swap, self.counts[split], seed=self.world_seed, split=split)
        for pair in made:
            found.append((seen[pair.clean.kind], pair))
            seen[pair.clean.kind] += 1
        samples: list[Sample] = []
        for _, pair in sorted(found, key=lambda numbered: numbered[0]):
            samples += self._make_samples(pair)
        return samples

    def _make_samples(self, pair: QuestionPair) -> list[Sample]:
        """Return both samples of a pair, which are about one picture."""
        kind = f"{self.swap}/{pair.attribute}/{pair.clean.kind.removeprefix('seen/')}"
        common: dict[str, Any] = {"kind": kind, "picture": pair.clean.scene.id}
        clean, corrupted = (
            replace(make_exam_sample(each, "seen"), **common)
            for each in (pair.clean, pair.corrupted)
        )
        return [replace(clean, partner=corrupted.id), corrupted]
