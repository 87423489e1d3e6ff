"""Measures during training how well visual and textual tokens are aligned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning as L

from lightning_mllm.alignment_names import ALL_TOKENS, MODES, SCORE_NAMES, VECTOR_MODES, ScoreName
from lightning_mllm.analysis.alignment.experiment import Alignment
from lightning_mllm.analysis.alignment.summary import alignment_score
from lightning_mllm.analysis.core.result import AnalysisResult
from lightning_mllm.analysis.core.token_sets import TokenSets
from lightning_mllm.callbacks.run_analysis import RunAnalysis
from lightning_mllm.callbacks.trainer_state import (
    trainer_epoch,
    trainer_figure,
    trainer_is_trial,
    trainer_mllm,
    trainer_run_dir,
)
from lightning_mllm.data.loading.splits import Split
from lightning_mllm.errors import ConfigError
from lightning_mllm.models.module import MLLMModule
from lightning_mllm.store.files import write_csv_file
from lightning_mllm.tracking.figures.study import StudyPoint, draw_study_lines
from lightning_mllm.tracking.loggers import log_image, log_metrics

COLUMNS = ("epoch", "step", "split", "score", "value", "low_95", "high_95", "n")


class AlignmentMonitor(RunAnalysis):
    """Measures the implicit alignment score before training, at validations and after a test.

    In the run's folder, `alignment.csv` has a row per score and measurement, and `alignment.png`
    shows the curves of the validation split. The values per layer are in the files of the
    analysis, as `RunAnalysis` writes them.

    Args:
        analysis: The analysis that measures alignment; by default one that measures only what the
            scores need.
        scores: Names of the scores.
        mode: How the scores compare tokens.
        tokens: Which tokens the scores count.
        every_n_epochs: Number of epochs between measurements; the last validation always counts.
        before_training: Whether the untrained model is measured too.

    Raises:
        ConfigError: There is no score, or the analysis does not measure the scores in this mode or
            over these tokens.
    """

    def __init__(
        self,
        analysis: Alignment | None = None,
        *,
        scores: Sequence[ScoreName] = SCORE_NAMES,
        mode: str = "avg",
        tokens: str = ALL_TOKENS,
        every_n_epochs: int = 1,
        before_training: bool = True,
    ) -> None:
        measured = analysis or Alignment(gaps=(), pair_budget=0, sets=TokenSets(sink_ratio=None))
        super().__init__(measured, every_n_epochs=every_n_epochs, before_training=before_training)
        if not scores or len({*scores}) < len(scores):
            raise ConfigError(
                f"AlignmentMonitor.scores is {list(scores)}. Name one or more of them, each once."
            )
        modes = MODES if measured.pair_budget else VECTOR_MODES
        if mode not in modes:
            raise ConfigError(
                f"AlignmentMonitor.mode is {mode!r}, but its analysis compares tokens by "
                f"{', '.join(modes)}. Choose one of them; median, max, min and max_mean need an "
                "analysis with a pair_budget."
            )
        if tokens not in measured.sets.variants:
            raise ConfigError(
                f"AlignmentMonitor.tokens is {tokens!r}, but its analysis counts "
                f"{', '.join(measured.sets.variants)}. Choose one of them; 'without sinks' needs "
                "an analysis whose sets have a sink_ratio."
            )
        self.scores, self.mode, self.tokens = tuple(scores), mode, tokens
        self._rows: list[list[Any]] = []

    def forget(self) -> None:
        """Forget the scores of another run."""
        super().forget()
        self._rows = []

    def state_dict(self) -> dict[str, Any]:
        """Return the rows so far, so that a resumed run has them too."""
        return {**super().state_dict(), "rows": self._rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the rows of the resumed run; keep the own rows when testing a checkpoint."""
        super().load_state_dict(state_dict)
        self._rows = self._rows or list(state_dict["rows"])

    def _run(
        self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str
    ) -> list[AnalysisResult]:
        results = super()._run(trainer, pl_module, stage)
        if results and not trainer_is_trial(trainer):
            module = trainer_mllm(pl_module)
            self._write(trainer, module, self.splits[stage], results[0])
        return results

    def _write(
        self, trainer: L.Trainer, module: MLLMModule, split: Split, result: AnalysisResult
    ) -> None:
        epoch, step = trainer_epoch(trainer, module), module.trained_steps
        logged = {}
        for name in self.scores:
            score = alignment_score(result, name, mode=self.mode, tokens=self.tokens)
            interval = (score.low_95, score.high_95)
            self._rows.append([epoch, step, split, name, score.value, *interval, score.n])
            logged[f"alignment/{split}/{name}"] = score.value
        folder = trainer_run_dir(trainer)
        write_csv_file(folder / "alignment.csv", COLUMNS, self._rows)
        log_metrics(trainer.loggers, logged, step)
        curves = self._validation_curves()
        if curves:
            picture = draw_study_lines(
                {"Validation split": curves},
                trainer_figure(trainer, folder, "alignment"),
                over=result.plots[0].over,
                xlabel="Optimiser step (0: before training)",
                ylabel=f"Alignment score ({self.mode})",
            )
            log_image(trainer.loggers, "alignment", picture, step)

    def _validation_curves(self) -> dict[str, dict[int, StudyPoint]]:
        """Return score -> step -> value with its interval, on the validation split."""
        curves: dict[str, dict[int, StudyPoint]] = {}
        for _, step, split, name, value, low, high, _ in self._rows:
            if split == "val":
                curves.setdefault(name, {})[step] = StudyPoint(value, low, high)
        return curves
