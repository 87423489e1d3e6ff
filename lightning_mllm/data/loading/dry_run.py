"""Samples that are encoded at set-up, so that none fails in the middle of an epoch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightning_mllm.data.images.inspection import InspectedFiles, inspect_image_files
from lightning_mllm.data.images.pictures import PictureText
from lightning_mllm.data.loading.bad_rows import IMAGE_FILE, TOO_LONG, BadRows
from lightning_mllm.data.loading.batch import check_batch_end
from lightning_mllm.data.loading.check_manifest import CheckManifest, check_manifest_folder
from lightning_mllm.data.loading.extremes import choose_extreme_pictures
from lightning_mllm.data.loading.known_files import KnownFiles
from lightning_mllm.data.loading.picture_sizes import PictureSizes
from lightning_mllm.data.loading.sample_errors import fetch_sample
from lightning_mllm.data.loading.split_scan import SplitScan
from lightning_mllm.data.loading.text_array import TextArray, unique_texts
from lightning_mllm.errors import DataError
from lightning_mllm.types import Sample


class DryRun(NamedTuple):
    """What was found of splits.

    Attributes:
        sizes: The sizes of the pictures of each split.
        files: The image files that were looked at.
        found: What was found of them.
    """

    sizes: list[PictureSizes]
    files: TextArray
    found: InspectedFiles


def dry_run_splits(
    scans: Sequence[SplitScan], bad_rows: BadRows, earlier: KnownFiles | None = None
) -> DryRun:
    """Look at the image files of all splits, and encode the samples that may not fit.

    What `lightning data check --all` has found of a split is taken from its manifest.

    Args:
        scans: What is known of the splits.
        bad_rows: Collects samples that can't be used.
        earlier: Image files that were looked at before.
    """
    known = {}
    for number, scan in enumerate(scans):
        sizes = CheckManifest(scan).take_over() if check_manifest_folder().is_dir() else None
        if sizes is not None:
            known[number] = sizes
    left = [number for number in range(len(scans)) if number not in known]
    files, numbers = unique_texts(*(scans[number].pictures.files for number in left))
    found = inspect_image_files(files) if earlier is None else earlier.inspect(files)
    found.warn_of_animated(files)
    bad_rows.count_image_files(len(files))
    for number, own in zip(left, numbers, strict=True):
        known[number] = dry_run_suspects(scans[number], found.take(own))
    for scan in scans:
        scan.warn()
    return DryRun([known[number] for number in range(len(scans))], files, found)


def dry_run_suspects(scan: SplitScan, files: InspectedFiles) -> PictureSizes:
    """Encode those samples of a split that may fail, and refuse the ones that do.

    Samples that do not fit are left out, and so are the first exchanges of others.

    A text is encoded if its bound does not fit, if it has no bound, or if it begins or ends as none
    before. Pictures are opened for one sample of each number of views, and for the extremes of size
    and proportions.

    Args:
        scan: What is known of the split.
        files: What was found of the image files of its samples; samples with a bad one are refused.

    Returns:
        The sizes of the pictures of all samples.
    """
    collator = scan.collator
    for number, problem in sorted(files.problems.items()):
        index = int(scan.pictures.owners[number])
        if index in scan.facts:
            scan.refuse(index, DataError(problem, IMAGE_FILE))
    shown = PictureSizes.join(
        len(scan.samples), (scan.pictures.owners, files.sizes), scan.facts.inner
    )
    pictures = shown.select(_mark_kept(scan))
    lengths, failed = pictures.measure(lambda size: len(collator.find_image_text(size)))
    for index, error in failed.items():  # the processor takes no picture of such a shape
        name = fetch_sample(scan.samples, index).id
        scan.refuse(index, DataError(f"{error} Sample {name!r} has it.", IMAGE_FILE))
    room = pictures.add_up(lengths)
    _check_room_for_classes(scan, pictures, room)
    _encode_suspects(scan, pictures, lengths, room)
    left = pictures.select(_mark_kept(scan))
    for index in choose_extreme_pictures(left, scan.facts.indices(), collator.count_views):
        if index in scan.facts:
            _passes(scan, index, collator.check)
    return shown


def _mark_kept(scan: SplitScan) -> NDArray[np.bool_]:
    """Return of each sample whether it can be used."""
    kept = np.zeros(len(scan.samples), bool)
    kept[scan.facts.indices()] = True
    return kept


def _check_room_for_classes(
    scan: SplitScan, pictures: PictureSizes, room: NDArray[np.int64]
) -> None:
    """Refuse a context that is too short for any question that lists the classes.

    No row is to blame for this, so it is raised at once.
    """
    kept = scan.facts.indices()
    if not scan.collator.label_names or not len(kept):
        return
    bounds = scan.facts.bounds[kept]
    most = np.where(bounds > 0, bounds, scan.collator.max_length) + room[kept]
    shortest = int(kept[np.argmin(most)])
    texts = list(map(scan.collator.find_image_text, pictures.of_sample(shortest)))
    try:
        scan.collator.fit(fetch_sample(scan.samples, shortest), texts)
    except DataError as error:
        if error.kind == TOO_LONG:
            raise


def _encode_suspects(
    scan: SplitScan,
    pictures: PictureSizes,
    lengths: NDArray[np.int64],
    room: NDArray[np.int64],
) -> None:
    """Encode the samples that may not fit, or whose text begins or ends as none before."""
    facts, collator = scan.facts, scan.collator
    kept = facts.indices()
    bounds = facts.bounds[kept]
    fits = (bounds >= 0) & (bounds + room[kept] <= collator.max_length)
    fine: set[tuple[int, ...]] = set()
    ends: dict[int, str] = {}
    traits = facts.traits
    for index in kept[facts.odd[kept] | ~fits].tolist():
        start, end = np.searchsorted(pictures.owners, [index, index + 1])
        case = (int(traits[index]), *sorted(lengths[start:end].tolist()))
        if case in fine:
            continue
        texts = list(map(collator.find_image_text, pictures.of_sample(index)))
        if _passes(scan, index, partial(_fit, scan, index, texts, ends)) and traits[index] >= 0:
            fine.add(case)


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
