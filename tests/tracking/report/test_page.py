"""The page holds what the run says, and nothing that could load or run anything else."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import zlib
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lightning_mllm.cli.commands import report as report_command
from lightning_mllm.errors import ConfigError
from lightning_mllm.store.sample_maps import MapFolder, SampleMaps, ValueMap
from lightning_mllm.tracking.report import page
from lightning_mllm.tracking.report.packing import PackingDetail
from lightning_mllm.tracking.report.page import LIMIT, write_report
from tests.support.report_runs import QUESTION, SHARE, simulate_run


def read_data(path: Path) -> dict[str, Any]:
    found = re.search(r'<script id="data" type="text/plain">([^<]*)</script>', path.read_text())
    assert found is not None
    packed = zlib.decompress(base64.b64decode(found[1]), -zlib.MAX_WBITS)
    data: dict[str, Any] = json.loads(packed)
    return data


@pytest.fixture
def run(tmp_path: Path) -> Path:
    simulate_run(tmp_path / "run")
    return tmp_path / "run"


def test_the_page_has_pictures_curves_tables_and_settings(run: Path, tmp_path: Path) -> None:
    written = write_report(run, tmp_path / "page.html")

    data = read_data(written.path)
    (shown,) = data["passes"]
    assert written.samples == len(shown["samples"]) == 3
    assert [each["question"] for each in shown["samples"]] == [QUESTION] * 3
    assert shown["samples"][0]["pictures"][0]["source"].startswith("data:image/webp;base64,")
    assert data["curves"]["val/loss"][0] == [0.0, 3.0] and len(data["curves"]["val/loss"]) == 5
    assert [table["name"] for table in data["tables"]] == ["analysis/test-step8/flow/summary"]
    assert ["model.checkpoint", "tiny </script>"] in data["settings"]


def test_no_text_of_the_run_ends_a_script_and_no_secret_is_in_it(run: Path, tmp_path: Path) -> None:
    text = write_report(run, tmp_path / "page.html").path.read_text()

    assert text.count("</script") == text.count("<script") == 3
    assert "s3cret-key" not in json.dumps(read_data(tmp_path / "page.html"))
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", text)


def test_nothing_is_loaded_from_elsewhere(run: Path, tmp_path: Path) -> None:
    text = write_report(run, tmp_path / "page.html").path.read_text()

    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy is not None and policy[1].startswith("default-src 'none'; img-src data:;")
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", text)


def test_the_vendored_files_are_those_of_their_readme() -> None:
    vendored = files("lightning_mllm.tracking.report") / "vendored"
    readme = (vendored / "README.md").read_text()
    listed = dict(re.findall(r"\| `(\S+)` \| `([0-9a-f]{64})` \|", readme))

    assert set(listed) == {"uPlot.iife.min.js", "uPlot.min.css", "LICENSE"}
    for name, expected in listed.items():
        assert hashlib.sha256((vendored / name).read_bytes()).hexdigest() == expected


def test_a_full_page_leaves_nothing_out(run: Path, tmp_path: Path) -> None:
    usual = write_report(run, tmp_path / "page.html")
    full = write_report(run, tmp_path / "full.html", full=True)

    assert full.left_out == () and "one of 16 levels" in usual.left_out[0]


def test_maps_of_several_analyses_are_shown_together(run: Path, tmp_path: Path) -> None:
    again = ValueMap(np.zeros((1, 16)), (), "other")
    MapFolder(run / "analysis/test-step8/second").write(
        SampleMaps("sample 0", {SHARE: again, "new": again})
    )

    (shown,) = read_data(write_report(run, tmp_path / "page.html").path)["passes"]

    assert {SHARE, f"{SHARE} (second)", "new"} <= set(shown["values"])


def test_a_page_that_is_too_large_keeps_less(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "LIMIT", 1)
    monkeypatch.setattr(page, "_DETAILS", (PackingDetail(), PackingDetail(16, 2, 1, 2)))

    written = write_report(run, tmp_path / "page.html")

    assert written.samples == 2
    assert written.left_out[:3] == (
        "2 of 3 samples are here.",
        "Words are here at 1 of 3 layers.",
        "Numbers are here at 2 of 3 layers.",
    )


@pytest.mark.parametrize("samples", [3, pytest.param(50, marks=pytest.mark.slow)])
def test_50_samples_of_576_patches_fit(samples: int, tmp_path: Path) -> None:
    options = {"side": 24, "layers": 33, "vocabulary": 32_000, "pixels": 336}
    simulate_run(tmp_path / "run", samples=samples, **options)
    simulate_run(tmp_path / "none", samples=0, **options)

    written = write_report(tmp_path / "run", tmp_path / "page.html")

    fixed = write_report(tmp_path / "none", tmp_path / "none.html").size
    assert written.samples == samples
    assert fixed + (written.size - fixed) * 50 / samples < LIMIT


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "quickstart").mkdir()

    with pytest.raises(ConfigError, match=r"no folder .*quickstar\. [\s\S]*\"quickstart\""):
        write_report(tmp_path / "quickstar", tmp_path / "page.html")
    with pytest.raises(ConfigError, match=r"not the folder of a run: it has none of config\.yaml"):
        write_report(tmp_path / "quickstart", tmp_path / "page.html")


def test_the_command_says_what_it_wrote(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report_command.run("report", [str(run)])

    said = capsys.readouterr().out
    assert f"Written to {run / 'report.html'} (" in said and "3 samples with pictures" in said
    assert "--full writes a page with everything." in said
