"""Sets splits up: once per dataset, and once for all processes, where samples are arrays."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_mllm import errors
from lightning_mllm.data.loading.check_manifest import describe_processor, list_library_versions
from lightning_mllm.data.loading.dry_run import dry_run_splits
from lightning_mllm.data.loading.duplicates import ShownPictures, warn_of_duplicate_pictures
from lightning_mllm.data.loading.known_files import KnownFiles
from lightning_mllm.data.loading.lazy import LazySamples
from lightning_mllm.data.loading.set_up_record import (
    SetUpMessages,
    SetUpRecord,
    SplitOutcome,
    count_again,
    find_record,
    keep_record,
    note_bad_rows,
    repeat_findings,
)
from lightning_mllm.data.loading.splits import Split
from lightning_mllm.data.loading.stored import StoredSamples
from lightning_mllm.data.loading.text_array import unique_texts
from lightning_mllm.store.manifest import manifest_digest

if TYPE_CHECKING:
    from lightning_mllm.data.loading.datamodule import MLLMDataModule

KEPT_FROM = 10_000  # samples from which on it pays to keep what was found
_PLAIN = (str, int, float, bool, Path, dict, list, tuple)
# options that change no finding, and what set-up itself finds
_NOT_DECISIVE = {
    *("num_workers", "batch_size", "eval_batch_size", "group_by_length", "predict_split"),
    *("samples", "left_out", "kinds", "label_set", "further_files"),
}
_PATIENCE = 30.0  # seconds between two signs of life to processes that wait

Outcomes = dict[Split, SplitOutcome]

logger = logging.getLogger(__name__)


def set_up_splits(module: MLLMDataModule, wanted: Sequence[Split], *, together: bool) -> Outcomes:
    """Load and check splits; of several processes the first does it for all.

    Args:
        module: The dataset.
        wanted: The splits.
        together: Whether all processes call this at the same time; else each does it for itself.

    Raises:
        DataError: Something is wrong with the dataset.
        CheckpointError: The checkpoint has no usable processor.
        ConfigError: Options do not fit the checkpoint.
    """
    trainer: Any = module.trainer
    is_alone = trainer is None or trainer.world_size == 1 or not together
    if is_alone or not module.shares_set_up:
        return _find_or_check(module, wanted)[0]
    if trainer.global_rank == 0:
        return _check_for_all(module, wanted, trainer.strategy)
    message = None
    while message is None:
        message = trainer.strategy.broadcast(None)
    return _take_over(module, wanted, message)


def _check_for_all(module: MLLMDataModule, wanted: Sequence[Split], strategy: Any) -> Outcomes:
    """Check splits, give a sign of life meanwhile, and tell the other processes the outcome."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        work = pool.submit(_check_and_write, module, wanted)
        while not wait([work], _PATIENCE).done:
            strategy.broadcast(None)
        try:
            outcomes, content = work.result()
        except BaseException as error:
            kind = getattr(error, "kind", None)
            strategy.broadcast({"error": (type(error).__name__, str(error), kind)})
            raise
    strategy.broadcast({"record": content})
    return outcomes


def _check_and_write(
    module: MLLMDataModule, wanted: Sequence[Split]
) -> tuple[Outcomes, bytes | None]:
    """Check splits; return also what the other processes are sent."""
    outcomes, record = _find_or_check(module, wanted)
    return outcomes, None if record is None else record.write()


def _take_over(module: MLLMDataModule, wanted: Sequence[Split], message: Any) -> Outcomes:
    """Return what the first process has found, or raise what it has raised."""
    if "error" in message:
        name, text, kind = message["error"]
        error = getattr(errors, name, None)
        if error is None:
            raise RuntimeError(f"The first process failed to set the data up: {name}: {text}")
        raise error(text) if kind is None else error(text, kind)
    if message["record"] is None:  # samples that can't be sent
        return _find_or_check(module, wanted)[0]
    record = SetUpRecord.read(message["record"])
    count_again(record, module.bad_rows)
    return _restore(module, wanted, record)


def _find_or_check(
    module: MLLMDataModule, wanted: Sequence[Split]
) -> tuple[Outcomes, SetUpRecord | None]:
    """Return what an earlier start has found of splits, or check them, and keep what is found."""
    with module.gather():
        key = _make_key(module, wanted)
    earlier = None if key is None else find_record(key)
    files = None if earlier is None else earlier.find_files()
    if earlier is not None and files is not None:
        changed = files.find_changed()
        if not len(changed):
            logger.info("These samples were checked before, and no file was changed since then.")
            outcomes = _restore(module, wanted, earlier)
            repeat_findings(earlier, module.bad_rows)
            return outcomes, earlier
        logger.warning(
            "%d of %d image files were changed since the last check (e.g. %s): they are checked "
            "again.",
            len(changed),
            len(files.paths),
            files.paths[int(changed[0])],
        )
    rows, known = Counter(module.bad_rows.rows), len(module.bad_rows)
    messages = SetUpMessages()
    with messages.listen():
        outcomes, noted = _check(module, wanted, files)
    record = None
    first = module.first
    if noted is not None and isinstance(first, StoredSamples):
        record = SetUpRecord()
        record.add_samples("first", first.select(first.find_examples()))
        for split, outcome in outcomes.items():
            record.add_outcome(split, outcome)
        record.facts["messages"] = messages.found
        record.facts["bad_rows"] = note_bad_rows(module.bad_rows, known)
        record.facts["bad_counts"] = dict(module.bad_rows.rows - rows)
        record.add_files(noted)
        if key is not None and sum(len(each.sizes) for each in outcomes.values()) >= KEPT_FROM:
            keep_record(key, record)
    return outcomes, record


def _check(
    module: MLLMDataModule, wanted: Sequence[Split], known: KnownFiles | None
) -> tuple[Outcomes, KnownFiles | None]:
    """Check splits; return also the state of their files, if all samples are arrays."""
    with module.gather():
        scans = module.scan_splits(wanted)
        dry_run = dry_run_splits(scans, module.bad_rows, known)
        for scan, picture_sizes in zip(scans, dry_run.sizes, strict=True):
            scan.warn_of_unseen_boxes(picture_sizes)
    outcomes: Outcomes = {}
    shown: dict[Split, ShownPictures] = {}
    for scan in scans:
        samples, sizes = scan.select_kept()
        if not samples:
            raise scan.explain_empty()
        kinds = tuple(sorted(scan.kinds))
        outcomes[scan.split] = SplitOutcome(samples, sizes, scan.left_out, kinds)
        shown[scan.split] = scan.pictures.select(scan.facts.indices())
    first, name = module.first, module.splits[0]
    if name not in shown and not isinstance(first, LazySamples):
        shown[name] = ShownPictures.of(first)
    own = {split: outcome.samples for split, outcome in outcomes.items()}
    new = [split for split in wanted if split != name]
    warn_of_duplicate_pictures({name: first, **module.samples, **own}, new, shown)
    if not all(isinstance(each, StoredSamples) for each in (first, *own.values())):
        return outcomes, None
    others = [each.files for each in shown.values()]
    paths, _ = unique_texts(dry_run.files, *others, module.further_files)
    return outcomes, KnownFiles.note(paths, dry_run.found, len(dry_run.files))


def _restore(module: MLLMDataModule, wanted: Sequence[Split], record: SetUpRecord) -> Outcomes:
    """Return what was found, with the collators made anew."""
    if not module.first:
        module.make_collators(record.find_samples("first", module.splits[0], module))
    return {split: record.find_outcome(split, module) for split in wanted}


def _make_key(module: MLLMDataModule, wanted: Sequence[Split]) -> str | None:
    """Return a hash of all that decides what set-up finds but the image files; None if unknown."""
    source: Mapping[str, str] | None = module.describe_source(wanted)
    prompts = repr((module.prompt, module.train_prompt))
    if source is None or " object at 0x" in prompts:
        return None
    parts = [type(module).__qualname__, prompts, repr(list(wanted)), repr(sorted(module.samples))]
    for name, value in sorted(vars(module).items()):
        is_option = not name.startswith("_") and name not in _NOT_DECISIVE
        if is_option and (value is None or isinstance(value, _PLAIN)):
            parts.append(f"{name} {value!r}")
    parts += [f"{name} {value}" for name, value in sorted(source.items())]
    parts += [module.bad_rows.policy, *list_library_versions()]
    parts += describe_processor(module.load_processor())
    return manifest_digest(f"{part}\0" for part in parts)
