"""What a run's folder says of the run: how it ended, and which software and code it ran with."""

from __future__ import annotations

import logging
import os
import platform
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lightning_mllm import __version__
from lightning_mllm.errors import UserError
from lightning_mllm.store.files import write_json
from lightning_mllm.tracking.metrics_file import MetricsFile
from lightning_mllm.tracking.secrets import mask_secrets

_STATUS, _ENVIRONMENT = "status.json", "environment.json"
# metrics.csv: before the first batch, it has no rows but those of the run that goes on
_OF_SET_UP = (_STATUS, _ENVIRONMENT, "config.yaml", "metrics.csv")
_PACKAGES = (
    *("lightning", "torch", "torchmetrics", "transformers", "tokenizers", "accelerate", "peft"),
    *("bitsandbytes", "safetensors", "numpy", "scipy", "pillow", "wandb"),
)
_PATIENCE = 10  # seconds that git may take

logger = logging.getLogger(__name__)


class RunStatus:
    """Keeps `status.json` and `environment.json` of a run, and takes away what never began.

    Args:
        folder: Folder of the run; None for a process that writes nothing.

    Attributes:
        began: Whether the first batch was there. Before it, a failure leaves no folder.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder, self.began = folder, False
        self._content: dict[str, Any] = {}
        self._depth = 0
        self._stopped: str | None = None  # by which signal

    @contextmanager
    def during(self, command: str, trainer: Any) -> Iterator[None]:
        """Write how the block begins and ends; a block inside another one writes nothing.

        Args:
            command: What the run does, e.g. `fit`.
            trainer: The Trainer that does it.
        """
        self._depth += 1
        if self._depth == 1:
            self._begin(command)
        try:
            yield
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt | SIGTERMException):
                pressed = isinstance(error, KeyboardInterrupt)
                self._stopped = "Ctrl-C" if pressed else "SIGTERM"
            if self._depth == 1:
                self.end(error, trainer)
            raise
        else:
            if self._depth == 1:
                self.write(status="finished", step=_steps_of(trainer), ended=_now())
        finally:
            self._depth -= 1

    @property
    def is_running(self) -> bool:
        """Whether a command runs."""
        return self._depth > 0

    def write(self, **changes: Any) -> None:
        """Change entries of `status.json`."""
        self._content |= {**changes, "updated": _now()}
        if self.folder is not None:
            try:
                write_json(self.folder / _STATUS, self._content)
            except OSError as error:  # a full disk must not hide what the run itself says of it
                logger.warning("%s could not be written: %s", self.folder / _STATUS, error)

    @contextmanager
    def setting_up(self) -> Iterator[None]:
        """Remove the folder if the block fails, and nothing but the set-up has written into it."""
        try:
            yield
        except BaseException:
            self._remove_set_up()
            raise

    def _remove_set_up(self) -> None:
        if self.folder is not None and self._holds_set_up_only():
            shutil.rmtree(self.folder, ignore_errors=True)

    def _begin(self, command: str) -> None:
        self._content = {
            "status": "running",
            "command": command,
            "reason": None,  # why it stopped or failed
            "step": 0,  # as of the last epoch or checkpoint
            "continues": None,  # the checkpoint that it goes on from
            "started": _now(),
            "ended": None,
            "machine": socket.gethostname(),
            "process": os.getpid(),
        }
        self._stopped = None
        self.write()
        if self.folder is not None and not (self.folder / _ENVIRONMENT).exists():
            write_json(self.folder / _ENVIRONMENT, describe_run_environment())

    def end(self, error: BaseException, trainer: Any) -> None:
        """Write that the run ends with an error; remove the folder of one that never began."""
        if not self.began and self._holds_set_up_only():
            for each in trainer.loggers:  # they write into the folder, also of the next try
                if isinstance(each, MetricsFile):
                    each.clear()
                elif isinstance(each, WandbLogger) and each._experiment is not None:
                    each.experiment.finish(exit_code=1)
                    each._experiment = None
            self._remove_set_up()
            return
        reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        ending = {
            "status": "failed" if self._stopped is None else "stopped",
            "reason": self._stopped or mask_secrets(reason),
        }
        self.write(**ending, step=_steps_of(trainer), ended=_now())

    def _holds_set_up_only(self) -> bool:
        if self.folder is None:
            return False
        files = [path.relative_to(self.folder) for path in self.folder.rglob("*") if path.is_file()]
        return all(str(file) in _OF_SET_UP or file.parts[0] == "wandb" for file in files)


def _steps_of(trainer: Any) -> int:
    """Return the steps that the model has had, also before its checkpoint was loaded."""
    return int(getattr(trainer.lightning_module, "trained_steps", trainer.global_step))


def describe_run_environment() -> dict[str, Any]:
    """Return versions, and the commit of the git tree that is the current folder, if it is one."""
    versions = {"lightning-mllm": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    described: dict[str, Any] = {"platform": platform.platform(), "versions": versions}
    commit = _ask_git("rev-parse", "HEAD")
    if commit:
        changes = _ask_git("status", "--porcelain", "--untracked-files=no")
        dirty = None if changes is None else bool(changes)
        described["git"] = {"commit": commit, "dirty": dirty}
    return described


def _ask_git(*arguments: str) -> str | None:
    """Return what git says of the current folder; None without git, or outside of a git tree."""
    try:
        answer = subprocess.run(
            ["git", "--no-optional-locks", *arguments],
            capture_output=True,
            text=True,
            timeout=_PATIENCE,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
