"""The tables and figures of a finished study as one W&B run, in the group of its cells."""

from __future__ import annotations

import csv
import hashlib

from lightning_mllm.study.config import Study
from lightning_mllm.tracking.files import read_json, write_json
from lightning_mllm.tracking.log import finish, log_image, log_table, make_loggers

_TABLES = ("table1", "table2", "verdict")


def log_summary(study: Study) -> None:
    """Log the summary, unless that is done: `summary.json` says of which tables, and in which mode."""
    marker = study.folder / "summary.json"
    now = {"wandb": study.wandb, "tables": _digest(study)}
    if marker.is_file() and read_json(marker) == now:
        return
    loggers = make_loggers(
        study.folder / "summary",
        name=f"{study.name}-summary",
        group=study.name,
        mode=study.wandb,
        project=study.project,
    )
    for name in _TABLES:
        with (study.folder / f"{name}.csv").open(newline="", encoding="utf-8") as file:
            columns, *rows = csv.reader(file)
        log_table(loggers, name, columns, rows)
    for path in sorted((study.folder / "figures").glob("*.png")):
        log_image(loggers, f"figures/{path.stem}", path)
    finish(loggers)
    write_json(marker, now)


def _digest(study: Study) -> str:
    content = b"".join((study.folder / f"{name}.csv").read_bytes() for name in _TABLES)
    return hashlib.sha256(content).hexdigest()[:16]
