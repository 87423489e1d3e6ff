from __future__ import annotations

import pytest

from lightning_mllm.errors import ConfigError
from lightning_mllm.tracking.analysis_run import AnalysisRun


def test_several_processes_without_a_folder_would_each_have_only_a_part() -> None:
    with pytest.raises(ConfigError, match=r"2 processes put what they find together .* use one device"):
        AnalysisRun((), None, {}, share=0, shares=2, barrier=lambda: None)


def test_one_process_needs_no_folder() -> None:
    run = AnalysisRun((), None, {}, share=0, shares=1, barrier=lambda: None)

    assert run.finish((), "analysis", 0) == []
