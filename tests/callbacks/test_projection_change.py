"""What the projection changes, and probes of several fields, in a short real fit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lightning_mllm.callbacks import ProbeEachEpoch, ProjectionChange
from lightning_mllm.callbacks.probe_answers import CELLS
from lightning_mllm.errors import ConfigError, DataError
from lightning_mllm.evaluation import Likelihood
from lightning_mllm.probing import FeatureCache, NearestCentroid, extract_samples, measure_change
from lightning_mllm.probing.change.measures import BEFORE, BEHIND
from tests.support.feature_callbacks import Described, Run, make_run, moments
from tests.support.figures import drawn_figures

FIELDS: dict[str, Any] = {"targets": ["label", "third"], "numbers": ["light"]}
# the test has all of its 24 pictures, in two batches
OPTIONS: dict[str, Any] = {"scorers": [Likelihood()], "data": Described, "eval_batch_size": 12}


def probes(**options: Any) -> ProbeEachEpoch:
    return ProbeEachEpoch(probes=[NearestCentroid()], seeds=[0, 1], **options)


@pytest.fixture(scope="module")
def passes() -> list[tuple[str, int]]:
    """The splits that were gone through, with the patches that were kept of each picture."""
    return []


@pytest.fixture(scope="module")
def changed(
    tmp_path_factory: pytest.TempPathFactory, tiny_llava: str, passes: list[tuple[str, int]]
) -> Iterator[Run]:
    folder = tmp_path_factory.mktemp("changed")

    def extract(backbone: Any, batches: Any, *args: Any, **options: Any) -> Any:
        found = extract_samples(backbone, batches, *args, **options)
        passes.append((found.sample_ids[0].partition("-")[0], options["patches"]))
        return found

    callbacks = [probes(**FIELDS), ProjectionChange(neighbours=[3, 10])]
    run = make_run(tiny_llava, folder, callbacks, **OPTIONS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lightning_mllm.callbacks.watched_split.extract_samples", extract)
        with drawn_figures():
            run.trainer.validate(run.module, datamodule=run.data, verbose=False)
            yield run.fit().test()


def test_one_pass_serves_both_callbacks(changed: Run, passes: list[tuple[str, int]]) -> None:
    kept = 40_000 // 24

    assert passes == [("train", 0), ("val", kept)] * 3 + [("train", 0), ("test", kept)]


def test_sharing_changes_no_number(changed: Run, tiny_llava: str, tmp_path: Path) -> None:
    callbacks = [probes(**FIELDS)]
    alone = make_run(tiny_llava, tmp_path, callbacks, **OPTIONS)

    alone.fit()

    own = [row for row in changed.rows("probes.csv") if row["stage"] == "val"]
    assert alone.rows("probes.csv") == own


def test_the_table_has_what_the_functions_give(changed: Run) -> None:
    found = changed.rows("projection_change.csv")
    loader = changed.data.plain_dataloader("test")
    backbone = changed.module.backbone
    features = extract_samples(backbone, loader, [BEFORE, BEHIND], patches=10**6)
    names = {sample_id: sample_id for sample_id in features.sample_ids}

    of_fit = [("-1", "0", "val"), ("0", "3", "val"), ("1", "6", "val")]
    assert moments(found) == [*of_fit, ("1", "6", "test")]
    expected = list(measure_change(features, names, (3, 10)).rows())
    assert [row["of"] for row in expected] == ["3", "10", "all"]
    for row, own in zip(expected, found[-3:], strict=True):
        assert float(own["value"]) == pytest.approx(row["value"])
        assert own["n"] == "24"
    assert (changed.folder / "projection_change.png").stat().st_size > 10_000


def test_measures_are_linked_to_answers_also_before_the_training(changed: Run) -> None:
    found = changed.rows("projection_change_and_answers.csv")

    assert {row["step"] for row in found} == {"0", "3", "6"}
    assert all(float(row["n_right"]) + float(row["n_wrong"]) == 24 for row in found)
    pictures = changed.rows("evaluation/test-step6/projection-change.csv")
    assert len(pictures) == 24
    assert {row["likelihood/right"] for row in pictures} <= {"0.0", "1.0"}


def test_the_four_cells_are_all_samples_and_add_up_to_both_accuracies(changed: Run) -> None:
    accuracies: dict[tuple[str, ...], list[float]] = {}
    for row in changed.rows("probes.csv"):
        key = (row["step"], row["stage"], row["target"], row["point"])
        accuracies.setdefault(key, []).append(float(row["accuracy"]))
    pictures = changed.rows("evaluation/test-step6/projection-change.csv")
    right = [float(row["likelihood/right"]) for row in pictures]
    found = changed.rows("probes_and_answers.csv")

    assert {row["target"] for row in found} == {"label", "third"}
    assert {row["stage"] for row in found} == {"val", "test"}
    for row in found:
        cells = {cell: float(row[cell]) for cell in CELLS}
        assert sum(cells.values()) == pytest.approx(1)
        key = (row["step"], row["stage"], row["target"], row["point"])
        mean = sum(accuracies[key]) / len(accuracies[key])
        assert cells["both_right"] + cells["probe_only"] == pytest.approx(mean)
        if row["stage"] == "test":
            answered = cells["both_right"] + cells["model_only"]
            assert answered == pytest.approx(sum(right) / len(right))
        assert float(row["probe_only_low_95"]) <= cells["probe_only"]


def test_numbers_and_further_classes_have_probes_of_their_own(changed: Run) -> None:
    found = changed.rows("number_probes.csv")
    (last,) = [row for row in found if (row["stage"], row["point"]) == ("test", "pre-mean")]

    assert {row["target"] for row in found} == {"light"}
    assert float(last["r2"]) > 0.9  # the pictures are as light as the number says
    assert last["n_test"] == "24"
    thirds = changed.rows("evaluation/test-step6/probe-predictions-third.csv")
    assert {row["target"] for row in thirds} == set("abc")
    said = changed.rows("evaluation/test-step6/number-predictions.csv")
    assert {float(row["light"]) for row in said} == {0.5, 1.5}
    metrics = set(changed.rows("metrics.csv")[0])
    assert {
        "probe/val/third/post-mean/nearest-centroid/accuracy",
        "probe/val/post-mean/nearest-centroid/likelihood/probe_only",
        "probe/val/light/pre-mean/ridge/r2",
        "change/val/overlap/10",
        "change/test/unexplained/all",
    } <= metrics


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"targets": ["same"]}, "All 24 samples of the 'train' split have 'x' as 'same'"),
        ({"targets": ["size"]}, r"'train-0' of the 'train' split has no 'size'.* third, light"),
        ({"targets": [], "numbers": ["third"]}, r"'third' of sample 'train-0' .* is 'a', where"),
    ],
)
def test_fields_that_can_not_be_probed_are_refused_by_name(
    options: dict[str, Any], message: str, tiny_llava: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message):
        make_run(tiny_llava, tmp_path, [probes(**options)], data=Described).fit()


def test_a_cache_of_its_own_is_not_shared(tmp_path: Path) -> None:
    one, same, other = (
        ProjectionChange(cache=FeatureCache(tmp_path / name)) for name in ("a", "a", "b")
    )

    assert one.cache is not None
    assert same.cache is not None
    assert other.cache is not None
    assert one.cache.key == same.cache.key != other.cache.key
    assert FeatureCache(tmp_path / "a", dtype="bfloat16").key != one.cache.key


def test_options_that_measure_nothing_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"neighbours are \[10, 10\]; give numbers from 1 on"):
        ProjectionChange(neighbours=[10, 10])
    with pytest.raises(ConfigError, match="measures nothing"):
        ProjectionChange(neighbours=[], reconstruction=False)
    with pytest.raises(ConfigError, match="targets or numbers, each once; found none"):
        ProbeEachEpoch(targets=[])
    with pytest.raises(ConfigError, match="can't read 'a/b'"):
        ProbeEachEpoch(numbers=["a/b"])


def test_a_projection_that_packs_patches_is_refused(tiny_llava_next: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"llava_next can't be read back .*reconstruction: false"):
        make_run(tiny_llava_next, tmp_path, [ProjectionChange()], data=Described).fit()
