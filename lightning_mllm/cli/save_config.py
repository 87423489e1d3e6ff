"""The config that a run saves, so that it can be repeated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch.cli import SaveConfigCallback

from lightning_mllm.tracking.loggers import log_config
from lightning_mllm.tracking.secrets import mask_secrets


class SaveConfig(SaveConfigCallback):
    """Writes the resolved config into the run's own folder and to W&B."""

    def save_config(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Write `config.yaml`; Lightning calls this on rank zero only, before anything runs."""
        config = mask_secrets(yaml.safe_load(self.parser.dump(self.config, skip_none=False)))
        file = Path(trainer.default_root_dir) / "config.yaml"
        file.write_text(yaml.safe_dump(config, sort_keys=False))
        log_config(trainer.loggers, config)
