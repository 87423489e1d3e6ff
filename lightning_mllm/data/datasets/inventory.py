"""What a dataset holds, per split and class: what `lightning data check` shows. No model and no processor is opened."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Group
from rich.table import Table
from rich.text import Text

from lightning_mllm.data.datasets.published import PublishedDataset
from lightning_mllm.data.images.files import look_at_images
from lightning_mllm.data.images.regions import check_boxes
from lightning_mllm.data.loading.bad_rows import IMAGE_FILE, BadRows
from lightning_mllm.data.loading.checks import check_labels, check_sample, labels_of
from lightning_mllm.data.loading.datamodule import MLLMDataModule
from lightning_mllm.data.loading.duplicates import find_equal_files
from lightning_mllm.data.loading.sample_errors import fetch_sample
from lightning_mllm.data.loading.splits import Split
from lightning_mllm.data.text.labels import class_names
from lightning_mllm.errors import DataError
from lightning_mllm.types import Sample

SPLITS: tuple[Split, ...] = ("train", "val", "test")
SHOWN = 20  # copies that are listed
UNLABELLED = "(no label)"

Samples = Mapping[Split, Sequence[Sample]]


@dataclass(frozen=True)
class CountComparison:
    """One published number of a split beside what was found."""

    split: Split
    what: Literal["images", "classes"]
    published: int
    found: int


@dataclass(frozen=True)
class ImageOccurrence:
    """Where an image occurs."""

    split: Split
    sample_id: str
    label: str | None


@dataclass(frozen=True)
class Inventory:
    """What was found.

    Attributes:
        name: Of the DataModule's class.
        counts: Split -> class -> samples; of samples without labels, kinds of questions take the place of classes.
        files: Number of image files that are sound, as far as that is seen without decoding them.
        left_out: Number of rows that can't be used and were left out.
        comparisons: Published counts; empty where there are none.
        source: Of the published counts.
        copies: Per image file content that occurs in more than one split, or under more than one label, its places.
    """

    name: str
    counts: Mapping[Split, Counter[str]]
    files: int
    left_out: int
    comparisons: tuple[CountComparison, ...]
    source: str
    copies: tuple[tuple[ImageOccurrence, ...], ...]

    @property
    def differences(self) -> list[CountComparison]:
        """Where what was found is not what was published."""
        return [each for each in self.comparisons if each.found != each.published]

    @property
    def across_splits(self) -> list[tuple[ImageOccurrence, ...]]:
        """Copies in more than one split."""
        return [places for places in self.copies if len({place.split for place in places}) > 1]

    @property
    def mislabelled(self) -> list[tuple[ImageOccurrence, ...]]:
        """Copies under more than one label."""
        return [places for places in self.copies if len({place.label for place in places}) > 1]

    def __rich__(self) -> Group:
        files = (
            f"{self.files:,} image files, all sound as far as headers, ends and checksums tell (--all decodes them)."
        )
        parts: list[Table | Text] = [self._classes(), Text(f"{files}\n")]
        if self.left_out:
            parts.append(Text(f"Warning: {self.left_out:,} rows can't be used and are left out.\n"))
        if self.comparisons:
            parts += [self._published(), Text(f"Source: {self.source}.\n")]
        parts += _listing("in more than one split: these are not independent", self.across_splits)
        parts += _listing("there under more than one label", self.mislabelled)
        return Group(*parts)

    def _classes(self) -> Table:
        table = Table("class", title=self.name, title_justify="left")
        for split in self.counts:
            table.add_column(split, justify="right")
        for name in sorted(set().union(*self.counts.values())):
            table.add_row(Text(name), *(f"{counts[name]:,}" for counts in self.counts.values()))
        table.add_section()
        table.add_row("total", *(f"{counts.total():,}" for counts in self.counts.values()))
        return table

    def _published(self) -> Table:
        table = Table("split", "", title="Against the published counts", title_justify="left")
        for column in ("published", "found", "difference"):
            table.add_column(column, justify="right")
        for each in self.comparisons:
            difference = each.found - each.published
            numbers = (f"{each.published:,}", f"{each.found:,}", f"{difference:+,}" if difference else "")
            table.add_row(each.split, each.what, *numbers)
        return table


def take_inventory(module: MLLMDataModule, splits: Sequence[Split] = SPLITS) -> Inventory:
    """Load splits, as far as there are any, and check what can be without a model: ids, labels and image files.

    Raises:
        DataError: The dataset can't be used as it is.
    """
    reference = module.splits[0]  # of which the classes are
    present = [split for split in splits if split in module.splits]
    with module.bad_rows.gather():
        samples = {split: _load(module, split) for split in dict.fromkeys([reference, *present])}
        unread = {**module.bad_rows.rows}  # of them there are no samples
        first = samples[reference]
        names = class_names(labels_of(first))
        sound = {split: _sound(split, part, names, first, module.bad_rows) for split, part in samples.items()}
        checked: Samples = {split: sound[split] for split in present}
        files = {image for _, sample in _walk(checked) for image in _files(sample)}
        checked = _without_bad_files(checked, files, module.bad_rows)
    left = {image for _, sample in _walk(checked) for image in _files(sample)}
    known = module if isinstance(module, PublishedDataset) else None
    return Inventory(
        name=type(module).__name__,
        counts={split: Counter(_group(sample) for sample in part) for split, part in checked.items()},
        files=len(left),
        left_out=sum(unread.get(split, 0) + len(samples[split]) - len(checked[split]) for split in present),
        comparisons=_compare(known, {split: samples[split] for split in present}) if known else (),
        source=known.published.source if known else "",
        copies=_copies(checked, left),
    )


def _load(module: MLLMDataModule, split: Split) -> Sequence[Sample]:
    module.bad_rows.split = split
    samples = module.load(split)
    if not samples:
        way_out = "" if split == "train" else ", or leave it out with `--splits`"
        raise DataError(f"The {split!r} split is empty. Give it samples{way_out}.")
    return samples


def _sound(
    split: Split, samples: Sequence[Sample], names: Sequence[str], first: Sequence[Sample], bad_rows: BadRows
) -> Sequence[Sample]:
    """Return the samples with which nothing is wrong that can be told without a model, labels normalised."""
    bad_rows.split = split
    labelled = check_labels(samples, split, names, first, bad_rows) if names else samples
    counts: Counter[str] = Counter()
    kept = []
    for index in range(len(labelled)):
        with bad_rows.catch():
            sample = fetch_sample(labelled, index)
            if not names:
                check_sample(sample, split)
            check_boxes(sample)
            counts[sample.id] += 1
            kept.append(sample)
    for name, count in counts.items():
        if count > 1:
            problem = f"The id {name!r} occurs {count} times in the {split!r} split; ids must be unique."
            bad_rows.add(DataError(problem, "id"))
    return list({sample.id: sample for sample in reversed(kept)}.values())[::-1] if len(counts) < len(kept) else kept


def _without_bad_files(samples: Samples, files: Collection[Path], bad_rows: BadRows) -> Samples:
    _, problems = look_at_images(files)
    bad_rows.titles[IMAGE_FILE] = f"of {len(files):,} image files can't be used"
    if not problems:
        return samples
    for split, sample in _walk(samples):
        bad_rows.split = split
        for file in _files(sample):
            if file in problems:
                bad_rows.add(DataError(problems[file], IMAGE_FILE))
    return {
        split: [sample for sample in part if problems.keys().isdisjoint(_files(sample))]
        for split, part in samples.items()
    }


def _compare(module: PublishedDataset, samples: Samples) -> tuple[CountComparison, ...]:
    published = module.published
    counts = {split: module.count_as_published(split, part) for split, part in samples.items()}
    if "val" not in published.images:  # it is a part of the training images, so neither can be compared alone
        parts = [counts.pop(split) for split in ("train", "val") if split in counts]
        if len(parts) == 2:
            counts["train"] = parts[0] + parts[1]
    images = [
        CountComparison(split, "images", published.images[split], count.total())
        for split, count in counts.items()
        if split in published.images
    ]
    classes = [
        CountComparison(split, "classes", published.classes[split], len(count))
        for split, count in counts.items()
        if split in published.classes
    ]
    return tuple(sorted([*images, *classes], key=lambda each: SPLITS.index(each.split)))


def _walk(samples: Samples) -> Iterator[tuple[Split, Sample]]:
    return ((split, sample) for split, part in samples.items() for sample in part)


def _files(sample: Sample) -> list[Path]:
    return [image for image in sample.images if isinstance(image, Path)]


def _group(sample: Sample) -> str:
    return sample.label or sample.kind or UNLABELLED


def _copies(samples: Samples, files: Collection[Path]) -> tuple[tuple[ImageOccurrence, ...], ...]:
    """Return the places of each file content that occurs in more than one split, or under more than one label."""
    first = {file: group[0] for group in find_equal_files(files) for file in group}
    places: dict[Path, dict[ImageOccurrence, None]] = {}  # a set in the order of the samples
    for split, sample in _walk(samples):
        for file in _files(sample):
            places.setdefault(first.get(file, file), {})[ImageOccurrence(split, sample.id, sample.label)] = None
    return tuple(tuple(each) for each in places.values() if len({(p.split, p.label) for p in each}) > 1)


def _listing(what: str, copies: Sequence[Sequence[ImageOccurrence]]) -> list[Text]:
    """Return a warning with the first copies, or nothing."""
    if not copies:
        return []
    lines = [f"Warning: the content of {len(copies)} image files is {what}"]
    for places in copies[:SHOWN]:
        lines.append("  " + " = ".join(f"{p.split} {p.sample_id} ({p.label or UNLABELLED})" for p in places))
    if len(copies) > SHOWN:
        lines.append(f"  ... and {len(copies) - SHOWN} more")
    return [Text("\n".join(lines))]
