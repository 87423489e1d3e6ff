"""What `lightning data check --all` has found, kept so that later starts need not write anything out again."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lightning_mllm.data.images.files import Size
from lightning_mllm.data.loading.lazy import LazySamples
from lightning_mllm.data.loading.left_out import LeftOut
from lightning_mllm.data.loading.survey import Survey
from lightning_mllm.errors import DataError
from lightning_mllm.store.files import write_text
from lightning_mllm.store.manifest import digest

_LIBRARIES = ("lightning-mllm", "transformers", "tokenizers", "pillow", "numpy")  # that decide what comes out


class Manifest:
    """The outcome of writing out all samples of a split with one checkpoint.

    It is found by a digest of all that decides it: the samples, the files' paths, sizes and times, the processor, the
    prompt and the versions of the libraries. So it is never out of date: anything changed is another digest.

    Args:
        survey: Of the split.
    """

    def __init__(self, survey: Survey) -> None:
        self._survey = survey
        self._paths = sorted(survey.paths)
        self.path = manifest_folder() / f"{self._digest()}.json" if _can_be_named(survey) else None

    def take_over(self) -> dict[Path, Size] | None:
        """Leave out the samples that were found not to fit or to be bad, and return the files' sizes.

        None is returned if there is no manifest.
        """
        if self.path is None or not self.path.is_file():
            return None
        content = json.loads(self.path.read_text(encoding="utf-8"))
        for index, kind, problem in content["refused"]:
            self._survey.refuse(index, DataError(problem, kind))
        for index in content["too_long"]:
            self._survey.leave_out(index)
        self._survey.left_out = LeftOut(**content["left_out"])
        sizes = zip(self._paths, content["sizes"], strict=True)
        return {path: (size[0], size[1]) for path, size in sizes if size is not None}

    def write(self, sizes: dict[Path, Size]) -> None:
        """Write the outcome, in one step; nothing where samples can't be told apart from outside.

        Args:
            sizes: Of the sound files.
        """
        if self.path is None:
            return
        survey = self._survey
        content = {
            "sizes": [sizes.get(path) for path in self._paths],
            "refused": [(index, error.kind, str(error)) for index, error in survey.refused.items()],
            "too_long": survey.too_long,
            "left_out": asdict(survey.left_out),
        }
        write_text(self.path, json.dumps(content))

    def _digest(self) -> str:
        return digest(f"{part}\0" for part in self._parts())

    def _parts(self) -> Iterator[str]:
        survey, collator = self._survey, self._survey.collator
        yield from (f"{name} {version(name)}" for name in _LIBRARIES)
        yield from (survey.split, repr(collator.prompt), repr(collator.label_names), str(collator.geometry))
        yield str((collator.max_length, collator.long_answers, collator.split_special_tokens))
        yield from _processor_parts(collator.processor)
        yield from (f"{index} {survey.samples[index]!r}" for index in survey.facts)
        for path in self._paths:
            status = path.stat() if path.exists() else None
            yield f"{path} {status and (status.st_size, status.st_mtime_ns)}"


def manifest_folder() -> Path:
    """Return where manifests lie: in the user's cache, since datasets may be read-only."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lightning_mllm" / "data_check"


def _can_be_named(survey: Survey) -> bool:
    """Return whether prompt and pictures have a text that stands for their content.

    Samples that are made as they are asked for are not made once more for it.
    """
    if isinstance(survey.samples, LazySamples):
        return False
    in_memory = any(not isinstance(image, Path) for facts in survey.facts.values() for image in facts.images)
    return not in_memory and " object at 0x" not in repr(survey.collator.prompt)


def _processor_parts(processor: Any) -> Iterator[str]:
    yield type(processor).__name__
    yield json.dumps(processor.image_processor.to_dict(), sort_keys=True, default=str)
    yield str(processor.chat_template)
    for name in ("image_token", "patch_size", "vision_feature_select_strategy", "num_additional_image_tokens"):
        yield str(getattr(processor, name, None))
    yield processor.tokenizer.backend_tokenizer.to_str()
    yield str((processor.tokenizer.bos_token, processor.tokenizer.eos_token, processor.tokenizer.pad_token))
