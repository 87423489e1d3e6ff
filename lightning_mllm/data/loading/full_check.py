"""Encodes every sample and decodes every picture: `lightning data check --all`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.text import Text
from torch.utils.data import DataLoader

from lightning_mllm.data.images.inspection import inspect_image_files
from lightning_mllm.data.loading.batch import check_batch_end
from lightning_mllm.data.loading.check_manifest import CheckManifest, check_manifest_folder
from lightning_mllm.data.loading.collator import Collator
from lightning_mllm.data.loading.datamodule import MLLMDataModule
from lightning_mllm.data.loading.dry_run import dry_run_suspects
from lightning_mllm.data.loading.sample_errors import fetch_sample
from lightning_mllm.data.loading.split_scan import SplitScan
from lightning_mllm.data.loading.splits import Split
from lightning_mllm.data.loading.text_array import unique_texts
from lightning_mllm.errors import ConfigError, DataError, UserError
from lightning_mllm.progress import track
from lightning_mllm.types import Sample

_CHUNK = 16  # samples that a process encodes before it reports


@dataclass(frozen=True)
class FullCheck:
    """What was checked.

    Attributes:
        checkpoint: The checkpoint that samples were encoded for.
        samples: How many samples could be encoded.
        known: For how many splits an earlier check had found this out.
    """

    checkpoint: str
    samples: int
    known: int

    def __rich__(self) -> Text:
        again = f" (of {self.known} splits this was known from an earlier check)"
        return Text(
            f"{self.samples:,} samples were written out for {self.checkpoint} and their pictures "
            f"decoded{again if self.known else ''}. A fit with the same data, checkpoint and "
            f"prompt need not do it again ({check_manifest_folder()})."
        )


def run_full_check(module: MLLMDataModule, splits: Sequence[Split]) -> FullCheck:
    """Encode all samples of those splits that the dataset has, and keep the outcome.

    Raises:
        ConfigError: The DataModule has no checkpoint.
        DataError: Samples can't be encoded, or something else is wrong with the dataset.
    """
    if not module.checkpoint:
        raise ConfigError(
            "Samples are written out as a model reads them, but no checkpoint is named. Give its "
            "config before the data's, or --checkpoint, or leave out --all."
        )
    known = samples = 0
    with module.gather():
        for scan in module.scan_splits([split for split in splits if split in module.splits]):
            manifest = CheckManifest(scan)
            if manifest.take_over() is None:
                _write_out(module, scan, manifest)
            else:
                known += 1
            scan.warn()
            samples += len(scan.facts)
    return FullCheck(module.checkpoint, samples, known)


def _write_out(module: MLLMDataModule, scan: SplitScan, manifest: CheckManifest) -> None:
    """Encode all samples of a split, refuse the bad ones, and write the outcome down."""
    paths, (numbers,) = unique_texts(scan.pictures.files)
    found = inspect_image_files(paths)
    found.warn_of_animated(paths)
    module.bad_rows.count_image_files(len(paths))
    files = found.take(numbers)
    dry_run_suspects(scan, files)
    loader: DataLoader[list[tuple[int, int | UserError]]] = DataLoader(
        scan.facts.indices().tolist(),
        batch_size=_CHUNK,
        num_workers=module.num_workers,
        collate_fn=_CheckSamples(scan.samples, scan.collator),
    )
    ends: dict[int, str] = {}
    for results in track(loader, f"Encoding {scan.split}, {_CHUNK} at a time"):
        for index, result in results:
            try:
                if isinstance(result, UserError):
                    raise result
                check_batch_end(result, scan.facts.ids[index], ends)
            except DataError as error:
                scan.refuse(index, error)
    manifest.write(files)


class _CheckSamples:
    """Encodes samples in a worker process.

    Of each sample it returns the token that ends its answer, or the error.
    """

    def __init__(self, samples: Sequence[Sample], collator: Collator) -> None:
        self._samples, self._collator = samples, collator

    def __call__(self, indices: Sequence[int]) -> list[tuple[int, int | UserError]]:
        return [(index, self._check_one(index)) for index in indices]

    def _check_one(self, index: int) -> int | UserError:
        try:
            return self._collator.check(fetch_sample(self._samples, index))
        except UserError as error:
            return error
