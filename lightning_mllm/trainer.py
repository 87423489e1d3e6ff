"""Lightning's Trainer with a folder per run, loggers, atomic checkpoints, `analyze`, `export`."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple
from pathlib import Path
from typing import Any

import lightning as L
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_only

from lightning_mllm.analysis.core.analysis import Analysis
from lightning_mllm.analysis.core.result import AnalysisResult
from lightning_mllm.analysis.subnetwork.stored_subnetwork import StoredSubNetwork, pruned_to_stored
from lightning_mllm.analyzing import Analyzing
from lightning_mllm.data.images.portable import portable_processor
from lightning_mllm.data.loading.input_record import geometry_of_input_record
from lightning_mllm.data.loading.splits import Split
from lightning_mllm.errors import CheckpointError, ConfigError
from lightning_mllm.fsdp2_strategy import FSDP2Strategy, GatherForEvaluation
from lightning_mllm.models import checkpoint as checkpoints
from lightning_mllm.models.adapted import DType, adapted_dtype
from lightning_mllm.models.card_facts import gather_card_facts
from lightning_mllm.models.export import check_held_whole, export
from lightning_mllm.models.module import MLLMModule
from lightning_mllm.models.optimisation.optimizer import explaining_compilation
from lightning_mllm.models.quantization import stored_weights
from lightning_mllm.option_lists import trainer_option_as_list
from lightning_mllm.progress import console
from lightning_mllm.run import Run, RunFolder
from lightning_mllm.run_status import RunStatus
from lightning_mllm.tracking.analysis_run import check_analysis_run_names
from lightning_mllm.tracking.headlines import print_headlines
from lightning_mllm.trainer_bank import TrainerBank
from lightning_mllm.trainer_options import (
    SHARDED,
    check_trainer_options,
    check_trainer_strategy,
    find_usable_callbacks,
)

_EVALUATING = ("fit", "validate", "test")  # commands after which scores are shown

logger = logging.getLogger(__name__)


class TrainerCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint to a file beside its own and renames it; reads data only, never code."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint atomically."""
        checkpoints.save_checkpoint(checkpoint, Path(path))

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint onto the CPU."""
        return checkpoints.load_training_checkpoint(Path(path))


class Trainer(TrainerBank):
    """Lightning's Trainer, set up for MLLM studies.

    With `callbacks=default_callbacks()` a script shows and writes what the command line does.

    Args:
        run: Name, folder and tracking of the run.
        logger: Lightning loggers instead of `metrics.csv` and W&B; False for none.
        kwargs: The options of Lightning's own Trainer.
    """

    def __init__(self, *, run: Run = Run(), logger: Any = None, **kwargs: Any) -> None:
        check_trainer_options(kwargs)
        endless = kwargs.get("max_epochs") is None and kwargs.get("max_time") is None
        if endless and kwargs.get("max_steps", -1) == -1:
            kwargs["max_epochs"] = 1  # as in the study; Lightning's own default is 1,000
        if kwargs.get("fast_dev_run"):
            logger = False
        if kwargs.get("default_root_dir") is not None and logger is None:
            raise ConfigError(
                "trainer.default_root_dir is the run's own folder; set trainer.run.root and "
                "run.name."
            )
        folder = run.make_folder() if logger is None else None
        is_first = rank_zero_only.rank == 0  # type: ignore[attr-defined]  # set by lightning
        self._status = RunStatus(folder if is_first else None)
        plugins = [*trainer_option_as_list(kwargs.pop("plugins", None)), TrainerCheckpointIO()]
        kwargs.pop("enable_model_summary", None)  # the freeze report says all of it and more
        kwargs["callbacks"] = find_usable_callbacks(kwargs)
        self.has_log_interval = kwargs.get("log_every_n_steps") is not None  # no callback sets it
        # our DataModules divide each batch among the processes: nothing is counted twice
        kwargs.pop("use_distributed_sampler", None)
        if kwargs.get("strategy") == SHARDED:
            kwargs["strategy"] = FSDP2Strategy()
        self.will_fit = False
        with self._status.setting_up():
            if folder is not None:
                kwargs["default_root_dir"], logger = folder, run.make_loggers(folder)
            try:
                super().__init__(
                    logger=logger,
                    use_distributed_sampler=False,
                    enable_model_summary=False,
                    plugins=plugins,
                    **kwargs,
                )
            except (MisconfigurationException, RuntimeError, ValueError, TypeError) as error:
                raise ConfigError(
                    f"Lightning refuses these options of its Trainer: {error}"
                ) from error
            # in a notebook `auto` can be another than on a command line
            check_trainer_strategy(self.strategy)
        self.figures = run.figures
        first: list[Any] = [RunFolder(self._status)]
        if isinstance(self.strategy, FSDP2Strategy):
            first.append(GatherForEvaluation())
        self.callbacks[:0] = first  # type: ignore[attr-defined]  # Lightning's

    def _run(self, *args: Any, **kwargs: Any) -> Any:
        """Do what all commands do, and note in the run's folder how it ends."""
        assert self.state.fn is not None  # Lightning calls this from one of its commands
        with self._during(self.state.fn.value), self._explaining(), explaining_compilation():
            return super()._run(*args, **kwargs)

    @contextmanager
    def _during(self, command: str) -> Iterator[None]:
        """Note in the run's folder how a command ends; let callbacks show what came of it."""
        with self._status.during(command, self), self._watching():
            yield
        if command in _EVALUATING and not self._status.is_running:
            callbacks: list[Any] = self.callbacks  # type: ignore[attr-defined]  # Lightning's
            for each in callbacks:
                if hasattr(each, "show_results"):
                    each.show_results(self)

    def fit(  # type: ignore[override]  # a superset, by keyword
        self,
        model: MLLMModule,
        train_dataloaders: Any = None,
        val_dataloaders: Any = None,
        datamodule: L.LightningDataModule | None = None,
        ckpt_path: str | Path | None = None,
        *,
        test_before: bool = False,
        test_after: bool = False,
    ) -> None:
        """Train.

        Args:
            model: The module.
            train_dataloaders: As in Lightning.
            val_dataloaders: As in Lightning.
            datamodule: The data.
            ckpt_path: Checkpoint to continue from; without it training starts from the model as it
                is.
            test_before: Whether to evaluate the untouched model first, on the validation split
                (step 0) and on the test split (`zero_shot/...`).
            test_after: Whether to evaluate the trained model on the test split.
        """
        with self._during("fit"):
            if ckpt_path is not None and not Path(ckpt_path).is_file():
                raise CheckpointError(
                    f"There is no checkpoint file {ckpt_path}. A run never uses the folder of "
                    "another, so name the file to continue from, e.g. "
                    "runs/<name>/checkpoints/last.ckpt."
                )
            self.will_fit = True  # what an evaluation before it then refuses, too
            if test_before and ckpt_path is None:
                own: dict[str, Any] = {"dataloaders": val_dataloaders, "datamodule": datamodule}
                self.validate(model, **own, verbose=False)
                model.test_prefix = "zero_shot"
                try:
                    self.test(model, datamodule=datamodule, verbose=False)
                finally:
                    model.test_prefix = "test"
            super().fit(model, train_dataloaders, val_dataloaders, datamodule, ckpt_path)
            if test_after:
                self.test(model, datamodule=datamodule, verbose=False)

    def analyze(
        self,
        model: MLLMModule,
        datamodule: Any = None,
        ckpt_path: str | Path | None = None,
        *,
        analysis: Analysis | list[Analysis],
        split: Split = "test",
        resume: str | None = None,
    ) -> list[AnalysisResult]:
        """Dissect a model: run a split through analyses and write down what they find.

        The run's folder gets `analysis/<split>-step<k>/<analysis>/`, with a row per sample and case
        in `rows.csv`. The main numbers are printed.

        Args:
            model: The module.
            datamodule: The data, which must be given.
            ckpt_path: Training checkpoint; without it the model is analysed as it is.
            analysis: The analyses; one pass through the data serves all of them.
            split: Which split of the data is analysed.
            resume: Folder of a run of the same analyses that was stopped. What it has finished is
                copied, and not done again.

        Returns:
            The results, on the first process only.

        Raises:
            ConfigError: There is no data, there are no analyses, or two have one name; or, when all
                is written, an analysis has measured no sample.
        """
        with self._status.during("analyze", self):
            if datamodule is None:
                raise ConfigError(
                    "Trainer.analyze goes through the samples of a DataModule; name it: "
                    "datamodule=..."
                )
            analyses = trainer_option_as_list(analysis)
            check_analysis_run_names(analyses)
            analyzing = Analyzing(analyses, split, None if resume is None else Path(resume))
            datamodule.predict_split = split
            self.go_through(model, datamodule, ckpt_path, analyzing)
            if self.is_global_zero:
                print_headlines(analyzing.results, analyzing.folder)
                analyzing.check_results()
        return analyzing.results

    def export(
        self,
        model: MLLMModule,
        datamodule: L.LightningDataModule | None = None,
        ckpt_path: str | Path | None = None,
        *,
        output: str,
        dtype: DType = "auto",
        subnetwork: StoredSubNetwork | None = None,
    ) -> list[Path]:
        """Write a Hugging Face folder with a model card; projector and PEFT adapter beside it.

        Args:
            model: The module, as it was trained.
            datamodule: Data whose `geometry`, if any, goes before that of the last validation.
            ckpt_path: Training checkpoint; without it the model is exported as it is.
            output: The folder to make.
            dtype: Data type of the written weights; `auto` is that of the starting checkpoint.
            subnetwork: Which of the LLM's weights are kept, the others are written as 0; by default
                all are kept.

        Returns:
            The files that were written.

        Raises:
            ConfigError: The model is divided among processes or devices.
        """
        check_held_whole(model.device_map, getattr(self.strategy, "sharding", None))
        logger.info("Loading %s", model.source.checkpoint)
        record: dict[str, Any] = {"inputs": model.inputs, "steps": self.global_step}
        record["quantized"] = model.quantize
        model.unquantize()
        if ckpt_path is not None:
            logger.info("Loading the training checkpoint %s", ckpt_path)
            content = checkpoints.load_training_checkpoint(Path(ckpt_path))
            model.on_load_checkpoint(content)
            model.load_state_dict(content["state_dict"])
            record = {**content[checkpoints.KEY], "steps": content["global_step"]}
        record["dequantized"] = bool(stored_weights(model.backbone.model))
        geometry = geometry_of_input_record(record, datamodule)
        processor = portable_processor(*astuple(model.source), geometry=geometry)
        own_dtype = None if dtype == "auto" else adapted_dtype(dtype, "cpu")
        kept = None if subnetwork is None else subnetwork.path
        facts = gather_card_facts(
            model.freeze_report, record, ckpt_path, geometry=geometry, subnetwork=kept
        )
        options: Any = {"processor": processor, "dtype": own_dtype, "facts": facts}
        with pruned_to_stored(model.backbone, subnetwork):
            written = export(model.backbone, Path(output), source=model.source, **options)
        _print_export(written, processor.needs_torchvision)
        return written


def _print_export(written: Sequence[Path], needs_torchvision: bool) -> None:
    """Print what an export has written, and how it is opened."""
    folder, *alone = written
    console.print(f"Exported to {folder}", soft_wrap=True)
    for path in alone:
        what = "the LoRA adapter, for PEFT" if path.is_dir() else "the projector"
        console.print(f"  {path.name}: {what} alone", soft_wrap=True)
    console.print(
        "Open it with transformers: AutoModelForImageTextToText.from_pretrained(folder) and "
        "AutoProcessor.from_pretrained(folder)."
    )
    if needs_torchvision:
        console.print("AutoProcessor needs torchvision for this family: pip install torchvision.")
