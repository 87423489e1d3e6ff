"""A sweep between two classes: which questions count, and what each cell says."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_mllm.analysis import MeanStates, SteeringSweep, Windows, steering
from lightning_mllm.analysis.steering.grid import SteeringGrid
from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.errors import ConfigError
from lightning_mllm.models.backbone import Backbone
from tests.support.decoders import last_logits
from tests.support.questions import Questions, batches, load, tokenizer

GRID: dict[str, Any] = {
    "steers": ["image object", "last"],
    "windows": Windows(width=1),
    "scales": [0.0, 4.0],
    "random_vectors": 3,
}


@cache
def val_batches(checkpoint: str) -> list[MultimodalBatch]:
    """Pictures that are not those of `batches`."""
    return list(Questions(checkpoint=checkpoint, eval_batch_size=4).plain_dataloader("val"))


def read_states(
    backbone: Backbone, checkpoint: str, folder: Path, parts: list[MultimodalBatch], **options: Any
) -> str:
    analysis = MeanStates(**options)
    analysis.prepare(tokenizer(checkpoint), folder)
    for batch in parts:
        analysis.update(backbone, batch)
    analysis.merge()
    return str(folder)


@pytest.fixture
def backbone(tiny_llava: str, examined: None) -> Backbone:
    return load(tiny_llava)


@pytest.fixture
def states(backbone: Backbone, tiny_llava: str, tmp_path: Path) -> str:
    return read_states(backbone, tiny_llava, tmp_path / "states", val_batches(tiny_llava))


def run(backbone: Backbone, checkpoint: str, **options: Any) -> SteeringSweep:
    analysis = SteeringSweep(source="red", target="blue", **{**GRID, **options})
    analysis.prepare(tokenizer(checkpoint))
    for batch in batches(checkpoint):
        analysis.update(backbone, batch)
    return analysis


def test_each_cell_says_what_the_model_says_with_the_vector(
    backbone: Backbone, tiny_llava: str, states: str
) -> None:
    analysis = run(backbone, tiny_llava, states=states)
    table = analysis.rows.table()

    means = analysis.means
    tokens = [means.first_token(name) for name in ("blue", "red")]
    assert sorted({*table["sample_id"]}) == ["test-0", "test-3"]  # whose answer is red
    depth, (own, *_) = 2, batches(tiny_llava)
    assert len(table["steer"]) == 2 * 2 * depth * 2
    prompts = own.take([0]).prompts()
    for steer in GRID["steers"]:
        vector = means.difference("blue", "red", steer)
        with steering(backbone, prompts, vector, steer, [1], scale=4.0):
            logits = last_logits(backbone, prompts)[0]
        at = (table["sample_id"] == "test-0") & (table["steer"] == steer) & (table["start"] == 1)
        (row,) = (at & (table["scale"] == 4)).nonzero()[0]
        assert table["after"][row] == pytest.approx(float(logits[tokens[0]] - logits[tokens[1]]))
        assert table["target"][row] == float(logits.argmax() == tokens[0])
        clean = last_logits(backbone, prompts)[0]
        assert table["before"][row] == pytest.approx(float(clean[tokens[0]] - clean[tokens[1]]))


def test_scale_0_changes_nothing_and_neither_do_random_vectors(
    backbone: Backbone, tiny_llava: str, states: str
) -> None:
    result = run(backbone, tiny_llava, states=states).compute()

    still = result.at(scale=0.0, statistic="value")
    for measure in ("difference_change", "random_difference_change"):
        at = result.coords["measure"].index(measure)
        assert (still[..., at] == 0).all()
    moved = result.at(scale=4.0, statistic="value", measure="difference_change")
    assert (moved != 0).tolist() == [[[True, True], [False, True]]]  # LAST is one token at first
    assert result.n_samples == 2
    assert result.coords["layers"] == ("0", "1")
    assert result.settings["found"]["read_from"] == {"red": 2, "blue": 1}  # one has no box
    assert result.main_numbers().rows


def test_questions_about_pictures_that_were_read_are_left_out(
    backbone: Backbone, tiny_llava: str, tmp_path: Path
) -> None:
    states = read_states(backbone, tiny_llava, tmp_path / "own", batches(tiny_llava))

    analysis = run(backbone, tiny_llava, states=states)

    result = analysis.compute()
    assert result.n_samples == 0
    assert result.settings["found"]["left_out_as_picture_was_read"] == 2
    assert "Ask about other pictures" in analysis.explain_nothing()


def test_what_was_stopped_is_not_done_again(
    backbone: Backbone, tiny_llava: str, states: str, tmp_path: Path
) -> None:
    for _ in range(2):
        analysis = SteeringSweep(states=states, source="red", target="blue", **GRID)
        analysis.prepare(tokenizer(tiny_llava), tmp_path / "rows")
        for batch in batches(tiny_llava):
            analysis.update(backbone, batch)

    assert len([*(tmp_path / "rows").glob("rows-*.csv")]) == 1
    with pytest.raises(ConfigError, match=r"analysis\.target was 'blue', is 'no'"):
        SteeringSweep(states=states, source="red", target="no", **GRID).prepare(
            tokenizer(tiny_llava), tmp_path / "rows"
        )


def test_another_model_than_the_one_that_was_read_is_refused(
    backbone: Backbone, tiny_llava: str, states: str
) -> None:
    head: Any = backbone.lm_head
    head.weight.data += 1

    with pytest.raises(ConfigError, match="read from a model with the weights"):
        run(backbone, tiny_llava, states=states)


def test_what_can_not_be_swept_is_refused(
    backbone: Backbone, tiny_llava: str, states: str, tmp_path: Path
) -> None:
    pair = {"states": states, "source": "red", "target": "blue"}
    options: list[tuple[dict[str, Any], str]] = [
        ({"target": "red"}, "to itself"),
        ({"steers": []}, r"SteeringSweep\.steers needs values"),
        ({"scales": [1.0, 1]}, r"SteeringSweep\.scales needs values, each once"),
        ({"random_vectors": 0}, "nothing without its control"),
    ]
    for wrong, message in options:
        with pytest.raises(ConfigError, match=message):
            SteeringSweep(**{**pair, **wrong})
    kinds = read_states(
        backbone, tiny_llava, tmp_path / "kinds", val_batches(tiny_llava), by="kind"
    )
    later: list[tuple[dict[str, Any], str]] = [
        ({"target": "purple"}, "No states of 'purple' were read; there are those of blue, no, red"),
        ({"steers": ["image"]}, "No states of 'image' were read"),
        ({"states": kinds}, "Read them with MeanStates.by: answer"),
        ({"states": str(tmp_path)}, "is not the folder of a MeanStates"),
    ]
    for wrong, message in later:
        with pytest.raises(ConfigError, match=message):
            _ = SteeringSweep(**{**pair, **wrong}).settings


def test_all_random_vectors_have_their_turn_whatever_the_batches() -> None:
    grid = SteeringGrid.of("s", ["last"], Windows(width=1), [1.0], 20, 0)
    ids = [f"q{number}" for number in range(60)]

    chosen = grid.choose_random(ids)

    assert chosen.shape == (4, 60)
    assert {*chosen.flatten().tolist()} == {*range(20)}
    assert all(len({*own}) == 4 for own in chosen.T.tolist())
    assert torch.equal(grid.choose_random(ids[10:]), chosen[:, 10:])
    few = SteeringGrid.of("s", ["last"], Windows(width=1), [1.0], 2, 0)
    assert few.choose_random(ids).sort(0).values.T.tolist() == [[0, 1]] * 60
