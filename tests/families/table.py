"""The tables of `docs/families.md`: which feature works for which family, and for which LLM.

`python -m tests.families.table` writes them again, `... table qwen2_vl` the rows that are named.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from lightning_mllm.errors import UserError
from tests.families.checkpoints import ALL_NAMES, ASSEMBLED, NAMES, TinyModel, build_checkpoint
from tests.families.features import FEATURES

PAGE = Path(__file__).parents[2] / "docs" / "families.md"
END = "<!-- end of table -->"
TABLES = {"<!-- table -->\n": NAMES, "<!-- table of assembled -->\n": tuple(ASSEMBLED)}
REFUSED = "no"

Cells = Mapping[str, Mapping[str, str]]  # checkpoint -> feature -> what the cell says


def try_feature(tiny: TinyModel, feature: str) -> tuple[str, str]:
    """Return what the cell says, and the refusal, if it is one."""
    try:
        note = FEATURES[feature].check(tiny)
    except UserError as error:
        return REFUSED, str(error)
    return note or "yes", ""


def read_tables() -> dict[str, dict[str, str]]:
    """The cells of the page, of both tables."""
    cells = {}
    for start in TABLES:
        table = PAGE.read_text().partition(start)[2].partition(END)[0]
        rows = [
            [cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()
        ]
        header, _, *body = rows
        for name, *values in body:
            cells[name.strip("`")] = dict(zip(header[1:], values, strict=True))
    return cells


def write_tables(cells: Cells, features: Sequence[str] = tuple(FEATURES)) -> None:
    """Replace the tables of the page."""
    for start, names in TABLES.items():
        lines = [f"| checkpoint | {' | '.join(features)} |", f"|{'---|' * (len(features) + 1)}"]
        for name in names:
            if name in cells:
                values = " | ".join(cells[name][feature] for feature in features)
                lines.append(f"| `{name}` | {values} |")
        table = start + "\n".join(lines) + "\n" + END
        before, _, rest = PAGE.read_text().partition(start)
        PAGE.write_text(before + table + rest.partition(END)[2])


def main(names: Sequence[str]) -> None:
    """Try every feature on these checkpoints, and write each row when it is done."""
    with tempfile.TemporaryDirectory() as scratch:
        for name in names:
            tiny = TinyModel(name, build_checkpoint(Path(scratch) / name, name), Path(scratch))
            row = {feature: try_feature(tiny, feature)[0] for feature in FEATURES}
            write_tables(read_tables() | {name: row})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "names", nargs="*", default=ALL_NAMES, help="Rows to write; by default all."
    )
    main(parser.parse_args().names)
