"""Heads that point: against eager weights by hand; what chooses heads does not report on them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from lightning_mllm.analysis import AttentionPointing, Bootstrap
from lightning_mllm.analysis.attention.maps import PatchGrid, spatial_entropies
from lightning_mllm.analysis.attention.pointing_summary import _keep_kinds, summarise_pointing
from lightning_mllm.errors import ConfigError
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.types import Segment
from tests.support.question_analysis_contract import AnalysisContract
from tests.support.questions import WITHOUT_BOX, batches, load

DEPTH, HEADS = 2, 4  # of the tiny checkpoint


class TestAttentionPointing(AnalysisContract):
    def make(self, **options: Any) -> AttentionPointing:
        chosen = {"correct_only": True, "bootstrap": Bootstrap(resamples=20), **options}
        return AttentionPointing(**chosen)

    def test_a_row_is_what_eager_weights_say(self, backbone: Backbone, tiny_llava: str) -> None:
        (batch,) = batches(tiny_llava, 6)
        analysis = self.run(backbone, tiny_llava, [batch], correct_only=False)
        eager = load(tiny_llava, attention="eager")
        with torch.no_grad():
            every = eager.model(**batch.model_inputs(), output_attentions=True).attentions

        table = analysis.rows.table()

        assert len(table["head"]) == 6 * DEPTH * HEADS
        for row, sample_id in enumerate(batch.sample_ids):
            last = int(batch.spans[Segment.LAST][row].int().argmax())
            image = batch.spans[Segment.IMAGE][row]
            shown = batch.spans[Segment.IMAGE_OBJECT][row][image]
            at = (table["sample_id"] == sample_id) & (table["layer"] == 1) & (table["head"] == 3)
            found = {name: cells[at].item() for name, cells in table.items()}
            weights = every[1][row, 3, last][image]
            assert found["image"] == pytest.approx(float(weights.sum()), abs=1e-5)
            grid = weights.double().view(1, 4, 4).numpy()
            assert found["entropy"] == pytest.approx(spatial_entropies(grid).item(), abs=1e-3)
            if sample_id in WITHOUT_BOX:
                assert np.isnan([found["hit"], found["chance"]]).all()
            else:
                assert found["hit"] == float(shown[weights.argmax()])
                assert found["chance"] == pytest.approx(float(shown.float().mean()))

    def test_only_the_kinds_that_are_named_count(self, backbone: Backbone, tiny_llava: str) -> None:
        analysis = self.run(backbone, tiny_llava, batches(tiny_llava), kinds=["choose"])

        result = analysis.compute()

        assert result.n_samples == 4
        assert result.coords["kind"] == ("choose/attr",)


def rows(hits: Any) -> dict[str, Any]:
    """Rows of questions about a picture each; `hits` is (questions, heads) of one layer."""
    count, heads = hits.shape
    names = np.array([f"q{number:03}" for number in range(count)])
    table = {
        "sample_id": np.repeat(names, heads),
        "kind": np.full(hits.size, "k"),
        "picture": np.repeat(names, heads),
        "measured": np.ones(hits.size, dtype=bool),
        "layer": np.zeros(hits.size, dtype=np.int64),
        "head": np.tile(np.arange(heads), count),
        "hit": hits.ravel().astype(float),
        "chance": np.full(hits.size, 0.1),
        "image": np.tile(np.linspace(0, 1, heads) ** 4, count),
        "entropy": np.tile(np.linspace(2, 1, heads), count),
    }
    return table


def summarise(hits: Any, **options: Any) -> Any:
    chosen = {"best": 2, "kinds": None, "seed": 0, "kind_depth": None, **options}
    table = rows(hits)
    return summarise_pointing(table, name="p", bootstrap=Bootstrap(20), settings={}, **chosen)


def test_the_best_of_many_random_heads_is_at_chance_on_the_other_half() -> None:
    hits = np.random.default_rng(0).random((80, 400)) < 0.1

    result = summarise(hits)

    best = [int(name.partition(".")[2]) for name in result.settings["found"]["best"]["k"]]
    ranked = result.at(kind="k", layer=0, measure="ranking_half_percent", statistic="value")
    reported = result.at(kind="k", layer=0, measure="reporting_half_percent")
    assert ranked[best].min() > 20
    assert (reported[best, 1] < 10).all()
    assert (reported[best, 0] < ranked[best]).all()
    assert set(reported[:, 3]) == {40}


def test_halves_depend_on_the_pictures_and_the_seed_alone() -> None:
    hits = np.random.default_rng(1).random((40, 6)) < 0.5
    same, other = summarise(hits), summarise(hits, seed=1)

    np.testing.assert_array_equal(same.values, summarise(hits).values)
    pointing = {"measure": "pointing_percent"}
    np.testing.assert_array_equal(same.at(**pointing), other.at(**pointing))
    halves = {"measure": "ranking_half_percent", "statistic": "value"}
    assert not np.array_equal(same.at(**halves), other.at(**halves))


def test_without_boxes_heads_are_named_by_the_criteria_alone() -> None:
    result = summarise(np.full((8, 10), np.nan))

    assert result.settings["found"]["best"] == {"k": []}
    assert result.settings["found"]["criteria"]["k"]["chosen"] == ["0.9", "0.8", "0.7"]
    rows_of_heads = [row[0] for row in result.main_numbers().rows]
    assert rows_of_heads == [f"0.{head}, by criteria" for head in (9, 8, 7)]


def test_a_grid_is_found_only_where_it_is_known(tiny_llava: str, tiny_llava_next: str) -> None:
    for checkpoint in (tiny_llava, tiny_llava_next):
        backbone, batch = load(checkpoint), batches(checkpoint, 6)[0]
        grid = PatchGrid.of(batch, 0, backbone.family)
        assert grid is not None
        base = batch.spans[Segment.IMAGE_BASE][0].nonzero()[:, 0]
        assert grid.places.tolist() == base.tolist()
        assert (int(grid.rows[5]), int(grid.columns[5])) == (1, 1)


def test_no_head_to_name_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"AttentionPointing.best must be at least 1, not 0"):
        AttentionPointing(best=0)


def test_kinds_are_whole_parts_of_names_and_one_must_be_there() -> None:
    table = {"kind": np.array(["seen/Query/0", "seen/QueryAll/0"]), "measured": np.ones(2, bool)}

    assert _keep_kinds(table, ["seen/Query"])["measured"].tolist() == [True, False]
    with pytest.raises(ConfigError, match=r"kinds seen/Que; there are seen/Query/0, seen/QueryAll"):
        _keep_kinds(table, ["seen/Que"])
