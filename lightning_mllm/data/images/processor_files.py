"""A checkpoint's processor as files, in which some settings are changed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download

from lightning_mllm.errors import CheckpointError

_PROCESSOR, _IMAGE_PROCESSOR = "processor_config.json", "preprocessor_config.json"
_PATTERNS = (
    *(_PROCESSOR, _IMAGE_PROCESSOR),
    *("video_preprocessor_config.json", "audio_tokenizer_config.json"),
    *("chat_template.jinja", "chat_template.json", "additional_chat_templates/*.jinja"),
    *("tokenizer*.json", "special_tokens_map.json", "added_tokens.json", "tekken.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "*.model", "*.tiktoken"),
)

Settings = Mapping[str, Any]  # of a JSON file


@dataclass(frozen=True)
class ProcessorFiles:
    """All files of a checkpoint's processor, those of its video part included.

    Attributes:
        source: The folder that they are in.
        own: Settings of the processor that are not as in the files.
        image: Settings of its image processor that are not as in the files.
        kind: Name of the processor's class, for a checkpoint that does not have a file for `own`.
        with_code: Whether the checkpoint's own code belongs to them.
        needs_torchvision: Whether `AutoProcessor` opens them with torchvision only.
    """

    source: Path
    own: Settings
    image: Settings
    kind: str
    with_code: bool = False
    needs_torchvision: bool = False

    def save(self, folder: Path) -> None:
        """Copy the files to a folder and change the settings there; nothing else is changed."""
        for pattern in _list_patterns(self.with_code):
            for path in self.source.glob(pattern):
                target = folder / path.relative_to(self.source)
                target.parent.mkdir(exist_ok=True)
                shutil.copyfile(path, target)
        config = _read(folder / _PROCESSOR)
        if self.own:
            config = {"processor_class": self.kind, **config, **self.own}
        if self.image and "image_processor" in config:
            config = {**config, "image_processor": {**config["image_processor"], **self.image}}
        elif self.image:
            path = folder / _IMAGE_PROCESSOR
            _write(path, {**_read(path), **self.image})
        if config != _read(folder / _PROCESSOR):
            _write(folder / _PROCESSOR, config)


def find_processor_folder(checkpoint: str, revision: str | None, with_code: bool = False) -> Path:
    """Return the folder with the files of a checkpoint's processor.

    Of a hub id it is the one in the cache, to which the files that are missing are fetched.

    Args:
        checkpoint: Hub id or folder.
        revision: Branch, tag or commit of a hub id.
        with_code: Whether the checkpoint's own code belongs to them.

    Raises:
        CheckpointError: They can't be fetched.
    """
    if Path(checkpoint).is_dir():
        return Path(checkpoint)
    patterns = list(_list_patterns(with_code))
    try:
        return Path(snapshot_download(checkpoint, revision=revision, allow_patterns=patterns))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"The processor's files of {checkpoint!r} can't be fetched: {error}. Check the "
            "network, or give a folder with the checkpoint."
        ) from error


def list_processor_changes(before: Any, after: Any) -> Settings:
    """Return the settings of a processor, or image processor, that another has otherwise."""
    found, expected = (json.loads(owner.to_json_string()) for owner in (before, after))
    missing = object()
    changes = {}
    for name, value in expected.items():
        if name != "image_processor" and found.get(name, missing) != value:
            changes[name] = value
    return changes


def _list_patterns(with_code: bool) -> tuple[str, ...]:
    return (*_PATTERNS, "*.py") if with_code else _PATTERNS


def _read(path: Path) -> dict[str, Any]:
    settings: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return settings


def _write(path: Path, settings: Settings) -> None:
    path.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
