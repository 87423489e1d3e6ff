"""The notebooks run from the first cell to the last."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
SECONDS = 600  # a cell that takes longer hangs
PROGRAM = """
import sys
import nbformat
from nbclient import NotebookClient

path, folder, seconds = sys.argv[1:]
notebook = nbformat.read(path, as_version=4)
place = {"metadata": {"path": folder}}
NotebookClient(notebook, timeout=int(seconds), kernel_name="python3", resources=place).execute()
"""


def test_there_is_a_notebook() -> None:
    assert NOTEBOOKS


@pytest.mark.notebook
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(notebook: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(notebook), str(FOLDER), str(SECONDS)],
        capture_output=True,
        text=True,
        check=False,
    )

    assert result.returncode == 0, result.stderr[-3000:]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_shows_what_came_of_it(notebook: Path) -> None:
    """Cells that were run in order, with pictures, and no path of the machine that ran them."""
    text = notebook.read_text(encoding="utf-8")
    code = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]

    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert "image/png" in text
    here = (Path.home(), Path(tempfile.gettempdir()), Path(sys.prefix), FOLDER.parent)
    assert not [folder for folder in here if f"{folder}/" in text]
