"""Analyses the model while it is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L

from lightning_mllm.analysis.core.analysis import Analysis
from lightning_mllm.analysis.core.result import AnalysisResult
from lightning_mllm.callbacks.trainer_state import (
    check_trainer_validates,
    trainer_figure,
    trainer_is_due,
    trainer_is_trial,
    trainer_mllm,
    trainer_run_dir,
    trainer_starts_untrained,
)
from lightning_mllm.callbacks.watched_split import (
    set_up_watched_split,
    watched_batches,
    watched_samples,
)
from lightning_mllm.data.images.patch_places import PatchFinder
from lightning_mllm.data.loading.datamodule import MLLMDataModule
from lightning_mllm.data.loading.shown_samples import write_shown_samples
from lightning_mllm.data.loading.splits import Split
from lightning_mllm.errors import ConfigError
from lightning_mllm.models.provenance import provenance
from lightning_mllm.store.files import write_csv_file
from lightning_mllm.tracking.analysis_curves import (
    COLUMNS,
    AnalysisCurveRow,
    find_curve_plot,
    make_curve_rows,
    replace_curve_step,
)
from lightning_mllm.tracking.analysis_run import AnalysisRun, check_analysis_run_names
from lightning_mllm.tracking.figures.training import draw_analysis_training
from lightning_mllm.tracking.loggers import log_image


class RunAnalysis(L.Callback):
    """Runs analyses before training, at validations of a fit, and after a test.

    The last validation of a fit always counts.

    They go through the samples that the model itself is evaluated on (`watched_samples`):
    the validation split, after a test the test split. Their files are in the run's folder,
    `analysis/<split>-step<k>/<analysis>/`.

    With `data` they go through a whole split of that data instead, for example the questions of GQA
    while the model is trained on something else. Nothing is run after a test then, since its
    weights are those of the last validation. The files are in
    `analysis/<class of the data>-<split>-step<k>/<analysis>/`.

    From the second time of a fit on, the main numbers of each analysis over the steps are in
    `analysis/<split>-training/<analysis>.csv`, and a figure beside it shows the curves.

    Args:
        analysis: The analyses; one pass through the data serves all of them.
        data: Data to analyse instead of the Trainer's; it must be made for the model's checkpoint.
        split: The split of `data`, by default the test split.
        every_n_epochs: How many epochs lie between two runs of the analyses.
        before_training: Whether the untrained model is analysed too.

    Raises:
        ConfigError: Two analyses have one name, or an option has a value that it can't have.
    """

    def __init__(
        self,
        analysis: Analysis | list[Analysis],
        *,
        data: MLLMDataModule | None = None,
        split: Split | None = None,
        every_n_epochs: int = 1,
        before_training: bool = True,
    ) -> None:
        self.analyses = [analysis] if isinstance(analysis, Analysis) else list(analysis)
        check_analysis_run_names(self.analyses)
        if every_n_epochs < 1:
            raise ConfigError(
                f"RunAnalysis.every_n_epochs must be at least 1, not {every_n_epochs}."
            )
        if data is None and split is not None:
            raise ConfigError(
                f"RunAnalysis.split is {split!r}, which is a split of `data`, and there is no "
                "data. Give it `data`."
            )
        self.data = data
        self.every_n_epochs, self.before_training = every_n_epochs, before_training
        self.prefix = "" if data is None else f"{type(data).__name__}-"  # of the folders' names
        self.splits: dict[str, Split] = {"fit": "val", "test": "test"}  # stage -> split
        if data is not None:
            self.splits = {"fit": split or "test"}
        self._running: AnalysisRun | None = None  # while it goes on
        self._curves: dict[str, list[AnalysisCurveRow]] = {}  # name of the analysis -> rows
        self._run_dir: Path | None = None  # folder of the run that the curves belong to

    @property
    def state_key(self) -> str:
        """Name of the state in checkpoints; a run may have several such callbacks."""
        return self._generate_state_key(
            data=self.prefix,
            analyses=[analysis.name for analysis in self.analyses],
            every_n_epochs=self.every_n_epochs,
            before_training=self.before_training,
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the curves so far, so that a resumed run has them too."""
        curves: dict[str, list[list[Any]]] = {}
        for name, rows in self._curves.items():
            curves[name] = [list(row.row()) for row in rows]
        return {"curves": curves}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the curves of the resumed run; keep the own when testing a checkpoint."""
        for name, rows in state_dict.get("curves", {}).items():
            self._curves.setdefault(name, [AnalysisCurveRow(*row) for row in rows])

    def forget(self) -> None:
        """Forget the curves of another run."""
        self._curves = {}

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Set up `data`; refuse at the start what would be refused in the middle of a run.

        Raises:
            ConfigError: The fit has no validation, at which this could run; or what the data and
                the analyses refuse.
        """
        if stage not in self.splits:
            return
        AnalysisRun.of(self.analyses, trainer, "analysis")  # refuses processes without a folder
        check_analysis_run_names(self._written_together(trainer))
        if stage == "fit":
            check_trainer_validates(trainer, "RunAnalysis")
        split = self.splits[stage]
        if self.data is not None:
            set_up_watched_split(trainer, trainer_mllm(pl_module), self.data, split)
        for analysis in self.analyses:
            analysis.check(watched_samples(trainer, split, self.data))

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Refuse a model that can't be analysed; analyse the untrained one."""
        module = trainer_mllm(pl_module)
        if self._run_dir != trainer_run_dir(trainer) and not module.trained_steps:
            self.forget()
        if "fit" in self.splits:
            AnalysisRun.of(self.analyses, trainer, "analysis").check_model(module)
        if self.before_training and trainer_starts_untrained(trainer, module):
            self._run(trainer, pl_module, "fit")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Analyse the model as it is."""
        if trainer_is_due(trainer, self.every_n_epochs):
            self._run(trainer, pl_module, "fit")

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Refuse a model that can't be analysed."""
        if "test" in self.splits:
            AnalysisRun.of(self.analyses, trainer, "analysis").check_model(trainer_mllm(pl_module))

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Analyse the model on the test split."""
        self._run(trainer, pl_module, "test")

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Tell the other processes not to wait for this one."""
        if self._running is not None:
            self._running.fail()
            self._running = None

    def _run(
        self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str
    ) -> list[AnalysisResult]:
        """Go through the split of a stage once; return results, on the first process only."""
        if stage not in self.splits:
            return []
        module, split = trainer_mllm(pl_module), self.splits[stage]
        batches = watched_batches(trainer, split, "Analysing", self.data)
        trained_on: Any = trainer.datamodule  # type: ignore[attr-defined]
        data = trained_on if self.data is None else self.data
        where, step = f"analysis/{self.prefix}{split}", module.trained_steps
        run = self._running = AnalysisRun.of(self.analyses, trainer, f"{where}-step{step}")
        run.begin(module.tokenizer, provenance(module, data, split))
        was_training = module.training
        module.eval()
        try:
            for batch in batches:
                run.update(module, batch.to(module.device))
            run.settle(module)
            module.adapted.end_regions()
        finally:
            module.train(was_training)
        results = run.finish(trainer.loggers, where, step, PatchFinder(data, split).find)
        self._running, self._run_dir = None, trainer_run_dir(trainer)
        if run.folder is not None and trainer.is_global_zero:
            samples = watched_samples(trainer, split, self.data)
            write_shown_samples(data.eval_collator, samples, run.folder)
        if stage == "fit" and not trainer_is_trial(trainer):
            for result in results:
                self._write_curves(trainer, result, where, step)
        return results

    def _write_curves(
        self, trainer: L.Trainer, result: AnalysisResult, where: str, step: int
    ) -> None:
        """Write and draw the main numbers of all times so far."""
        plot = find_curve_plot(result)
        if plot is None:
            return
        earlier = self._curves.get(result.name, [])
        rows = replace_curve_step(earlier, make_curve_rows(result, plot, step))
        self._curves[result.name] = rows
        if len({row.step for row in rows}) > 1:
            folder = trainer_run_dir(trainer) / f"{where}-training"
            table = [row.row() for row in rows]
            write_csv_file(folder / f"{result.name}.csv", COLUMNS, table)
            picture = trainer_figure(trainer, folder, result.name)
            draw_analysis_training(rows, plot, picture)
            log_image(trainer.loggers, f"{where}/{result.name}/training", picture, step)

    def _written_together(self, trainer: L.Trainer) -> list[Analysis]:
        """Return the analyses of all callbacks that write where this one does, its own included."""
        callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
        own, analyses = (self.prefix, self.splits), []
        for each in callbacks:
            if isinstance(each, RunAnalysis) and (each.prefix, each.splits) == own:
                analyses += each.analyses
        return analyses
