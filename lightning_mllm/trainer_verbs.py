"""What our Trainer does in its predict loop besides analyses: extract states, answer samples."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import astuple
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar as LightningBar

from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.data.datasets.asked import ask_about_samples, list_asked_pictures
from lightning_mllm.data.images.files import find_image_size
from lightning_mllm.data.images.views import find_views
from lightning_mllm.data.loading.splits import Split
from lightning_mllm.errors import ConfigError
from lightning_mllm.models.module import MLLMModule
from lightning_mllm.models.provenance import provenance
from lightning_mllm.probing.features.points import Point
from lightning_mllm.probing.features.reading import PointReader
from lightning_mllm.probing.features.state_files import (
    INDEX,
    StateDType,
    StateWriter,
    claim_state_folder,
)
from lightning_mllm.probing.features.states import read_states
from lightning_mllm.process_watch import ProcessWatch, watch_processes
from lightning_mllm.progress import ProgressBar, show_progress
from lightning_mllm.run_status import RunStatus
from lightning_mllm.types import Sample

_AFTER_PROJECTOR = Point("post")


class TrainerVerbs(L.Trainer):
    """Lightning's Trainer with `extract`, and with `predict` for pictures without answers.

    Attributes:
        answers: Whether samples are answered in the predict loop; `extract` and `analyze` use it
            for other work.
    """

    answers = True
    _status: RunStatus
    _watch: ProcessWatch | None = None  # of the other processes, while a command runs

    @contextmanager
    def _watching(self) -> Iterator[None]:
        """Watch the other processes, unless a block around this one does."""
        if self.world_size == 1 or self._watch is not None:
            yield
            return
        self._watch = watch_processes(self, self._status)
        try:
            yield
        finally:
            self._watch.stop()
            self._watch = None

    def _explaining(self) -> AbstractContextManager[None]:
        return nullcontext() if self._watch is None else self._watch.explaining()

    def extract(
        self,
        model: MLLMModule,
        datamodule: Any = None,
        ckpt_path: str | Path | None = None,
        *,
        output: str,
        points: Point | Sequence[Point] = _AFTER_PROJECTOR,
        split: Split = "test",
        dtype: StateDType = "float32",
    ) -> Path:
        """Write hidden states of a split, per token or pooled, to files that need no framework.

        The folder gets safetensors files, and `index.csv`, which says which rows of which file are
        a sample's, and what each row is. They are written batch by batch. The same command again
        continues where it was stopped.

        Args:
            model: The module.
            datamodule: The data, which must be given.
            ckpt_path: Training checkpoint; without it states of the model as it is are extracted.
            output: The folder to make.
            points: Where states are read, e.g. {place: image, layer: 12, pooling: none}.
            split: Which split of the data is gone through.
            dtype: Data type of the states in the files.

        Returns:
            The index.

        Raises:
            ConfigError: There is no data, a point does not exist in this model, or the folder has
                something else in it.
        """
        if datamodule is None:
            raise ConfigError(
                "Trainer.extract goes through the samples of a DataModule; name it: datamodule=..."
            )
        points = [points] if isinstance(points, Point) else list(points)
        extracting = _Extracting(Path(output), points, split, dtype)
        datamodule.predict_split = split
        try:
            self.go_through(model, datamodule, ckpt_path, extracting)
        finally:
            extracting.close()
        return Path(output) / INDEX  # which the first process has made

    def go_through(
        self, model: MLLMModule, datamodule: Any, ckpt_path: str | Path | None, work: L.Callback
    ) -> None:
        """Let a callback do its work in the predict loop, in which nothing is answered.

        Args:
            model: The module.
            datamodule: The data, whose `predict_split` says what is gone through.
            ckpt_path: Training checkpoint.
            work: The callback, which shows how far it is: Lightning's bars know batches only.
        """
        trainer: Any = self
        before: list[L.Callback] = trainer.callbacks
        trainer.callbacks = [each for each in before if not isinstance(each, LightningBar)] + [work]
        self.answers = False
        options: dict[str, Any] = {"ckpt_path": ckpt_path, "return_predictions": False}
        try:
            self.predict(model, datamodule=datamodule, **options)
        finally:
            self.answers = True
            trainer.callbacks = before

    def predict(  # type: ignore[override]  # a superset, by keyword
        self,
        model: Any = None,
        dataloaders: Any = None,
        datamodule: Any = None,
        return_predictions: bool | None = None,
        ckpt_path: str | Path | None = None,
        *,
        split: Split | None = None,
        images: str | None = None,
        question: str | None = None,
        classes: Sequence[str] = (),
    ) -> Any:
        """Answer the samples of a split, or pictures of your own, and write `predictions.csv`.

        The callback `AnswerTable`, which the command line adds, writes the file; other callbacks
        see each batch, too.

        Args:
            model: The module.
            dataloaders: As in Lightning.
            datamodule: The data; with `images` they say what is asked.
            return_predictions: Whether the number of samples of each batch is returned.
            ckpt_path: Training checkpoint; without it the model answers as it is.
            split: Which split of the data is answered; by default the test split.
            images: A folder of pictures that are answered instead of a split; they need no labels.
            question: What is asked about these pictures; by default what the data ask about theirs.
            classes: The classes to choose from for these pictures; by default those of the data.

        Raises:
            ConfigError: There is neither data nor a folder of pictures, or nothing to ask.
            DataError: There is no such folder, or no picture in it.
        """
        with self._status.during("predict", self), warnings.catch_warnings():
            # states of a fit's callbacks, which nothing here needs
            warnings.filterwarnings("ignore", "Be aware that when using `ckpt_path`")
            if images is None and (question is not None or classes):
                raise ConfigError(
                    "--question and --classes are about pictures of your own. Name their folder: "
                    "--images FOLDER."
                )
            if images is not None and split is not None:
                raise ConfigError(
                    "--split is about the data, --images about pictures of your own. Leave one out."
                )
            if images is not None:
                asked = list_asked_pictures(Path(images))
                source = astuple(model.source)
                datamodule = ask_about_samples(asked, source, datamodule, question, classes)
            elif datamodule is None and dataloaders is None:
                raise ConfigError(
                    "There is nothing to answer. Name a dataset (--data ImageFolder --data."
                    "init_args.root FOLDER), or a folder of pictures without labels (--images "
                    "FOLDER)."
                )
            elif split is not None:
                datamodule.predict_split = split
            return super().predict(model, dataloaders, datamodule, return_predictions, ckpt_path)


class _Extracting(L.Callback):
    """Writes states in the predict loop, which loads the weights and starts all processes."""

    def __init__(
        self, folder: Path, points: Sequence[Point], split: Split, dtype: StateDType
    ) -> None:
        self._folder, self._points, self._split = folder, points, split
        self._dtype: StateDType = dtype
        self._open = ExitStack()
        self._bar: ProgressBar | None = None

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Get folder, reader and writer ready."""
        assert isinstance(pl_module, MLLMModule)  # `extract` has it so
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        self._reader = PointReader(pl_module.backbone, self._points)
        source = provenance(pl_module, data, self._split)  # the weights may be on all processes
        if trainer.is_global_zero:
            settings = {
                "points": [point.name for point in self._points],
                "dtype": self._dtype,
                "source": source,
            }
            claim_state_folder(self._folder, settings)
        trainer.strategy.barrier()
        self._writer = StateWriter(
            self._folder,
            self._points,
            dtype=self._dtype,
            split=self._split,
            rank=trainer.global_rank,
            world_size=trainer.world_size,
        )
        trainer.strategy.barrier()  # all have seen which files there are
        self._shares = [list(share) for share in data.plain_dataloader(self._split).batch_sampler]
        total = sum(int(count) for count in trainer.num_predict_batches)
        self._bar = self._open.enter_context(show_progress("Extracting states", total))

    def on_predict_batch_start(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        batch: MultimodalBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Write the states of a batch, unless they were written before."""
        assert isinstance(pl_module, MLLMModule) and self._bar is not None  # as above
        done = self._writer.done
        new = [row for row, sample_id in enumerate(batch.sample_ids) if sample_id not in done]
        states = []
        with pl_module.adapted.autocast(pl_module.device.type):  # all processes enter it
            if new:
                states = list(read_states(self._reader, batch.take(new), self._points))
        if new:
            data: Any = trainer.datamodule  # type: ignore[attr-defined]
            samples = [data.samples[self._split][index] for _, index in self._shares[batch_idx]]
            shown = {each.sample_id: len(each.images) for each in states if each.images}
            labels, grids = {}, {}
            for sample in samples:
                labels[sample.id] = sample.label or ""
                if count := shown.get(sample.id):
                    grids[sample.id] = _list_grids(sample, count, data.eval_collator)
            self._writer.add(states, labels, grids)
        self._bar.advance()

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write what is left, and the index."""
        self._writer.flush()
        trainer.strategy.barrier()
        if trainer.is_global_zero:
            self._writer.merge()
        trainer.strategy.barrier()
        self.close()

    def close(self) -> None:
        """Take the bar away."""
        self._open.close()


def _list_grids(sample: Sample, count: int, collator: Any) -> list[Any]:
    """Return [rows, columns, whether a separator ends each row] of each view of each picture.

    None stands for a picture of which it is not known. Only the last `count` pictures are there: a
    conversation that is too long has lost those of its first exchanges.
    """
    grids: list[Any] = []
    for image in sample.images[-count:]:
        views = find_views(find_image_size(image), collator.geometry, collator.processor)
        grid = None
        if views is not None:
            grid = [[len(view.rows), len(view.columns), view.newline] for view in views]
        grids.append(grid)
    return grids
