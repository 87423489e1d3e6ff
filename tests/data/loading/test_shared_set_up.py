"""Two real processes share one set-up of every dataset whose samples are arrays."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.command_line import conversation, write_image_folder, write_llava_json
from tests.support.hf_tables import classes, save_splits

pytestmark = pytest.mark.slow

TIMEOUT = 300  # seconds; a process that waits for the other one waits for ever


def run_two(folder: Path, checkpoint: str, run: str) -> list[dict[str, Any]]:
    caches = {name: str(folder / "cache") for name in ("XDG_CACHE_HOME", "HF_DATASETS_CACHE")}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["-m", "tests.support.shared_set_up", str(folder), checkpoint, run]
    subprocess.run(command, env={**os.environ, **caches}, timeout=TIMEOUT, check=True)
    files = [folder / f"{run}-{rank}.json" for rank in range(2)]
    return [json.loads(file.read_text()) for file in files]


def test_two_processes_share_one_set_up(tmp_path: Path, tiny_llava: str) -> None:
    write_image_folder(tmp_path / "images", {"a": 22, "b": 22})
    rows = [conversation(f"r{k}") for k in range(20)]
    rows[3]["image"] = ["no/gone.png"]
    write_llava_json(tmp_path / "rows", rows)
    table = classes(0, 40, id=[f"t{k % 39}" for k in range(40)])
    cells = table.to_list()
    cells[5]["image"]["bytes"] = b"no picture"
    save_splits(tmp_path / "table", train=table.from_list(cells, table.features))

    for run in ("first", "second"):
        first, second = run_two(tmp_path, tiny_llava, run)
        for name in ("folder", "json", "table"):
            assert "error" not in first[name], first[name]
            for same in ("digests", "samples", "bad"):
                assert first[name][same] == second[name][same], name
            assert bool(first[name]["bad"]) == (name != "folder")
            for split, ids in first[name]["samples"].items():
                seen = [*first[name]["seen"][split], *second[name]["seen"][split]]
                assert {*seen} == {*ids}
                assert len(seen) <= len(ids) + 1  # none of them has an empty batch
        for name in ("refused", "gone", "long"):
            assert first[name] == second[name]
            assert "error" in first[name]
        if run == "first":
            kept = first
    for name in ("folder", "json", "table"):
        assert first[name]["digests"] == kept[name]["digests"]
