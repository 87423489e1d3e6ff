"""The table of `docs/families.md`: which feature works for which family.

`python -m tests.families.table` writes it again, `... table qwen2_vl` the rows that are named.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from lightning_mllm.errors import UserError
from lightning_mllm.models.tiny import build_tiny_checkpoint
from tests.families.checkpoints import NAMES, TinyModel
from tests.families.features import FEATURES

PAGE = Path(__file__).parents[2] / "docs" / "families.md"
START, END = "<!-- table -->\n", "<!-- end of table -->"
REFUSED = "no"

Cells = Mapping[str, Mapping[str, str]]  # checkpoint -> feature -> what the cell says


def try_feature(tiny: TinyModel, feature: str) -> tuple[str, str]:
    """Return what the cell says, and the refusal, if it is one."""
    try:
        note = FEATURES[feature].check(tiny)
    except UserError as error:
        return REFUSED, str(error)
    return note or "yes", ""


def read_table() -> dict[str, dict[str, str]]:
    """The cells of the page."""
    table = PAGE.read_text().partition(START)[2].partition(END)[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    header, _, *body = rows
    cells = {}
    for name, *values in body:
        cells[name.strip("`")] = dict(zip(header[1:], values, strict=True))
    return cells


def write_table(cells: Cells, features: Sequence[str] = tuple(FEATURES)) -> None:
    """Replace the table of the page."""
    lines = [f"| checkpoint | {' | '.join(features)} |", f"|{'---|' * (len(features) + 1)}"]
    for name in cells:
        values = " | ".join(cells[name][feature] for feature in features)
        lines.append(f"| `{name}` | {values} |")
    table = START + "\n".join(lines) + "\n" + END
    pattern = re.escape(START) + ".*?" + re.escape(END)
    PAGE.write_text(re.sub(pattern, lambda _: table, PAGE.read_text(), flags=re.DOTALL))


def main(names: Sequence[str]) -> None:
    """Try every feature on these checkpoints, and write each row when it is done."""
    with tempfile.TemporaryDirectory() as scratch:
        for name in names:
            path = build_tiny_checkpoint(Path(scratch) / name, name)  # type: ignore[arg-type]
            tiny = TinyModel(name, str(path), Path(scratch))
            row = {feature: try_feature(tiny, feature)[0] for feature in FEATURES}
            cells = read_table() | {name: row}
            write_table({each: cells[each] for each in NAMES if each in cells})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=NAMES, help="Rows to write; by default all.")
    main(parser.parse_args().names)
