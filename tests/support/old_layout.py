"""Checkpoints whose processor is written as the hub's older ones are."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

PARTS = {
    "image_processor": "preprocessor_config.json",
    "video_processor": "video_preprocessor_config.json",
}


def write_old_layout(checkpoint: str, folder: Path) -> str:
    """Copy a checkpoint: a file for each part, `...Fast` classes, chat_template.json."""
    shutil.copytree(checkpoint, folder)
    config = json.loads((folder / "processor_config.json").read_text())
    (folder / "processor_config.json").unlink()
    kind = {"processor_class": config.pop("processor_class")}
    for part, file in PARTS.items():
        if part in config:
            settings: dict[str, Any] = config.pop(part)
            settings[f"{part}_type"] = settings[f"{part}_type"].removesuffix("Fast") + "Fast"
            (folder / file).write_text(json.dumps({**settings, **kind}))
    if config:
        (folder / "processor_config.json").write_text(json.dumps({**config, **kind}))
    template = folder / "chat_template.jinja"
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template.read_text()}))
    template.unlink()
    return str(folder)
