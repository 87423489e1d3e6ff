"""Lightning's Trainer with a folder per run, loggers, atomic checkpoints, `analyze`, `export`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any

import lightning as L
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Checkpoint

from lightning_mllm.analysis.core.analysis import Analysis
from lightning_mllm.analysis.core.result import AnalysisResult
from lightning_mllm.analysis.subnetwork.stored_subnetwork import StoredSubNetwork, pruned_to_stored
from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.data.images.portable import portable_processor
from lightning_mllm.data.loading.input_record import geometry_of_input_record
from lightning_mllm.data.loading.sampler import limit_sampling
from lightning_mllm.data.loading.splits import Split
from lightning_mllm.errors import CheckpointError, ConfigError
from lightning_mllm.models import checkpoint as checkpoints
from lightning_mllm.models.adapted import DType, adapted_dtype
from lightning_mllm.models.export import export
from lightning_mllm.models.fit_checks import check_fit_trainable
from lightning_mllm.models.module import MLLMModule
from lightning_mllm.models.provenance import provenance
from lightning_mllm.run import Run, RunFolder
from lightning_mllm.tracking.analysis_run import AnalysisRun, check_analysis_run_names
from lightning_mllm.tracking.loggers import make_loggers
from lightning_mllm.trainer_options import (
    check_trainer_options,
    check_trainer_strategy,
    trainer_option_as_list,
)
from lightning_mllm.trainer_verbs import TrainerVerbs
from lightning_mllm.types import Sample

logger = logging.getLogger(__name__)


class _Analyzing(L.Callback):
    """Runs analyses in the predict loop, which loads the weights and starts all processes."""

    def __init__(self, analyses: Sequence[Analysis], split: Split, earlier: Path | None) -> None:
        self.analyses, self.split, self.earlier = analyses, split, earlier
        self.results: list[AnalysisResult] = []
        self._run: AnalysisRun | None = None  # while it goes on

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuse what can't be analysed, before the model is loaded."""
        AnalysisRun.of(self.analyses, trainer, "analysis")  # refuses processes without a folder
        for analysis in self.analyses:
            analysis.check(_predicted_samples(trainer, self.split))

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Get the analyses ready."""
        assert isinstance(pl_module, MLLMModule)  # `Trainer.analyze` has it so
        where = f"analysis/{self.split}-step{pl_module.trained_steps}"
        run = self._run = AnalysisRun.of(self.analyses, trainer, where)
        run.check_model(pl_module)
        source = provenance(pl_module, trainer.datamodule, self.split)  # type: ignore[attr-defined]
        earlier = None if self.earlier is None else self.earlier / where
        run.begin(pl_module.tokenizer, source, earlier)

    def on_predict_batch_start(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        batch: MultimodalBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Take in a batch, which is on the device already."""
        assert self._run is not None  # `on_predict_start` has it so
        self._run.update(pl_module, batch)

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Put together and write down what was found."""
        assert self._run is not None and isinstance(pl_module, MLLMModule)  # as above
        key, step = f"analysis/{self.split}", pl_module.trained_steps
        self.results = self._run.finish(trainer.loggers, key, step)
        self._run = None

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Tell the other processes not to wait for this one."""
        if self._run is not None:
            self._run.fail()


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


class Trainer(TrainerVerbs):
    """Lightning's Trainer, set up for MLLM studies.

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
        if logger is None:
            folder = run.make_folder()
            kwargs["default_root_dir"] = folder
            logger = make_loggers(
                folder,
                name=folder.name,
                group=run.group,
                tags=run.tags,
                mode=run.wandb,
                project=run.project,
            )
        plugins = [*trainer_option_as_list(kwargs.pop("plugins", None)), TrainerCheckpointIO()]
        kwargs.pop("enable_model_summary", None)  # the freeze report says all of it and more
        if kwargs.get("enable_checkpointing") is False:  # the command line always has one
            callbacks = trainer_option_as_list(kwargs.get("callbacks"))
            kwargs["callbacks"] = [each for each in callbacks if not isinstance(each, Checkpoint)]
        # our DataModules divide each batch among the processes: nothing is counted twice
        kwargs.pop("use_distributed_sampler", None)
        try:
            super().__init__(
                logger=logger,
                use_distributed_sampler=False,
                enable_model_summary=False,
                plugins=plugins,
                **kwargs,
            )
        except (MisconfigurationException, ValueError, TypeError) as error:
            raise ConfigError(f"Lightning refuses these options of its Trainer: {error}") from error
        # in a notebook `auto` can be another than on a command line
        check_trainer_strategy(self.strategy)
        self.callbacks.insert(0, RunFolder())  # type: ignore[attr-defined]  # of Lightning's

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
        if ckpt_path is not None and not Path(ckpt_path).is_file():
            raise CheckpointError(
                f"There is no checkpoint file {ckpt_path}. A run never uses the folder of another, "
                "so name the file to continue from, e.g. runs/<name>/checkpoints/last.ckpt."
            )
        if test_before and ckpt_path is None:
            model.trainer = self
            model.configure_model()
            check_fit_trainable(model.adapted, model.learning_rates)
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
        in `rows.csv`.

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
            ConfigError: There is no data, there are no analyses, or two have one name.
        """
        if datamodule is None:
            raise ConfigError(
                "Trainer.analyze goes through the samples of a DataModule; name it: datamodule=..."
            )
        analyses = trainer_option_as_list(analysis)
        check_analysis_run_names(analyses)
        analyzing = _Analyzing(analyses, split, None if resume is None else Path(resume))
        datamodule.predict_split = split
        self.go_through(model, datamodule, ckpt_path, analyzing)
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
        """Write a Hugging Face folder, with projector and PEFT adapter beside it.

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
        """
        model.configure_model()
        record = {"inputs": model.inputs}
        if ckpt_path is not None:
            content = checkpoints.load_training_checkpoint(Path(ckpt_path))
            model.on_load_checkpoint(content)
            model.load_state_dict(content["state_dict"])
            record = content[checkpoints.KEY]
        geometry = geometry_of_input_record(record, datamodule)
        processor = portable_processor(*astuple(model.source), geometry=geometry)
        own_dtype = None if dtype == "auto" else adapted_dtype(dtype, "cpu")
        options: Any = {"processor": processor, "dtype": own_dtype}
        with pruned_to_stored(model.backbone, subnetwork):
            written = export(model.backbone, Path(output), source=model.source, **options)
        logger.info("Exported %s", ", ".join(map(str, written)))
        return written


def _predicted_samples(trainer: L.Trainer, split: Split) -> Sequence[Sample]:
    """Return the samples that the predict loop goes through, as `limit_predict_batches` says."""
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    size = data.eval_batch_size * trainer.world_size
    return limit_sampling(data.samples[split], trainer.limit_predict_batches, size)
