"""The tables and figures of a finished study as one W&B run, in the group of its cells."""

from __future__ import annotations

import csv
from collections.abc import Sequence

from lightning_mllm.store.files import read_json, write_json
from lightning_mllm.store.manifest import manifest_digest
from lightning_mllm.study.engine.runnable import RunnableStudy


def log_wandb_summary(study: RunnableStudy, tables: Sequence[str]) -> None:
    """Log the summary, unless `summary.json` says that these tables are logged in this mode.

    Args:
        study: The study.
        tables: Names of the CSV files to log.
    """
    from lightning_mllm.tracking.loggers import (  # noqa: PLC0415  # they need Lightning
        finish_loggers,
        log_image,
        log_table,
        make_loggers,
    )

    marker = study.folder / "summary.json"
    contents = [(study.folder / f"{name}.csv").read_bytes().decode() for name in tables]
    now = {"wandb": study.wandb, "tables": manifest_digest(contents)}
    if marker.is_file() and read_json(marker) == now:
        return
    loggers = make_loggers(
        study.folder / "summary",
        name=f"{study.name}-summary",
        group=study.name,
        mode=study.wandb,
        project=study.project,
    )
    for name in tables:
        with (study.folder / f"{name}.csv").open(newline="", encoding="utf-8") as file:
            columns, *rows = csv.reader(file)
        log_table(loggers, name, columns, rows)
    for path in sorted((study.folder / "figures").glob("*.png")):
        log_image(loggers, f"figures/{path.stem}", path)
    finish_loggers(loggers)
    write_json(marker, now)
