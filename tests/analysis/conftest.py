from __future__ import annotations

import pytest

from lightning_mllm.analysis.core import per_question as question_analysis
from tests.support.questions import Examiner


@pytest.fixture
def examined(monkeypatch: pytest.MonkeyPatch) -> None:
    """All answers are right but those of `WRONG`: a random model has none."""
    monkeypatch.setattr(question_analysis, "ExactMatch", Examiner)
