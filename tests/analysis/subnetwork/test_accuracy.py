"""Questions put to sub-networks: who is asked, with which weights, and what becomes of answers."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lightning_mllm.analysis.subnetwork import accuracy as pruned_accuracy
from lightning_mllm.analysis.subnetwork.accuracy import PrunedAccuracy
from lightning_mllm.analysis.subnetwork.activated_weights import ActivatedWeights
from lightning_mllm.analysis.subnetwork.calibration_files import load_calibration_files
from lightning_mllm.analysis.subnetwork.matrices import matrices
from lightning_mllm.analysis.subnetwork.pruning import Pruning
from lightning_mllm.analysis.subnetwork.subnetwork import intersection, same_size
from lightning_mllm.analysis.subnetwork.summary import MEASURES
from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.errors import CheckpointError, ConfigError
from lightning_mllm.evaluation import AnswerScore
from lightning_mllm.evaluation.open_answers.exact_match import OpenAnswer
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.tracking.figures.analysis import draw_analysis_plots
from tests.support.question_analysis_contract import AnalysisContract
from tests.support.questions import WRONG, batches, load, question, tokenizer

EVERY = ("tasks", "random", "magnitude")
NAMES = (
    "whole",
    "alpha 0.5",
    "alpha 0.5 magnitude",
    "alpha 0.5 random",
    "of choose/attr 0.5",
    "of logical/obj 0.5",
)


class Witness:
    """Notes how much of the model is left when it is asked; below half it is rarely right."""

    def __init__(self) -> None:
        self.shares: list[float] = []

    def evaluate(self, model: Any, tokenizer: Any, batch: MultimodalBatch) -> Sequence[OpenAnswer]:
        weights = [module.weight for module in matrices(Backbone(model)).values()]
        share = sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)
        self.shares.append(share)
        return [
            OpenAnswer(
                sample_id,
                kind or "",
                "",
                "said\nso",
                sample_id.endswith(("0", "2")) or share <= 0.5,
                0,
            )
            for sample_id, kind in zip(batch.sample_ids, batch.kinds, strict=True)
        ]


def calibrated(checkpoint: str, folder: Path, sparsity: float = 0.5) -> str:
    analysis = ActivatedWeights(samples=2, pruning=Pruning(sparsity=sparsity))
    analysis.prepare(tokenizer(checkpoint), folder)
    for batch in batches(checkpoint):
        analysis.update(load(checkpoint), batch)
    analysis.merge()
    return str(folder)


@pytest.fixture(scope="module")
def folder(tiny_llava: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    return calibrated(tiny_llava, tmp_path_factory.mktemp("calibrations"))


class TestPrunedAccuracy(AnalysisContract):
    @pytest.fixture(autouse=True)
    def _calibrated(self, folder: str) -> None:
        self.folder = folder

    def make(self, **options: Any) -> PrunedAccuracy:
        return PrunedAccuracy(
            **{
                **{"calibrations": self.folder, "compare": ["random"], "correct_only": True},
                **options,
            }
        )

    def test_samples_without_a_kind_are_refused_unless_all_count(
        self, backbone: Backbone, tiny_llava: str
    ) -> None:
        nameless = [replace(batch, kinds=(None,) * len(batch)) for batch in batches(tiny_llava)]

        for correct_only in (True, False):  # an answer that is not scored counts nowhere
            with pytest.raises(ConfigError, match="has no kind"):
                self.run(backbone, tiny_llava, nameless, correct_only=correct_only)

    def test_samples_without_a_kind_are_refused_before_the_first_batch_too(self) -> None:
        nameless = replace(question("val", 0), kind=None)

        for correct_only in (True, False):
            with pytest.raises(
                ConfigError, match=r"Sample 'val-0' has no kind, so its answer is not scored"
            ):
                self.make(correct_only=correct_only).check([question("val", 1), nameless])

    def test_samples_that_were_calibrated_on_are_told(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level(logging.WARNING):
            self.make().check(question("val", number) for number in range(6))
            assert not caplog.text
            self.make().check(question("test", number) for number in range(6))

        assert (
            "4 of 6 samples have ids of samples that were calibrated on (test-0 is one)"
            in caplog.text
        )

    def test_all_sub_networks_are_asked_each_with_its_weights(
        self, backbone: Backbone, tiny_llava: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        witness = Witness()
        monkeypatch.setattr(pruned_accuracy, "ExactMatch", lambda match: witness)

        result = self.run(
            backbone, tiny_llava, batches(tiny_llava, 6), correct_only=False, compare=EVERY
        ).compute()

        tasks = [
            each.subnetwork(backbone)
            for each in load_calibration_files(Path(self.folder), "perceptual").values()
        ]
        alpha = intersection(tasks)
        others = [same_size(alpha, backbone, score) for score in ("random", "magnitude")]
        expected = [each.sparsity for each in (alpha, *others, *tasks)]
        assert witness.shares == pytest.approx(expected)
        assert alpha.sparsity > max(task.sparsity for task in tasks)
        assert result.coords["subnetwork"] == NAMES
        found = result.settings["found"]["sparsity"]
        assert [found[name] for name in NAMES] == pytest.approx(
            [0, expected[0], expected[2], expected[1], expected[3], expected[4]]
        )

    def test_numbers_are_shares_of_right_answers_and_what_they_lose(
        self, backbone: Backbone, tiny_llava: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        witness = Witness()
        monkeypatch.setattr(pruned_accuracy, "ExactMatch", lambda match: witness)
        analysis = self.run(
            backbone, tiny_llava, batches(tiny_llava, 6), correct_only=False, compare=EVERY
        )

        result = analysis.compute()

        # the whole LLM errs in test-2 alone; the alpha-SubNet is right in test-0 and test-2 alone
        assert result.coords["measure"] == MEASURES
        whole, alpha, task = (
            result.at(subnetwork=name, kind="all", statistic="value").tolist()
            for name in (NAMES[0], NAMES[1], NAMES[4])
        )
        assert whole == pytest.approx([500 / 6, 0, 100])
        assert alpha == pytest.approx([200 / 6, -300 / 6, 40])
        assert task == pytest.approx([100, 100 / 6, 120])
        score = AnswerScore(6, 2)
        assert result.at(
            subnetwork=NAMES[1], kind="all", measure="accuracy_percent"
        ).tolist() == pytest.approx(
            [100 / 3, 100 * score.interval.low, 100 * score.interval.high, 6]
        )
        assert (
            result.at(subnetwork=NAMES[1], kind="logical/obj", measure="accuracy_percent")[0] == 50
        )
        assert (result.at(subnetwork=NAMES[0], measure="change_points")[:, :3] == 0).all()
        table = analysis.rows.table()
        assert set(table["answer"][table["subnetwork"] == NAMES[1]]) == {'"said\\nso"'}
        assert set(table["sample_id"][~table["correct"]]) == {WRONG[0]}

    def test_sparsities_make_a_curve(
        self, backbone: Backbone, tiny_llava: str, tmp_path: Path
    ) -> None:
        folders = [self.folder, calibrated(tiny_llava, tmp_path, 0.7)]

        result = self.run(
            backbone, tiny_llava, batches(tiny_llava), calibrations=folders, compare=["random"]
        ).compute()

        assert result.coords["subnetwork"] == (
            "whole", "alpha 0.5", "alpha 0.5 random", "alpha 0.7", "alpha 0.7 random",
        )  # fmt: skip
        sparsity = result.settings["found"]["sparsity"]
        assert sparsity["alpha 0.7"] == sparsity["alpha 0.7 random"] > sparsity["alpha 0.5"] > 0.5

    def test_two_folders_of_one_sparsity_are_refused(self) -> None:
        with pytest.raises(ConfigError, match=r"two folders of sparsity 0\.5"):
            assert self.make(calibrations=[self.folder, self.folder]).settings

    def test_a_missing_calibration_is_an_error_at_set_up(
        self, tiny_llava: str, tmp_path: Path
    ) -> None:
        with pytest.raises(CheckpointError, match=r"has no rows\.csv"):
            self.make(calibrations=str(tmp_path)).check([])
        with pytest.raises(CheckpointError, match=r"has no rows\.csv"):
            self.make(calibrations=str(tmp_path)).prepare(tokenizer(tiny_llava))

    def test_other_calibrations_do_not_go_on(
        self, backbone: Backbone, tiny_llava: str, tmp_path: Path
    ) -> None:
        other = calibrated(tiny_llava, tmp_path / "calibrations", 0.7)
        self.run(backbone, tiny_llava, [], tmp_path / "rows")

        with pytest.raises(ConfigError, match=r"calibrations.*was"):
            self.run(backbone, tiny_llava, [], tmp_path / "rows", calibrations=other)

    def test_it_is_drawn_as_a_table_of_who_serves_whom(
        self, backbone: Backbone, tiny_llava: str, tmp_path: Path
    ) -> None:
        result = self.run(backbone, tiny_llava, batches(tiny_llava), compare=EVERY).compute()

        assert [path.name for path in draw_analysis_plots(result, tmp_path)] == ["transfer.png"]
        assert (result.plots[0].x, result.plots[0].y) == ("kind", "subnetwork")
        accuracy = result.at(measure="accuracy_percent")
        assert np.isfinite(
            accuracy[accuracy[..., 3] > 1]
        ).all()  # of one question there is no interval

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"compare": ["dense"]}, r"has \['dense'\]; it can have"),
            ({"calibrations": []}, "names no folder"),
        ],
    )
    def test_what_can_not_be_is_refused(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            self.make(**options)
