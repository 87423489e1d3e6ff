"""Samples that are encoded at set-up, so that none fails in the middle of an epoch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from lightning_mllm.data.images.files import look_at_image_files
from lightning_mllm.data.images.geometry import Size
from lightning_mllm.data.images.pictures import PictureText
from lightning_mllm.data.loading.bad_rows import IMAGE_FILE, TOO_LONG, BadRows
from lightning_mllm.data.loading.batch import check_batch_end
from lightning_mllm.data.loading.check_manifest import CheckManifest, check_manifest_folder
from lightning_mllm.data.loading.collator import Collator
from lightning_mllm.data.loading.sample_errors import fetch_sample
from lightning_mllm.data.loading.split_scan import SplitScan, Trait
from lightning_mllm.errors import DataError
from lightning_mllm.types import Sample


def dry_run_splits(scans: Sequence[SplitScan], bad_rows: BadRows) -> dict[Path, Size]:
    """Look at the image files of all splits, and encode the samples that may not fit.

    What `lightning data check --all` has found of a split is taken from its manifest.

    Returns:
        Image file -> size of its picture.
    """
    known: dict[Path, Size] = {}
    left = []
    for scan in scans:
        sizes = CheckManifest(scan).take_over() if check_manifest_folder().is_dir() else None
        if sizes is None:
            left.append(scan)
        else:
            known |= sizes
    files: set[Path] = set()
    for scan in left:
        files |= scan.paths
    sizes, problems = look_at_image_files(files)
    bad_rows.count_image_files(len(files))
    for scan in left:
        dry_run_suspects(scan, sizes, problems)
    for scan in scans:
        scan.warn()
    return known | sizes


def dry_run_suspects(
    scan: SplitScan, sizes: Mapping[Path, Size], problems: Mapping[Path, str]
) -> None:
    """Encode those samples of a split that may fail, and refuse the ones that do.

    Samples that do not fit are left out, and so are the first exchanges of others.

    A text is encoded if its bound does not fit, if it has no bound, or if it begins or ends as none
    before. Pictures are opened for one sample of each number of views, and for the extremes of size
    and proportions.

    Args:
        scan: What is known of the split.
        sizes: Image file -> size of its picture.
        problems: Image file -> what is wrong with it; samples with such a file are refused.
    """
    collator = scan.collator
    pictures = _refuse_bad_files(scan, sizes, problems)
    texts = {}
    for index, shown in pictures.items():
        try:
            texts[index] = [collator.find_image_text(size) for size in shown]
        except DataError as error:  # the processor takes no picture of such a shape
            name = fetch_sample(scan.samples, index).id
            scan.refuse(index, DataError(f"{error} Sample {name!r} has it.", IMAGE_FILE))
    _check_room_for_classes(scan, texts)
    extremes = _Extremes(collator)
    fine: set[Trait] = set()
    ends: dict[int, str] = {}
    for index, facts in list(scan.facts.items()):
        lengths = sorted(map(len, texts[index]))
        fits = facts.bound is not None and facts.bound + sum(lengths) <= collator.max_length
        case = (*facts.trait, *lengths)
        is_suspect = (facts.odd or not fits) and case not in fine
        fit = partial(_fit, scan, index, texts[index], ends)
        if is_suspect and _passes(scan, index, fit):
            fine.add(case)
        if index in scan.facts:
            extremes.add(index, pictures[index])
    for index in extremes.chosen():
        if index in scan.facts:
            _passes(scan, index, collator.check)


def _refuse_bad_files(
    scan: SplitScan, sizes: Mapping[Path, Size], problems: Mapping[Path, str]
) -> dict[int, list[Size]]:
    """Refuse samples with a bad image file, and return the picture sizes of the others by index."""
    pictures: dict[int, list[Size]] = {}
    for index, facts in list(scan.facts.items()):
        shown = []
        bad = []
        for image in facts.images:
            if not isinstance(image, Path):
                shown.append(image)
            elif image in problems:
                bad.append(problems[image])
            else:
                shown.append(sizes[image])
        if bad:
            scan.refuse(index, DataError(bad[0], IMAGE_FILE))
        else:
            pictures[index] = shown
    return pictures


def _check_room_for_classes(scan: SplitScan, texts: Mapping[int, Sequence[PictureText]]) -> None:
    """Refuse a context that is too short for any question that lists the classes.

    No row is to blame for this, so it is raised at once.
    """
    if not scan.collator.label_names or not texts:
        return

    def bound(index: int) -> int:
        return (scan.facts[index].bound or scan.collator.max_length) + sum(map(len, texts[index]))

    shortest = min(texts, key=bound)
    try:
        scan.collator.fit(fetch_sample(scan.samples, shortest), texts[shortest])
    except DataError as error:
        if error.kind == TOO_LONG:
            raise


def _fit(
    scan: SplitScan,
    index: int,
    texts: Sequence[PictureText],
    ends: dict[int, str],
    sample: Sample,
) -> None:
    """Encode a sample, check its end, and count or leave out what does not fit."""
    fitted = scan.collator.fit(sample, texts)
    if fitted is not None:
        check_batch_end(fitted.tokens.end_id, sample.id, ends)
    scan.left_out.count(fitted)
    if fitted is None:
        scan.leave_out(index)


def _passes(scan: SplitScan, index: int, check: Callable[[Sample], object]) -> bool:
    """Return whether a sample passes a check; refuse it if not."""
    try:
        check(fetch_sample(scan.samples, index))
    except DataError as error:
        scan.refuse(index, error)
        return False
    return True


class _Extremes:
    """Chooses samples whose pictures stand for those of all."""

    def __init__(self, collator: Collator) -> None:
        self._collator = collator
        self._first: dict[Trait, int] = {}  # numbers of views -> index
        self._most: dict[str, tuple[float, int]] = {}  # measure -> highest value and its index

    def add(self, index: int, pictures: Sequence[Size]) -> None:
        """Look at the picture sizes of a sample."""
        views = tuple(sorted(map(self._collator.count_views, pictures)))
        self._first.setdefault(views, index)
        for width, height in pictures:
            measures = {
                "wide": width / height,
                "high": height / width,
                "large": width * height,
                "small": -width * height,
            }
            for name, value in measures.items():
                if name not in self._most or value > self._most[name][0]:
                    self._most[name] = value, index

    def chosen(self) -> list[int]:
        """Return the indices of the samples, in order."""
        extremes = {index for _, index in self._most.values()}
        return sorted({*self._first.values(), *extremes})
