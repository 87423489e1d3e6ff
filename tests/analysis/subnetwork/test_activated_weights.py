"""What tasks share, against masks by hand; sets, folds, files, and going on after a kill."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import t as student  # type: ignore[import-untyped]

from lightning_mllm.analysis import AnalysisResult
from lightning_mllm.analysis.subnetwork.activated_weights import ActivatedWeights
from lightning_mllm.analysis.subnetwork.calibration import Calibration, calibrate
from lightning_mllm.analysis.subnetwork.calibration_options import CalibrationOptions
from lightning_mllm.analysis.subnetwork.matrices import matrices
from lightning_mllm.analysis.subnetwork.overlap import iou
from lightning_mllm.analysis.subnetwork.pruning import Pruning
from lightning_mllm.errors import ConfigError, DataError
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.store.rows import Rows
from lightning_mllm.tracking.figures.analysis import draw_analysis_plots
from lightning_mllm.types import Sample
from tests.support.command_line import picture
from tests.support.decoders import count_hooks, last_logits, make_backbone
from tests.support.question_analysis_contract import same
from tests.support.questions import batches, tokenizer
from tests.support.wanda_by_hand import CHOOSE, LOGICAL, SEVEN, run

DEPTH = 2  # of the tiny checkpoint
GROUPS = (
    "perceptual / textual, one task",
    "perceptual / textual, two tasks",
    "perceptual, two tasks",
    "textual, two tasks",
)


@pytest.fixture(scope="module")
def backbone(tiny_llava: str) -> Backbone:
    return make_backbone(tiny_llava, layers=DEPTH)


def by_hand(
    backbone: Backbone,
    checkpoint: str,
    ids: list[str],
    options: CalibrationOptions,
    pruning: Pruning,
) -> Calibration:
    (whole,) = batches(checkpoint, 6)
    return calibrate(
        backbone, [whole.take([whole.sample_ids.index(each) for each in ids])], pruning, options
    )


def test_numbers_are_ious_of_the_tasks_own_calibrations(
    backbone: Backbone, tiny_llava: str
) -> None:
    pruning = Pruning(sparsity=0.3)

    result = run(backbone, tiny_llava, pruning=pruning).compute()

    sets = {
        f"{task} ({tokens})": by_hand(
            backbone, tiny_llava, ids, CalibrationOptions(tokens), pruning
        )
        for task, ids in {CHOOSE: ["test-0", "test-1"], LOGICAL: ["test-2", "test-5"]}.items()
        for tokens in ("perceptual", "textual")
    }
    assert result.coords["matrix"] == ("mean", *SEVEN)
    assert result.coords["layer"] == (0, 1)
    pairs = result.coords["pair"][result.coords["pair"].index("chance") + 1 :]
    assert len(pairs) == 6
    for pair in pairs:
        one, two = (sets[name].subnetwork(backbone) for name in pair.split(" / "))
        for layer in range(DEPTH):
            own = {m.name: iou(one.kept(m), two.kept(m)) for m in one.shapes if m.layer == layer}
            found = result.at(pair=pair, layer=layer, statistic="value")
            assert found.tolist() == pytest.approx(
                [np.mean(list(own.values())), *(own[name] for name in SEVEN)]
            )
    assert (result.at(statistic="n") == 2).all()
    assert np.isnan(result.at(statistic="low_95")).all()
    assert result.n_samples == 4


def test_chance_is_drawn_beside(backbone: Backbone, tiny_llava: str) -> None:
    result = run(backbone, tiny_llava, pruning=Pruning(sparsity=0.75)).compute()

    np.testing.assert_allclose(result.at(pair="chance", statistic="value"), 0.25 / 1.75)
    (plot,) = result.plots
    assert (plot.style, plot.x) == ("lines", "layer")
    assert tuple(plot.shown) == (*GROUPS, "chance")


def test_pairs_of_a_kind_are_put_together(backbone: Backbone, tiny_llava: str) -> None:
    result = run(backbone, tiny_llava).compute()

    def found(pair: str) -> Any:
        return result.at(pair=pair, statistic="value")

    def between(one: str, its: str, two: str, other: str) -> Any:
        return found(f"{one} ({its}) / {two} ({other})")

    seen, read = "perceptual", "textual"
    assert result.coords["pair"][:4] == GROUPS
    one_task = [between(task, seen, task, read) for task in (CHOOSE, LOGICAL)]
    two_tasks = [
        between(CHOOSE, its, LOGICAL, other) for its, other in ((seen, read), (read, seen))
    ]
    for group, own in zip(
        GROUPS,
        (
            one_task,
            two_tasks,
            [between(CHOOSE, seen, LOGICAL, seen)],
            [between(CHOOSE, read, LOGICAL, read)],
        ),
        strict=True,
    ):
        np.testing.assert_allclose(found(group), np.mean(own, axis=0))


def test_folds_are_sets_of_other_samples_and_give_an_interval(
    backbone: Backbone, tiny_llava: str
) -> None:
    pruning, options = Pruning(), CalibrationOptions("perceptual")
    analysis = run(backbone, tiny_llava, tokens=["perceptual"], samples=1, folds=2)

    result = analysis.compute()

    one, two, three, four = (
        by_hand(backbone, tiny_llava, [name], options, pruning).subnetwork(backbone)
        for name in ("test-0", "test-1", "test-2", "test-5")
    )
    matrix = next(m for m in matrices(backbone) if m.layer == 1)
    choose, logical = (f"{task} (perceptual)" for task in (CHOOSE, LOGICAL))
    assert result.coords["pair"] == (
        "perceptual, one task", "perceptual, two tasks", "chance",
        f"{choose} / {choose}", f"{choose} / {logical}", f"{logical} / {logical}",
    )  # fmt: skip

    def found(pair: str) -> list[float]:
        numbers: list[float] = result.at(matrix=matrix.name, layer=1, pair=pair).tolist()
        return numbers

    apart = [iou(one.kept(matrix), three.kept(matrix)), iou(two.kept(matrix), four.kept(matrix))]
    reach = student.ppf(0.975, 1) * np.std(apart, ddof=1) / np.sqrt(2)
    expected = [np.mean(apart), np.mean(apart) - reach, np.mean(apart) + reach, 1]
    assert found(f"{choose} / {logical}") == pytest.approx(expected)
    within = found(f"{choose} / {choose}")
    assert within[0] == pytest.approx(iou(one.kept(matrix), two.kept(matrix)))
    assert np.isnan(within[1:3]).all()


@pytest.mark.parametrize("size", [1, 3, 6])
def test_batches_do_not_matter(backbone: Backbone, tiny_llava: str, size: int) -> None:
    options: dict[str, Any] = {"samples": 2, "folds": 2}

    same(
        run(backbone, tiny_llava, size=size, **options).compute(),
        run(backbone, tiny_llava, **options).compute(),
    )


def test_what_was_stopped_goes_on_with_the_sets_that_it_lacks(
    backbone: Backbone, tiny_llava: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"samples": 1, "folds": 2}
    whole = run(backbone, tiny_llava, **options).compute()
    stopped = ActivatedWeights(**options)
    stopped.prepare(tokenizer(tiny_llava), tmp_path)
    stopped.update(backbone, batches(tiny_llava, 1)[0])
    tasks: list[str] = []

    def counting(*arguments: Any) -> Calibration:
        tasks.append(arguments[-1])
        return calibrate(*arguments)

    monkeypatch.setattr("lightning_mllm.analysis.subnetwork.activated_weights.calibrate", counting)
    resumed = run(backbone, tiny_llava, tmp_path, **options)

    same(resumed.compute(), whole)
    assert sorted(tasks) == [CHOOSE] * 2 + [LOGICAL] * 4  # of two kinds of tokens each


@pytest.mark.parametrize("finished", [0, 2])
def test_a_set_whose_rows_were_cut_off_is_counted_once(
    backbone: Backbone,
    tiny_llava: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    finished: int,
) -> None:
    whole, append = run(backbone, tiny_llava, tmp_path / "whole").compute(), Rows.append

    def stop(rows: Any, samples: Any) -> None:
        if len(rows.done) == finished:
            raise KeyboardInterrupt  # the calibrations of the set are written
        append(rows, samples)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Rows, "append", stop)
        run(backbone, tiny_llava, tmp_path / "stopped")

    same(run(backbone, tiny_llava, tmp_path / "stopped").compute(), whole)
    made, expected = ((tmp_path / name / "rows.csv").read_text() for name in ("stopped", "whole"))
    assert made == expected


def test_other_settings_do_not_go_on(backbone: Backbone, tiny_llava: str, tmp_path: Path) -> None:
    run(backbone, tiny_llava, tmp_path)

    with pytest.raises(ConfigError, match=r"analysis\.pruning\.sparsity was 0\.5, is 0\.3"):
        run(backbone, tiny_llava, tmp_path, pruning=Pruning(sparsity=0.3))


def test_a_task_with_too_few_samples_is_calibrated_on_what_it_has(
    backbone: Backbone, tiny_llava: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        result = run(backbone, tiny_llava, samples=3).compute()

    assert "a set of task 'logical/obj' has 2 samples, not 3" in caplog.text
    found = result.settings["found"]["calibrations"]
    assert [each["samples"] for each in found["logical/obj (textual)"]] == [2]
    assert [each["samples"] for each in found["choose/attr (textual)"]] == [3]
    assert set(
        result.at(pair=f"{CHOOSE} (textual) / {LOGICAL} (textual)", statistic="n").ravel()
    ) == {2.0}


def test_samples_without_a_kind_are_one_task_and_kinds_can_be_put_together(
    backbone: Backbone, tiny_llava: str
) -> None:
    nameless = ActivatedWeights(samples=6)
    nameless.prepare(tokenizer(tiny_llava))
    for batch in batches(tiny_llava):
        nameless.update(backbone, replace(batch, kinds=(None,) * len(batch)))

    assert set(nameless.compute().settings["found"]["calibrations"]) == {
        "all (perceptual)",
        "all (textual)",
    }
    found = run(backbone, tiny_llava, kind_depth=1).compute().settings["found"]["calibrations"]
    assert set(found) == {
        f"{task} ({tokens})"
        for task in ("choose", "logical")
        for tokens in ("perceptual", "textual")
    }


def test_one_set_has_nothing_to_be_compared_with_but_its_vectors(
    backbone: Backbone, tiny_llava: str
) -> None:
    result = run(backbone, tiny_llava, tokens=["both"], kind_depth=0).compute()

    assert result.coords["pair"] == ("chance",)


def test_the_same_batch_twice_counts_once_and_the_model_is_left_as_it_was(
    backbone: Backbone, tiny_llava: str
) -> None:
    batch = batches(tiny_llava)[0]
    before, hooks = last_logits(backbone, batch), count_hooks(backbone)
    once = run(backbone, tiny_llava, samples=1, folds=2)
    twice = ActivatedWeights(samples=1, folds=2)
    twice.prepare(tokenizer(tiny_llava))
    for each in [*batches(tiny_llava), *batches(tiny_llava)]:
        twice.update(backbone, each)

    same(twice.compute(), once.compute())
    assert torch.equal(last_logits(backbone, batch), before)
    assert count_hooks(backbone) == hooks


def test_without_a_sample_there_is_no_result(backbone: Backbone, tiny_llava: str) -> None:
    analysis = run(backbone, tiny_llava)
    analysis.reset()

    with pytest.raises(DataError, match="got no sample"):
        analysis.compute()


def test_settings_are_plain_data(backbone: Backbone, tiny_llava: str) -> None:
    settings = run(backbone, tiny_llava).compute().settings

    assert json.loads(json.dumps(settings))["analysis"] == json.loads(
        json.dumps(ActivatedWeights(samples=2).settings)
    )


def test_it_is_drawn(backbone: Backbone, tiny_llava: str, tmp_path: Path) -> None:
    result: AnalysisResult = run(backbone, tiny_llava).compute()

    assert [path.name for path in draw_analysis_plots(result, tmp_path)] == ["iou.png"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label": "a/b"}, "names a folder"),
        ({"samples": 0}, r"a sample and a fold or more, not 0 and 1"),
        ({"folds": 0}, r"not 128 and 0"),
        ({"tokens": []}, "needs one or more, each once"),
        ({"tokens": ["both", "both"]}, "found both, both"),
        ({"pruning": Pruning("random")}, "looks at no activations"),
    ],
)
def test_what_can_not_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ActivatedWeights(**options)


def samples_of(*images: int) -> list[Sample]:
    return [
        Sample(id=str(k), images=[picture(k)] * count, kind="choose/attr")
        for k, count in enumerate(images)
    ]


@pytest.mark.parametrize(
    "options", [{}, {"tokens": ["textual"], "before_image": False}, {"kind_depth": 1}]
)
def test_sets_without_an_image_are_refused_before_the_model_is_loaded(
    options: dict[str, Any],
) -> None:
    analysis = ActivatedWeights(samples=2, folds=2, **options)

    analysis.check(samples_of(0, 1, 2, 0))
    analysis.check(samples_of(1, 0, 1, 1, 0))  # the fifth is in no set
    with pytest.raises(
        ConfigError, match=r"none of the 2 samples of set 1 of task 'choose.*' has an image"
    ):
        analysis.check(samples_of(1, 1, 0, 0, 1))


def test_text_needs_no_image() -> None:
    ActivatedWeights(tokens=["textual", "both"]).check(samples_of(0, 0))


def test_a_pattern_that_does_not_fit_is_refused_at_the_first_batch(
    backbone: Backbone, tiny_llava: str
) -> None:
    with pytest.raises(
        ConfigError, match=r"0\.self_attn\.q_proj has rows of 64 weights.*groups of 7"
    ):
        run(backbone, tiny_llava, samples=100, pruning=Pruning(sparsity="3:7"), sequential=False)


def test_a_second_process_is_refused(tiny_llava: str) -> None:
    with pytest.raises(ConfigError, match=r"Set trainer\.devices: 1"):
        ActivatedWeights().prepare(tokenizer(tiny_llava), rank=1)


def test_it_has_the_tokenizer_that_it_was_prepared_with(tiny_llava: str) -> None:
    analysis, words = ActivatedWeights(), tokenizer(tiny_llava)
    with pytest.raises(ConfigError, match=r"call prepare\(tokenizer\) before the first batch"):
        _ = analysis.tokenizer

    analysis.prepare(words)

    assert analysis.tokenizer is words
