"""Shift vectors: what they give back, and which models and states belong together."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lightning_mllm.analysis import ShiftSweep
from lightning_mllm.analysis.steering.rows import ShiftRow
from lightning_mllm.analysis.steering.shift_summary import summarise_shifts
from lightning_mllm.errors import ConfigError
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.statistics.picture_bootstrap import Bootstrap
from lightning_mllm.store.rows import Rows
from tests.analysis.steering.test_experiment import read_states, val_batches
from tests.support.loaded import load_copy
from tests.support.questions import batches, load, tokenizer

OPTIONS: dict[str, Any] = {"by": "kind", "segments": ["last"]}
N = 20


@pytest.fixture
def backbone(tiny_llava: str, examined: None) -> Backbone:
    return load(tiny_llava)


def make_tuned(tiny_llava: str, folder: Path) -> str:
    """A checkpoint of the same shape, with other weights in the LLM."""
    tuned = load_copy(tiny_llava)
    with torch.no_grad():
        for name, parameter in tuned.decoder.named_parameters():
            if parameter.ndim > 1 and "layers" in name:
                noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
                parameter.add_(noise, alpha=0.3)
    tuned.model.save_pretrained(folder)
    return str(folder)


def test_it_adds_the_shift_of_the_question_s_kind_beside_its_controls(
    backbone: Backbone, tiny_llava: str, tmp_path: Path
) -> None:
    parts = val_batches(tiny_llava)
    fine_tuned = make_tuned(tiny_llava, tmp_path / "tuned")
    before = read_states(backbone, tiny_llava, tmp_path / "before", parts, **OPTIONS)
    tuned = Backbone.from_pretrained(fine_tuned)
    after = read_states(tuned, tiny_llava, tmp_path / "after", parts, **OPTIONS)
    folders: dict[str, Any] = {"before": before, "after": after, "fine_tuned": fine_tuned}
    analysis = ShiftSweep(**folders, random_vectors=2, scales=[0.0, 1.0])
    analysis.prepare(tokenizer(tiny_llava))

    for batch in batches(tiny_llava):
        analysis.update(backbone, batch)

    table, result = analysis.rows.table(), analysis.compute()
    assert len(table["steer"]) == 6 * 2 * 2  # questions, layers, scales
    still = table["scale"] == 0
    for column in ("shifted", "other", "random"):
        assert np.array_equal(table[column][still], table["before"][still])
    assert result.n_samples == 6
    assert result.settings["analysis"]["by"] == "kind"
    assert result.coords["kind"] == ("all", "choose/attr", "logical/obj")
    with pytest.raises(ConfigError, match="read from a model with the weights"):
        ShiftSweep(**folders).check_model(tuned)
    with pytest.raises(ConfigError, match="are of the same weights"):
        ShiftSweep(**{**folders, "after": before}).check_model(backbone)
    with pytest.raises(ConfigError, match="with its states was read from a model with the weights"):
        ShiftSweep(**{**folders, "fine_tuned": tiny_llava}).check_model(backbone)


def summarise(**columns: list[float]) -> dict[str, list[float]]:
    """Measure -> value, low, high and N of one cell, of 20 questions with a picture each."""
    rows = Rows(ShiftRow)
    for number in range(N):
        numbers: Any = {name: float(values[number]) for name, values in columns.items()}
        row = ShiftRow(
            sample_id=f"q{number:02}",
            kind="k",
            picture=f"p{number}",
            correct=False,
            steer="last",
            start=1,
            stop=2,
            scale=1.0,
            size=1,
            **numbers,
        )
        assert asdict(row)["measured"]
        rows.append({row.sample_id: [row]})
    found = summarise_shifts("s", rows.table(), {}, kind_depth=None, bootstrap=Bootstrap(200))
    (cell,) = found.values.reshape(1, -1, 4)
    return dict(zip(found.coords["measure"], cell.tolist(), strict=True))


def test_what_the_fine_tuned_model_says_gives_all_back_and_the_model_itself_nothing() -> None:
    before = [1.0] * 8 + [0.0] * 12
    after = [1.0] * 18 + [0.0] * 2

    found = summarise(before=before, after=after, shifted=after, other=before, random=before)

    assert found["before_percent"][0] == 40
    assert found["after_percent"][0] == 90
    for measure, value in (("given_back_percent", 100), ("other_given_back_percent", 0)):
        assert found[measure][0] == value
        assert found[measure][1] < value < found[measure][2]  # 20 questions are never certain
    assert found["change_points"][0] == found["change_minus_random_points"][0] == 50
    half = [*after[:13], *before[13:]]
    some = summarise(before=before, after=after, shifted=half, other=half, random=half)
    assert some["given_back_percent"][0] == 50
    assert some["given_back_percent"][1] < 50 < some["given_back_percent"][2]


def test_where_nothing_was_gained_nothing_is_claimed_of_giving_back() -> None:
    before, after = [1.0, 0.0] * 10, [0.0, 1.0] * 9 + [1.0, 1.0]

    found = summarise(before=before, after=after, shifted=after, other=after, random=after)

    assert np.isnan(found["given_back_percent"][:3]).all()
