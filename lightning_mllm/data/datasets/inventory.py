"""What a dataset has per split and class, as `lightning data check` shows it, without a model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Literal

from rich.console import Group
from rich.table import Table
from rich.text import Text

from lightning_mllm.data.datasets.published import PublishedDataset
from lightning_mllm.data.images.files import list_image_files
from lightning_mllm.data.images.inspection import look_at_image_files
from lightning_mllm.data.images.regions import check_region_boxes
from lightning_mllm.data.loading.bad_rows import IMAGE_FILE, BadRows
from lightning_mllm.data.loading.datamodule import MLLMDataModule
from lightning_mllm.data.loading.equal_files import find_first_duplicates
from lightning_mllm.data.loading.sample_checks import (
    check_sample,
    check_sample_labels,
    list_sample_labels,
)
from lightning_mllm.data.loading.sample_errors import fetch_sample
from lightning_mllm.data.loading.splits import SPLITS, Split
from lightning_mllm.data.text.labels import collect_labels
from lightning_mllm.errors import DataError
from lightning_mllm.types import LazyImage, Sample

__all__ = ["SPLITS", "Inventory", "take_inventory"]

SHOWN = 20  # copies that are listed
UNLABELLED = "(no label)"

Samples = Mapping[Split, Sequence[Sample]]


@dataclass(frozen=True)
class InventoryCount:
    """One published number of a split beside what was found."""

    split: Split
    what: Literal["images", "classes"]
    published: int
    found: int


@dataclass(frozen=True)
class InventoryImage:
    """Where an image occurs."""

    split: Split
    sample_id: str
    label: str | None


Occurrences = tuple[InventoryImage, ...]


@dataclass(frozen=True)
class Inventory:
    """What was found in a dataset.

    Attributes:
        name: The name of the DataModule's class.
        counts: Split -> class -> samples; without labels, kinds of questions stand for classes.
        files: How many image files, also in tables, are sound, as far as headers and ends tell.
        left_out: How many rows can't be used and were left out.
        comparisons: Published counts beside what was found; empty where none are published.
        source: Where the published counts are from.
        copies: Where the content of an image file occurs, for each that is in more than one split,
            or under more than one label.
    """

    name: str
    counts: Mapping[Split, Counter[str]]
    files: int
    left_out: int
    comparisons: tuple[InventoryCount, ...]
    source: str
    copies: tuple[Occurrences, ...]

    @property
    def differences(self) -> list[InventoryCount]:
        """Where what was found is not what was published."""
        return [each for each in self.comparisons if each.found != each.published]

    @property
    def across_splits(self) -> list[Occurrences]:
        """Copies in more than one split."""
        return [found for found in self.copies if _count_values("split", found) > 1]

    @property
    def mislabelled(self) -> list[Occurrences]:
        """Copies under more than one label."""
        return [found for found in self.copies if _count_values("label", found) > 1]

    def __rich__(self) -> Group:
        files = Text(
            f"{self.files:,} image files, all sound as far as headers, ends and checksums tell "
            "(--all decodes them).\n"
        )
        parts: list[Table | Text] = [self._show_classes(), files]
        if self.left_out:
            warning = f"Warning: {self.left_out:,} rows can't be used and are left out.\n"
            parts.append(Text(warning))
        if self.comparisons:
            parts += [self._show_published(), Text(f"Source: {self.source}.\n")]
        parts += _list_copies(
            "in more than one split: these are not independent", self.across_splits
        )
        parts += _list_copies("there under more than one label", self.mislabelled)
        return Group(*parts)

    def _show_classes(self) -> Table:
        table = Table("class", title=self.name, title_justify="left")
        for split in self.counts:
            table.add_column(split, justify="right")
        for name in sorted(set().union(*self.counts.values())):
            table.add_row(Text(name), *(f"{counts[name]:,}" for counts in self.counts.values()))
        table.add_section()
        table.add_row("total", *(f"{counts.total():,}" for counts in self.counts.values()))
        return table

    def _show_published(self) -> Table:
        table = Table("split", "", title="Against the published counts", title_justify="left")
        for column in ("published", "found", "difference"):
            table.add_column(column, justify="right")
        for each in self.comparisons:
            difference = each.found - each.published
            table.add_row(
                each.split,
                each.what,
                f"{each.published:,}",
                f"{each.found:,}",
                f"{difference:+,}" if difference else "",
            )
        return table


def take_inventory(module: MLLMDataModule, splits: Sequence[Split] = SPLITS) -> Inventory:
    """Load those splits that the dataset has, and check what needs no model.

    That is ids, labels and image files.

    Raises:
        DataError: The dataset can't be used as it is.
    """
    reference = module.splits[0]  # the one that has all classes
    present = [split for split in splits if split in module.splits]
    with module.bad_rows.gather():
        loaded = {split: module.load_split(split) for split in dict.fromkeys([reference, *present])}
        unread = {**module.bad_rows.rows}  # rows that made no sample
        first = loaded[reference]
        names = collect_labels(list_sample_labels(first))
        sound = {}
        for split, samples in loaded.items():
            sound[split] = _select_sound(split, samples, names, first, module.bad_rows)
        checked = _leave_out_bad_files({split: sound[split] for split in present}, module.bad_rows)
    left_out = 0
    for split in present:
        left_out += unread.get(split, 0) + len(loaded[split]) - len(checked[split])
    published = module if isinstance(module, PublishedDataset) else None
    comparisons: tuple[InventoryCount, ...] = ()
    if published:
        comparisons = _compare_counts(published, {split: loaded[split] for split in present})
    return Inventory(
        name=type(module).__name__,
        counts={split: Counter(map(_name_group, part)) for split, part in checked.items()},
        files=len(_list_pictures(checked)),
        left_out=left_out,
        comparisons=comparisons,
        source=published.published.source if published else "",
        copies=_find_copies(checked),
    )


def _select_sound(
    split: Split,
    samples: Sequence[Sample],
    names: Sequence[str],
    first: Sequence[Sample],
    bad_rows: BadRows,
) -> Sequence[Sample]:
    """Return the samples without errors that are found without a model, labels normalised."""
    bad_rows.split = split
    labelled = check_sample_labels(samples, split, names, first, bad_rows) if names else samples
    counts: Counter[str] = Counter()
    kept: dict[str, Sample] = {}  # by id: of equal ids the first
    for index in range(len(labelled)):
        with bad_rows.catch():
            sample = fetch_sample(labelled, index)
            if not names:
                check_sample(sample, split)
            check_region_boxes(sample)
            counts[sample.id] += 1
            kept.setdefault(sample.id, sample)
    for name, count in counts.items():
        if count > 1:
            problem = f"The id {name!r} occurs {count} times in the {split!r} split; ids must be"
            bad_rows.add(DataError(f"{problem} unique.", "id"))
    return list(kept.values())


def _leave_out_bad_files(samples: Samples, bad_rows: BadRows) -> Samples:
    """Return the samples whose image files are sound."""
    files = {picture for picture in _list_pictures(samples) if isinstance(picture, Path)}
    _, problems = look_at_image_files(files)
    bad_rows.count_image_files(len(files))
    if not problems:
        return samples
    kept: dict[Split, list[Sample]] = {}
    for split, part in samples.items():
        bad_rows.split = split
        kept[split] = []
        for sample in part:
            bad = [file for file in list_image_files(sample) if file in problems]
            for file in bad:
                bad_rows.add(DataError(problems[file], IMAGE_FILE))
            if not bad:
                kept[split].append(sample)
    return kept


def _compare_counts(module: PublishedDataset, samples: Samples) -> tuple[InventoryCount, ...]:
    """Return the published counts of splits beside what was found."""
    published = module.published
    counts = {split: module.count_as_published(split, part) for split, part in samples.items()}
    if "val" not in published.images:
        # it is a part of the training images, so neither can be compared alone
        parts = [counts.pop(split) for split in ("train", "val") if split in counts]
        if len(parts) == 2:
            counts["train"] = parts[0] + parts[1]
    comparisons = []
    for split in SPLITS:
        if split not in counts:
            continue
        if split in published.images:
            found = counts[split].total()
            comparisons.append(InventoryCount(split, "images", published.images[split], found))
        if split in published.classes:
            found = len(counts[split])
            comparisons.append(InventoryCount(split, "classes", published.classes[split], found))
    return tuple(comparisons)


def _list_pictures(samples: Samples) -> set[Path | str]:
    pictures: set[Path | str] = set()
    for sample in chain(*samples.values()):
        pictures.update(_identify_pictures(sample))
    return pictures


def _identify_pictures(sample: Sample) -> list[Path | str]:
    """Return a sample's image files, and what stands for the bytes of pictures in a table."""
    named = [image.content if isinstance(image, LazyImage) else image for image in sample.images]
    return [each for each in named if isinstance(each, Path | str)]


def _name_group(sample: Sample) -> str:
    return sample.label or sample.kind or UNLABELLED


def _find_copies(samples: Samples) -> tuple[Occurrences, ...]:
    """Return where pictures of equal content occur, if in two splits or under two labels."""
    files = (picture for picture in _list_pictures(samples) if isinstance(picture, Path))
    first: dict[Path | str, Path] = dict(find_first_duplicates(files).items())
    found: dict[Path | str, dict[InventoryImage, None]] = {}  # sets in the order of the samples
    for split, part in samples.items():
        for sample in part:
            occurrence = InventoryImage(split, sample.id, sample.label)
            for picture in _identify_pictures(sample):
                found.setdefault(first.get(picture, picture), {})[occurrence] = None
    copies = []
    for occurrences in map(tuple, found.values()):
        if _count_values("split", occurrences) > 1 or _count_values("label", occurrences) > 1:
            copies.append(occurrences)
    return tuple(copies)


def _count_values(attribute: str, occurrences: Occurrences) -> int:
    """Return how many different splits, or labels, occurrences have."""
    return len({getattr(occurrence, attribute) for occurrence in occurrences})


def _list_copies(what: str, copies: Sequence[Occurrences]) -> list[Text]:
    """Return a warning with the first copies, or nothing."""
    if not copies:
        return []
    lines = [f"Warning: the content of {len(copies)} image files is {what}"]
    for occurrences in copies[:SHOWN]:
        shown = [f"{o.split} {o.sample_id} ({o.label or UNLABELLED})" for o in occurrences]
        lines.append("  " + " = ".join(shown))
    if len(copies) > SHOWN:
        lines.append(f"  ... and {len(copies) - SHOWN} more")
    return [Text("\n".join(lines))]
