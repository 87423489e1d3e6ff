"""The loggers of a run, and what they can log: numbers, the configuration, tables and pictures.

`metrics.csv` is always written; Weights & Biases runs beside it where it is wanted. No other module
imports wandb.
"""

from __future__ import annotations

import logging
import netrc
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image

from lightning_mllm.errors import ConfigError
from lightning_mllm.network import is_reachable
from lightning_mllm.tracking.metrics_file import MetricsFile
from lightning_mllm.tracking.secrets import mask_secrets
from lightning_mllm.tracking.wandb_mode import WandbMode

logger = logging.getLogger(__name__)

_ENVIRONMENT_MODES: dict[str, WandbMode] = {
    "online": "online",
    "run": "online",
    "offline": "offline",
    "dryrun": "offline",
    "disabled": "disabled",
}


def make_loggers(
    run_dir: Path,
    *,
    name: str,
    group: str | None = None,
    tags: Sequence[str] = (),
    mode: WandbMode = "auto",
    project: str = "lightning-mllm",
) -> list[Logger]:
    """Make the loggers of a run: `metrics.csv`, and W&B with its files in the folder `wandb`.

    Args:
        run_dir: Folder of the run; made if it is missing.
        name: Name of the W&B run.
        group: W&B group.
        tags: W&B tags.
        mode: With `auto` the environment variable WANDB_MODE decides; without it, W&B is online
            where a key is set up and the server can be reached, and offline elsewhere.
        project: W&B project.

    Returns:
        The CSV logger, then the W&B logger unless it is disabled.

    Raises:
        ConfigError: W&B is requested, but it is not installed; or it is requested to be online, and
            there is no key or no server.
    """
    if rank_zero_only.rank == 0:  # type: ignore[attr-defined]  # set by lightning
        run_dir.mkdir(parents=True, exist_ok=True)
    loggers: list[Logger] = [MetricsFile(run_dir)]
    resolved = _resolve(mode)
    if resolved != "disabled":
        options = {"name": name, "group": group, "tags": list(tags), "project": project}
        loggers.append(_wandb_logger(run_dir, resolved, may_be_offline=mode == "auto", **options))
    return loggers


class _WandbRun(WandbLogger):
    """Lightning's W&B logger that goes offline, or says why in one sentence, if the server refuses.

    Args:
        may_be_offline: Whether it may go offline.
        options: Options of Lightning's W&B logger.
    """

    def __init__(self, may_be_offline: bool, **options: Any) -> None:
        super().__init__(**options)
        self._may_be_offline = may_be_offline

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The W&B run, which begins when it is first used."""
        import wandb  # noqa: PLC0415  # the library must import without it

        try:
            return super().experiment
        except wandb.errors.Error as error:
            reason = " ".join(str(error).split())
            if not self._may_be_offline:
                raise ConfigError(
                    f"W&B refuses to be online: {reason}. Check the key (`wandb login --relogin`) "
                    "and the project, or use --trainer.run.wandb offline."
                ) from error
        logger.info(f"W&B refuses to be online: {reason}.")
        _say_how_to_sync(Path(self.save_dir or "."))
        self._wandb_init["mode"] = "offline"
        return super().experiment


@rank_zero_only
def log_config(loggers: Iterable[Logger], config: Mapping[str, Any]) -> None:
    """Log the resolved configuration, secrets masked."""
    for logger in _only_wandb(loggers):
        logger.experiment.config.update(mask_secrets(config), allow_val_change=True)


@rank_zero_only
def log_metrics(loggers: Iterable[Logger], metrics: Mapping[str, float], step: int) -> None:
    """Log numbers where a module can't: before the first step, or after an evaluation."""
    for logger in loggers:
        logger.log_metrics(dict(metrics), step=step)


@rank_zero_only
def log_table(
    loggers: Iterable[Logger],
    key: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[Any]],
    step: int | None = None,
) -> None:
    """Log a table; a cell may be a PIL image."""
    rows = list(rows)
    for logger in _only_wandb(loggers):
        data = [_with_wandb_images(row) for row in rows]
        with _staging_in(Path(logger.save_dir or ".") / "wandb"):
            logger.log_table(key, columns=list(columns), data=data, step=step)


@rank_zero_only
def log_image(loggers: Iterable[Logger], key: str, path: Path, step: int | None = None) -> None:
    """Log a figure, its PNG in any case; without the file of one that is not drawn, do nothing."""
    picture = path.with_suffix(".png")
    if picture.is_file():
        for logger in _only_wandb(loggers):
            logger.log_image(key, [str(picture)], step=step)


@rank_zero_only
def finish_loggers(loggers: Iterable[Logger]) -> None:
    """Write everything that is still in memory and close the W&B run."""
    for logger in loggers:
        logger.save()
        if isinstance(logger, WandbLogger):
            logger.experiment.finish()


def _with_wandb_images(row: Sequence[Any]) -> list[Any]:
    import wandb  # noqa: PLC0415  # the library must import without it

    return [wandb.Image(cell) if isinstance(cell, Image.Image) else cell for cell in row]


@contextmanager
def _staging_in(folder: Path) -> Iterator[None]:
    """Let wandb keep the images of offline tables beside the run, not in the home folder.

    So a copy of the run's folder is complete.
    """
    earlier = os.environ.get("WANDB_DATA_DIR")
    os.environ["WANDB_DATA_DIR"] = earlier or str(folder)
    try:
        yield
    finally:
        if earlier is None:
            del os.environ["WANDB_DATA_DIR"]


def _say_how_to_sync(run_dir: Path) -> None:
    logger.info(
        f"W&B is offline. To upload this run later: wandb sync {run_dir / 'wandb'}/offline-run-* "
        "(before the folder is moved, or with a link left in its place: W&B finds the pictures of "
        "tables by their full path)"
    )


def _wandb_logger(
    run_dir: Path, mode: WandbMode, *, may_be_offline: bool, **options: Any
) -> WandbLogger:
    if mode == "offline":
        _say_how_to_sync(run_dir)
    import wandb  # noqa: PLC0415  # the library must import without it

    logger = _WandbRun(
        may_be_offline,
        save_dir=run_dir.resolve(),  # the process of wandb may work in another folder
        mode=mode,  # WandbLogger's own `offline` would change the environment of the process
        reinit="create_new",  # several runs in one process stay apart
        settings=wandb.Settings(
            console="off",
            save_code=False,
            silent=mode == "offline",
            x_disable_meta=True,  # the command line may hold a secret; the config is logged masked
        ),
        **options,
    )
    logger._wandb_init.pop("anonymous", None)  # lightning 2.6 passes what wandb 0.31 warns about
    return logger


def _only_wandb(loggers: Iterable[Logger]) -> Iterable[WandbLogger]:
    return (logger for logger in loggers if isinstance(logger, WandbLogger))


def _resolve(mode: WandbMode) -> WandbMode:
    """Return the mode that `auto` stands for, and check that a mode is possible."""
    asked = mode
    if mode == "auto":
        asked = _ENVIRONMENT_MODES.get(os.environ.get("WANDB_MODE", ""), mode)
    if asked == "disabled":
        return asked
    if find_spec("wandb") is None:
        if mode == "auto":
            logger.info("wandb is not installed: metrics go to metrics.csv only.")
            return "disabled"
        raise ConfigError(
            f"W&B mode {mode!r} needs the package wandb: pip install wandb, or use mode disabled."
        )
    if asked == "offline":
        return asked
    if not _has_key():
        if asked == "auto":
            return "offline"
        raise ConfigError(
            "W&B is requested to be online, but no key is set up. Run `wandb login`, or use mode "
            "offline."
        )
    import wandb  # noqa: PLC0415  # the library must import without it

    server = wandb.setup().settings.base_url
    if is_reachable(server):
        return "online"
    if asked == "auto":
        logger.info(f"The W&B server {server} can't be reached.")
        return "offline"
    raise ConfigError(
        f"W&B is requested to be online, but {server} can't be reached. Check the network, or use "
        "mode offline."
    )


def _has_key() -> bool:
    """Look where wandb looks: environment, settings files, netrc."""
    import wandb  # noqa: PLC0415  # the library must import without it

    settings = wandb.setup().settings
    variables = ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")
    if settings.api_key or any(os.environ.get(name) for name in variables):
        return True
    path = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    hosts = [urlsplit(settings.base_url).hostname or ""]
    if "WANDB_BASE_URL" not in os.environ:
        hosts.append("api.wandb.ai")  # where earlier versions put the key
    try:
        known = netrc.netrc(path).hosts
    except (OSError, netrc.NetrcParseError):
        return False
    return any(host in known for host in hosts)
