"""`lightning fit --resume RUN`: goes on with a run that was stopped, or prolongs a finished one."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_mllm.errors import ConfigError
from lightning_mllm.store.files import read_json

logger = logging.getLogger(__name__)

_OPTION = "--resume"
_LENGTHS = ("--trainer.max_epochs", "--trainer.max_steps", "--trainer.max_time")
HELP = (
    "Folder of a run to go on with, from its last checkpoint and with its options; others on the "
    "command line go before them. A finished run is prolonged: --resume runs/x --max_epochs 20."
)


def resumed_fit_arguments(arguments: Sequence[str]) -> list[str]:
    """Return the arguments of a fit, with those of the run that `--resume` names in its place.

    `--max_epochs` beside it is that of the trainer. The fit has a folder of its own, beside that of
    the run; without `--resume` the arguments stay as they are.

    Raises:
        ConfigError: There is no such run, it has no checkpoint, or it is finished and there is no
            new length.
    """
    run, others = _take_option(arguments)
    if run is None:
        return list(arguments)
    folder = Path(run)
    if folder.name in ("", ".."):  # `.`: the new run is to be beside it, not in it
        folder = folder.resolve()
    checkpoint = _find_checkpoint(folder)
    others = [_name_in_trainer(argument) for argument in others]
    is_finished = _read_status(folder).get("status") == "finished"
    if is_finished and not any(each.startswith(_LENGTHS) for each in others):
        raise ConfigError(
            f"The run {run} is finished, so nothing is left to train. Say how long it is to be in "
            f"all: lightning fit {_OPTION} {run} --max_epochs <more than now>."
        )
    _warn_of_continuations(folder)
    return [
        *("--config", str(folder / "config.yaml"), "--ckpt_path", str(checkpoint)),
        *("--trainer.run.root", str(folder.parent)),
        *others,
    ]


def checkpoint_file(path: str) -> Path:
    """Return the file that a `ckpt_path` stands for: of a run, its last checkpoint."""
    return _last_checkpoint(Path(path)) if Path(path).is_dir() else Path(path)


def _last_checkpoint(run: Path) -> Path:
    return run / "checkpoints" / "last.ckpt"


def _take_option(arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """Return the value of `--resume`, None without it, and the other arguments."""
    run, others, rest = None, [], iter(arguments)
    for argument in rest:
        name, _, value = argument.partition("=")
        if name == _OPTION:
            run = value or next(rest, "")
        else:
            others.append(argument)
    return run, others


def _name_in_trainer(argument: str) -> str:
    name, equals, value = argument.partition("=")
    return f"--trainer.max_epochs{equals}{value}" if name == "--max_epochs" else argument


def _find_checkpoint(run: Path) -> Path:
    """Return the last checkpoint of a run.

    Raises:
        ConfigError: It is not there.
    """
    checkpoint = _last_checkpoint(run)
    if not (run / "config.yaml").is_file():
        runs = sorted(file.parent.name for file in run.parent.glob("*/config.yaml"))
        known = f" Runs there: {', '.join(runs)}." if runs else ""
        raise ConfigError(
            f"{run} is not the folder of a run: there is no {run / 'config.yaml'}. Name one, e.g. "
            f"{_OPTION} runs/run, or a single file with --ckpt_path.{known}"
        )
    if not checkpoint.is_file():
        continued = _continued_run(run)
        if continued is not None:
            raise ConfigError(
                f"The run {run} ended before its first checkpoint. It went on from {continued}, "
                f"and so can the next: lightning fit {_OPTION} {continued}."
            )
        raise ConfigError(
            f"The run {run} ended before its first checkpoint: there is no {checkpoint}. Begin "
            f"again with `lightning fit --config {run / 'config.yaml'}`."
        )
    return checkpoint


def _warn_of_continuations(run: Path) -> None:
    """Say which runs beside this one have gone on from it already."""
    for file in sorted(run.parent.glob("*/status.json")):
        other, continued = file.parent, _continued_run(file.parent)
        if continued is not None and continued.resolve() == run.resolve():
            said = _read_status(other)
            logger.warning(
                "%s already goes on from this run (%s, step %s). To go on from there: lightning "
                "fit %s %s",
                *(other, said.get("status"), said.get("step"), _OPTION, other),
            )


def _continued_run(run: Path) -> Path | None:
    """Return the run that a run has gone on from, None if it is a beginning."""
    checkpoint = _read_status(run).get("continues")
    return None if checkpoint is None else Path(checkpoint).parent.parent


def _read_status(run: Path) -> dict[str, Any]:
    """Return what a run says of itself; nothing where it can't."""
    status = run / "status.json"
    return read_json(status) if status.is_file() else {}
