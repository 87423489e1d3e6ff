"""`lightning extract`: hidden states for notebooks, and how to read them."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from rich.table import Table

from lightning_mllm.cli.commands.model import ModelCLI
from lightning_mllm.probing.features.state_files import (
    INDEX,
    StateRow,
    read_state_index,
    state_shape,
)
from lightning_mllm.progress import console


def run(name: str, arguments: list[str]) -> None:
    """Extract, and say what the folder has."""
    ExtractCLI([name, *arguments])


class ExtractCLI(ModelCLI):
    """The command line of the other model commands, which ends with what was written."""

    def after_extract(self) -> None:
        """Show a row per point, and three lines that read the first."""
        if not self.trainer.is_global_zero:
            return
        folder = Path(self.config[self.subcommand]["output"])
        by_point: dict[str, list[StateRow]] = defaultdict(list)
        for row in read_state_index(folder / INDEX):
            by_point[row.point].append(row)
        table = Table("point", "samples", "rows", "width", "dtype", "files")
        for point, rows in by_point.items():
            count, files = sum(row.end - row.start for row in rows), {row.file for row in rows}
            width, dtype = state_shape(folder / rows[0].file)
            table.add_row(point, *map(str, (len(rows), count, width, dtype, len(files))))
        console.print(table)
        console.print(f"The states are in {folder}. To read those of one point:", soft_wrap=True)
        console.print(describe_reading(folder, next(iter(by_point))), markup=False, soft_wrap=True)


def describe_reading(folder: Path, point: str) -> str:
    """Return three lines of Python that read the states of a point."""
    lines = f'Path("{folder}/{INDEX}").read_text().split("\\n")'
    return (
        "import csv, torch; from pathlib import Path; from safetensors.torch import load_file\n"
        f'index = [row for row in csv.DictReader({lines}) if row["point"] == "{point}"]\n'
        f'states = torch.cat([load_file(f"{folder}/{{file}}")["states"] '
        'for file in dict.fromkeys(row["file"] for row in index)])'
    )
