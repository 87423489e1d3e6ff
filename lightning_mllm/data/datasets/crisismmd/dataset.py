"""CrisisMMD v2.0: pictures of tweets about disasters."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_mllm.data.datasets.crisismmd.annotations import (
    AnnotatedImage,
    AnnotationColumns,
    read_annotations,
)
from lightning_mllm.data.datasets.published import Published, PublishedDataset
from lightning_mllm.data.loading.datamodule import MLLMDataModule
from lightning_mllm.data.loading.splits import Split
from lightning_mllm.errors import ConfigError, DataError
from lightning_mllm.types import Sample

FOUR_CLASSES: dict[str, str | None] = {
    "affected_individuals": "affected individuals",
    "injured_or_dead_people": "affected individuals",
    "missing_or_found_people": "affected individuals",
    "infrastructure_and_utility_damage": "infrastructure and utility damage",
    "rescue_volunteering_or_donation_effort": "rescue volunteering or donation effort",
    "vehicle_damage": "vehicle damage",
    "not_humanitarian": None,
    "other_relevant_information": None,
}
_TASK = "crisismmd_datasplit_all/task_humanitarian_text_img"

logger = logging.getLogger(__name__)


class CrisisMMD(PublishedDataset, MLLMDataModule):
    """CrisisMMD v2.0 (Alam et al., ICWSM 2018) with the split files of its task "humanitarian".

    Files and the paths in them are relative to `root`. Which column has the label, and what becomes
    of each label, are options, as the projection study does not say what is in its 4 classes.
    `FOUR_CLASSES` is our choice: the four that its figure shows, where people who are injured,
    dead, missing or found count as affected.

    Args:
        root: Folder of `data_image` and of the split files.
        train: TSV file of the training split.
        val: TSV file of the validation split.
        test: TSV file of the test split.
        label_column: Column of the label; `label_image` was given to the picture, `label_text` to
            the tweet's text.
        image_column: Column of the image's path.
        classes: Label -> class name, or None to drop its rows; by default `FOUR_CLASSES`. A label
            that is not named is an error.
        agrees_with: Column that must have the same label; rows in which it differs are dropped.
        confidence_column: Column of the annotators' agreement from 0 to 1, which the files in
            `annotations` have.
        min_confidence: Rows with a confidence below this are dropped.
        **kwargs: Options that all datasets have (see `MLLMDataModule`).
    """

    published = Published(
        images={"train": 13_608, "val": 2_237, "test": 2_237},
        classes={"train": 8},
        source="QCRI's dataset card, before labels are mapped and rows dropped",
    )

    def __init__(
        self,
        *,
        root: str,
        train: str = f"{_TASK}_train.tsv",
        val: str = f"{_TASK}_dev.tsv",
        test: str = f"{_TASK}_test.tsv",
        label_column: str = "label_image",
        image_column: str = "image",
        classes: dict[str, str | None] | None = None,
        agrees_with: str | None = None,
        confidence_column: str | None = None,
        min_confidence: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if min_confidence > 0 and confidence_column is None:
            raise ConfigError(
                f"min_confidence is {min_confidence}, but there is no confidence_column. Name the "
                "column, e.g. image_human_conf of the files in `annotations`, or leave "
                "min_confidence out."
            )
        self.root = Path(root)
        self.files: dict[Split, str] = {"train": train, "val": val, "test": test}
        self.columns = AnnotationColumns(label_column, image_column, agrees_with, confidence_column)
        self.classes = FOUR_CLASSES if classes is None else classes
        self.min_confidence = min_confidence
        # train is read again to look for its tweets in other splits
        self._images: dict[str, list[AnnotatedImage]] = {}

    def load(self, split: Split) -> Sequence[Sample]:
        """Return the samples of a split in the order of its file; ids are image ids.

        What is dropped is logged.

        Raises:
            DataError: A file is missing, a row is malformed or contradicts another, or a label is
                not in `classes`.
        """
        images = self._read(split)
        if split != "train":
            self._warn_of_shared_tweets(split, images)
        unknown = Counter(image.label for image in images if image.label not in self.classes)
        if unknown:
            found = ", ".join(f"{label!r} ({count:,})" for label, count in unknown.most_common())
            raise DataError(
                f"{self.root / self.files[split]}, column {self.columns.label!r}: labels that "
                f"`classes` does not name: {found}. Give each a class, or null to drop its rows."
            )
        kept = [image for image in images if self.classes[image.label] is not None]
        samples = []
        for image in kept:
            if image.agrees and image.confidence >= self.min_confidence:
                label = self.classes[image.label]
                samples.append(Sample(id=image.id, images=[image.image], label=label))
        if len(samples) < len(images):
            logger.warning(
                "%s: %d of %d images are used; %d are dropped by their label, %d for disagreement "
                "or low confidence",
                self.files[split],
                len(samples),
                len(images),
                len(images) - len(kept),
                len(kept) - len(samples),
            )
        return samples

    def count_as_published(self, split: Split, samples: Sequence[Sample]) -> Counter[str]:
        """Return the labels as they are in the file."""
        return Counter(image.label for image in self._read(split))

    def _read(self, split: Split) -> list[AnnotatedImage]:
        """Return the images of a split's file, which is read once unless rows are refused."""
        file = self.files[split]
        if file not in self._images:
            if not self.root.is_dir():
                raise DataError(
                    f"The folder {self.root} does not exist; set `root` to that of CrisisMMD_v2.0."
                )
            images = read_annotations(
                self.root / file, self.root.resolve(), self.columns, self.bad_rows
            )
            if self.bad_rows.will_raise:
                return images
            self._images[file] = images
        return self._images[file]

    def _warn_of_shared_tweets(self, split: Split, images: Sequence[AnnotatedImage]) -> None:
        """Warn of tweets with images in the training split and in another."""
        trained = {image.tweet for image in self._read("train")}
        shared = trained & {image.tweet for image in images}
        if shared:
            logger.warning(
                "%d tweets have images in both %s and %s (e.g. %s): the splits are not independent",
                len(shared),
                self.files["train"],
                self.files[split],
                min(shared),
            )
