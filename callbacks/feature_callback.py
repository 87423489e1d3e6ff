"""The base of callbacks that extract features: before training, at validations, after a test."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import lightning as L

from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.callbacks.right_answers import RightAnswers
from lightning_mllm.callbacks.trainer_state import (
    trainer_is_due,
    trainer_mllm,
    trainer_starts_untrained,
)
from lightning_mllm.callbacks.watched_split import check_watched_features, extract_watched_samples
from lightning_mllm.data.loading.splits import Split
from lightning_mllm.errors import ConfigError
from lightning_mllm.probing import FeatureCache, Point
from lightning_mllm.probing.features.extraction import ExtractedSamples

_Moment = Literal["before", "validation", "test"]


class FeatureCallback(L.Callback, ABC):
    """Calls `use_features` before training, at validations of a fit, and after a test.

    Several of them share their passes: the first that needs a split at some moment reads what all
    of them need, where their caches are the same.

    Args:
        points: Where features are read.
        every_n_epochs: Number of epochs between the validations that are used; the last validation
            of a fit always is.
        before_training: Whether the untrained model is used too.
        cache: Stores the features of a frozen vision tower.

    Attributes:
        answered: Split -> what the model answered rightly in its last evaluation.

    Raises:
        ConfigError: There is no point, or `every_n_epochs` is less than 1.
    """

    def __init__(
        self,
        points: Point | Sequence[Point],
        *,
        every_n_epochs: int,
        before_training: bool,
        cache: FeatureCache | None,
    ) -> None:
        name = type(self).__name__
        self.points = (points,) if isinstance(points, Point) else tuple(points)
        if not self.points:
            raise ConfigError(f"{name}.points is empty. Name one point or more.")
        if every_n_epochs < 1:
            raise ConfigError(f"{name}.every_n_epochs must be at least 1, not {every_n_epochs}.")
        self.every_n_epochs, self.before_training = every_n_epochs, before_training
        self.cache = cache
        self.answered = {"val": RightAnswers(), "test": RightAnswers()}
        self._moment: _Moment = "before"
        self._given: dict[Split, ExtractedSamples] = {}  # by another callback, at this moment

    @abstractmethod
    def use_features(self, trainer: L.Trainer, pl_module: L.LightningModule, split: Split) -> None:
        """Extract features with the current weights, and use them.

        Args:
            trainer: The Trainer, with its data.
            pl_module: The MLLMModule that is trained or tested.
            split: "val" during a fit, "test" after a test.
        """

    def print_table(self) -> None:
        """Print what was found, at the end of a fit or an evaluation; by default nothing."""
        return

    def splits_used(self, split: Split) -> tuple[Split, ...]:
        """Return the splits that `use_features` extracts for a split."""
        return ("train", split)

    def patches_used(self, trainer: L.Trainer, split: Split) -> int:
        """Return how many patches of each picture are kept, before and behind the projection."""
        return 0

    def check(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Refuse, at the start, options that don't fit model and data."""
        check_watched_features(trainer, pl_module, self.points, self.cache)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Check the options, and use the features of the untrained model."""
        self.check(trainer, pl_module)
        self._use(trainer, pl_module, "before")

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forget the answers of the last validation."""
        if not trainer.sanity_checking:
            self.answered["val"].reset(trainer_mllm(pl_module).trained_steps)

    def on_validation_batch_end(  # noqa: PLR0917 - as Lightning calls it
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: MultimodalBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Note which samples the model answers rightly."""
        if not trainer.sanity_checking:
            self.answered["test" if trainer.testing else "val"].add(batch, outputs)

    on_test_batch_end = on_validation_batch_end

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Use the features of the current model."""
        self._use(trainer, pl_module, "validation")

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Check the options, and forget the answers of the last test."""
        self.check(trainer, pl_module)
        self.answered["test"].reset(trainer_mllm(pl_module).trained_steps)

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Use the features of the test split."""
        self._use(trainer, pl_module, "test")

    def extract(
        self, trainer: L.Trainer, pl_module: L.LightningModule, split: Split
    ) -> ExtractedSamples:
        """Return what is read of the samples of a split, also for callbacks that come later."""
        given = self._given.pop(split, None)
        if given is not None:
            return given
        sharing: list[FeatureCallback] = [self]
        later = trainer.callbacks[trainer.callbacks.index(self) + 1 :]  # type: ignore[attr-defined]
        for each in later:
            if isinstance(each, FeatureCallback) and self._shares(trainer, pl_module, each, split):
                sharing.append(each)
        points: dict[Point, None] = {}
        for each in sharing:
            points |= dict.fromkeys(each.points)
        patches = max(each.patches_used(trainer, split) for each in sharing)
        found = extract_watched_samples(
            trainer, pl_module, split, list(points), self.cache, patches
        )
        for each in sharing:
            keeps = each.patches_used(trainer, split) > 0
            own = found if keeps else replace(found, patches=())
            each._given[split] = own.at([point.name for point in each.points])
        return self._given.pop(split)

    def _use(self, trainer: L.Trainer, pl_module: L.LightningModule, moment: _Moment) -> None:
        self._moment = moment
        if self._is_due(trainer, pl_module, moment):
            self.use_features(trainer, pl_module, "test" if moment == "test" else "val")
        self._given.clear()  # no features outlast the weights that they are of

    def _is_due(self, trainer: L.Trainer, pl_module: L.LightningModule, moment: _Moment) -> bool:
        if moment == "before":
            starts = trainer_starts_untrained(trainer, trainer_mllm(pl_module))
            return self.before_training and starts
        return moment == "test" or trainer_is_due(trainer, self.every_n_epochs)

    def _shares(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        other: FeatureCallback,
        split: Split,
    ) -> bool:
        """Return whether another callback needs a split at this moment, read in the same way."""
        used = other.splits_used("test" if self._moment == "test" else "val")
        caches = [None if each.cache is None else each.cache.key for each in (self, other)]
        is_due = other._is_due(trainer, pl_module, self._moment)
        return split in used and caches[0] == caches[1] and is_due
