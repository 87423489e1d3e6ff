"""What two processes with shards find in a model, and what it answers them, is as in one."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.integration.test_sharding import launched, wait_for
from tests.support.sharded_verbs import run_verbs

pytestmark = pytest.mark.slow

TABLES = [
    "predict/test-step0/predictions.csv",
    "analysis/test-step0/answer_lens/rows.csv",
    "analysis/test-step0/answer_lens/summary.csv",
    "analysis/test-step0/computation_skipping/rows.csv",
    "analysis/test-step0/information_flow/rows.csv",
    "analysis/test-step0/information_flow/summary.csv",
]
CLOCKS = ("seconds",)  # columns that say how fast it went


@pytest.fixture(scope="module")
def runs(tiny_llava: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("verbs")
    (folder / "checkpoint.txt").write_text(tiny_llava)
    run_verbs(folder, processes=1)
    output = folder / "output"
    many = ("torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    with launched(*many, "-m", "tests.support.sharded_verbs", str(folder), output=output) as work:
        wait_for(work, output)
    return folder


@pytest.mark.parametrize("evaluation", ["whole", "sharded"])
@pytest.mark.parametrize("table", TABLES)
def test_processes_with_shards_write_the_tables_of_one_process(
    evaluation: str, table: str, runs: Path
) -> None:
    found, expected = _read(runs / evaluation / table), _read(runs / "alone" / table)

    assert len(found) == len(expected) > 0
    for own, other in zip(found, expected, strict=True):
        for column, cell in other.items():
            if not any(word in column for word in CLOCKS):
                assert _value(own[column]) == pytest.approx(_value(cell), abs=1e-5), column


@pytest.mark.parametrize("evaluation", ["whole", "sharded"])
def test_processes_with_shards_extract_the_states_of_one_process(
    evaluation: str, runs: Path
) -> None:
    found, expected = _states(runs / evaluation), _states(runs / "alone")

    assert found.keys() == expected.keys()
    for key, values in expected.items():
        assert found[key] == pytest.approx(values, abs=1e-5), key


def _states(run: Path) -> dict[tuple[str, str], list[float]]:
    """Return (sample, point) -> its states."""
    found = {}
    for row in _read(run / "states" / "index.csv"):
        (tensor,) = load_file(run / "states" / row["file"]).values()
        states = tensor[int(row["start"]) : int(row["end"])]
        found[row["sample_id"], row["point"]] = states.flatten().tolist()
    return found


def _read(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as lines:
        return list(csv.DictReader(lines))


def _value(cell: str) -> float | str:
    try:
        return float(cell)
    except ValueError:
        return cell
