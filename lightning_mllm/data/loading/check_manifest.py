"""What `lightning data check --all` has found, kept so that later starts need not encode again."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lightning_mllm.data.images.checkpoint_processor import CheckpointProcessor
from lightning_mllm.data.images.geometry import Size
from lightning_mllm.data.loading.lazy import LazySamples
from lightning_mllm.data.loading.left_out import LeftOut
from lightning_mllm.data.loading.split_scan import SplitScan
from lightning_mllm.errors import DataError
from lightning_mllm.store.files import write_text
from lightning_mllm.store.manifest import manifest_digest

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
        self._paths = sorted(scan.paths)
        self.path = (
            check_manifest_folder() / f"{self._digest()}.json" if _can_be_named(scan) else None
        )

    def take_over(self) -> dict[Path, Size] | None:
        """Leave out the samples that were found not to fit or to be bad.

        Returns:
            Image file -> size of its picture; None if there is no manifest.
        """
        if self.path is None or not self.path.is_file():
            return None
        content = json.loads(self.path.read_text(encoding="utf-8"))
        for index, kind, problem in content["refused"]:
            self._scan.refuse(index, DataError(problem, kind))
        for index in content["too_long"]:
            self._scan.leave_out(index)
        self._scan.left_out = LeftOut(**content["left_out"])
        sizes = zip(self._paths, content["sizes"], strict=True)
        return {path: (size[0], size[1]) for path, size in sizes if size is not None}

    def write(self, sizes: dict[Path, Size]) -> None:
        """Write the outcome in one step; nothing where no text stands for the samples' content.

        Args:
            sizes: Image file -> size of its picture, for sound files.
        """
        if self.path is None:
            return
        scan = self._scan
        content = {
            "sizes": [sizes.get(path) for path in self._paths],
            "refused": [(index, error.kind, str(error)) for index, error in scan.refused.items()],
            "too_long": scan.too_long,
            "left_out": asdict(scan.left_out),
        }
        write_text(self.path, json.dumps(content))

    def _digest(self) -> str:
        return manifest_digest(f"{part}\0" for part in self._parts())

    def _parts(self) -> Iterator[str]:
        scan, collator = self._scan, self._scan.collator
        yield from (f"{name} {version(name)}" for name in _LIBRARIES)
        yield from (scan.split, repr(collator.prompt), repr(collator.label_names))
        yield str(collator.geometry)
        yield str((collator.max_length, collator.long_answers, collator.split_special_tokens))
        yield from _processor_parts(collator.processor)
        yield from (f"{index} {scan.samples[index]!r}" for index in scan.facts)
        for path in self._paths:
            status = path.stat() if path.exists() else None
            yield f"{path} {status and (status.st_size, status.st_mtime_ns)}"


def check_manifest_folder() -> Path:
    """Return where manifests are: in the user's cache, since datasets may be read-only."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "lightning_mllm" / "data_check"


def _can_be_named(scan: SplitScan) -> bool:
    """Return whether prompt and pictures have a text that stands for their content.

    Samples that are made when they are asked for are not made again for it.
    """
    if isinstance(scan.samples, LazySamples):
        return False
    for facts in scan.facts.values():
        if not all(isinstance(image, Path) for image in facts.images):
            return False
    return " object at 0x" not in repr(scan.collator.prompt)


def _processor_parts(processor: CheckpointProcessor) -> Iterator[str]:
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
