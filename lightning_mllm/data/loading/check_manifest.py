"""What `lightning data check --all` has found, kept so that later starts need not encode again."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from lightning_mllm.data.images.checkpoint_processor import CheckpointProcessor
from lightning_mllm.data.images.inspection import InspectedFiles
from lightning_mllm.data.loading.lazy import LazySamples
from lightning_mllm.data.loading.left_out import LeftOut
from lightning_mllm.data.loading.picture_sizes import PictureSizes
from lightning_mllm.data.loading.split_scan import SplitScan
from lightning_mllm.data.loading.stored import StoredSamples
from lightning_mllm.errors import DataError
from lightning_mllm.store.files import write_text
from lightning_mllm.store.manifest import manifest_digest

logger = logging.getLogger(__name__)

# libraries that decide what comes out
_LIBRARIES = ("lightning-mllm", "transformers", "tokenizers", "pillow", "numpy")


class CheckManifest:
    """The outcome of encoding all samples of a split for one checkpoint.

    It is found by a digest of all that decides it: the samples, the files' paths, sizes and times,
    the processor, the prompt and the versions of the libraries. So it is never out of date:
    whatever changes makes another digest.

    Args:
        scan: What is known of the split.
    """

    def __init__(self, scan: SplitScan) -> None:
        self._scan = scan
        self.path = (
            check_manifest_folder() / f"{self._digest()}.json" if _can_be_named(scan) else None
        )

    def take_over(self) -> PictureSizes | None:
        """Leave out the samples that were found not to fit or to be bad.

        Returns:
            The sizes of the pictures; None if there is no manifest.
        """
        if self.path is None or not self.path.is_file():
            return None
        content = json.loads(self.path.read_text(encoding="utf-8"))
        for index, kind, problem in content["refused"]:
            self._scan.refuse(index, DataError(problem, kind))
        for index in content["too_long"]:
            self._scan.leave_out(index)
        self._scan.left_out = LeftOut(**content["left_out"])
        scan = self._scan
        sizes = np.array(content["sizes"], np.int32).reshape(-1, 2)
        return PictureSizes.join(len(scan.samples), (scan.pictures.owners, sizes), scan.facts.inner)

    def write(self, files: InspectedFiles) -> None:
        """Write the outcome in one step; nothing where no text stands for the samples' content.

        Args:
            files: What was found of the image files of the samples.
        """
        if self.path is None:
            return
        scan = self._scan
        content = {
            "sizes": files.sizes.tolist(),
            "refused": [(index, error.kind, str(error)) for index, error in scan.refused.items()],
            "too_long": scan.too_long,
            "left_out": asdict(scan.left_out),
        }
        write_text(self.path, json.dumps(content))

    def _digest(self) -> str:
        return manifest_digest(f"{part}\0" for part in self._parts())

    def _parts(self) -> Iterator[str]:
        scan, collator = self._scan, self._scan.collator
        yield from list_library_versions()
        yield from (scan.split, repr(collator.prompt), repr(collator.label_names))
        yield str(collator.geometry)
        yield str((collator.max_length, collator.long_answers, collator.split_special_tokens))
        yield from describe_processor(collator.processor)
        kept = scan.facts.indices()
        if isinstance(scan.samples, StoredSamples):
            yield scan.samples.select(kept).digest()
        else:
            yield from (f"{index} {scan.samples[index]!r}" for index in kept.tolist())
        for name in scan.pictures.files:
            path = Path(name)
            status = path.stat() if path.exists() else None
            yield f"{path} {status and (status.st_size, status.st_mtime_ns)}"


def check_manifest_folder() -> Path:
    """Return where manifests are: in the user's cache, since datasets may be read-only."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "lightning_mllm" / "data_check"


def warn_of_cache(folder: Path, error: OSError) -> None:
    """Say that a folder of the user's cache can't be written, and what that costs."""
    logger.warning(
        "What was found of the data can't be kept in %s (%s), so that the next start looks at all "
        "of it again. Set XDG_CACHE_HOME to a folder that can be written.",
        folder,
        error.strerror or error,
    )


def _can_be_named(scan: SplitScan) -> bool:
    """Return whether prompt and pictures have a text that stands for their content.

    Samples that are made when they are asked for are not made again for it.
    """
    if isinstance(scan.samples, LazySamples):
        return False
    if len(scan.facts.inner[0]):
        return False
    return " object at 0x" not in repr(scan.collator.prompt)


def list_library_versions() -> list[str]:
    """Return the versions of the libraries that decide what a check finds."""
    return [f"{name} {version(name)}" for name in _LIBRARIES]


def describe_processor(processor: CheckpointProcessor) -> Iterator[str]:
    """Yield what decides what a checkpoint's processor makes of samples."""
    yield type(processor.hf).__name__
    yield json.dumps(processor.image_processor.to_dict(), sort_keys=True, default=str)
    yield processor.chat_template
    for name in (
        "image_token",
        "patch_size",
        "vision_feature_select_strategy",
        "num_additional_image_tokens",
    ):
        yield str(getattr(processor.hf, name, None))
    tokenizer: Any = processor.tokenizer
    yield tokenizer.backend_tokenizer.to_str()
    yield str((tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token))
