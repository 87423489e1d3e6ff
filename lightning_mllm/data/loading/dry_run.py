"""Samples that are written out at set-up, so that none fails in the middle of an epoch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from lightning_mllm.data.images.files import Size, look_at_images
from lightning_mllm.data.loading.bad_rows import IMAGE_FILE, TOO_LONG, BadRows
from lightning_mllm.data.loading.collator import Collator
from lightning_mllm.data.loading.manifest import Manifest, manifest_folder
from lightning_mllm.data.loading.sample_errors import fetch_sample
from lightning_mllm.data.loading.split_scan import SplitScan, Trait
from lightning_mllm.errors import DataError
from lightning_mllm.types import Sample


def dry_run_splits(scans: Sequence[SplitScan], bad_rows: BadRows) -> dict[Path, Size]:
    """Look at the image files of all splits, write out what is not sure to be sound, and return the files' sizes.

    What `lightning data check --all` has found of a split is taken over.
    """
    known: dict[Path, Size] = {}
    left = []
    for scan in scans:
        sizes = Manifest(scan).take_over() if manifest_folder().is_dir() else None
        known |= sizes or {}
        left += [scan] if sizes is None else []
    sizes, problems = look_at_images(path for scan in left for path in scan.paths)
    bad_rows.titles[IMAGE_FILE] = f"of {len(sizes) + len(problems):,} image files can't be used"
    for scan in left:
        dry_run_suspects(scan, sizes, problems)
    for scan in scans:
        scan.warn()
    return known | sizes


def dry_run_suspects(scan: SplitScan, sizes: Mapping[Path, Size], problems: Mapping[Path, str]) -> None:
    """Write out those samples of a split of which it is not sure that they can be; refuse them, where they can't.

    Samples that do not fit are left out, and so are the first exchanges of others.

    Text is written out where its bound does not fit, where there is no bound, and where it begins or ends as none
    before. Pictures are opened for one sample of each number of views, and for the extremes of size and proportions.

    Args:
        scan: Of the split.
        sizes: Of the image files.
        problems: What is wrong with image files; samples with one of them are refused.
    """
    collator, shapes = scan.collator, _Shapes(scan.collator)
    fine: set[Trait] = set()
    ends: dict[int, str] = {}
    pictures: dict[int, list[Size]] = {}
    for index, facts in list(scan.facts.items()):
        bad = [problems[image] for image in facts.images if isinstance(image, Path) and image in problems]
        if bad:
            scan.refuse(index, DataError(bad[0], IMAGE_FILE))
        else:
            pictures[index] = [sizes[image] if isinstance(image, Path) else image for image in facts.images]
    counts = {index: [collator.count_image_tokens(size) for size in each] for index, each in pictures.items()}
    _check_room(scan, counts)
    for index, facts in list(scan.facts.items()):
        fits = facts.bound is not None and facts.bound + sum(counts[index]) <= collator.max_length
        case = (*facts.trait, *sorted(counts[index]))
        suspect = (facts.odd or not fits) and case not in fine
        if suspect and _passes(scan, index, partial(_fit, scan, index, counts[index], ends)):
            fine.add(case)
        if index in scan.facts:
            shapes.add(index, pictures[index])
    for index in shapes.chosen():
        if index in scan.facts:
            _passes(scan, index, collator.check)


def _check_room(scan: SplitScan, counts: Mapping[int, Sequence[int]]) -> None:
    """Refuse a context that is too short for any question that lists the classes: it is no fault of rows."""
    if not scan.collator.label_names or not counts:
        return
    least = min(counts, key=lambda index: (scan.facts[index].bound or scan.collator.max_length) + sum(counts[index]))
    try:
        scan.collator.fit(fetch_sample(scan.samples, least), counts[least])
    except DataError as error:
        if error.kind == TOO_LONG:
            raise


def _fit(scan: SplitScan, index: int, counts: Sequence[int], ends: dict[int, str], sample: Sample) -> None:
    fitted = scan.collator.fit(sample, counts)
    if fitted is not None:
        check_end(fitted.tokens.end_id, sample.id, ends)
    scan.left_out.count(fitted)
    if fitted is None:
        scan.leave_out(index)


def _passes(scan: SplitScan, index: int, check: Callable[[Sample], object]) -> bool:
    try:
        check(fetch_sample(scan.samples, index))
    except DataError as error:
        scan.refuse(index, error)
        return False
    return True


def check_end(end: int, sample_id: str, ends: dict[int, str]) -> None:
    """Refuse an answer that ends with another token than the others of its split: they could be in one batch.

    Args:
        end: The token.
        sample_id: Of the sample whose answer it is.
        ends: Token -> first sample whose answer ended with it.

    Raises:
        DataError: It is another token than the first.
    """
    first = next(iter(ends), end)
    if end != first:
        raise DataError(
            f"The answers of samples {ends[first]!r} and {sample_id!r} end with different tokens ({first} and {end}), "
            "so generation would not know where to stop. Check their last characters.",
            "answer's end",
        )
    ends.setdefault(end, sample_id)


class _Shapes:
    """Chooses samples whose pictures stand for those of all."""

    def __init__(self, collator: Collator) -> None:
        self._collator = collator
        self._first: dict[Trait, int] = {}
        self._most: dict[str, tuple[float, int]] = {}

    def add(self, index: int, pictures: Sequence[Size]) -> None:
        """Look at the pictures of a sample."""
        self._first.setdefault(tuple(sorted(map(self._collator.count_views, pictures))), index)
        for width, height in pictures:
            sizes = {"wide": width / height, "high": height / width, "large": width * height, "small": -width * height}
            for name, size in sizes.items():
                if name not in self._most or size > self._most[name][0]:
                    self._most[name] = size, index

    def chosen(self) -> list[int]:
        """Return the indices of the samples, in order."""
        return sorted({*self._first.values(), *(index for _, index in self._most.values())})
